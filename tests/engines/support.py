"""What the tests of engines/ share."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from engines.host import EngineHost
from engines.lifecycle.process import EngineProcess, Runtime
from engines.policy import HostPolicy
from engines.spec import ModelSpec
from tests.process_table import processes_with

ROOT = Path(__file__).resolve().parents[2]
CRIU_DIR = ROOT / ".criu"
STANDIN = Path(__file__).with_name("standin.py")
# The host's own times, made short.
QUICK = HostPolicy(
    backoff_s=0.3,
    backoff_max_s=1.0,
    stable_s=5.0,
    drain_timeout_s=1.0,
    stop_grace_s=0.5,
    health_interval_s=0.1,
    health_failures=2,
    spare_sandboxes=0,
)


def standin_argv(spec: ModelSpec, socket: Path) -> list[str]:
    """The stand-in's arguments; ``engine_args`` are its options. A sandbox does not hold its file."""
    return ["-S", "-c", STANDIN.read_text(), str(socket), *spec.engine_args]


def standin(spec: ModelSpec, runtime: Runtime) -> EngineProcess:
    """A stand-in in the real sandbox."""
    return EngineProcess(spec, runtime, argv=standin_argv, health_timeout_s=0.3)


def with_tests(spec: ModelSpec, runtime: Runtime) -> EngineProcess:
    """The real engine, whose sandbox holds the tests as well, for an extension of its worker."""
    sandboxes = runtime.sandboxes
    sandboxes.layout = sandboxes.layout.with_binds({runtime.root.source / "tests": ROOT / "tests"})
    return EngineProcess(spec, runtime)


class Starts:
    """Makes stand-ins and counts them. ``options`` may be changed from one start to the next."""

    def __init__(self, *options: str) -> None:
        self.options = options
        self.created: list[EngineProcess] = []

    def __call__(self, spec: ModelSpec, runtime: Runtime) -> EngineProcess:
        argv: Callable[[ModelSpec, Path], list[str]] = lambda spec, socket: [  # noqa: E731
            *standin_argv(spec, socket),
            *self.options,
        ]
        engine = EngineProcess(spec, runtime, argv=argv, health_timeout_s=0.3)
        self.created.append(engine)
        return engine


def spec(
    name: str = "model", *options: str, start_timeout_s: float = 10.0, preload: bool = False
) -> ModelSpec:
    """A model that a stand-in serves."""
    return ModelSpec(
        id=name,
        source=Path("/nonexistent"),
        engine_args=options,
        start_timeout_s=start_timeout_s,
        preload=preload,
    )


def host(run_dir: Path, make: Callable[[ModelSpec, Runtime], EngineProcess] = standin) -> EngineHost:
    """A host with one model."""
    return EngineHost([spec()], run_dir=run_dir, policy=QUICK, make=make)


async def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def folders(run_dir: Path) -> list[Path]:
    """The folders of engines that are there."""
    return list(run_dir.glob("engine-*"))


def no_trace(run_dir: Path) -> Callable[[], bool]:
    """Whether neither a process nor a folder of an engine below ``run_dir`` is left."""
    return partial(_no_trace, run_dir)


def _no_trace(run_dir: Path) -> bool:
    return not processes_with(run_dir) and not folders(run_dir)
