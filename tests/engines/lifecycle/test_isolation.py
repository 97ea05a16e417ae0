"""What an engine that was taken over tries is refused: in a fresh engine, and in a restored one."""

from pathlib import Path

import pytest

from engines.lifecycle.process import EngineProcess, Runtime
from engines.spec import ModelSpec
from engines.wire import ENGINE_DIR
from loadtest.isolation import Outcomes, attacked_engine, outcomes
from tests.engines.support import STANDIN
from tests.engines.support import spec as standin_spec
from tests.engines.vllm_process.test_server import CHAT

_ORDERS = """import sys
sys.path.insert(0, "/opt/torpor/source")
from loadtest.isolation_watch import watch
watch({folder!r})
"""


def attacked_standin(spec: ModelSpec, runtime: Runtime) -> EngineProcess:
    """A stand-in that waits for orders, as the extension of the real engine's worker does."""
    code = _ORDERS.format(folder=str(ENGINE_DIR)) + STANDIN.read_text()
    return EngineProcess(spec, runtime, argv=lambda _, socket: ["-S", "-c", code, str(socket)])


def _successes(results: Outcomes) -> dict[str, tuple[str, str]]:
    return {
        name: pair
        for name, pair in results.items()
        if not all(outcome.startswith("refused") for outcome in pair)
    }


@pytest.mark.timeout(120)
async def test_nothing_that_a_process_of_the_sandbox_tries_succeeds(run_dir: Path) -> None:
    results = await outcomes(attacked_standin, standin_spec(), run_dir)
    assert _successes(results) == {}
    assert len(results) >= 100


@pytest.mark.timeout(300)
async def test_nothing_that_a_child_of_the_real_engine_tries_succeeds(run_dir: Path) -> None:
    assert _successes(await outcomes(attacked_engine, CHAT, run_dir)) == {}
