"""The real engine: vLLM with the real models, its starts, its counts, its end."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from coldstart.sandbox import process_tree
from coldstart.tiers import SleepTier
from engines.client.engine_client import EngineClient, EngineCounts
from engines.errors import EngineBroken, EngineUnavailable
from engines.host import EngineHost
from engines.policy import HostPolicy
from engines.spec import ModelSpec, Task, check_model, context_length
from engines.status import EngineState
from gateway.inference.calls import DetokenizeCall, TokenizeCall
from gateway.inference.catalog import load_model
from gateway.inference.local_tokens import local_answer
from tests.engines.support import ROOT, eventually, no_trace
from tests.process_table import processes_with

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

MODELS = Path(os.environ.get("TORPOR_MODELS", ROOT / "models"))
# Parsers that know their marks as text: the model's tokenizer has no tokens for them.
PARSERS = (
    "--enable-auto-tool-choice",
    "--tool-call-parser=pythonic",
    "--reasoning-parser=granite",
    '--structured-outputs-config={"enable_in_reasoning": true}',
)
CHAT = ModelSpec(id="smollm2-135m", source=MODELS / "smollm2-135m", engine_args=PARSERS)
EMBED = ModelSpec(id="all-minilm-l6-v2", task=Task.EMBED, source=MODELS / "all-minilm-l6-v2")
WRONG = ModelSpec(id="wrong", source=MODELS / "smollm2-135m", engine_args=("--no-such-flag",))
LONG = "The quick brown fox jumps over the lazy dog. " * 30


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineHost]:
    check_model(CHAT)
    check_model(EMBED)
    policy = HostPolicy(spare_sandboxes=0)  # what is there is an engine's
    run_dir = tmp_path_factory.mktemp("run")
    async with EngineHost([CHAT, EMBED, WRONG], run_dir=run_dir, policy=policy) as host:
        yield host


@pytest_asyncio.fixture(loop_scope="session")
async def chat(host: EngineHost) -> AsyncIterator[EngineClient]:
    async with host.acquire(CHAT.id) as lease, EngineClient(lease.address) as client:
        yield client


def body(**fields: Any) -> bytes:
    return json.dumps({"model": CHAT.id, "temperature": 0, **fields}).encode()


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def counts_of(usage: dict[str, Any]) -> EngineCounts:
    details = usage.get("prompt_tokens_details") or {}
    return EngineCounts(
        usage["prompt_tokens"],
        details.get("cached_tokens") or 0,
        usage.get("completion_tokens", 0),
        finished=True,
    )


async def plain(client: EngineClient, path: str, attempt: str, **fields: Any) -> dict[str, Any]:
    reply = await client.request("POST", path, body(**fields), attempt_id=attempt, timeout_s=120)
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = json.loads(reply.body)
    return answer


async def streamed(client: EngineClient, path: str, attempt: str, **fields: Any) -> dict[str, Any]:
    """The usage of the last chunk."""
    request = body(stream=True, stream_options={"include_usage": True}, **fields)
    async with client.stream(path, request, attempt_id=attempt) as stream:
        assert stream.status == 200
        text = (await stream.read()).decode()
    events = [json.loads(e.removeprefix("data: ")) for e in text.split("\n\n") if e and "[DONE]" not in e]
    usage: dict[str, Any] = events[-1]["usage"]
    return usage


async def test_a_cold_start_ends_in_the_right_answer(host: EngineHost, chat: EngineClient) -> None:
    answer = await plain(
        chat,
        "/v1/chat/completions",
        "first",
        messages=messages("What is the capital of France?"),
        max_tokens=16,
    )
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["id"] == "chatcmpl-first"
    (wake,) = host.status()[0].wakes
    print(f"\ncold start: {wake.ms['total'] / 1000:.1f} s")
    assert wake.source is SleepTier.COLD
    models = json.loads((await chat.request("GET", "/v1/models", timeout_s=10)).body)
    assert models["data"][0]["max_model_len"] == context_length(CHAT)


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Paris", "Rome"]}},
            "required": ["town"],
        },
    },
}
THOUGHT = "Here is my thought process: [a-z ]{9,20}Here is my response: [a-z ]{5,9}"
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": messages("Name a colour."), "max_tokens": 12}),
    (
        "/v1/chat/completions",
        {"messages": messages("Name a colour."), "max_tokens": 9, "n": 2, "temperature": 1},
    ),
    (
        "/v1/chat/completions",
        {"messages": messages("Count to ten."), "max_tokens": 40, "stop": ["3", "five"]},
    ),
    ("/v1/chat/completions", {"messages": messages("Say hi."), "max_tokens": 5, "logprobs": True}),
    (
        "/v1/chat/completions",
        {
            "messages": messages("Rome's weather?"),
            "max_tokens": 60,
            "tools": [WEATHER],
            "tool_choice": "required",
            "parallel_tool_calls": False,  # any number of calls may be cut by max_tokens
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": messages("Rome's weather?"),
            "max_tokens": 60,
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
    ),
    ("/v1/chat/completions", {"messages": messages("Rome's weather?"), "max_tokens": 9, "tools": [WEATHER]}),
    (
        "/v1/chat/completions",
        {"messages": messages("Is it?"), "max_tokens": 60, "structured_outputs": {"regex": THOUGHT}},
    ),
    ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 7}),
    ("/v1/completions", {"prompt": ["One", "Two or three", "Four"], "max_tokens": 6}),
    (
        "/v1/completions",
        {"prompt": ["One", "Two"], "max_tokens": 6, "n": 3, "temperature": 1, "ignore_eos": True},
    ),
    ("/v1/completions", {"prompt": [1, 2, 3, 4, 5], "max_tokens": 1}),
    ("/v1/completions", {"prompt": "Echo this", "max_tokens": 3, "echo": True}),
]


SCHEMA = {"type": "json_schema", "json_schema": {"name": "call", "schema": WEATHER["function"]["parameters"]}}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": SCHEMA},
        {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ],
)
async def test_whitespace_in_json_ends(chat: EngineClient, fields: dict[str, Any]) -> None:
    """A model that prefers white space to everything (by its biases) still ends its JSON."""
    reply = await chat.request(
        "POST", "/tokenize", body(prompt=" \n", add_special_tokens=False), timeout_s=10
    )
    white = json.loads(reply.body)["tokens"]
    answer = await plain(
        chat,
        "/v1/chat/completions",
        f"white-{len(json.dumps(fields))}",
        messages=messages("Rome's weather?"),
        max_tokens=400,
        logit_bias={str(token): 100 for token in white},
        **fields,
    )
    (choice,) = answer["choices"]
    calls = choice["message"].get("tool_calls")
    text = calls[0]["function"]["arguments"] if calls else choice["message"]["content"]
    assert json.loads(text)["town"] in {"Paris", "Rome"}, choice


@pytest.mark.parametrize("shape", range(len(SHAPES)))
async def test_counts_equal_vllms_own_usage(chat: EngineClient, shape: int) -> None:
    path, fields = SHAPES[shape]
    answer = await plain(chat, path, f"plain-{shape}", **fields)
    assert await chat.counts(f"plain-{shape}") == counts_of(answer["usage"])
    message = answer["choices"][0].get("message", {})
    assert bool(message.get("tool_calls")) == ("tool_choice" in fields)
    assert bool(message.get("reasoning")) == ("structured_outputs" in fields)
    usage = await streamed(chat, path, f"stream-{shape}", **fields)
    assert await chat.counts(f"stream-{shape}") == counts_of(usage)


async def test_cached_tokens_are_counted(chat: EngineClient) -> None:
    for attempt in ("cache-0", "cache-1"):
        answer = await plain(chat, "/v1/completions", attempt, prompt=LONG, max_tokens=2)
        counts = await chat.counts(attempt)
        assert counts == counts_of(answer["usage"])
    assert counts is not None
    assert 0 < counts.cached_tokens < counts.input_tokens
    # A list of prompts: vLLM's usage tells of one of them only.
    await plain(chat, "/v1/completions", "cache-2", prompt=[LONG, LONG], max_tokens=2)
    double = await chat.counts("cache-2")
    assert double is not None
    assert (double.input_tokens, double.cached_tokens) == (2 * counts.input_tokens, 2 * counts.cached_tokens)


async def test_a_beam_search_counts_its_prompt_once(chat: EngineClient) -> None:
    """The output counts every token that was generated; vLLM's usage has only the beams that won."""
    answer = await plain(
        chat, "/v1/completions", "beams", prompt="Once upon a", use_beam_search=True, n=3, max_tokens=5
    )
    counts = await chat.counts("beams")
    assert counts is not None
    assert counts.input_tokens == answer["usage"]["prompt_tokens"]
    assert counts.output_tokens == 1 + 3 * 4


