"""The official Python client, unpatched, with a base URL and a key."""

import asyncio
import time

import openai
import pytest
from openai import OpenAI

from tests.process import CHAT_MODEL, EMBED_MODEL, QUESTION, Gateway


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> OpenAI:
    return gateway.client()


def test_first_answer_comes_through_a_cold_start(gateway: Gateway, client: OpenAI) -> None:
    """The stream is open while the engine starts, with comments on the way."""
    with gateway.http(gateway.root_key) as http:
        slept = http.post(f"/v1/torpor/engines/{CHAT_MODEL}/sleep", json={"tier": "cold"}).json()
    assert (slept["state"], slept["tier"], slept["memory_bytes"]) == ("cold", "cold", 0)
    started = time.monotonic()
    times: list[float] = []
    comments: list[str] = []
    with (
        gateway.http() as http,
        http.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": CHAT_MODEL, "messages": QUESTION, "temperature": 0, "stream": True},
        ) as response,
    ):
        opened_after = time.monotonic() - started
        body = ""
        for text in response.iter_text():
            times.append(time.monotonic())
            body += text
            comments += [line for line in text.splitlines() if line.startswith(":")]
    assert response.headers["x-torpor-engine"] == "cold"
    assert opened_after < 5
    assert len(comments) > 3
    assert comments[0].startswith(f": waking {CHAT_MODEL} cold 0.")
    longest = max(after - before for before, after in zip(times, times[1:], strict=False))
    assert longest < max(5.0, (times[-1] - times[0]) / 5), "they come at growing intervals"
    assert body.endswith("data: [DONE]\n\n")


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [CHAT_MODEL, EMBED_MODEL]
    assert client.models.retrieve(CHAT_MODEL).id == CHAT_MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody-has-this")
    assert caught.value.code == "model_not_found"


def test_plain_chat(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=CHAT_MODEL, messages=QUESTION, temperature=0, extra_headers={"x-request-id": "mine-1"}
    )
    answer = raw.parse()
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == CHAT_MODEL
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["x-torpor-engine"] == "hot"
    assert int(raw.headers["openai-processing-ms"]) > 0
    timings = dict(part.split(";dur=") for part in raw.headers["server-timing"].split(", "))
    assert set(timings) == {"auth", "queue", "wake", "ttft"}
    assert float(timings["wake"]) == 0


def test_streamed_chat_is_the_plain_answer(client: OpenAI) -> None:
    plain = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=QUESTION,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    reported = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert plain.usage is not None
    assert [usage.completion_tokens for usage in reported] == [plain.usage.completion_tokens]
    assert reported[0].prompt_tokens == plain.usage.prompt_tokens


def test_a_stream_holds_no_usage_unless_asked(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT_MODEL, messages=QUESTION, temperature=0, stream=True, max_tokens=5
    )
    chunks = list(stream)
    assert len(chunks) > 3
    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)


def test_continuous_usage_stays_on_every_chunk(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=QUESTION,
        stream=True,
        max_tokens=5,
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    assert all(chunk.usage is not None for chunk in stream)


def test_n_and_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=QUESTION, n=2, max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert len(answer.choices) == 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4


def test_structured_output(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT_MODEL, prompt=["The capital of France is", "One, two, three,"], max_tokens=4, temperature=0
    )
    assert len(answer.choices) == 2
    chunks = client.completions.create(
        model=CHAT_MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_embeddings(client: OpenAI) -> None:
    answer = client.embeddings.create(model=EMBED_MODEL, input=["a cat", "a kitten", "tax law"])
    vectors = [item.embedding for item in answer.data]
    assert len(vectors[0]) == 384

    def likeness(vector: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(vector, other, strict=True))

    assert likeness(vectors[0], vectors[1]) > likeness(vectors[0], vectors[2])
    assert answer.usage.prompt_tokens > 0


async def test_asynchronous_client(gateway: Gateway) -> None:
    async with gateway.async_client() as client:
        answers = await asyncio.gather(
            *[
                client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=4)
                for _ in range(4)
            ]
        )
        stream = await client.chat.completions.create(
            model=CHAT_MODEL,
            messages=QUESTION,
            max_tokens=4,
            stream=True,
        )
        assert [chunk async for chunk in stream]
    assert all(answer.usage and answer.usage.completion_tokens == 4 for answer in answers)


def test_fifty_at_once(gateway: Gateway) -> None:
    async def ask() -> list[int]:
        async with gateway.async_client() as client:
            answers = await asyncio.gather(
                *[
                    client.chat.completions.create(
                        model=CHAT_MODEL,
                        messages=[{"role": "user", "content": f"Count to {number}."}],
                        max_tokens=8,
                    )
                    for number in range(50)
                ]
            )
        return [answer.usage.completion_tokens for answer in answers if answer.usage]

    counts = asyncio.run(ask())
    assert len(counts) == 50
    assert all(0 < count <= 8 for count in counts)


def test_errors_are_the_clients_own_classes(gateway: Gateway, client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as unauthenticated:
        gateway.client("sk-wrong").models.list()
    assert unauthenticated.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody-has-this", messages=QUESTION)
    with pytest.raises(openai.PermissionDeniedError) as denied:
        gateway.client(gateway.admin_key).chat.completions.create(model=CHAT_MODEL, messages=QUESTION)
    assert denied.value.code == "insufficient_scope"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=CHAT_MODEL, messages=[{"role": "user", "content": "word " * 20_000}]
        )
    assert refused.value.code == "context_length_exceeded"


def test_a_field_that_only_the_engine_knows_is_refused_in_the_envelope(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, extra_body={"top_k": "many"})
    assert refused.value.type == "invalid_request_error"
    assert "top_k" in refused.value.message


def test_timeout_then_retry(gateway: Gateway) -> None:
    """A client that gives up too soon gets its own timeout, and the gateway goes on serving."""
    hasty = gateway.client(timeout=0.05, max_retries=1)
    with pytest.raises(openai.APITimeoutError):
        hasty.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=200)
    patient = hasty.with_options(timeout=60)
    assert patient.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=2).choices


def test_tokenize_and_detokenize(gateway: Gateway) -> None:
    with gateway.http() as http:
        reply = http.post("/tokenize", json={"model": CHAT_MODEL, "prompt": "Hello there"})
        back = http.post("/detokenize", json={"model": CHAT_MODEL, "tokens": reply.json()["tokens"]})
        chat = http.post("/tokenize", json={"model": CHAT_MODEL, "messages": QUESTION})
    assert back.json()["prompt"] == "Hello there"
    assert chat.json()["count"] > len(reply.json()["tokens"])
    assert "x-torpor-engine" in chat.headers, "the engine renders conversations"
    for response in (reply, back):
        assert "x-torpor-engine" not in response.headers, "the gateway answers by itself"
