"""What an engine can do to its host: ``python -m loadtest isolation [--write PAGE]``.

A child of a real engine, forked in its worker and so with its user, its filter and its root folder, tries to
read, write, escape and disturb (`loadtest.isolation_attempts`): once in an engine that was started, and once
in one that was restored from a snapshot. Every attempt must be refused.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from coldstart.criu import program
from coldstart.sleep_drivers import CpuDriver
from coldstart.snapshots.store import SnapshotStore
from engines.lifecycle import command
from engines.lifecycle.isolation import missing_text, prepare_runtime
from engines.lifecycle.process import EngineProcess, Runtime
from engines.lifecycle.run_folders import RunFolders
from engines.lifecycle.snapshots import EngineSnapshots
from engines.spec import ModelSpec
from loadtest.isolation_watch import REQUEST, RESULTS
from loadtest.report import table

ROOT = Path(__file__).resolve().parents[1]
_MODEL, _OTHER_MODEL = "smollm2-135m", "all-minilm-l6-v2"
_TIMEOUT_S = 180.0
_POLL_S = 0.05
_EXTENSION = "engines.vllm_process.worker.WorkerExtension"
_ATTACKED = "loadtest.isolation_extension.AttackedWorkerExtension"

Outcomes = dict[str, tuple[str, str]]
"""What came of each attempt: in an engine that was started, and in one that was restored."""


class Site:
    """A data directory with secrets, and what listens on the host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listeners = ExitStack()
        self.facts: dict[str, Any] = {"pid": os.getpid()}

    def __enter__(self) -> "Site":
        for name in ("pepper", "credentials", "database"):
            path = self._folder / name
            path.write_text("secret")
            path.chmod(0o600)
            self.facts[name] = str(path)
        snapshot = self._folder / "snapshots" / "other" / "000001" / "manifest.json"
        snapshot.parent.mkdir(parents=True)
        snapshot.write_text("{}")
        self.facts["other_snapshot"] = str(snapshot)
        self.facts["other_model"] = str(ROOT / "models" / _OTHER_MODEL / "config.json")
        self.facts["other_socket"] = str(self._folder / "other")
        self.facts["abstract"] = f"torpor-isolation-{os.getpid()}"
        self._listen(socket.AF_UNIX, self.facts["other_socket"])
        self._listen(socket.AF_UNIX, "\0" + self.facts["abstract"])
        self.facts["port"] = self._listen(socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._listeners.close()

    def _listen(self, family: int, address: Any) -> socket.socket:
        listener = self._listeners.enter_context(socket.socket(family))
        listener.bind(address)
        listener.listen()
        return listener


def attacked_engine(spec: ModelSpec, runtime: Runtime) -> EngineProcess:
    """The real engine, whose worker waits for orders."""

    def argv(seen: ModelSpec, socket_path: Path) -> Sequence[str]:
        return [_ATTACKED if word == _EXTENSION else word for word in command.command(seen, socket_path)]

    return EngineProcess(spec, runtime, argv=argv)


async def outcomes(
    make: Callable[[ModelSpec, Runtime], EngineProcess],
    spec: ModelSpec,
    folder: Path,
) -> Outcomes:
    """Let an engine that was started, and one that was restored from its snapshot, try everything.

    ``make``: makes engines that answer the orders of `loadtest.isolation_attempts`. ``folder``: an empty one.
    """
    folders = RunFolders(folder / "run")
    folders.open()
    store = SnapshotStore(folder / "snapshots")
    store.open()
    runtime, reason = await prepare_runtime(folders, program.find(ROOT / ".criu"), CpuDriver())
    if reason is not None or runtime.isolation.missing:
        raise SystemExit(f"this host lacks walls: {reason or missing_text(runtime.isolation)}")
    layout = runtime.sandboxes.layout
    runtime.sandboxes.layout = layout.with_binds({runtime.root.source / "loadtest": Path(__file__).parent})
    snapshots = EngineSnapshots(store, "isolation", lambda spec: make(spec, runtime))
    try:
        with Site(folder) as site:
            site.facts["memory_bytes"] = runtime.limits(spec).memory_bytes
            fresh = make(spec, runtime)
            try:
                await fresh.start()
                canary = await snapshots.warm_up(spec, fresh)
                draft = store.draft(spec.id)
                dumped = await fresh.dump(draft)
                first = await _order(fresh, site.facts)
            finally:
                await fresh.stop(0)
            snapshot = await snapshots.publish(spec, draft, dumped, canary, {})
            restored = make(spec, runtime)
            try:
                await restored.restore(snapshot)
                await restored.wake(snapshot.manifest.canary)
                await restored.proof()
                second = await _order(restored, site.facts)
            finally:
                await restored.stop(0)
    finally:
        await runtime.sandboxes.close()
        folders.close()
    return {name: (outcome, second[name]) for name, outcome in first.items()}


async def _order(engine: EngineProcess, facts: dict[str, Any]) -> dict[str, str]:
    box = Path(engine.address.uds or "").parent
    draft = box / f".{REQUEST}"
    draft.write_text(json.dumps(facts))
    draft.chmod(0o644)
    draft.rename(box / REQUEST)
    async with asyncio.timeout(_TIMEOUT_S):
        while not (box / RESULTS).exists():  # noqa: ASYNC110 - another process makes the file
            await asyncio.sleep(_POLL_S)
    descriptor = os.open(box / RESULTS, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor) as results:
        return dict(json.load(results))


def page(results: Outcomes) -> str:
    """The table in Markdown."""
    rows = [
        [name, *(outcome.removeprefix("refused: ") for outcome in pair)] for name, pair in results.items()
    ]
    refused = sum(outcome.startswith("refused") for pair in results.values() for outcome in pair)
    return "\n".join(
        [
            "# Isolation of an engine",
            "",
            f"`python -m loadtest isolation`: {_MODEL}, Linux {platform.release()}. A child of the engine, "
            "with its user, filter and root folder, tries what follows: in an engine that was started, and "
            f"in one that was restored from a snapshot. {refused} of {2 * len(results)} attempts were "
            "refused; the cells have the error that each met.",
            "",
            table(["The engine tries to", "started", "restored"], rows, left=3),
            "",
        ]
    )


def main() -> None:
    """Print the table; exit code 1 if an attempt succeeded."""
    parser = argparse.ArgumentParser(prog="python -m loadtest isolation", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this file as well")
    options = parser.parse_args()
    spec = ModelSpec(id=_MODEL, source=ROOT / "models" / _MODEL, dtype="bfloat16")
    with tempfile.TemporaryDirectory(prefix="torpor-") as folder:
        results = asyncio.run(outcomes(attacked_engine, spec, Path(folder)))
    text = page(results)
    print(text)
    if options.write is not None:
        options.write.write_text(text)
    if any(not outcome.startswith("refused") for pair in results.values() for outcome in pair):
        sys.exit("an attempt succeeded")


if __name__ == "__main__":
    main()