async def test_the_first_choice_tells_what_was_cached(chat: EngineClient) -> None:
    """vLLM's usage takes any choice's word, and the later ones hit what the first has just computed."""
    fields = {"prompt": "An unheard of beginning. " + LONG, "n": 3, "max_tokens": 2, "temperature": 1}
    usage = (await plain(chat, "/v1/completions", "choices", **fields))["usage"]
    counts = await chat.counts("choices")
    assert counts == EngineCounts(usage["prompt_tokens"], 0, usage["completion_tokens"], finished=True)


async def test_fifty_at_once_are_told_apart(chat: EngineClient) -> None:
    async def one(number: int) -> None:
        answer = await plain(
            chat,
            "/v1/completions",
            f"many-{number}",
            prompt="word " * (number + 1),
            max_tokens=1 + number % 7,
            n=1 + number % 2,
            temperature=1,
        )
        counts = await chat.counts(f"many-{number}")
        assert counts == counts_of(answer["usage"])

    await asyncio.gather(*(one(number) for number in range(50)))


async def test_a_stream_that_is_left_ends_in_the_engine_and_is_counted(chat: EngineClient) -> None:
    request = body(prompt="Once", max_tokens=2000, ignore_eos=True, stream=True)
    received = 0

    def few(chunk: bytes) -> bool:
        nonlocal received
        received += chunk.count(b'"text":')
        return received < 10

    async with chat.stream("/v1/completions", request, attempt_id="left") as stream:
        assert await stream.pour(few)
    began = time.monotonic()
    counts = await chat.counts("left")
    assert time.monotonic() - began < 1
    assert counts is not None
    assert counts.finished
    assert counts.input_tokens == 1
    assert received <= counts.output_tokens <= received + 20
    await asyncio.sleep(0.5)
    assert await chat.counts("left") == counts


