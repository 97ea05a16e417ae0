"""``/v1/torpor/snapshots``: what is on disk, whether it may still be used, and taking it away."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coldstart.snapshots.store import Snapshot
from engines.errors import UnknownModel
from engines.lifecycle.snapshots import EngineSnapshots
from engines.spec import ModelSpec
from gateway.api.authentication import authenticate
from gateway.api.engines import record_engine_act
from gateway.http.errors import unsupported
from gateway.services import Services, services_of
from tenants.types import KeyKind


def _object(snapshot: Snapshot, stale: str | None) -> dict[str, Any]:
    manifest = snapshot.manifest
    return {
        "id": snapshot.id,
        "object": "torpor.snapshot",
        "model": manifest.model_id,
        "created_at": manifest.created_at,
        "disk_bytes": snapshot.layout.disk_bytes(),
        "memory_bytes": manifest.memory_bytes,
        "usable": stale is None,
        "stale": stale,
        "ms": {phase: round(ms, 1) for phase, ms in manifest.ms.items()},
    }


def _objects(snapshots: EngineSnapshots, specs: list[ModelSpec]) -> list[dict[str, Any]]:
    """Read the snapshots of all models from the disk: call it in a thread."""
    return [_object(snapshot, stale) for spec in specs for snapshot, stale in snapshots.listed(spec)]


async def list_snapshots(request: Request) -> Response:
    """``GET /v1/torpor/snapshots``."""
    services, snapshots = await _root(request)
    data = await asyncio.to_thread(_objects, snapshots, _specs(services))
    return JSONResponse({"object": "list", "data": data})


async def verify_snapshot(request: Request) -> Response:
    """``POST /v1/torpor/snapshots/{model}``: reads every byte of the model's snapshot."""
    services, snapshots = await _root(request)
    spec = _spec(services, request.path_params["model"])
    result = await snapshots.verify(spec)
    if result.newest is None:
        return JSONResponse({"object": "list", "data": []})
    read = await asyncio.to_thread(_object, result.newest, result.stale)
    return JSONResponse({"object": "list", "data": [read]})


async def remove_snapshots(request: Request) -> Response:
    """``DELETE /v1/torpor/snapshots/{model}``: all of the model's. Engines that were restored go on."""
    services, snapshots = await _root(request)
    spec = _spec(services, request.path_params["model"])
    await record_engine_act(services, "torpor.snapshots.remove", spec.id)
    removed = [
        {"id": snapshot_id, "object": "torpor.snapshot.deleted", "deleted": True}
        for snapshot_id in await snapshots.forget(spec)
    ]
    return JSONResponse({"object": "list", "data": removed})


async def _root(request: Request) -> tuple[Services, EngineSnapshots]:
    await authenticate(request, KeyKind.ROOT)
    services = services_of(request)
    snapshots = services.host.snapshots
    if snapshots is None:
        raise unsupported("This host cannot make snapshots. `torpor doctor` says what is missing.")
    return services, snapshots


def _specs(services: Services) -> list[ModelSpec]:
    return [spec for spec in services.host.specs if not spec.remote]


def _spec(services: Services, name: str) -> ModelSpec:
    for spec in _specs(services):
        if spec.id == name:
            return spec
    raise UnknownModel(name)


_SNAPSHOTS = "/v1/torpor/snapshots"
ROUTES: list[Route] = [
    Route(_SNAPSHOTS, list_snapshots, methods=["GET"]),
    Route(f"{_SNAPSHOTS}/{{model:path}}", verify_snapshot, methods=["POST"]),
    Route(f"{_SNAPSHOTS}/{{model:path}}", remove_snapshots, methods=["DELETE"]),
]
