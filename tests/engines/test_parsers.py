"""The names of parsers are those of the installed vLLM, which is read and not imported."""

import ast
import importlib.util
from pathlib import Path

import pytest

from engines.lifecycle.command import arguments
from engines.parsers import REASONING_PARSERS, TOOL_PARSERS
from engines.spec import ModelSpec


def _registered(package: str, registry: str) -> set[str]:
    """The keys of a dictionary in the package's ``__init__.py``."""
    result = importlib.util.find_spec("vllm")
    assert result is not None
    assert result.submodule_search_locations
    source = Path(result.submodule_search_locations[0]) / package / "__init__.py"
    for statement in ast.parse(source.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == registry:
            names: dict[str, object] = ast.literal_eval(statement.value)
            return set(names)
    raise AssertionError(f"{source} has no {registry}")


def test_the_tool_parsers_are_vllms_own() -> None:
    assert set(TOOL_PARSERS) == _registered("tool_parsers", "_TOOL_PARSERS_TO_REGISTER")


def test_the_reasoning_parsers_are_vllms_own() -> None:
    assert set(REASONING_PARSERS) == _registered("reasoning", "_REASONING_PARSERS_TO_REGISTER")


def test_the_engine_is_told(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    spec = ModelSpec(
        id="m", source=tmp_path, tool_parser="hermes", reasoning_parser="qwen3", chat_template=template
    )
    words = arguments(spec, tmp_path / "s")
    options = dict(zip(words, words[1:], strict=False))
    assert options["--tool-call-parser"] == "hermes"
    assert options["--reasoning-parser"] == "qwen3"
    assert options["--chat-template"] == str(template)
    assert "--enable-auto-tool-choice" in words
    assert "--exclude-tools-when-tool-choice-none" in words


def test_without_a_parser_nothing_is_said_of_tools(tmp_path: Path) -> None:
    words = " ".join(arguments(ModelSpec(id="m", source=tmp_path), tmp_path / "s"))
    assert "tool" not in words
    assert "reasoning" not in words


@pytest.mark.parametrize("argument", ["--tool-call-parser=hermes", "--tool-call-parser"])
def test_an_operators_own_arguments_count(tmp_path: Path, argument: str) -> None:
    assert ModelSpec(id="m", source=tmp_path, engine_args=(argument, "hermes")).serves_tools
    assert not ModelSpec(id="m", source=tmp_path).serves_tools
    assert ModelSpec(id="m", url="http://far").serves_tools
