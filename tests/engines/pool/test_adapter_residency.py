"""Adapters come and go in an engine: which are loaded, wait, and leave, and none is taken for another."""

import asyncio
import json
import random
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest

from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.errors import AdapterGone, AdapterRejected, AdapterUnfit, EngineUnavailable
from engines.host import EngineHost
from engines.spec import LoraSettings
from engines.status import EngineState
from gateway.http.translation import translate
from tests.engines.snapshot_fixtures import asleep, has_snapshot, snapshot_host
from tests.engines.support import QUICK, eventually, folders
from tests.engines.uploads import (
    PATIENT,
    ask,
    ask_with,
    base,
    engine,
    named,
    peak,
    renamed,
    residents,
    spoil,
    uploaded,
)

pytestmark = pytest.mark.timeout(60)


def one_host(run_dir: Path, **changes: object) -> EngineHost:
    return EngineHost([base(**changes)], run_dir=run_dir, policy=PATIENT, make=engine)


def some(run_dir: Path, count: int) -> list[Adapter]:
    return [uploaded(run_dir, f"words of {number}") for number in range(count)]


async def test_one_load_serves_all_who_wait(run_dir: Path) -> None:
    adapter = uploaded(run_dir, "mine")
    async with one_host(run_dir) as host:
        answer = await asyncio.gather(*(ask(host, adapter) for _ in range(8)))
        assert {(item.status, item.text, item.model) for item in answer} == {(200, "mine", adapter.name)}
        assert (await peak(answer[0].lease))["loads"] == 1
        (resident,) = host.status()[0].replicas[0].adapters
        assert await eventually(lambda: host.status()[0].replicas[0].adapters[0].verified)
        assert (resident.digest, resident.in_flight) == (adapter.digest, 0)


async def test_the_same_content_answers_each_owner_by_his_own_name(run_dir: Path) -> None:
    mine = uploaded(run_dir, "ours")
    yours = renamed(mine, "ft:model:other:theirs:2")
    async with one_host(run_dir) as host:
        answer = await asyncio.gather(ask(host, mine), ask(host, yours))
        assert [item.model for item in answer] == [mine.name, yours.name]
        assert (await peak(answer[0].lease))["loads"] == 1


async def test_the_least_recently_used_one_leaves_with_its_files(run_dir: Path) -> None:
    a, b, c, d = some(run_dir, 4)
    async with one_host(run_dir) as host:
        for adapter in (a, b, c, a):
            await ask(host, adapter)
        assert residents(host) == named(a, b, c)
        await ask(host, d)
        assert residents(host) == named(a, c, d)
        (folder,) = folders(run_dir)
        kept = {path.name.partition(".")[0] for path in (folder / "adapters").iterdir()}
        assert kept == {adapter.digest[:32] for adapter in (a, c, d)}


async def test_one_in_use_never_leaves_and_others_wait_for_a_slot(run_dir: Path) -> None:
    a, b, c = some(run_dir, 3)
    async with one_host(run_dir) as host, AsyncExitStack() as second:
        async with host.acquire("model", a) as first:
            await second.enter_async_context(host.acquire("model", b))
            with pytest.raises(EngineUnavailable):
                await ask(host, c, timeout_s=0.2)
            waiting = asyncio.create_task(ask(host, c))
            assert (await ask_with(first)).text == "words of 0"
            assert residents(host) == named(a, b)
            assert not waiting.done()
        assert (await waiting).text == "words of 2"


async def test_who_waits_gets_a_slot_however_many_use_the_others(run_dir: Path) -> None:
    a, b, c = some(run_dir, 3)
    async with one_host(run_dir) as host:
        served = asyncio.Event()

        async def crowd(adapter: Adapter) -> None:
            while not served.is_set():
                assert (await ask(host, adapter, takes_s=0.02)).status == 200

        crowds = [asyncio.create_task(crowd(adapter)) for adapter in (a, a, a, b, b, b)]
        assert await eventually(lambda: residents(host) == named(a, b))
        answer = await ask(host, c, timeout_s=5)
        served.set()
        await asyncio.gather(*crowds)
        assert answer.text == "words of 2"
        assert (await peak(answer.lease))["running"] <= 2


async def test_who_went_away_leaves_the_adapter_to_the_next_one(run_dir: Path) -> None:
    adapter = uploaded(run_dir, "mine")
    async with one_host(run_dir) as host:
        await host.wake("model")
        gone = asyncio.create_task(ask(host, adapter))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gone.cancel()
        answer = await ask(host, adapter)
        assert (answer.text, (await peak(answer.lease))["loads"]) == ("mine", 1)


