"""``/v1/torpor/engines``: what the engines are doing; waking them, putting them to sleep, dumping them."""

import asyncio
from typing import Annotated, Any, Literal

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coldstart.tiers import SleepTier
from engines.sizing import Sizing
from engines.status import EngineStatus, ResidentAdapter
from gateway.api.authentication import authenticate
from gateway.api.body import ONLY_INVALID_VALUE, Body, read
from gateway.services import Services, services_of
from tenants.audit import Act
from tenants.types import KeyKind


class Sleep(Body, forbid_unknown_fields=False):
    """How deep an engine is to sleep."""

    tier: Annotated[Literal["paused", "snapshot", "cold"], Meta(extra={**ONLY_INVALID_VALUE})]


def engine_object(status: EngineStatus, sizing: Sizing | None, *, for_operator: bool) -> dict[str, Any]:
    """Torpor's ``engine`` object. Memory in bytes, times in unix seconds, durations in milliseconds.

    Only the operator sees ``failure``: an engine's own words hold paths and stacks. The same holds for whose
    a dedicated replica is, and for the adapters that an engine holds. ``sizing``: what was chosen for the
    model's engines on this machine, and why.
    """
    return {
        "id": status.id,
        "object": "torpor.engine",
        "state": status.state,
        "tier": status.tier,
        "memory_bytes": status.memory_bytes,
        "in_flight": status.in_flight,
        **({"failure": status.failure} if for_operator else {}),
        **({"sizing": sizing and sizing.summary()} if for_operator else {}),
        "replicas": [
            {
                "number": replica.number,
                "state": replica.state,
                "memory_bytes": replica.memory_bytes,
                "in_flight": replica.in_flight,
                **(
                    {"adapters": [_resident(adapter) for adapter in replica.adapters]} if for_operator else {}
                ),
                **({"project_id": replica.pool} if for_operator and replica.pool else {}),
            }
            for replica in status.replicas
        ],
        "wakes": [
            {"at": wake.at, "from": wake.source, "ms": {phase: round(ms, 1) for phase, ms in wake.ms.items()}}
            for wake in status.wakes
        ],
    }


def _resident(adapter: ResidentAdapter) -> dict[str, Any]:
    return {"digest": adapter.digest, "in_flight": adapter.in_flight, "proven": adapter.verified}


async def list_engines(request: Request) -> Response:
    """``GET /v1/torpor/engines``; with the root key also the memory that the engines share."""
    principal = await authenticate(request, KeyKind.ROOT, KeyKind.ADMIN)
    operator = principal.kind is KeyKind.ROOT
    host = services_of(request).host
    answer: dict[str, Any] = {
        "object": "list",
        "data": [
            engine_object(status, spec.sizing, for_operator=operator)
            for spec, status in zip(host.specs, host.status(), strict=True)
        ],
    }
    if operator:
        memory = await asyncio.to_thread(host.memory)
        answer["memory"] = {
            "limit_bytes": memory.limit,
            "reserved_bytes": memory.reserved,
            "spare_sandboxes_bytes": memory.spare_sandboxes,
        }
    return JSONResponse(answer)


async def wake_engine(request: Request) -> Response:
    """``POST /v1/torpor/engines/{model}/wake``: answers when it is awake."""
    services, name = await _root(request)
    await record_engine_act(services, "torpor.engine.wake", name)
    return _answer(services, await services.host.wake(name))


async def sleep_engine(request: Request) -> Response:
    """``POST /v1/torpor/engines/{model}/sleep`` with ``{"tier": ...}``: answers when it sleeps."""
    services, name = await _root(request)
    tier = (await read(request, Sleep)).tier
    await record_engine_act(services, "torpor.engine.sleep", name, tier=tier)
    return _answer(services, await services.host.sleep(name, SleepTier(tier)))


async def snapshot_engine(request: Request) -> Response:
    """``POST /v1/torpor/engines/{model}/snapshot``: answers when the new snapshot has been verified."""
    services, name = await _root(request)
    await record_engine_act(services, "torpor.engine.snapshot", name)
    return _answer(services, await services.host.snapshot(name))


def _answer(services: Services, status: EngineStatus) -> Response:
    sizing = next((spec.sizing for spec in services.host.specs if spec.id == status.id), None)
    return JSONResponse(engine_object(status, sizing, for_operator=True))


async def record_engine_act(services: Services, kind: str, name: str, **details: str) -> None:
    """Put what is asked of an engine into the audit log, before it is done."""
    if any(spec.id == name for spec in services.host.specs):
        await services.tenants.audit.write(Act(kind, None, name, details={"id": name, **details}))


async def _root(request: Request) -> tuple[Services, str]:
    await authenticate(request, KeyKind.ROOT)
    return services_of(request), request.path_params["model"]


_ENGINES = "/v1/torpor/engines"
ROUTES: list[Route] = [
    Route(_ENGINES, list_engines, methods=["GET"]),
    Route(f"{_ENGINES}/{{model:path}}/wake", wake_engine, methods=["POST"]),
    Route(f"{_ENGINES}/{{model:path}}/sleep", sleep_engine, methods=["POST"]),
    Route(f"{_ENGINES}/{{model:path}}/snapshot", snapshot_engine, methods=["POST"]),
]
