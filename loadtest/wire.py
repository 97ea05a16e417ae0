"""vLLM's wire format of chat completions (0.32), rendered once for each kind of request.

`tests/e2e/test_contract.py` holds what comes out of here and the real engine to the same assertions. What a
request asks for beyond OpenAI's fields stands in its last message, as words ``name=value``::

    tokens=64   how many tokens to generate, where max_tokens does not say
    pace=20     milliseconds between two tokens; the first one comes at once
    stamp=1     each token's text is the time it was written at, CLOCK_MONOTONIC in nanoseconds
    tag=x1      a name under which the state tells what became of the request
    number=7    its place in the file of counts, where there is one (`loadtest.standin`)
"""

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec

PROMPT_TOKENS: Final = 37
WORDS: Final = ("The", " capital", " of", " France", " is", " Paris", ".")
LAST_CHUNK: Final = b"0\r\n\r\n"
_DEFAULT_TOKENS = 16
_MOST_TOKENS = 32768
_FINGERPRINT = "vllm-0.32.0-63ef7a3e"
# Where the request's id and the time go, of the length that they have.
_ID = "@" * 16
_STAMP = "#" * 19
_MESSAGE = {
    "refusal": None,
    "annotations": None,
    "audio": None,
    "function_call": None,
    "reasoning": None,
}
_PLAIN_TAIL = {
    "prompt_logprobs": None,
    "prompt_token_ids": None,
    "prompt_text": None,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "metrics": None,
}


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class _Message(msgspec.Struct):
    content: Any = None


class _ChatBody(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class BadBody(Exception):
    """The body is not a chat request; the text says why."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Bytes with a place for the request's id and, in a stamped token, for the time."""

    parts: tuple[bytes, ...]
    stamped: bool = False

    def fill(self, request_id: bytes) -> bytes:
        """The bytes that go out now; ``request_id`` has 16 characters."""
        filled = request_id.join(self.parts)
        if self.stamped:
            return filled.replace(_STAMP.encode(), b"%019d" % time.monotonic_ns(), 1)
        return filled


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with: ``plain``, or the chunks of a stream, framed for HTTP.

    The chunks are the role's and one for each token; the last has the end of the stream with it.
    """

    tokens: int
    pace_s: float
    tag: str | None
    number: int | None
    plain: Rendered | None = None
    chunks: tuple[Rendered, ...] = ()


@dataclass(frozen=True, slots=True)
class _Kind:
    """All that the bytes of an answer depend on."""

    model: str
    tokens: int
    reason: str
    include_usage: bool = False
    continuous: bool = False
    stamped: bool = False


@lru_cache(maxsize=256)
def answer_to(body: bytes, *, counting: bool = False) -> Answer:
    """What the body asks for: remembered, since a load's bodies are alike. Raises `BadBody`.

    ``counting``: usage is on every chunk, whether it was asked for or not.
    """
    try:
        chat = msgspec.json.decode(body, type=_ChatBody)
        words = _words(chat.messages[-1].content)
        limit = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
        tokens = int(words.get("tokens", _DEFAULT_TOKENS)) if limit is None else limit
        pace_s = float(words.get("pace", 0)) / 1000
        number = int(words["number"]) if "number" in words else None
    except (msgspec.MsgspecError, IndexError, ValueError) as error:
        raise BadBody(str(error)) from error
    if not 1 <= tokens <= _MOST_TOKENS:
        raise BadBody(f"max_tokens must be at least 1 and at most {_MOST_TOKENS}, got {tokens}.")
    reason = "stop" if limit is None else "length"
    tag = words.get("tag")
    if not chat.stream:
        return Answer(tokens, pace_s, tag, number, _plain(_Kind(chat.model, tokens, reason)))
    options = chat.stream_options or _StreamOptions()
    usage = bool(options.include_usage)
    continuous = counting or (usage and bool(options.continuous_usage_stats))
    kind = _Kind(chat.model, tokens, reason, usage, continuous, "stamp" in words)
    return Answer(tokens, pace_s, tag, number, chunks=_chunks(kind))


def _words(content: Any) -> dict[str, str]:
    if isinstance(content, list):  # of parts, as some gateways rewrite it
        content = content[-1].get("text") if content and isinstance(content[-1], dict) else None
    if not isinstance(content, str) or "=" not in content:
        return {}
    return dict(word.split("=", 1) for word in content.split() if "=" in word)


def _usage(output: int) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + output,
        "completion_tokens": output,
    }


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{_ID}", "object": kind, "created": int(time.time()), "model": model}


@lru_cache(maxsize=64)
def _plain(kind: _Kind) -> Rendered:
    text = "".join(WORDS[number % len(WORDS)] for number in range(kind.tokens))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **_MESSAGE},
        "logprobs": None,
        "finish_reason": kind.reason,
        "stop_reason": None,
        "token_ids": None,
        "routed_experts": None,
    }
    details = {"cached_tokens": 0, "created_cache_tokens": 0, "multimodal_tokens": None}
    payload = {
        **_head("chat.completion", kind.model),
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": _FINGERPRINT,
        "usage": {
            **_usage(kind.tokens),
            "prompt_tokens_details": details,
            "completion_tokens_details": None,
        },
        **_PLAIN_TAIL,
    }
    return _rendered(msgspec.json.encode(payload))


@lru_cache(maxsize=64)
def _chunks(kind: _Kind) -> tuple[Rendered, ...]:
    head = _head("chat.completion.chunk", kind.model)

    def event(choices: list[dict[str, Any]], output: int, **more: Any) -> bytes:
        counted = {"usage": {**_usage(output), "completion_tokens_details": None}} if kind.continuous else {}
        return _framed({**head, "choices": choices, **counted, **more})

    role = {"role": "assistant", "content": ""}
    first = {"index": 0, "delta": role, "logprobs": None, "finish_reason": None}
    events = [event([first], 0, prompt_token_ids=None, prompt_text=None)]
    for number in range(1, kind.tokens + 1):
        text = _STAMP if kind.stamped else WORDS[(number - 1) % len(WORDS)]
        choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "logprobs": None}
        if number < kind.tokens:
            events.append(event([{**choice, "finish_reason": None, "token_ids": None}], number))
    end = {"finish_reason": kind.reason, "stop_reason": None, "token_ids": None}
    marked = {} if kind.include_usage else {"system_fingerprint": _FINGERPRINT}
    last = event([{**choice, **end}], kind.tokens, **marked)
    if kind.include_usage:
        details = {"cached_tokens": 0, "created_cache_tokens": 0}
        usage = {**_usage(kind.tokens), "prompt_tokens_details": details}
        last += _framed({**head, "choices": [], "usage": usage, "system_fingerprint": _FINGERPRINT})
    events.append(last + _frame(b"data: [DONE]\n\n") + LAST_CHUNK)
    return tuple(_rendered(data, stamped=kind.stamped) for data in events)


def _framed(payload: dict[str, Any]) -> bytes:
    return _frame(b"data: " + msgspec.json.encode(payload) + b"\n\n")


def _frame(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _rendered(data: bytes, *, stamped: bool = False) -> Rendered:
    return Rendered(tuple(data.split(_ID.encode())), stamped and _STAMP.encode() in data)
