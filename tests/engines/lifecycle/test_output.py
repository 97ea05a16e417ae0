"""An engine's output, through a real pipe."""

import asyncio
import logging
import os

import pytest

from engines.lifecycle.output import EngineOutput


def write(descriptor: int, writes: tuple[bytes, ...]) -> None:
    for data in writes:
        os.write(descriptor, data)
    os.close(descriptor)


async def reading(output: EngineOutput) -> int:
    """The descriptor that it reads from the other end of."""
    ours, writing = os.pipe()
    await output.read(os.fdopen(ours, "rb"))
    return writing


async def read(*writes: bytes) -> EngineOutput:
    output = EngineOutput("model-a")
    writing = await reading(output)
    await asyncio.to_thread(write, writing, writes)
    await output.close(5)
    return output


async def test_lines_are_logged_with_the_models_name_and_the_engines_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "torpor.engine")
    await read(
        b"(APIServer pid=2) INFO 11-23 04:01 [api.py:1] hel",
        b"lo\nWARNING care\r\n\nERROR bad\n\x1b[31mred\x07",
    )
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "model-a: (APIServer pid=2) INFO 11-23 04:01 [api.py:1] hello"),
        ("WARNING", "model-a: WARNING care"),
        ("ERROR", "model-a: ERROR bad"),
        ("INFO", "model-a: red"),
    ]
    assert {record.__dict__["model"] for record in caplog.records} == {"model-a"}


async def test_nothing_grows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "torpor.engine")
    output = await read(
        *(b"x" * 60_000 for _ in range(20)), b"\nafter\n", *(b"%d\n" % n for n in range(1000))
    )
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1002
    assert max(len(message) for message in messages) < 5000
    assert messages[1] == "model-a: after"
    assert output.last_words().splitlines() == [str(n) for n in range(970, 1000)]
    assert len(output._kept) < 200


async def test_the_end_is_waited_for_only_so_long() -> None:
    output = EngineOutput("model-a")
    writing = await reading(output)
    os.write(writing, b"half a line")
    await output.close(0.05)
    assert output.last_words() == "half a line"
    os.close(writing)
