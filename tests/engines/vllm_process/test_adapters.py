"""Adapters in the real engine: each answers its own, and one that was dropped or swapped answers none."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.client.engine_client import EngineClient
from engines.errors import AdapterRejected
from engines.host import EngineHost
from engines.lifecycle.control_calls import call
from engines.policy import HostPolicy
from engines.spec import LoraSettings, ModelSpec
from engines.status import EngineLease
from loadtest.adapter_files import make_adapter
from tests.engines.support import CRIU_DIR, ROOT, eventually, with_tests

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

MODELS = Path(os.environ.get("TORPOR_MODELS", ROOT / "models"))
MODEL = ModelSpec(
    id="smollm2-135m",
    source=MODELS / "smollm2-135m",
    engine_args=("--worker-extension-cls", "tests.engines.vllm_process.broken_worker.Saboteur"),
    lora=LoraSettings(slots=2, cpu_slots=3),
    idle_pause_s=1e6,
    idle_snapshot_s=1e6,
)
ORDERS = "sabotage"  # the saboteur's file, in the engine's folder; its module is for the engine alone
PROMPTS = ("The capital of France is", "Once upon a time there was", "def main():")


def adapter(folder: Path, number: int, strength: float = 0.5) -> Adapter:
    files = make_adapter(folder / str(number), MODELS / MODEL.id, seed=number, strength=strength)
    return Adapter(f"ft:smollm2-135m:org:suffix:{number}", f"{number:02x}" * 32, files, rank=8)


class Site:
    """A host whose model sleeps in a snapshot, and adapters that have been examined on it."""

    def __init__(self, host: EngineHost, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.adapters: list[Adapter] = []
        self.answers: list[list[str]] = []  # answers of each, alone

    async def prepare(self) -> None:
        await self.host.snapshot(MODEL.id)
        for number in range(4):
            created = adapter(self.folder, number + 1)
            self.adapters.append(replace(created, canary=await self.host.examine(MODEL.id, created)))
            self.answers.append([await self.text(self.adapters[-1], prompt) for prompt in PROMPTS])

    async def text(self, adapter: Adapter | None, prompt: str) -> str:
        status, answer, _ = await self.ask(adapter, prompt)
        assert status == 200, answer
        assert answer["model"] == (MODEL.id if adapter is None else adapter.name)
        text: str = answer["choices"][0]["text"]
        return text

    async def ask(
        self, adapter: Adapter | None, prompt: str = PROMPTS[0]
    ) -> tuple[int, dict[str, Any], EngineLease]:
        async with self.host.acquire(MODEL.id, adapter, timeout_s=60) as lease:
            status, answer = await self.ask_with(lease, prompt)
            return status, answer, lease

    async def ask_with(self, lease: EngineLease, prompt: str = PROMPTS[0]) -> tuple[int, dict[str, Any]]:
        request = {"model": lease.served_model_name, "prompt": prompt, "max_tokens": 6, "temperature": 0}
        async with EngineClient(lease.address) as client:
            reply = await client.request(
                "POST", "/v1/completions", json.dumps(request).encode(), timeout_s=60
            )
        return reply.status, json.loads(reply.body)

    async def orders(self, *orders: str) -> EngineLease:
        """For the engine that is awake, which has no adapter then."""
        for digest in self.host.resident(MODEL.id):
            self.host.forget(digest)
        async with self.host.acquire(MODEL.id) as lease:
            folder = Path(lease.address.uds or "").parent
            left = folder.parent / "adapters"
            assert await eventually(lambda: not any(left.glob("*"))), [path.name for path in left.glob("*")]
            (folder / ORDERS).write_text(json.dumps(orders))
            (folder / ORDERS).chmod(0o666)  # the engine, which is another user, takes orders off it
        return lease


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    run_dir = tmp_path_factory.mktemp("run")
    host = EngineHost(
        [MODEL],
        run_dir=run_dir,
        snapshot_dir=run_dir / "snapshots",
        criu_dir=CRIU_DIR,
        policy=HostPolicy(spare_sandboxes=0),
        make=with_tests,
    )
    async with host:
        created = Site(host, tmp_path_factory.mktemp("adapters"))
        await created.prepare()
        yield created


async def test_each_answers_its_own_beside_the_others(site: Site) -> None:
    """By the first words: later on two tokens may be as probable, and the batch decides."""
    assert len({tuple(texts) for texts in site.answers}) == len(site.answers)
    base = [await site.text(None, prompt) for prompt in PROMPTS]
    assert base not in site.answers
    request = [(at, adapter) for at in range(len(PROMPTS)) for adapter in (*site.adapters, None)]
    texts = await asyncio.gather(*(site.text(adapter, PROMPTS[at]) for at, adapter in request))
    mine = [words[at] for at in range(len(PROMPTS)) for words in (*site.answers, base)]
    assert [text.split()[:2] for text in texts] == [text.split()[:2] for text in mine]


async def test_a_stream_says_the_public_name_in_every_chunk(site: Site) -> None:
    item = site.adapters[0]
    async with site.host.acquire(MODEL.id, item) as lease, EngineClient(lease.address) as client:
        body: dict[str, Any] = {
            "model": lease.served_model_name,
            "messages": [{"role": "user", "content": "Hi"}],
        }
        body |= {"max_tokens": 6, "stream": True}
        async with client.stream("/v1/chat/completions", json.dumps(body).encode(), attempt_id="a") as stream:
            events = (await stream.read()).decode().split("\n\n")
    answer = [json.loads(event.removeprefix("data: ")) for event in events if event and "[DONE]" not in event]
    assert {event["model"] for event in answer} == {item.name}
    assert str(lease.internal_name) not in "".join(events)


@pytest.mark.parametrize("orders", [("drop",), ("keep", "swap")])
async def test_a_spoiled_adapter_answers_nobody_and_is_loaded_anew(
    site: Site, orders: tuple[str, ...]
) -> None:
    await site.orders(*orders)
    victim, other = site.adapters[:2]
    if len(orders) > 1:
        assert await site.text(other, PROMPTS[0]) == site.answers[1][0]
    status, answer, lease = await site.ask(victim)
    assert (status, answer["error"]["code"]) == (503, "adapter_unfit")
    assert lease.unverified
    site.host.report_broken(lease)
    assert await site.text(victim, PROMPTS[0]) == site.answers[0][0]
    status, answer = await site.ask_with(lease)  # the spoiled load has no name left
    assert (status, answer["error"]["code"]) == (503, "adapter_unfit")


async def test_an_engine_that_spoils_it_twice_is_given_up(site: Site) -> None:
    first = await site.orders("drop", "drop")
    for _ in range(2):
        status, _, lease = await site.ask(site.adapters[2])
        assert (status, lease.replica) == (503, first.replica)
        site.host.report_broken(lease)
    status, answer, lease = await site.ask(site.adapters[2])
    assert (status, answer["choices"][0]["text"]) == (200, site.answers[2][0])
    assert lease.replica == first.replica + 1
    assert lease.tier is SleepTier.SNAPSHOT


async def test_an_engine_asleep_in_a_snapshot_checks_it_with_the_first_request(site: Site) -> None:
    await site.host.sleep(MODEL.id, SleepTier.SNAPSHOT)
    status, answer, lease = await site.ask(site.adapters[3])
    assert (status, answer["choices"][0]["text"]) == (200, site.answers[3][0])
    assert lease.unverified
    assert await eventually(lambda: site.host.status()[0].replicas[0].adapters[0].verified)


async def test_a_sleeping_engine_holds_none(site: Site) -> None:
    await site.text(site.adapters[0], PROMPTS[0])
    await site.host.sleep(MODEL.id, SleepTier.PAUSED)
    async with site.host.acquire(MODEL.id) as lease:
        _, answer = await call(Path(lease.address.uds or ""), "GET", "/torpor/adapters", timeout_s=10)
    assert answer == {"names": [], "ids": []}
    assert await site.text(site.adapters[0], PROMPTS[0]) == site.answers[0][0]


async def test_what_is_unloaded_has_left_the_engine(site: Site) -> None:
    for item in (*site.adapters, *site.adapters):
        await site.ask(item)
    async with site.host.acquire(MODEL.id) as lease:
        _, answer = await call(Path(lease.address.uds or ""), "GET", "/torpor/adapters", timeout_s=10)
    assert len(answer["names"]) == len(answer["ids"]) == 3
    assert {int(name.rpartition(".")[2]) for name in answer["names"]} == set(answer["ids"])


async def test_an_adapter_that_changes_nothing_is_served(site: Site) -> None:
    created = adapter(site.folder, 9, strength=0.0)
    canary = await site.host.examine(MODEL.id, created)
    assert json.loads(canary)["share"] is False
    texts = await site.text(replace(created, canary=canary), PROMPTS[0]), await site.text(None, PROMPTS[0])
    assert texts[0] == texts[1]


async def test_a_weak_adapter_is_told_from_the_base_model(site: Site) -> None:
    """Its effect on each probe is about what bf16 rounds away; the share of all of them shows it."""
    created = adapter(site.folder, 10, strength=0.03)
    canary = json.loads(await site.host.examine(MODEL.id, created))
    effect = [item - other for item, other in zip(canary["values"], canary["base"], strict=True)]
    print(f"\neffect {math.sqrt(sum(part * part for part in effect) / len(effect)):.3f}")
    assert canary["share"]
    await site.orders("drop")
    status, answer, lease = await site.ask(replace(created, canary=json.dumps(canary).encode()))
    assert (status, answer["error"]["code"]) == (503, "adapter_unfit")
    site.host.report_broken(lease)


async def test_what_the_engine_refuses(site: Site) -> None:
    broken = adapter(site.folder, 11)
    settings = json.loads((broken.folder / "adapter_config.json").read_text())
    (broken.folder / "adapter_config.json").write_text(json.dumps({**settings, "r": 64}))
    with pytest.raises(AdapterRejected, match="rank"):
        await site.host.examine(MODEL.id, broken)
    assert await site.text(site.adapters[0], PROMPTS[0]) == site.answers[0][0]