async def test_every_answer_is_the_adapters_own_under_load(run_dir: Path) -> None:
    adapters = some(run_dir, 60)
    rows = random.Random(6)
    async with one_host(run_dir, lora=LoraSettings(slots=4, cpu_slots=6)) as host:

        async def client() -> None:
            for _ in range(20):
                number = rows.randrange(len(adapters))
                answer = await ask(host, adapters[number], takes_s=rows.random() * 0.01, timeout_s=30)
                assert (answer.text, answer.model) == (f"words of {number}", adapters[number].name)

        await asyncio.gather(*(client() for _ in range(16)))
        async with host.acquire("model") as lease:
            most = await peak(lease)
        assert most["loaded"] <= 6
        assert most["running"] <= 4


async def test_what_the_engine_refuses_is_told_to_all_who_wait(run_dir: Path) -> None:
    refused, good = uploaded(run_dir, "refuse"), uploaded(run_dir, "good")
    async with one_host(run_dir) as host:
        outcomes = await asyncio.gather(*(ask(host, refused) for _ in range(3)), return_exceptions=True)
        assert {str(error) for error in outcomes} == {"the stand-in refuses it"}
        assert {type(error) for error in outcomes} == {AdapterRejected}
        assert (await ask(host, good)).text == "good"
        assert residents(host) == named(good)


async def test_one_that_is_deleted_while_requests_wait_is_gone_to_each_by_his_own_name(run_dir: Path) -> None:
    mine = uploaded(run_dir, "ours")
    yours = renamed(mine, "ft:model:other:theirs:2")
    async with one_host(run_dir) as host:
        waiting = [asyncio.create_task(ask(host, adapter)) for adapter in (mine, yours)]
        await asyncio.sleep(0)
        shutil.rmtree(mine.folder)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [translate(error).status for error in errors if isinstance(error, AdapterGone)] == [404, 404]
        for adapter, error in zip((mine, yours), errors, strict=True):
            assert adapter.name in translate(cast(Exception, error)).message
        assert (await ask(host, uploaded(run_dir, "good"))).text == "good"


async def test_an_adapter_that_kills_engines_does_so_twice_at_most(run_dir: Path) -> None:
    deadly, good = uploaded(run_dir, "crash"), uploaded(run_dir, "good")
    async with one_host(run_dir) as host:
        with pytest.raises((AdapterUnfit, EngineUnavailable)):
            await ask(host, deadly)
        assert await eventually(lambda: host.status()[0].state is not EngineState.READY)
        await asyncio.sleep(QUICK.backoff_max_s)
        with pytest.raises((AdapterUnfit, EngineUnavailable)):
            await ask(host, deadly)
        await asyncio.sleep(QUICK.backoff_max_s)
        answer = await ask(host, good)
        with pytest.raises(AdapterUnfit):
            await ask(host, deadly)
        assert (await ask(host, good)).lease.replica == answer.lease.replica


async def test_a_spoiled_load_is_withheld_and_made_anew_under_another_name(run_dir: Path) -> None:
    a, b = some(run_dir, 2)
    async with one_host(run_dir) as host:
        await ask(host, b)
        await spoil(host, "words of 1")
        spoiled = await ask(host, a)
        assert (spoiled.status, spoiled.body["error"]["code"]) == (503, "adapter_unfit")
        host.report_broken(spoiled.lease)
        again = await ask(host, a)
        assert (again.status, again.text, again.lease.replica) == (200, "words of 0", spoiled.lease.replica)
        assert again.lease.served_model_name != spoiled.lease.served_model_name
        stale = await ask_with(spoiled.lease)
        assert (stale.status, stale.body["error"]["code"]) == (503, "adapter_unfit")


async def test_an_engine_that_spoils_it_twice_is_given_up(run_dir: Path) -> None:
    a, b = some(run_dir, 2)
    async with one_host(run_dir) as host:
        await ask(host, b)
        async with host.acquire("model", b) as running:
            await spoil(host, "", "")
            for _ in range(2):
                answer = await ask(host, a)
                assert answer.status == 503
                host.report_broken(answer.lease)
            good = await ask(host, a)
            assert (good.text, good.lease.replica) == ("words of 0", running.replica + 1)
            assert (await ask_with(running)).text == "words of 1"  # what runs there may end
        assert await eventually(lambda: len(host.status()[0].replicas) == 1)


