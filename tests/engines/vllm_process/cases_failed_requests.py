"""A request that vLLM's client fails to hand to the engine core: counted as finished, and kept nowhere.

vLLM's own client and output processor; the engine core is a stand-in that does not take the request.
"""

from typing import Any
from unittest.mock import MagicMock

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from engines.vllm_process.control import Control
from engines.vllm_process.server import CountingOutputProcessor, _aborting, _attempt
from engines.vllm_process.token_counter import RequestCounter


class _Core:
    """Stands for the client of an engine core."""

    def __init__(self) -> None:
        self.aborted: list[str] = []

    async def add_request_async(self, _request: Any) -> None:
        raise OverflowError("an integer of more than 64 bits")

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids


class _Engine:
    """Stands for `AsyncLLM`, with its ways to add and to abort a request."""

    log_requests = False
    check_admission = MagicMock()
    abort = AsyncLLM.abort
    add = _aborting(AsyncLLM._add_request)

    def __init__(self, counter: RequestCounter) -> None:
        self.output_processor = CountingOutputProcessor(counter, Control(counter), None, log_stats=False)
        self.engine_core = _Core()


def _request() -> EngineCoreRequest:
    fields = dict.fromkeys(EngineCoreRequest.__struct_fields__)
    fields |= {
        "request_id": "r-1",
        "external_req_id": "r",
        "prompt_token_ids": [1, 2, 3],
        "arrival_time": 0.0,
    }
    return EngineCoreRequest(**{**fields, "sampling_params": SamplingParams(detokenize=False)})


async def test_what_the_core_does_not_take_is_finished() -> None:
    counter = RequestCounter()
    engine = _Engine(counter)
    counter.begin("a")
    token = _attempt.set("a")
    with pytest.raises(OverflowError):
        await engine.add(_request(), None, None, 0, None)
    _attempt.reset(token)
    counter.end("a")
    counts = counter.counts("a")
    assert counts is not None
    assert counts["finished"]
    assert counter.aborted("a") == {"r-1"}
    assert engine.engine_core.aborted == ["r-1"]
    assert not engine.output_processor.request_states


async def test_what_the_output_processor_refuses_is_not_counted() -> None:
    counter = RequestCounter()
    engine = _Engine(counter)
    counter.begin("a")
    token = _attempt.set("a")
    request = _request()
    request.external_req_id = None  # without which vLLM keeps no state of it
    with pytest.raises(AssertionError):
        engine.output_processor.add_request(request, None, None, 0, None)
    _attempt.reset(token)
    counter.end("a")
    assert counter.counts("a") == {
        "input_tokens": 0,
        "cached_tokens": 0,
        "output_tokens": 0,
        "finished": True,
    }
