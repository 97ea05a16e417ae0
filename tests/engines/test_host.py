"""The host's decisions, with real processes that stand for engines."""

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from coldstart.sandbox.namespaces import Isolation
from coldstart.sandbox.root_layout import RootLayout
from coldstart.sandbox.spares import SandboxPool
from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.client.engine_client import EngineClient
from engines.errors import (
    AdapterRejected,
    EngineBroken,
    EngineUnavailable,
    HostClosing,
    UnknownModel,
    UnsupportedTier,
)
from engines.host import EngineHost
from engines.lifecycle.process import EngineProcess, Runtime
from engines.lifecycle.run_folders import RunFoldersInUse
from engines.spec import ModelSpec
from engines.status import EngineLease, EngineState
from tests.engines.support import (
    QUICK,
    ROOT,
    Starts,
    eventually,
    folders,
    host,
    no_trace,
    spec,
    standin,
)
from tests.process_table import processes_with

# Run as a gateway would: a host in a process of its own, with one engine that is awake and one that starts.
HOST = """
import asyncio, sys
from pathlib import Path
from engines.lifecycle.run_folders import RunFoldersInUse
from engines.host import EngineHost
from tests.engines.support import QUICK, ROOT, Starts, spec

async def main() -> None:
    specs = [spec("first"), spec("second", "start_s=1")]
    async with EngineHost(specs, run_dir=Path(sys.argv[1]), policy=QUICK, make=Starts()) as engines:
        waking = asyncio.create_task(engines.wake("second"))
        async with engines.acquire("first"):
            print("awake", flush=True)
            await waking
            await asyncio.sleep(1000)

asyncio.run(main())
"""


async def echo(lease: EngineLease) -> bytes:
    async with EngineClient(lease.address) as client:
        return (await client.request("POST", "/echo", b"hello", timeout_s=5)).body


async def die(lease: EngineLease) -> None:
    async with EngineClient(lease.address) as client:
        with pytest.raises(EngineBroken):
            await client.request("POST", "/die", b"", timeout_s=5)


def state(a_host: EngineHost) -> EngineState:
    return a_host.status()[0].state


async def test_a_request_wakes_the_engine_and_finds_it_hot_afterwards(run_dir: Path) -> None:
    async with host(run_dir) as engines:
        assert state(engines) is EngineState.COLD
        async with engines.acquire("model") as lease:
            assert (lease.tier, lease.wake_s > 0.1) == (SleepTier.COLD, True)
            assert (await echo(lease)).endswith(b"hello")
            assert engines.status()[0].in_flight == 1
        async with engines.acquire("model") as lease:
            assert (lease.tier, lease.wake_s) == (SleepTier.HOT, 0.0)
        assert await eventually(lambda: engines.status()[0].in_flight == 0)
        assert await eventually(lambda: engines.status()[0].memory_bytes > 1_000_000)
        status = engines.status()[0]
        assert status.started_at is not None
        assert [(wake.source, wake.ms["total"] > 100) for wake in status.wakes] == [(SleepTier.COLD, True)]
    assert no_trace(run_dir)()


async def test_one_start_is_shared_by_all_who_wait(run_dir: Path) -> None:
    starts = Starts("start_s=0.3")

    async def use(engines: EngineHost) -> str | None:
        async with engines.acquire("model") as lease:
            await echo(lease)
            return lease.address.uds

    async with host(run_dir, starts) as engines:
        assert len(set(await asyncio.gather(*(use(engines) for _ in range(40))))) == 1
        assert len(starts.created) == 1
        assert await eventually(lambda: engines.status()[0].in_flight == 0)


async def test_waiting_is_bounded_and_the_start_goes_on_for_others(run_dir: Path) -> None:
    starts = Starts("start_s=0.6")
    async with host(run_dir, starts) as engines:
        began = time.monotonic()
        with pytest.raises(EngineUnavailable) as caught:
            async with engines.acquire("model", timeout_s=0.2):
                pass
        assert 0.2 <= time.monotonic() - began < 0.5
        assert caught.value.retry_after_s > 0
        async with engines.acquire("model"):
            assert len(starts.created) == 1


