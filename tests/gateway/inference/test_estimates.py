"""Where no engine says what it has generated, the model's own tokenizer counts the text."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gateway.inference.estimates import RelayedText
from metering.tables import ledger_entries
from tests.gateway.app_fixture import Stage, stage_at


@pytest.fixture
async def stage(tmp_path: Path, standin: str) -> AsyncIterator[Stage]:
    async with stage_at(tmp_path, standin) as opened:
        yield opened


async def _entry(stage: Stage) -> tuple[str, int, int, bool]:
    assert await stage.services.ledger.applied()
    c = ledger_entries.c
    async with stage.services.database.connect() as connection:
        result = await connection.execute(select(c.outcome, c.input_tokens, c.output_tokens, c.estimated))
        outcome, *tokens, estimated = result.one()
    return outcome, tokens[0], tokens[1], estimated


@pytest.mark.parametrize(
    ("fault", "stream", "outcome", "text"),
    [
        ("no-usage", False, "completed", "The capital of France is Paris."),
        ("no-usage", True, "completed", "The capital of France is Paris."),
        ("cut", True, "failed", "The capital of"),
    ],
)
async def test_the_tokenizer_counts_what_no_engine_reports(
    stage: Stage, fault: str, stream: bool, outcome: str, text: str
) -> None:
    model = stage.services.catalog.get("near")
    assert model is not None
    assert model.counter is not None
    assert model.template is not None
    assert (await stage.ask(f"fault:{fault}", stream=stream)).status_code == 200
    prompt = model.template.render([{"role": "user", "content": f"fault:{fault}"}])
    counted = [model.counter.count(item, add_special_tokens=False) for item in (prompt, text)]
    assert await _entry(stage) == (outcome, *counted, True)


def _event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def test_text_of_every_kind_is_kept_by_choice() -> None:
    relayed = RelayedText()
    function = {"name": "weather", "arguments": "{}"}
    deltas: list[dict[str, Any]] = [
        {"index": 0, "delta": {"content": "a", "role": "assistant"}},
        {"index": 1, "delta": {"reasoning_content": "b"}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": function}]}},
        {"index": 1, "text": "c"},
    ]
    for item in deltas:
        relayed.add_events(_event({"choices": [item]}))
    relayed.add_events(b": a comment\n\ndata: [DONE]\n\ndata: {\n\n" + _event([1]) + _event({"choices": 5}))
    assert relayed.texts() == ["aweather{}", "bc"]


def test_an_endless_answer_is_not_kept() -> None:
    relayed = RelayedText()
    for _ in range(40):
        relayed.add_events(_event({"choices": [{"index": 0, "text": "x" * 65_536}]}))
    assert len(relayed.texts()[0]) + relayed.beyond == 40 * 65_536
    assert len(relayed.texts()[0]) <= 1 << 20
