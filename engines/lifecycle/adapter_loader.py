"""An adapter into one engine and out of it: its files into the engine's folder, and the calls to the engine.

The files are copied into a folder that an engine in a sandbox sees read-only. A mount for each adapter would
need namespaces, which not every host has.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldstart.sandbox.untrusted_files import put_files, remove_folder
from engines.adapter import Adapter
from engines.errors import AdapterGone, AdapterRejected, EngineBroken
from engines.lifecycle.control_calls import call
from engines.patience import Patience
from engines.status import EngineLease

FILES = ("adapter_config.json", "adapter_model.safetensors")
_LOAD_TIMEOUT_S = 60.0
_PATH = "/torpor/adapters"


@dataclass(frozen=True, slots=True)
class AdapterLoader:
    """One engine's: its socket, its folder of adapters, where it sees this, and how long it may take.

    ``uid``: the user that the engine is; None: this process's.
    """

    socket: Path
    folder: Path
    inside: Path
    patience: Patience
    uid: int | None = None

    async def load(self, adapter: Adapter, name: str, number: int, leaver: str | None) -> None:
        """Load the adapter under a name that is new to this engine; ``leaver`` is unloaded before.

        Raises `AdapterRejected`, `AdapterGone` if its files are gone, `EngineBroken`.
        """
        try:
            files = [adapter.folder / file for file in FILES]
            parent, group = self.folder.parent, self.folder.name
            await asyncio.to_thread(put_files, files, parent, group, name, uid=self.uid)
        except FileNotFoundError:
            raise AdapterGone(adapter.name) from None
        except OSError as error:
            raise AdapterRejected(f"the adapter's files cannot be read: {error.strerror}") from error
        body = {
            "name": name,
            "number": number,
            "folder": str(self.inside / name),
            "canary": None if adapter.canary is None else json.loads(adapter.canary),
            "leaver": leaver,
        }
        try:
            await self._ask("POST", _PATH, body, _LOAD_TIMEOUT_S)
        except AdapterRejected:
            await self._remove(name)
            raise
        finally:
            if leaver is not None:
                await self._remove(leaver)

    async def unload(self, name: str) -> None:
        """Forget it and its files, when its last request has ended. Raises `EngineBroken`."""
        await self._ask("DELETE", f"{_PATH}/{name}", None, _LOAD_TIMEOUT_S)
        await self._remove(name)

    async def proof(self, name: str) -> Mapping[str, Any]:
        """Wait for its canary: ``{"fit", "deviation", "share", "ms"}``. Raises `EngineBroken`."""
        limit_s = self.patience.proof_s(_LOAD_TIMEOUT_S)
        answer: Mapping[str, Any] = await self._ask("GET", f"{_PATH}/{name}/proof", None, limit_s)
        return answer

    async def sweep(self) -> None:
        """The engine has unloaded all of them: so do their files go."""
        await asyncio.to_thread(remove_folder, self.folder.parent, self.folder.name)

    async def _remove(self, name: str) -> None:
        await asyncio.to_thread(remove_folder, self.folder.parent, self.folder.name, name)

    async def _ask(self, method: str, path: str, value: Any, timeout_s: float) -> Any:
        return await _ask(self.socket, method, path, value, timeout_s)


async def record(lease: EngineLease, patience: Patience) -> bytes:
    """Record the canary of the adapter that the lease is for. Raises `AdapterRejected`, `EngineBroken`."""
    path = f"{_PATH}/{lease.internal_name}/canary"
    answer = await _ask(Path(lease.address.uds or ""), "POST", path, None, patience.canary_s)
    return json.dumps(answer).encode()


async def _ask(socket: Path, method: str, path: str, value: Any, timeout_s: float) -> Any:
    status, answer = await call(socket, method, path, value, timeout_s=timeout_s)
    if status == 422:
        raise AdapterRejected(answer["error"])
    if status != 200:
        raise EngineBroken(f"the engine does not handle the adapter: {answer}")
    return answer
