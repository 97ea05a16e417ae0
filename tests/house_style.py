"""One house style, read from the source: what names and prose must not contain (CONTRIBUTING.md, Style).

``python -m tests.house_style FOLDER`` prints the violations below a folder.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.layering import FOLDERS, Violation
from tests.process import REPOSITORY

PRONOUNS = frozenset(
    {"told", "asked", "found", "one", "known", "wanted", "made", "place", "shown", "this", "own", "those"}
)
"""Names that say what happened to a thing, not what it is."""

PHRASES: dict[str, str] = {
    r"(?<!there )\b(is|are) no (?!longer|more|less)[a-z]": "is not a",
    r"\bwhere there (is|are) none\b": "if none",
    r"\bwhere it is none\b": "if it is not one",
    r"\banew\b": "again",
    r"\bmeanwhile\b": "in the meantime, or leave it out",
    r"\bany more\b": "no longer",
    r"\ball the same\b": "anyway",
    r"\b(somebody|nobody|whoever|anybody)\b": "name who",
    r"\bas many as may be\b": "the maximum",
    r"\bso\s+that\b": "so, or two sentences",
}
"""Phrases that are not plain English, and what to say instead."""

OPENINGS = (
    "It ",
    "One more",
    "One of",
    "One that",
    "One who",
    "Those ",
    "They ",
    "Whoever ",
    "Nobody ",
    "Somebody ",
    "So ",
    "Of ",
    "Raises ",
    "As it ",
)
"""How a docstring must not begin: it makes no sense in a search result."""

THIRD_PERSON = frozenset(
    [
        "Adds",
        "Breaks",
        "Checks",
        "Closes",
        "Counts",
        "Creates",
        "Deletes",
        "Does",
        "Downloads",
        "Drops",
        "Empties",
        "Ends",
        "Gives",
        "Holds",
        "Inserts",
        "Keeps",
        "Listens",
        "Loads",
        "Logs",
        "Makes",
        "Merges",
        "Opens",
        "Parses",
        "Prints",
        "Puts",
        "Reads",
        "Registers",
        "Removes",
        "Replaces",
        "Returns",
        "Runs",
        "Sends",
        "Serves",
        "Sets",
        "Starts",
        "Stops",
        "Takes",
        "Tells",
        "Tries",
        "Updates",
        "Waits",
        "Writes",
    ]
)
"""First words of a function's docstring that belong in the imperative."""

PUBLIC_METHODS = 20
ATTRIBUTES = 12
"""Limits of a class, unless its docstring says why it exceeds them: it has the word "because"."""

EXEMPT: dict[tuple[str, str], str] = {
    ("tests/e2e/test_bad_input.py", "nobody"): "part of a key that does not exist",
    ("tests/gateway/receivers.py", "nobody"): "the text of an SMTP reply",
    ("tests/gateway/storage/test_privacy.py", "nobody"): "the name of the user with uid 65534",
}
"""Phrases that are data in a file, and what they are."""


def repeated_classes(root: Path) -> list[str]:
    """Names of public classes that two modules of the product define: a name stands for one thing."""
    names = [
        node.name
        for folder in FOLDERS
        if folder not in ("tests", "loadtest")
        for file in (root / folder).rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    return sorted(name for name, count in Counter(names).items() if count > 1)


def violations(root: Path, folders: tuple[str, ...] = FOLDERS) -> Iterator[Violation]:
    """Each violation in the Python files of the folders."""
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            if "node_modules" not in file.parts and file.name not in (
                "house_style.py",
                "test_house_style.py",
            ):
                yield from of_source(file.relative_to(root).as_posix(), file.read_text())


def of_source(name: str, source: str) -> Iterator[Violation]:
    """The violations in one module; ``name`` is its path from the root."""
    tree = ast.parse(source)
    for line, identifier in _identifiers(tree):
        if identifier in PRONOUNS:
            yield Violation(f"{name}:{line}", f"a variable called {identifier!r}")
    for line, text in _prose(tree, source):
        for pattern, better in PHRASES.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                if (name, match[0]) not in EXEMPT:
                    yield Violation(f"{name}:{line}", f"{match[0]!r}: say {better!r}")
    yield from _docstrings(name, tree)
    if not name.startswith("tests/"):
        yield from _classes(name, tree)


def _identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr.lstrip("_")


def _prose(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    """Comments, and strings that have a space in them: docstrings, messages, help texts."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def _docstrings(name: str, tree: ast.Module) -> Iterator[Violation]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            continue
        docstring = ast.get_docstring(node) or ""
        line = getattr(node, "lineno", 1)
        opening = next((opening for opening in OPENINGS if docstring.startswith(opening)), None)
        if opening:
            yield Violation(f"{name}:{line}", f"a docstring that begins with {opening.strip()!r}")
        first = docstring.partition(" ")[0]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and first in THIRD_PERSON:
            yield Violation(f"{name}:{line}", f"a docstring that begins with {first!r}: use the imperative")


def _classes(name: str, tree: ast.Module) -> Iterator[Violation]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or "because" in (ast.get_docstring(node) or ""):
            continue
        methods = [
            item.name
            for item in node.body
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and not item.name.startswith("_")
        ]
        attributes = {
            inner.attr
            for inner in ast.walk(node)
            if isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "self"
        }
        if len(methods) > PUBLIC_METHODS:
            yield Violation(f"{name}:{node.lineno}", f"{node.name} has {len(methods)} public methods")
        if len(attributes) > ATTRIBUTES:
            yield Violation(f"{name}:{node.lineno}", f"{node.name} has {len(attributes)} attributes")


if __name__ == "__main__":
    seen = list(violations(REPOSITORY, tuple(sys.argv[1:]) or FOLDERS))
    print(*seen, f"{len(seen)} violations", sep="\n")
