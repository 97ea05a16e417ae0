"""Engines for one project alone: restored from the model's snapshot, and used by no other project."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from coldstart.tiers import SleepTier
from engines.client.engine_client import EngineClient
from engines.host import EngineHost
from engines.spec import EngineAddress
from tests.engines.snapshot_fixtures import asleep, has_snapshot, number, snapshot_host
from tests.engines.support import eventually
from tests.engines.uploads import PATIENT, ask_with, base, engine, residents, uploaded

pytestmark = pytest.mark.timeout(60)


def of_whom(host: EngineHost) -> list[str | None]:
    """Whose the engines are that are awake."""
    return [replica.pool for replica in host.status()[0].replicas]


async def met(host: EngineHost, pool: str | None) -> tuple[EngineAddress, SleepTier, int]:
    """The engine that a request of this pool meets: where it is, how it was found, and its number."""
    async with host.acquire("model", pool=pool) as lease:
        return lease.address, lease.tier, await number(lease)


async def test_a_pool_is_restored_from_the_models_snapshot_and_shared_with_nobody(run_dir: Path) -> None:
    async with asleep(run_dir) as host:
        everybodys, mine, yours = await asyncio.gather(*(met(host, pool) for pool in (None, "mine", "yours")))
        assert {tier for _, tier, _ in (everybodys, mine, yours)} == {SleepTier.SNAPSHOT}
        assert len({number for _, _, number in (everybodys, mine, yours)}) == 1
        assert len({address for address, _, _ in (everybodys, mine, yours)}) == 3
        assert of_whom(host) == [None, "mine", "yours"]
        assert await met(host, "mine") == (mine[0], SleepTier.HOT, mine[2])
        assert (host.awake("model"), host.awake("model", "mine"), host.awake("model", "his")) == (1, 1, 0)


async def test_under_load_every_request_stays_in_its_pool(run_dir: Path) -> None:
    async with asleep(run_dir, base(max_replicas=2), policy=PATIENT, make=engine) as host:
        host.expect("model", 8, "mine")
        answer = await asyncio.gather(
            *(met(host, pool) for _ in range(8) for pool in (None, "mine", "yours"))
        )
        places = [{address for address, _, _ in answer[start::3]} for start in range(3)]
        assert all(item.isdisjoint(other) for item in places for other in places if item is not other)


async def test_a_pool_makes_no_snapshot_and_sleeps_with_its_model(run_dir: Path) -> None:
    async with snapshot_host(run_dir) as host:
        _, tier, _ = await met(host, "mine")
        assert (tier, of_whom(host)) == (SleepTier.COLD, ["mine"])
        assert not has_snapshot(host)()
        await host.snapshot("model")
        await host.sleep("model", SleepTier.SNAPSHOT)
        assert of_whom(host) == []
        assert (await met(host, "mine"))[1] is SleepTier.SNAPSHOT


async def test_an_engine_that_fails_is_replaced_in_its_pool_alone(run_dir: Path) -> None:
    async with asleep(run_dir) as host:
        everybodys = await met(host, None)
        async with host.acquire("model", pool="mine") as lease, EngineClient(lease.address) as client:
            await client.request("POST", "/deafen", b"", timeout_s=5)
            host.report_broken(lease)
        again = await met(host, "mine")
        assert again[0] != lease.address
        assert await met(host, None) == (everybodys[0], SleepTier.HOT, everybodys[2])


async def test_each_pool_has_the_adapters_that_it_uses_and_all_forget_a_deleted_one(run_dir: Path) -> None:
    adapter, other = uploaded(run_dir, "mine"), uploaded(run_dir, "other")
    async with asleep(run_dir, base(), policy=PATIENT, make=engine) as host, AsyncExitStack() as stack:
        for pool in (None, "mine"):
            lease = await stack.enter_async_context(host.acquire("model", adapter, pool=pool))
            assert (await ask_with(lease)).text == "mine"
        lease = await stack.enter_async_context(host.acquire("model", other, pool="mine"))
        assert (await ask_with(lease)).text == "other"
        assert residents(host) == {adapter.digest[:8]: 2, other.digest[:8]: 1}
        host.forget(adapter.digest)
        await stack.aclose()
        assert await eventually(lambda: residents(host) == {other.digest[:8]: 1})