async def test_no_third_engine_is_risked_for_one_adapter(run_dir: Path) -> None:
    a, b = some(run_dir, 2)
    async with one_host(run_dir) as host:
        for _ in range(2):
            await spoil(host, "", "")
            for _ in range(2):
                answer = await ask(host, a)
                assert answer.status == 503
                host.report_broken(answer.lease)
            assert await eventually(lambda: not host.status()[0].replicas)  # it has been given up
        with pytest.raises(AdapterUnfit):
            await ask(host, a)
        good = await ask(host, b)
        with pytest.raises(AdapterUnfit):
            await ask(host, a)
        assert (await ask(host, b)).lease.replica == good.lease.replica == 3
        await host.examine("model", a)
        assert (await ask(host, a)).text == "words of 0"


async def test_a_deleted_one_leaves_with_its_last_request(run_dir: Path) -> None:
    a, b = some(run_dir, 2)
    async with one_host(run_dir) as host:
        await ask(host, b)
        async with host.acquire("model", a) as lease:
            for adapter in (a, b):
                host.forget(adapter.digest)
            assert await eventually(lambda: not residents(host))
            assert (await ask_with(lease)).text == "words of 0"
        (folder,) = folders(run_dir)
        assert await eventually(lambda: not list((folder / "adapters").iterdir()))


async def test_an_engine_that_slept_has_none(run_dir: Path) -> None:
    adapter = uploaded(run_dir, "mine")
    async with one_host(run_dir) as host:
        first = await ask(host, adapter)
        await host.sleep("model", SleepTier.PAUSED)
        assert not residents(host)
        assert list((folders(run_dir)[0] / "adapters").iterdir()) == []
        again = await ask(host, adapter)
        assert (again.text, again.lease.unverified, again.lease.tier) == ("mine", True, SleepTier.PAUSED)
        assert again.lease.internal_name != first.lease.internal_name


async def test_a_restored_engine_loads_it_and_its_snapshot_has_none(run_dir: Path) -> None:
    adapter = uploaded(run_dir, "mine")
    async with asleep(run_dir, base(), policy=PATIENT, make=engine) as host:
        answer = await ask(host, adapter)
        assert (answer.text, answer.lease.tier, answer.lease.unverified) == ("mine", SleepTier.SNAPSHOT, True)
        await host.sleep("model", SleepTier.SNAPSHOT)
        assert not residents(host)


async def test_an_engine_that_has_held_one_is_not_dumped(run_dir: Path) -> None:
    """A snapshot is made of another, which is started for it."""
    adapter = uploaded(run_dir, "mine")
    created: list[object] = []

    def counting(*parts: object) -> object:
        created.append(parts)
        return engine(*parts)  # type: ignore[arg-type]

    async with snapshot_host(run_dir, base(snapshot=True), policy=PATIENT, make=counting) as host:
        await ask(host, adapter)
        assert await eventually(has_snapshot(host), 20)
        count = len(created)
        await host.snapshot("model")
        assert len(created) == count + 2  # one to dump, one to try the snapshot
        assert residents(host) == named(adapter)


async def test_requests_prefer_the_engine_that_has_it(run_dir: Path) -> None:
    a, b, c = some(run_dir, 3)
    async with (
        asleep(run_dir, base(max_replicas=2), policy=PATIENT, make=engine) as host,
        AsyncExitStack() as stack,
    ):
        first = await stack.enter_async_context(host.acquire("model", a))
        await stack.enter_async_context(host.acquire("model", b))
        third = await stack.enter_async_context(host.acquire("model", c))
        assert third.replica != first.replica  # every slot of the first is in use
        assert [(await ask(host, item)).lease.replica for item in (a, b, c)] == [1, 1, 2]


async def test_examining_records_what_is_compared_and_leaves_nothing(run_dir: Path) -> None:
    adapter = uploaded(run_dir, "mine")
    unexamined = Adapter(adapter.name, adapter.digest, adapter.folder, adapter.rank)
    async with one_host(run_dir) as host:
        with pytest.raises(AdapterRejected, match="was not examined"):
            await ask(host, unexamined)
        recorded = await asyncio.gather(*(host.examine("model", unexamined) for _ in range(4)))
        assert [json.loads(item) for item in recorded] == [{"text": "mine"}] * 4
        (folder,) = folders(run_dir)
        assert await eventually(lambda: not list((folder / "adapters").iterdir()))
        with pytest.raises(AdapterRejected, match="refuses"):
            await host.examine("model", uploaded(run_dir, "refuse"))
        with pytest.raises(AdapterRejected, match="rank 64"):
            await host.examine("model", Adapter("ft:x", "00" * 32, adapter.folder, rank=64))
