"""Grammars are compiled within their limit and in turns, with xgrammar itself and real child processes."""

import json
import os
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.vllm_process import grammar_compiler
from engines.vllm_process.grammar_compiler import GrammarExecutor, GrammarTooComplex


def _request(project: str) -> Any:
    return SimpleNamespace(cache_salt=project)


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _spin() -> None:
    while True:
        pass


def test_a_grammar_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = GrammarExecutor()
    began = time.monotonic()
    with pytest.raises(GrammarTooComplex, match="4 s of processor time"):
        executor.try_out(_spin)
    assert time.monotonic() - began < 60
    executor.try_out(lambda: None)
    executor.try_out(lambda: json.loads("{"))  # fails again, and properly, in the engine core
    assert _children() == []


def test_one_at_a_time_for_each_project_and_projects_in_turns() -> None:
    executor, gates = GrammarExecutor(workers=2), {name: threading.Event() for name in "abc"}
    order: list[str] = []

    def compile_grammar(request: Any) -> str:
        order.append(request.cache_salt)
        gates[request.cache_salt].wait(20)
        return str(request.cache_salt)

    flood = [executor.submit(compile_grammar, _request("a")) for _ in range(5)]
    neighbour = executor.submit(compile_grammar, _request("b"))
    gates["b"].set()
    assert neighbour.result(20) == "b", "a flood of one project keeps no other from compiling"
    assert order.count("a") == 1
    gates["a"].set()
    assert [future.result(20) for future in flood] == ["a"] * 5
    executor.shutdown()


def test_what_is_pending_is_given_up_before_a_dump() -> None:
    executor, started = GrammarExecutor(workers=1), threading.Event()

    def compile_grammar(_request: Any) -> None:
        started.set()
        executor.try_out(_spin)

    running = executor.submit(compile_grammar, _request("a"))
    pending = [executor.submit(compile_grammar, _request(name)) for name in "bcd"]
    assert started.wait(20)
    time.sleep(0.1)
    executor.quiet()
    assert _children() == []
    assert isinstance(running.exception(20), GrammarTooComplex)
    for future in pending:
        with pytest.raises(CancelledError):
            future.result(20)
    assert executor.submit(lambda request: request.cache_salt, _request("e")).result(20) == "e"
    executor.shutdown()


def test_a_grammar_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(grammar_compiler._executor, "try_out", tried.append)
    limited = grammar_compiler._limited(lambda _backend, kind, grammar: f"{kind} {grammar}")
    assert [limited(None, "regex", text) for text in ("a+", "a+", "b+")] == [
        "regex a+",
        "regex a+",
        "regex b+",
    ]
    assert len(tried) == 2


def test_a_small_schema_that_takes_minutes_fails_with_xgrammar_itself() -> None:
    import xgrammar

    vocabulary = [bytes([byte]) for byte in range(32, 127)] + [
        bytes([first, second]) for first in range(97, 123) for second in range(97, 123)
    ]
    vocabulary += [word + word for word in vocabulary[95:]] + [word * 3 for word in vocabulary[95:]]
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(vocabulary * 12), cache_enabled=False)
    names = [f"k{number}" for number in range(400)]
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": 1000 + at} for at, name in enumerate(names)},
        "required": names,
    }
    executor = GrammarExecutor()
    with pytest.raises(GrammarTooComplex):
        executor.try_out(lambda: compiler.compile_json_schema(json.dumps(schema)))
    executor.try_out(lambda: compiler.compile_json_schema('{"type": "object"}'))
