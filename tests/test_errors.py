"""The tree of errors that a folder's ``errors.py`` draws is that of its classes."""

import ast
import re

import pytest

from tests.process import REPOSITORY

_LINE = re.compile(r"^(?P<indent>[ │]*[├└]── )(?P<name>\w+)")


def drawn(folder: str, root: str) -> dict[str, str]:
    """The parent of each class, from the drawing in the module's docstring."""
    docstring = ast.get_docstring(ast.parse((REPOSITORY / folder / "errors.py").read_text())) or ""
    parents: dict[str, str] = {}
    path = [root]
    for line in docstring.splitlines():
        match = _LINE.match(line.removeprefix("    "))
        if match:
            depth = len(match["indent"]) // 4
            del path[depth:]
            parents[match["name"]] = path[-1]
            path.append(match["name"])
    return parents


def defined(folder: str, root: str) -> dict[str, str]:
    """The parent of each public class below the root, from the source of the whole folder."""
    bases = {
        node.name: base.id
        for file in (REPOSITORY / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }
    reached = {root}
    while below := {name for name, base in bases.items() if base in reached} - reached:
        reached |= below
    return {name: bases[name] for name in reached - {root} if not name.startswith("_")}


@pytest.mark.parametrize(
    ("folder", "root"),
    [("engines", "EngineError"), ("tenants", "TenantError"), ("metering", "MeteringError")],
)
def test_the_drawing_has_every_error_below_its_parent(folder: str, root: str) -> None:
    assert drawn(folder, root) == defined(folder, root)
