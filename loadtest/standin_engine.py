"""A stand-in for an engine that knows what it has generated: tokens at a steady pace, counted in a file.

    python -m loadtest.standin_engine PORT COUNTS

The last message of a request is ``NUMBER TOKENS``: which place in the file COUNTS (an array of 32-bit
integers, mapped into memory, so that it outlives a kill) counts the request, and how many tokens it wants.
Usage is on every chunk, as vLLM's ``continuous_usage_stats`` has it.
"""

import asyncio
import json
import mmap
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PROMPT_TOKENS = 11
PACE_S = 0.04
WORD = " word"


def application(counts: mmap.mmap) -> Starlette:
    """The server; ``counts`` is the mapped file."""

    async def tokens(number: int, wanted: int, model: str) -> AsyncIterator[bytes]:
        head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1, "model": model}
        for token in range(1, wanted + 1):
            struct.pack_into("<I", counts, 4 * number, token)
            choice = {
                "index": 0,
                "delta": {"content": WORD},
                "finish_reason": "stop" if token == wanted else None,
            }
            yield _event({**head, "choices": [choice], "usage": _usage(token)})
            await asyncio.sleep(PACE_S)
        yield _event({**head, "choices": [], "usage": _usage(wanted)})
        yield b"data: [DONE]\n\n"

    async def chat(request: Request) -> Response:
        body = await request.json()
        number, wanted = map(int, body["messages"][-1]["content"].split())
        return StreamingResponse(tokens(number, wanted, body["model"]), media_type="text/event-stream")

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "standin", "object": "model"}]})

    return Starlette(
        routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models)]
    )


def _usage(output: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": output,
        "total_tokens": PROMPT_TOKENS + output,
    }


def _event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def main() -> None:
    """Serves until it is killed."""
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    with path.open("r+b") as file:
        counts = mmap.mmap(file.fileno(), 0)
    uvicorn.run(application(counts), host="127.0.0.1", port=port, log_level="critical")


if __name__ == "__main__":
    main()
