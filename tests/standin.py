"""A stand-in for vLLM's OpenAI server, for fault injection and for load: it computes nothing.

It stands for the wire format of ``/v1/chat/completions``, plain and streamed, with vLLM's usage on every
chunk; ``tests/e2e/test_contract.py`` holds it and the real engine to the same assertions. Text completions
and embeddings are there as well, without faults. It is not a process that sleeps
(``tests/engines/standin.py``) and not made for load (``loadtest/standin.py``). The last message says what
goes wrong: ``fault:cut``, ``fault:error``, ``fault:no-usage``, ``fault:overloaded``, ``fault:garbage``,
``fault:flood``, ``fault:slow``; ``echo`` answers with the request as it arrived.

    python -m tests.standin PORT
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ["The", " capital", " of", " France", " is", " Paris", "."]
_PROMPT_TOKENS = 37
_PACE_S = 0.01


def _usage(output: int) -> dict[str, Any]:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "total_tokens": _PROMPT_TOKENS + output,
        "completion_tokens": output,
    }


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-standin", "object": kind, "created": 1, "model": body["model"]}


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def _chunks(body: dict[str, Any], words: list[str]) -> Iterator[bytes]:
    options = body.get("stream_options") or {}
    head = _head(body, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], output: int, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": _usage(output)} if options.get("continuous_usage_stats") else {}
        return _event({**head, "choices": [choice], **usage})

    yield chunk({"role": "assistant", "content": ""}, 0)
    for number, word in enumerate(words, 1):
        yield chunk({"content": word}, number, "stop" if number == len(words) else None)
    if options.get("include_usage"):
        yield _event({**head, "choices": [], "usage": _usage(len(words))})


async def _stream(body: dict[str, Any], fault: str) -> AsyncIterator[bytes]:
    words = ["x" * 65536] * 4000 if fault == "fault:flood" else WORDS
    if fault == "fault:no-usage":
        body = {**body, "stream_options": None}
    for number, event in enumerate(_chunks(body, words)):
        yield event
        if number == 3 and fault == "fault:cut":
            raise ConnectionResetError("the fault that was asked for")
        if number == 3 and fault == "fault:error":
            error = {
                "message": "EngineCore died at /opt/engine/core.py",
                "type": "InternalServerError",
                "code": 500,
            }
            yield _event({"error": error})
            break
        if fault != "fault:flood":
            await asyncio.sleep(_PACE_S)
    yield b"data: [DONE]\n\n"


async def chat(request: Request) -> Response:
    body = await request.json()
    fault = body["messages"][-1].get("content")
    if fault == "fault:overloaded":
        return JSONResponse({"error": {"message": "busy", "type": "TooManyRequests", "code": 429}}, 429)
    if fault == "fault:slow":
        await asyncio.sleep(5)
    if fault == "fault:garbage":
        return PlainTextResponse("<html>not what was asked for</html>")
    if body.get("stream"):
        return StreamingResponse(_stream(body, fault), media_type="text/event-stream")
    headers = {
        name: value for name, value in request.headers.items() if name not in ("host", "content-length")
    }
    text = json.dumps({"body": body, "headers": headers}) if fault == "echo" else "".join(WORDS)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = {} if fault == "fault:no-usage" else {"usage": _usage(len(WORDS))}
    return JSONResponse({**_head(body, "chat.completion"), "choices": [choice], **usage})


async def _text_stream(body: dict[str, Any]) -> AsyncIterator[bytes]:
    head = _head(body, "text_completion")
    for number, word in enumerate(WORDS, 1):
        choice = {"index": 0, "text": word, "finish_reason": "stop" if number == len(WORDS) else None}
        yield _event({**head, "choices": [choice], "usage": _usage(number)})
    yield _event({**head, "choices": [], "usage": _usage(len(WORDS))})
    yield b"data: [DONE]\n\n"


async def completions(request: Request) -> Response:
    body = await request.json()
    if body.get("stream"):
        return StreamingResponse(_text_stream(body), media_type="text/event-stream")
    choice = {"index": 0, "text": "".join(WORDS), "logprobs": None, "finish_reason": "stop"}
    return JSONResponse({**_head(body, "text_completion"), "choices": [choice], "usage": _usage(len(WORDS))})


async def embeddings(request: Request) -> Response:
    body = await request.json()
    data = [{"object": "embedding", "index": 0, "embedding": [0.0, 1.0]}]
    return JSONResponse({**_head(body, "list"), "data": data, "usage": _usage(0)})


async def models(_request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "standin", "object": "model"}]})


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", models),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
