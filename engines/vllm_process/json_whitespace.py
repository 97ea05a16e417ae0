"""JSON that a grammar demands has at most `LIMIT` whitespace characters in a row.

JSON allows any number of them between its tokens. A small model that has begun to indent may go on until
``max_tokens`` ends its answer, which is then cut in the middle. vLLM 0.32 can only forbid them all
(``disable_any_whitespace``), and only with a fixed backend. xgrammar, the backend that it chooses by itself,
has an option of its own, ``max_whitespace_cnt``, for a schema and for each schema in a structural tag.

The engine core compiles the grammars. It is a fork of the process in which `install` is called.
"""

import json
from collections.abc import Callable
from typing import Any

import xgrammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

LIMIT = 25
"""A line break and the indentation of a value six levels deep, four spaces for each."""


def install() -> None:
    """Put the limit into xgrammar's compiler and vLLM's backend for it. Once in a process."""
    xgrammar.GrammarCompiler.compile_json_schema = _limited_schema(  # type: ignore[method-assign]
        xgrammar.GrammarCompiler.compile_json_schema
    )
    XgrammarBackend.compile_grammar = _limited_tags(XgrammarBackend.compile_grammar)


def limited(structural_tag: Any) -> Any:
    """A structural tag (parsed JSON) whose JSON schemas have the limit, unless they have one of their own.

    The format: xgrammar's documentation, "Structural Tag". A schema itself is not looked into.
    """
    if isinstance(structural_tag, list):
        return [limited(part) for part in structural_tag]
    if not isinstance(structural_tag, dict):
        return structural_tag
    if structural_tag.get("type") == "json_schema":
        own_limit = structural_tag.get("max_whitespace_cnt")
        return {**structural_tag, "max_whitespace_cnt": LIMIT if own_limit is None else own_limit}
    return {name: limited(part) for name, part in structural_tag.items()}


def _limited_schema(compile_json_schema: Callable[..., Any]) -> Callable[..., Any]:
    def compile_limited(compiler: Any, schema: Any, **options: Any) -> Any:
        if options.get("any_whitespace", True) and options.get("max_whitespace_cnt") is None:
            options["max_whitespace_cnt"] = LIMIT
        return compile_json_schema(compiler, schema, **options)

    return compile_limited


def _limited_tags(compile_grammar: Callable[..., Any]) -> Callable[..., Any]:
    def compile_limited(backend: Any, kind: Any, grammar: str, *args: Any, **options: Any) -> Any:
        if kind is StructuredOutputOptions.STRUCTURAL_TAG:
            tag = json.loads(grammar)
            # The older form, `structures` and `triggers`, has no option for it.
            grammar = json.dumps(tag if "structures" in tag else limited(tag))
        return compile_grammar(backend, kind, grammar, *args, **options)

    return compile_limited