async def test_a_plain_call_that_is_cancelled_ends_in_the_engine_and_is_counted(chat: EngineClient) -> None:
    request = body(prompt=["Once", "Twice"], n=2, max_tokens=2000, ignore_eos=True, temperature=1)
    call = asyncio.create_task(
        chat.request("POST", "/v1/completions", request, attempt_id="cancelled", timeout_s=100)
    )
    await asyncio.sleep(0.7)
    running = await chat.request("GET", "/torpor/requests/cancelled", timeout_s=5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    began = time.monotonic()
    counts = await chat.counts("cancelled")
    assert time.monotonic() - began < 1
    assert counts is not None
    before = json.loads(running.body)
    assert not before["finished"]
    assert counts.finished
    assert 0 < before["output_tokens"] <= counts.output_tokens < 4 * 100
    await asyncio.sleep(0.5)
    assert await chat.counts("cancelled") == counts


async def test_one_that_names_tokens_leaves_the_others_their_likeliest(chat: EngineClient) -> None:
    """As a canary does, in the same batch as a tenant's request."""
    pending = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "logprobs": True}
    named = body(**pending, logprob_token_ids=[11, 12, 13])
    likeliest = body(**pending, top_logprobs=4)

    async def one(number: int) -> dict[str, Any]:
        request = named if number % 2 else likeliest
        path, attempt = "/v1/chat/completions", f"named-{number}"
        reply = await chat.request("POST", path, request, attempt_id=attempt, timeout_s=60)
        assert reply.status == 200, reply.body
        answer: dict[str, Any] = json.loads(reply.body)
        return answer

    answers = await asyncio.gather(*(one(number) for number in range(12)))
    for answer in answers[::2]:
        for position in answer["choices"][0]["logprobs"]["content"]:
            assert len(position["top_logprobs"]) == 4
            assert all(top["logprob"] > -100 for top in position["top_logprobs"])


async def test_refused_and_unknown_requests_count_nothing(chat: EngineClient) -> None:
    reply = await chat.request(
        "POST", "/v1/completions", body(prompt="x", max_tokens=-1), attempt_id="bad", timeout_s=10
    )
    assert reply.status == 400
    assert await chat.counts("bad") == EngineCounts(0, 0, 0, finished=True)
    assert await chat.counts("never seen") is None


async def test_the_worker_extension_reports_memory(host: EngineHost, chat: EngineClient) -> None:
    reply = await chat.request("GET", "/torpor/memory", timeout_s=10)
    (memory,) = json.loads(reply.body)
    assert 0.9 * 2**30 < memory["kv_cache_bytes"] <= 2**30
    assert await eventually(lambda: host.status()[0].memory_bytes > memory["resident_bytes"] / 2, 10)


TEXTS = [
    "Hello there",
    " ",
    "\n\n  two  spaces\ttab\r\n",
    "Grüße, 世界! 👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff \x00\x7f",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "don't 12345 3.14e-10 https://example.com/?q=1#x",
    "word " * 2000,
    "a" * 5000,
]


