"""An emptied prefix cache that still claims blocks is seen: before an engine sleeps, and when it is woken.

vLLM's own pool of blocks, with claims put into it as after a reset that went wrong; the engine core's client
is a stand-in that answers for a worker in this process.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id

from engines.vllm_process import canary, control, prefix_cache
from engines.vllm_process.control import Control
from engines.vllm_process.token_counter import RequestCounter
from engines.wire import UNFIT


class _Ended(BaseException):
    """Stands for the end of the engine's process, with its exit status."""


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockPool]:
    monkeypatch.setattr(BlockPool, "__init__", BlockPool.__init__)
    prefix_cache.install()
    created = BlockPool(num_gpu_blocks=8, enable_caching=True, hash_block_size=16)
    yield created
    prefix_cache._pools.discard(created)


def claim(pool: BlockPool, number: int) -> None:
    key = make_block_hash_with_group_id(BlockHash(bytes([number]) * 32), 0)
    pool.cached_block_hash_to_block.insert(key, pool.blocks[number])


class Engine:
    """Stands for vLLM's client: calls to the worker are answered as `WorkerExtension` answers them."""

    async def reset_prefix_cache(self) -> bool:
        return True  # whatever it did

    async def reset_mm_cache(self) -> None:
        """Nothing."""

    async def collective_rpc(self, method: str) -> list[int]:
        claims = method in ("torpor_claimed_blocks", "torpor_wake")
        return [prefix_cache.claimed_blocks() if claims else 0]


class App:
    """vLLM's application, as far as a sleep needs it."""

    def __init__(self) -> None:
        server = type("Server", (), {"server_state": type("State", (), {"connections": ()})()})()
        self.state = type("State", (), {"engine_client": Engine(), "server": server})()


def test_a_reset_takes_all_claims_away(pool: BlockPool) -> None:
    claim(pool, 1)
    claim(pool, 2)
    assert prefix_cache.claimed_blocks() == 2
    assert pool.reset_prefix_cache()
    assert prefix_cache.claimed_blocks() == 0


async def test_an_engine_whose_cache_still_claims_blocks_does_not_sleep(pool: BlockPool) -> None:
    request = Control(RequestCounter())
    assert (await request.answer(App(), "POST", "/torpor/sleep", b""))[0] == 200
    claim(pool, 3)
    status, answer = await request.answer(App(), "POST", "/torpor/sleep", b"")
    assert (status, answer) == (
        409,
        {"error": "the prefix cache was emptied, but claims to hold 1 blocks"},
    )


@pytest.mark.parametrize("claims", [0, 1])
async def test_a_woken_engine_whose_cache_claims_blocks_is_not_fit(
    pool: BlockPool, monkeypatch: pytest.MonkeyPatch, claims: int
) -> None:
    """Also where its canary passes, as it does: its prompt is shorter than a block."""

    async def passed(*_: Any) -> tuple[bool, float]:
        return True, 0.0

    def end(status: int) -> None:
        raise _Ended(status)

    monkeypatch.setattr(canary, "check", passed)
    monkeypatch.setattr(control, "_end", end)
    for number in range(claims):
        claim(pool, number + 1)
    engine = Engine()
    reseeding = asyncio.create_task(engine.collective_rpc("torpor_wake"))
    populating = asyncio.create_task(asyncio.to_thread(int))
    proving = control._prove(engine, None, None, reseeding, populating)
    if claims:
        with pytest.raises(_Ended, match=str(UNFIT)):
            await proving
    else:
        assert (await proving)["deviation"] == 0