async def test_a_cancelled_waiter_leaves_nothing_behind(run_dir: Path) -> None:
    async def use(engines: EngineHost) -> None:
        async with engines.acquire("model"):
            await asyncio.sleep(100)

    async with host(run_dir, Starts("start_s=0.3")) as engines:
        for delay in (0.0, 0.001, 0.1, 0.3):
            tasks = [asyncio.create_task(use(engines)) for _ in range(10)]
            await asyncio.sleep(delay)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await engines.wake("model")
        # Also those that are cancelled in the very step in which they are granted.
        for steps in range(8):
            task = asyncio.create_task(use(engines))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await eventually(lambda: engines.status()[0].in_flight == 0)


async def test_a_crash_breaks_the_requests_and_the_next_one_starts_anew(run_dir: Path) -> None:
    starts = Starts()
    async with host(run_dir, starts) as engines:
        async with engines.acquire("model") as first:
            await die(first)
            assert await eventually(lambda: state(engines) is EngineState.FAILED)
            failure = engines.status()[0].failure or ""
            assert failure.startswith("the engine ended with exit status 3")
            assert "told to die" in failure
            async with engines.acquire("model") as second:
                assert second.address != first.address
                assert (await echo(second)).endswith(b"hello")
                with pytest.raises(EngineBroken):
                    await echo(first)
                assert engines.status()[0].in_flight == 1
            assert await eventually(lambda: engines.status()[0].in_flight == 0)
        assert len(starts.created) == 2
        assert engines.status()[0].failure is None
        assert await eventually(lambda: len(folders(run_dir)) == 1)


async def test_an_engine_that_keeps_crashing_is_left_alone_for_a_while(run_dir: Path) -> None:
    async with host(run_dir) as engines:
        for _ in range(2):
            async with engines.acquire("model") as lease:
                await die(lease)
            assert await eventually(lambda: state(engines) is EngineState.FAILED)
        with pytest.raises(EngineUnavailable) as caught:
            await engines.wake("model")
        assert 0 < caught.value.retry_after_s <= QUICK.backoff_s
        await asyncio.sleep(caught.value.retry_after_s)
        async with engines.acquire("model") as lease:
            await echo(lease)