@pytest.mark.parametrize("strings", [False, True])
async def test_the_gateway_tokenizes_as_the_engine_does(
    host: EngineHost, chat: EngineClient, strings: bool
) -> None:
    model = load_model(next(spec for spec in host.specs if spec.id == CHAT.id), 0)
    for text in TEXTS:
        call = TokenizeCall(model=CHAT.id, prompt=text, return_token_strs=strings)
        compute = local_answer(model, call)
        assert compute is not None
        body = {"model": CHAT.id, "prompt": text, "return_token_strs": strings}
        reply = await chat.request("POST", "/tokenize", json.dumps(body).encode(), timeout_s=30)
        assert json.loads(compute() or b"null") == json.loads(reply.body), text
        ids = json.loads(reply.body)["tokens"]
        back = local_answer(model, DetokenizeCall(model=CHAT.id, tokens=ids))
        assert back is not None
        body = {"model": CHAT.id, "tokens": ids}
        reply = await chat.request("POST", "/detokenize", json.dumps(body).encode(), timeout_s=30)
        assert json.loads(back() or b"null") == json.loads(reply.body), text


async def test_what_the_engine_alone_can_tell_is_asked_of_it(host: EngineHost) -> None:
    model = load_model(next(spec for spec in host.specs if spec.id == CHAT.id), 0)
    for prompt in (None, ""):
        assert local_answer(model, TokenizeCall(model=CHAT.id, prompt=prompt)) is None
    other = replace(model, spec=replace(model.spec, engine_args=("--tokenizer=/somewhere",)))
    assert local_answer(other, TokenizeCall(model=CHAT.id, prompt="Hi")) is None
    for call in (
        TokenizeCall(model=CHAT.id, prompt="a lone \ud800"),
        DetokenizeCall(model=CHAT.id, tokens=[1, 2**31 - 1]),
    ):
        compute = local_answer(model, call)
        assert compute is not None
        assert compute() is None


async def test_a_dead_engine_core_breaks_the_stream_and_the_engine_is_given_up(
    host: EngineHost, chat: EngineClient
) -> None:
    request = body(prompt="Once", max_tokens=2000, ignore_eos=True, stream=True)
    received = bytearray()

    def taken(chunk: bytes) -> bool:
        received.extend(chunk)
        return True

    async def read() -> None:
        async with chat.stream("/v1/completions", request, attempt_id="dying") as stream:
            await stream.pour(taken)

    reading = asyncio.create_task(read())
    assert await eventually(lambda: received.count(b"data:") > 3, 20)
    began = time.monotonic()
    for pid in set(processes_with("VLLM::EngineCore")) & set(process_tree.descendants(os.getpid())):
        os.kill(pid, signal.SIGKILL)
    with suppress(EngineBroken):  # has vLLM end its server at once, and by itself
        assert (
            await chat.request("POST", "/v1/completions", body(prompt="Twice"), timeout_s=10)
        ).status == 500
    try:
        await asyncio.wait_for(reading, 10)
    except EngineBroken:
        pass
    else:
        assert b'"error"' in received
    assert await eventually(lambda: host.status()[0].state is EngineState.FAILED, 10)
    print(f"\nnoticed after {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < 5
    assert "the engine core has died" in (host.status()[0].failure or "")


async def test_a_wrong_argument_is_told(host: EngineHost) -> None:
    with pytest.raises(EngineUnavailable):
        await host.wake(WRONG.id)
    assert "unrecognized arguments: --no-such-flag" in (host.status()[2].failure or "")


async def test_embeddings_are_counted_as_vllm_does(host: EngineHost) -> None:
    async with host.acquire(EMBED.id) as lease, EngineClient(lease.address) as client:
        for number, text in enumerate(["hello world", ["hello world", "a much longer text than that"]]):
            request = json.dumps({"model": EMBED.id, "input": text}).encode()
            reply = await client.request(
                "POST", "/v1/embeddings", request, attempt_id=f"embed-{number}", timeout_s=60
            )
            answer = json.loads(reply.body)
            assert await client.counts(f"embed-{number}") == counts_of(answer["usage"])
            assert len(answer["data"][0]["embedding"]) == 384
        models = json.loads((await client.request("GET", "/v1/models", timeout_s=10)).body)
        assert models["data"][0]["max_model_len"] == context_length(EMBED)


async def test_nothing_is_left_of_a_stopped_engine(host: EngineHost) -> None:
    run_dir = host._folders.run_dir
    assert processes_with(run_dir)
    began = time.monotonic()
    assert (await host.sleep(EMBED.id, SleepTier.COLD)).state is EngineState.COLD
    print(f"\nstopped after {time.monotonic() - began:.2f} s")
    assert await eventually(no_trace(run_dir))
