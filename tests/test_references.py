"""The reference pages say what the code has: commands, routes, error codes."""

import ast
import re
from pathlib import Path

import click
import pytest

from gateway.cli import torpor
from gateway.inference.engine_errors import CODES
from tests.process import REPOSITORY
from tests.references import PAGES, commands

_DOCS = sorted((REPOSITORY / "docs").rglob("*.md")) + [REPOSITORY / "README.md"]
_PROGRAM = re.compile(r"`(?:\.venv/bin/)?torpor ([a-z][a-z -]*[a-z])")
_SHELL = re.compile(r"(?:^|\$\(|\| |bin/|[A-Z]=\S+ )torpor ([a-z]+(?: [a-z][a-z-]*)?)", flags=re.M)
_STANDINGS = ("limit", "remaining", "reset")
_POSITIONS = {"invalid_request": 2, "ApiError": 2}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_generated_page_is_current(page: Path) -> None:
    assert page.read_text() == PAGES[page](), "run: python -m tests.references"


def test_documented_commands_exist() -> None:
    existing = {path.removeprefix("torpor ") for path, _ in commands(torpor, "torpor")}
    groups = {name.partition(" ")[0] for name in existing}
    mentioned = {words for page in _DOCS for words in _mentioned(page.read_text())}
    assert len(mentioned) > 10
    unknown = {
        words
        for words in mentioned
        if not any(words == name or words.startswith(f"{name} ") for name in existing) and words not in groups
    }
    assert unknown == set()


def _mentioned(text: str) -> list[str]:
    """Commands in code spans and in shell blocks, without options."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S)
    lines = [words for block in blocks for words in _SHELL.findall(block)]
    return _PROGRAM.findall(text) + lines


def test_a_command_that_does_not_exist_is_seen() -> None:
    assert _mentioned("run `torpor snapshot create m` or `torpor fly`") == ["snapshot create m", "fly"]
    assert _mentioned("```sh\nA=$(torpor fly --high)\nx | torpor walk\n```") == ["fly", "walk"]
    assert "fly" not in {path.removeprefix("torpor ") for path, _ in commands(torpor, "torpor")}


def served_codes() -> set[str]:
    """The literal codes of errors in the gateway's source."""
    codes: set[str] = set()
    for file in (REPOSITORY / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CODE":
                codes.add(ast.literal_eval(node.value))
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            position = _POSITIONS.get(node.func.id)
            literals = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if position is not None and len(node.args) > position:
                literals.append(node.args[position])
            codes |= {
                literal.value
                for literal in literals
                if isinstance(literal, ast.Constant) and isinstance(literal.value, str)
            }
    return codes


def test_the_page_of_errors_has_every_code_and_no_other() -> None:
    page = (REPOSITORY / "docs/reference/errors.md").read_text()
    tables = re.findall(r"^\| (`[a-z_`, ]+`) \|", page, flags=re.M)
    sentences = page.partition("## Faults of single fields")[2]
    documented = set(re.findall(r"`([a-z0-9_]+)`", " ".join([*tables, sentences]))) - {"url"}
    served = served_codes()
    assert {"model_not_found", "invalid_http", "tools_not_supported"} <= served
    assert documented == served | CODES


def test_the_page_of_headers_has_those_of_the_source_and_no_other() -> None:
    """Names that only Torpor, OpenAI's clients or proxies know; the rest of HTTP is HTTP's."""
    source = " ".join(file.read_text() for file in (REPOSITORY / "gateway").rglob("*.py"))
    mine = r"(?:x-(?!gzip|or-|tokens)[a-z-]*|openai-processing-ms|server-timing|retry-after|www-authenticate)"
    served = set(re.findall(rf"[\"'`]({mine})[\"'`]", source))
    served |= {f"x-ratelimit-{what}-{unit}" for what in _STANDINGS for unit in ("requests", "tokens")}
    page = (REPOSITORY / "docs/reference/headers.md").read_text()
    documented = set(re.findall(rf"`({mine})`", page))
    assert "x-torpor-engine" in served
    assert documented == served


def test_figures_of_the_readme_stand_in_the_benchmarks() -> None:
    section = (REPOSITORY / "README.md").read_text().partition("## How fast")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ") and "docs/benchmarks/" in row]
    assert len(rows) >= 5
    missing = []
    for row in rows:
        claim, _, link = row.rpartition("| [")
        page = (REPOSITORY / link.partition("(")[2].partition(")")[0]).read_text()
        figures = re.findall(r"\d[\d,]*(?:\.\d+)?", claim)
        missing += [f"{figure} in {row[:40]}" for figure in figures if not _stands_in(figure, page)]
    assert missing == []


def _stands_in(figure: str, page: str) -> bool:
    """Whether the page has the figure, with or without separators, or one that rounds to it."""
    numbers = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", page)}
    value, digits = float(figure.replace(",", "")), len(figure.partition(".")[2])
    return any(round(number, digits) == value for number in numbers)


def test_every_command_has_help() -> None:
    for path, entry in commands(torpor, "torpor"):
        assert entry.help, path
        for option in entry.params:
            if isinstance(option, click.Option):
                assert option.help, f"{path} {option.name}"