async def test_a_failed_start_says_why_and_backs_off(run_dir: Path) -> None:
    starts = Starts("fail=no such quantization: lead")
    async with host(run_dir, starts) as engines:
        results = await asyncio.gather(*(engines.wake("model") for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [EngineUnavailable] * 3
        assert "/" not in str(results[0])
        status = engines.status()[0]
        assert status.state is EngineState.FAILED
        assert "ValueError: no such quantization: lead" in (status.failure or "")
        began = time.monotonic()
        with pytest.raises(EngineUnavailable) as caught:
            await engines.wake("model")
        assert time.monotonic() - began < 0.1
        assert 0 < caught.value.retry_after_s <= 0.3
        await asyncio.sleep(0.3)
        with pytest.raises(EngineUnavailable) as caught:
            await engines.wake("model")
        assert 0.3 < caught.value.retry_after_s <= 0.6
        assert len(starts.created) == 2
        assert await eventually(no_trace(run_dir))
        # An operator who mends it need not wait.
        starts.options = ()
        assert (await engines.sleep("model", SleepTier.COLD)).state is EngineState.COLD
        assert (await engines.wake("model")).state is EngineState.READY


async def test_a_start_that_takes_too_long_is_ended(run_dir: Path) -> None:
    specs = [spec("model", "start_s=100", start_timeout_s=0.5)]
    async with EngineHost(specs, run_dir=run_dir, policy=QUICK, make=Starts()) as engines:
        with pytest.raises(EngineUnavailable):
            await engines.wake("model")
        assert "did not answer within 0.5 s" in (engines.status()[0].failure or "")
        assert await eventually(no_trace(run_dir))


async def test_sleep_lets_requests_end_and_one_that_comes_meanwhile_is_served(run_dir: Path) -> None:
    starts = Starts()
    async with host(run_dir, starts) as engines:
        async with AsyncExitStack() as stack:
            lease = await stack.enter_async_context(engines.acquire("model"))
            asleep = asyncio.create_task(engines.sleep("model", SleepTier.COLD))
            assert await eventually(lambda: state(engines) is EngineState.DRAINING)

            async def late() -> str | None:
                async with engines.acquire("model") as other:
                    await echo(other)
                    return other.address.uds

            comer = asyncio.create_task(late())
            await asyncio.sleep(0.1)
            assert not asleep.done()
            await echo(lease)  # still served by the draining engine
        assert (await asleep).state is EngineState.COLD
        assert await comer != lease.address.uds
        assert len(starts.created) == 2
        assert state(engines) is EngineState.READY
        again = await asyncio.gather(*(engines.sleep("model", SleepTier.COLD) for _ in range(3)))
        assert {status.state for status in again} == {EngineState.COLD}
        assert no_trace(run_dir)()


async def test_draining_is_bounded(run_dir: Path) -> None:
    async with host(run_dir) as engines, engines.acquire("model") as lease:
        began = time.monotonic()
        assert (await engines.sleep("model", SleepTier.COLD)).in_flight == 0
        assert QUICK.drain_timeout_s <= time.monotonic() - began < QUICK.drain_timeout_s + 2
        with pytest.raises(EngineBroken):
            await echo(lease)


async def test_an_engine_that_ignores_sigterm_is_killed(run_dir: Path) -> None:
    async with host(run_dir, Starts("deaf=1")) as engines:
        await engines.wake("model")
        began = time.monotonic()
        await engines.sleep("model", SleepTier.COLD)
        assert QUICK.stop_grace_s <= time.monotonic() - began < QUICK.stop_grace_s + 1
        assert no_trace(run_dir)()


async def test_an_engine_that_answers_no_health_check_is_replaced(run_dir: Path) -> None:
    async with host(run_dir) as engines:
        async with engines.acquire("model") as lease, EngineClient(lease.address) as client:
            await client.request("POST", "/deafen", b"", timeout_s=5)
            assert await eventually(lambda: state(engines) is EngineState.FAILED)
        assert "health" in (engines.status()[0].failure or "")
        async with engines.acquire("model") as lease:
            await echo(lease)
            assert await eventually(lambda: len(folders(run_dir)) == 1)


async def test_leaving_the_host_ends_everything_and_everybody(run_dir: Path) -> None:
    waiting: list[asyncio.Task[object]] = []
    async with EngineHost(
        [spec("slow", "start_s=100"), spec("hot"), spec("busy")], run_dir=run_dir, policy=QUICK, make=Starts()
    ) as engines:
        waiting.append(asyncio.create_task(engines.wake("slow")))
        await engines.wake("hot")
        async with engines.acquire("busy"):
            waiting.append(asyncio.create_task(engines.sleep("busy", SleepTier.COLD)))
            assert await eventually(lambda: engines.status()[2].state is EngineState.DRAINING)
            waiting.append(asyncio.create_task(engines.wake("busy")))
            await asyncio.sleep(0.05)
            await engines.__aexit__(None, None, None)
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, HostClosing)
        with pytest.raises(HostClosing):
            await engines.wake("hot")
    assert no_trace(run_dir)()
    assert {status.state for status in engines.status()} == {EngineState.COLD}


async def test_preloaded_models_start_with_the_host(run_dir: Path) -> None:
    specs = [spec("first", preload=True), spec("second")]
    async with EngineHost(specs, run_dir=run_dir, policy=QUICK, make=Starts()) as engines:
        assert await eventually(lambda: engines.status()[0].state is EngineState.READY)
        assert engines.status()[1].state is EngineState.COLD


async def test_a_remote_engine_is_always_hot(run_dir: Path) -> None:
    remote = ModelSpec(id="far", url="http://127.0.0.1:9/v1", api_key="sk-secret")
    async with EngineHost([remote], run_dir=run_dir) as engines:
        async with engines.acquire("far") as lease:
            assert (lease.tier, lease.wake_s) == (SleepTier.HOT, 0.0)
            assert (lease.address.url, lease.address.api_key) == ("http://127.0.0.1:9/v1", "sk-secret")
            assert "sk-secret" not in repr(lease)
            assert engines.status()[0].in_flight == 1
        assert (await engines.wake("far")).in_flight == 0
        with pytest.raises(UnsupportedTier):
            await engines.sleep("far", SleepTier.COLD)


async def test_what_the_host_does_not_have(run_dir: Path) -> None:
    adapter = Adapter("ft:model:org:adapter:1", "00" * 32, run_dir, rank=8)
    async with host(run_dir) as engines:
        with pytest.raises(UnknownModel):
            await engines.wake("x" * 10_000)
        with pytest.raises(AdapterRejected, match="model model serves no adapters"):
            async with engines.acquire("model", adapter):
                pass
        for tier in (SleepTier.HOT, SleepTier.SNAPSHOT):
            with pytest.raises(UnsupportedTier):
                await engines.sleep("model", tier)


async def test_a_long_run_dir_gets_a_short_private_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / ("x" * 120)
    async with host(run_dir) as engines, engines.acquire("model") as lease:
        assert lease.address.uds is not None
        folder = Path(lease.address.uds).parent
        assert len(lease.address.uds) < 70
        assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
    assert not folder.parent.exists()


async def test_leftovers_of_a_killed_host_are_cleared_and_living_ones_are_not(run_dir: Path) -> None:
    dead = run_dir / "engine-dead"
    dead.mkdir()
    (dead / "s").touch()
    async with host(run_dir) as first, first.acquire("model") as lease:
        assert not dead.exists()
        with pytest.raises(RunFoldersInUse, match="in use"):
            async with host(run_dir):
                pass
        await echo(lease)


async def test_without_namespaces_it_works_as_well(run_dir: Path) -> None:
    """As on a platform that forbids them."""

    def make(spec: ModelSpec, runtime: Runtime) -> EngineProcess:
        return standin(
            spec,
            Runtime(runtime.folders, SandboxPool(Isolation(namespaces=False), RootLayout({}), run_dir, 0)),
        )

    async with host(run_dir, make) as engines:
        async with engines.acquire("model") as lease:
            await echo(lease)
            assert len(processes_with(run_dir)) == 3
        await engines.sleep("model", SleepTier.COLD)
        assert no_trace(run_dir)()
        async with engines.acquire("model") as lease:
            await die(lease)
        assert await eventually(no_trace(run_dir))
        await engines.wake("model")
    assert no_trace(run_dir)()


async def test_an_engine_killed_from_outside_is_noticed_at_once(run_dir: Path) -> None:
    async with host(run_dir) as engines:
        await engines.wake("model")
        began = time.monotonic()
        os.kill(min(processes_with(run_dir)), signal.SIGKILL)
        assert await eventually(lambda: state(engines) is EngineState.FAILED)
        assert time.monotonic() - began < 0.5
        assert "SIGKILL" in (engines.status()[0].failure or "")
        await engines.wake("model")


@pytest.mark.parametrize("privilege", [[], ["setpriv", "--bounding-set=-sys_admin"]], ids=["root", "less"])
@pytest.mark.parametrize("after_s", [0.2, 0.3, 0.5, None, 1.5])
async def test_no_engine_outlives_a_gateway_that_is_killed(
    run_dir: Path, after_s: float | None, privilege: list[str]
) -> None:
    """``None``: when the first engine has become ready. Without the privilege there are no namespaces."""
    gateway = await asyncio.create_subprocess_exec(
        *(*privilege, sys.executable, "-c", HOST, str(run_dir)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert gateway.stdout is not None
    if after_s is None:
        assert await gateway.stdout.readline() == b"awake\n"
        assert len(processes_with(run_dir)) >= 4
    else:
        await asyncio.sleep(after_s)
    gateway.kill()
    await gateway.wait()
    assert await eventually(lambda: not processes_with(run_dir))
    await gateway.stdout.read()
    gateway._transport.close()  # type: ignore[attr-defined]
    async with host(run_dir):
        assert folders(run_dir) == []
