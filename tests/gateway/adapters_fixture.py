"""A gateway with two tenants whose base model takes adapters. Its engine is scenery: the stand-in answers."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.adapter import Adapter
from engines.errors import AdapterRejected
from engines.host import EngineHost
from engines.spec import LoraSettings
from engines.status import EngineLease
from gateway.adapters.service import Adapters, open_adapters
from gateway.config.prices import PriceConfig
from gateway.config.sections import AdaptersConfig
from gateway.inference.catalog import Catalog
from gateway.storage.data_directory import DataDirectory
from loadtest.adapter_files import CONFIG, WEIGHTS, adapter_config, adapter_tensors, safetensors_bytes
from tests.gateway.app_fixture import Stage, stage_at
from tests.process import MODELS

BASE = MODELS / "smollm2-135m"
MODULES = ("q_proj",)
ADAPTERS = "/v1/torpor/adapters"
Files = dict[str, tuple[str, bytes]]


@dataclass
class Examiner:
    """Stands for the engine that sees each adapter before it is registered, and forgets it in the end."""

    examined: list[Adapter] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    refusal: str | None = None
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.go_on.set()

    async def examine(self, model_id: str, adapter: Adapter) -> bytes:
        self.examined.append(adapter)
        assert sorted(file.name for file in adapter.folder.iterdir()) == [CONFIG, WEIGHTS]
        await self.go_on.wait()
        if self.refusal is not None:
            raise AdapterRejected(self.refusal)
        return f"canary of {model_id} with {adapter.digest}".encode()

    def forget(self, digest: str) -> None:
        self.forgotten.append(digest)


@dataclass
class AdapterStage:
    """The stage of the limits, its adapters, and what the engine was asked for."""

    stage: Stage
    folder: Path
    examiner: Examiner
    config: AdaptersConfig
    leases: list[EngineLease] = field(default_factory=list)

    @property
    def adapters(self) -> Adapters:
        return self.stage.services.adapters

    async def reopen(self) -> None:
        """As after a restart: what was only in memory is gone."""
        services = self.stage.services
        folder = DataDirectory(self.folder).adapter_folder
        adapters = await open_adapters(services.database, folder, self.examiner, self.config)
        self.stage.replace(adapters=adapters)

    def contents(self) -> set[str]:
        """The digests that the store keeps."""
        return {result.name for result in (self.folder / "adapters" / "content").glob("*/*")}

    @asynccontextmanager
    async def token(
        self, user: str, key: str | None = None, **fields: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        """A client whose token names the user; made by the first tenant's key, unless by another."""
        async with self.stage.client(key or self.stage.tenant.key) as maker:
            body = {"user": user, "scopes": ["all"], **fields}
            created = await maker.post("/v1/torpor/tokens", json=body)
        assert created.status_code == 200, created.text
        async with self.stage.client(created.json()["value"]) as http:
            yield http


def files(seed: int = 1, **changes: Any) -> Files:
    """The parts of an upload: a small adapter, different for each seed."""
    tensors = adapter_tensors(BASE, seed=seed, rank=1, modules=MODULES)
    config = adapter_config(rank=1, modules=MODULES, **changes)
    return {
        "file": (WEIGHTS, safetensors_bytes(tensors)),
        "config": (CONFIG, json.dumps(config).encode()),
    }


def fields(**changes: str) -> dict[str, str]:
    """The fields of an upload."""
    return {"base_model": "near", "suffix": "mine", **changes}


async def add(http: httpx.AsyncClient, seed: int = 1, **changes: str) -> dict[str, Any]:
    """A registered adapter."""
    answer = await http.post(ADAPTERS, data=fields(**changes), files=files(seed))
    assert answer.status_code == 200, answer.text
    created: dict[str, Any] = answer.json()
    return created


@asynccontextmanager
async def adapter_stage_at(
    folder: Path,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    config: AdaptersConfig | None = None,
    prices: Sequence[PriceConfig] = (),
    near: Mapping[str, Any] | None = None,
) -> AsyncIterator[AdapterStage]:
    """``near`` takes adapters, and the stand-in at ``engine`` answers for it; ``away`` takes none."""
    async with stage_at(folder, engine, prices=prices, near=near) as stage:
        services = stage.services
        near_model = services.catalog.get("near")
        away = services.catalog.get("away")
        assert near_model is not None
        assert away is not None
        spec = replace(near_model.spec, source=BASE, lora=LoraSettings())
        stage.replace(catalog=Catalog([replace(near_model, spec=spec), away]))
        opened = AdapterStage(stage, folder, Examiner(), config or AdaptersConfig())
        acquire = EngineHost.acquire

        @asynccontextmanager
        async def acquire_any(
            host: EngineHost, model_id: str, adapter: Adapter | None = None, **options: Any
        ) -> AsyncIterator[EngineLease]:
            async with acquire(host, model_id, None, **options) as lease:
                name = None if adapter is None else f"{adapter.digest[:8]}-{secrets.token_hex(2)}"
                given = replace(lease, adapter=adapter, internal_name=name)
                opened.leases.append(given)
                yield given

        monkeypatch.setattr(EngineHost, "acquire", acquire_any)
        await opened.reopen()
        yield opened
