"""Who may import whom, and a few habits that a linter does not know, read from the source itself."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("gateway", "engines", "tenants", "metering", "coldstart", "tests", "loadtest")

MAY_IMPORT: dict[str, frozenset[str]] = {
    "gateway": frozenset({"engines", "tenants", "metering", "coldstart"}),
    "tenants": frozenset(),
    "metering": frozenset({"tenants.types"}),
    "engines": frozenset({"coldstart"}),
    "coldstart": frozenset(),
    "tests": frozenset(FOLDERS),
    "loadtest": frozenset(),
}
"""The layering table; a module's name stands for what is below it."""

EXERCISES: dict[str, frozenset[str]] = {
    "loadtest/policy_sim.py": frozenset({"coldstart"}),
    "loadtest/admission.py": frozenset({"tenants"}),
    "loadtest/ledger.py": frozenset({"metering"}),
    "loadtest/usage_query.py": frozenset({"metering"}),
}
"""The folder that a simulation or a query benchmark exercises; the rest of loadtest/ speaks HTTP only."""

LATE_IMPORTS = frozenset(
    {
        "gateway/adapters/tensors.py",  # numpy, only when an adapter is uploaded
        "gateway/inference/schema_definitions.py",  # a validator of schemas, only when a request has one
        "gateway/config/tools.py",  # Jinja, only when a model has a template of its own
        "gateway/storage/database.py",  # Alembic, only when the schema is not the newest
        "engines/vllm_process/launcher.py",  # vLLM is imported when the process is prepared for it
        "engines/setup/models.py",  # torch and transformers, only when there is a model to convert
    }
)
BROAD_EXCEPTS = frozenset(
    {
        "tests/e2e/clients/check.py",  # what a client raises is what the table shows
        "gateway/http/context.py",  # the outermost boundary of a request
        "gateway/alerts/delivery.py",  # a channel that fails in any way is tried again
        "gateway/alerts/threads.py",  # whatever a thread's call raises is raised where it is awaited
        "gateway/alerts/loop.py",  # the outermost boundary of work beside the requests
        "gateway/http/fast_path.py",  # stands for Starlette's handler of errors
        "gateway/telemetry/logs.py",  # a line that cannot be made must not raise
        "gateway/inference/exchange.py",  # the outermost boundary of a stream that has begun
        "engines/pool/replica.py",  # the outermost boundary of a wake
        "engines/lifecycle/waking.py",  # the outermost boundary of the start of an engine
        "engines/pool/snapshot_keeper.py",  # the outermost boundary of the making of a snapshot
        "engines/vllm_process/control.py",  # a canary that cannot be asked is one that has failed
        "engines/vllm_process/adapters.py",  # likewise; and whatever vLLM has against an adapter
    }
)
"""Where an exception of any kind may end. One that is raised again, or translated, may be caught anywhere."""

MAX_CODE_LINES = 500
"""Of a file, without blank lines, comments and docstrings."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong, and where."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def violations(root: Path) -> list[Violation]:
    """Everything below ``root`` that breaks the table or a habit."""
    found: list[Violation] = []
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            if "node_modules" in file.parts:
                continue
            name = file.relative_to(root).as_posix()
            source = file.read_text()
            tree = ast.parse(source)
            found += _imports(folder, name, tree)
            found += _habits(name, tree, source)
            if folder != "tests":
                found += _late_imports(name, tree)
                found += _broad_excepts(name, tree)
    return found


def _imports(folder: str, name: str, tree: ast.Module) -> Iterator[Violation]:
    needed: set[str] = set()
    exercised = EXERCISES.get(name, frozenset())
    for node in ast.walk(tree):
        for imported in _imported(node):
            top = imported.partition(".")[0]
            if top not in FOLDERS or top == folder:
                continue
            allowed = MAY_IMPORT[folder] | exercised
            needed |= {entry for entry in exercised if imported.startswith(f"{entry}.")}
            if not any(imported == entry or imported.startswith(f"{entry}.") for entry in allowed):
                yield Violation(f"{name}:{node.lineno}", f"{folder}/ may not import {imported}")  # type: ignore[attr-defined]
    for entry in sorted(exercised - needed):
        yield Violation(name, f"is listed for importing {entry}, and does not")


def _imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports, relative ones left to their own folder."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        return [node.module if "." in node.module else f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _habits(name: str, tree: ast.Module, source: str) -> Iterator[Violation]:
    lines = len(_code_lines(tree, source))
    if lines > MAX_CODE_LINES:
        yield Violation(name, f"{lines} lines of code, more than {MAX_CODE_LINES}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield Violation(f"{name}:{node.lineno}", "a global statement")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield Violation(f"{name}:{node.lineno}", "a bare except")


def _code_lines(tree: ast.Module, source: str) -> set[int]:
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#") and number not in docstrings
    }


def _late_imports(name: str, tree: ast.Module) -> Iterator[Violation]:
    late = {
        inner.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    }
    yield from _listed(name, late, LATE_IMPORTS, "an import inside a function")


def _broad_excepts(name: str, tree: ast.Module) -> Iterator[Violation]:
    broad = {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and _is_broad(node)
        and not isinstance(node.body[-1], ast.Raise)
    }
    yield from _listed(name, broad, BROAD_EXCEPTS, "a broad except")


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"} for kind in kinds)


def _listed(name: str, lines: set[int], allowed: frozenset[str], what: str) -> Iterator[Violation]:
    """A list of exceptions names those that there are, and no others."""
    if name not in allowed:
        yield from (Violation(f"{name}:{line}", what) for line in sorted(lines))
    elif not lines:
        yield Violation(name, f"is listed for {what}, and has none")
