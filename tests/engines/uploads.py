"""Adapters for the stand-in, and requests for them."""

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from engines.adapter import Adapter
from engines.client.engine_client import EngineClient
from engines.host import EngineHost
from engines.lifecycle.process import EngineProcess, Runtime
from engines.spec import LoraSettings, ModelSpec
from engines.status import EngineLease
from tests.engines.snapshot_fixtures import model
from tests.engines.support import QUICK, standin_argv

FEW = LoraSettings(slots=2, cpu_slots=3)


PATIENT = replace(QUICK, health_failures=100, drain_timeout_s=20.0)
"""Nothing here is about engines that are slow to answer."""


def engine(spec: ModelSpec, runtime: Runtime) -> EngineProcess:
    """A stand-in that is given time to answer its health check."""
    return EngineProcess(spec, runtime, argv=standin_argv, health_timeout_s=5.0)


def base(**changes: object) -> ModelSpec:
    """A model whose engines have two slots and room for three adapters."""
    return replace(model(), **{"lora": FEW, **changes})  # type: ignore[arg-type]


def uploaded(folder: Path, text: str) -> Adapter:
    """An adapter whose answers are its text, as it was examined."""
    digest = sha256(text.encode()).hexdigest()
    files = folder / "uploads" / digest
    files.mkdir(parents=True, exist_ok=True)
    (files / "adapter_config.json").write_text(text)
    (files / "adapter_model.safetensors").write_bytes(b"weights")
    canary = json.dumps({"text": text}).encode()
    return Adapter(f"ft:model:org:{text}:1", digest, files, rank=8, canary=canary)


def renamed(adapter: Adapter, name: str) -> Adapter:
    """The same content, uploaded by another tenant."""
    return replace(adapter, name=name)


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a request."""

    status: int
    body: dict[str, Any]
    lease: EngineLease

    @property
    def text(self) -> str:
        return str(self.body.get("text"))

    @property
    def model(self) -> str:
        return str(self.body.get("model"))


async def ask(host: EngineHost, adapter: Adapter, *, takes_s: float = 0.0, timeout_s: float = 10.0) -> Told:
    async with host.acquire("model", adapter, timeout_s=timeout_s) as lease:
        return await ask_with(lease, takes_s=takes_s)


async def ask_with(lease: EngineLease, *, takes_s: float = 0.0) -> Told:
    body = json.dumps({"model": lease.served_model_name, "takes_s": takes_s}).encode()
    async with EngineClient(lease.address) as client:
        reply = await client.request("POST", "/v1/completions", body, timeout_s=10)
    return Told(reply.status, json.loads(reply.body), lease)


async def peak(lease: EngineLease) -> dict[str, int]:
    """The most adapters that the engine had loaded and in use at once, and its loads."""
    async with EngineClient(lease.address) as client:
        answer: dict[str, int] = json.loads((await client.request("GET", "/peak", timeout_s=5)).body)
    return answer


async def spoil(host: EngineHost, *texts: str) -> EngineLease:
    """The next loads of the engine that is awake get these texts instead of their own."""
    async with host.acquire("model") as lease, EngineClient(lease.address) as client:
        await client.request("POST", "/sabotage", json.dumps(texts).encode(), timeout_s=5)
    return lease


def residents(host: EngineHost) -> dict[str, int]:
    """Who is loaded, by the beginning of the digest."""
    return {digest[:8]: count for digest, count in host.resident("model").items()}


def named(*adapters: Adapter) -> dict[str, int]:
    return {adapter.digest[:8]: 1 for adapter in adapters}
