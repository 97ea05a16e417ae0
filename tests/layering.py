"""Who may import whom, and a few habits that a linter does not know, read from the source itself."""

import ast
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

FOLDERS = ("gateway", "engines", "tenants", "metering", "coldstart", "tests", "loadtest")

MAY_IMPORT: dict[str, frozenset[str]] = {
    "gateway": frozenset({"engines", "tenants", "metering", "coldstart"}),
    "tenants": frozenset(),
    "metering": frozenset({"tenants.types", "tenants.errors"}),
    "engines": frozenset({"coldstart"}),
    "coldstart": frozenset(),
    "tests": frozenset(FOLDERS),
    "loadtest": frozenset(),
}
"""The layering table; a module's name stands for what is below it."""

EXERCISES: dict[str, frozenset[str]] = {
    "loadtest/policy_sim.py": frozenset({"coldstart"}),
    "loadtest/admission.py": frozenset({"tenants"}),
    "loadtest/isolation.py": frozenset({"coldstart", "engines"}),
    "loadtest/isolation_extension.py": frozenset({"engines"}),
    "loadtest/ledger.py": frozenset({"metering"}),
    "loadtest/timed_gateway.py": frozenset({"gateway"}),
    "loadtest/usage_query.py": frozenset({"metering"}),
}
"""The folder that a simulation or a query benchmark exercises; the rest of loadtest/ speaks HTTP only."""

WITHIN: dict[str, frozenset[str]] = {
    # What a model is and how its engines are seen from outside; every part of engines/ may know that.
    "engines": frozenset(),
    "engines.client": frozenset({"engines"}),
    "engines.lifecycle": frozenset({"engines"}),
    "engines.pool": frozenset(
        {
            "engines",
            "engines.lifecycle.engine",
            "engines.lifecycle.health_watch",
            "engines.lifecycle.snapshots",
            "engines.lifecycle.waking",
        }
    ),
    "engines.fitting": frozenset({"engines", "engines.lifecycle.command", "engines.pool.memory_budget"}),
    "engines.host": frozenset({"engines", "engines.fitting", "engines.lifecycle", "engines.pool"}),
    "engines.vllm_process": frozenset({"engines.wire"}),
    "engines.setup": frozenset(),
    "coldstart": frozenset(),
    "coldstart.criu": frozenset(),
    "coldstart.sandbox": frozenset(),
    "coldstart.snapshots": frozenset({"coldstart.criu"}),
    "tenants": frozenset(),
    "tenants.accounts": frozenset({"tenants"}),
    "tenants.queueing": frozenset({"tenants"}),
    "tenants.tokens": frozenset({"tenants", "tenants.accounts"}),
    "tenants.limits": frozenset({"tenants", "tenants.accounts"}),
    "tenants.adapters": frozenset({"tenants", "tenants.accounts"}),
    "tenants.alerts": frozenset({"tenants", "tenants.accounts", "tenants.limits"}),
    "tenants.store": frozenset({"tenants", "tenants.accounts", "tenants.tokens"}),
    "metering": frozenset(),
    "metering.ledger": frozenset({"metering"}),
    "metering.reports": frozenset({"metering", "metering.ledger.rollups"}),
    "metering.tokenizers": frozenset({"metering"}),
    "gateway": frozenset(),
    "gateway.config": frozenset(),
    "gateway.storage": frozenset(),
    "gateway.http": frozenset({"gateway.config"}),
    "gateway.alerts": frozenset({"gateway.config"}),
    "gateway.listening": frozenset({"gateway.config", "gateway.storage"}),
    "gateway.engine_host": frozenset({"gateway.config", "gateway.storage"}),
    "gateway.telemetry": frozenset({"gateway.http"}),
    "gateway.inference": frozenset({"gateway.config", "gateway.http", "gateway.telemetry"}),
    "gateway.adapters": frozenset({"gateway.config", "gateway.http", "gateway.inference", "gateway.storage"}),
    "gateway.services": frozenset(
        {
            "gateway.adapters",
            "gateway.alerts",
            "gateway.config",
            "gateway.http",
            "gateway.inference",
            "gateway.telemetry",
        }
    ),
    "gateway.api": frozenset(
        {"gateway.alerts", "gateway.config", "gateway.http", "gateway.inference", "gateway.services"}
    ),
    "gateway.app": frozenset(
        {
            "gateway.adapters",
            "gateway.alerts",
            "gateway.api",
            "gateway.config",
            "gateway.engine_host",
            "gateway.http",
            "gateway.inference",
            "gateway.services",
            "gateway.storage",
            "gateway.telemetry",
        }
    ),
    "gateway.server": frozenset(
        {
            "gateway.app",
            "gateway.config",
            "gateway.engine_host",
            "gateway.http",
            "gateway.listening",
            "gateway.services",
            "gateway.storage",
            "gateway.telemetry",
        }
    ),
    "gateway.cli": frozenset(
        {
            "gateway.adapters",
            "gateway.app",
            "gateway.config",
            "gateway.engine_host",
            "gateway.http",
            "gateway.listening",
            "gateway.server",
            "gateway.storage",
            "gateway.telemetry",
        }
    ),
}
"""What a sub-package, or a module at the root of a folder, may import of its own folder besides itself.

A folder's own name stands for the modules at its root that are not listed by themselves, another name for the
module or the sub-package with everything in it.
"""

STARTED_BY_NAME = frozenset({"engines.setup", "engines.vllm_process"})
"""Sub-packages that run in processes of their own: only they themselves and tests import them."""

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
        "engines/vllm_process/grammar_compiler.py",  # a future carries what a compilation raises
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

    location: str
    what: str

    def __str__(self) -> str:
        return f"{self.location}: {self.what}"


def violations(root: Path) -> list[Violation]:
    """Everything below ``root`` that breaks the table or a habit."""
    result: list[Violation] = []
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            if "node_modules" in file.parts:
                continue
            name = file.relative_to(root).as_posix()
            source = file.read_text()
            tree = ast.parse(source)
            result += _imports(folder, name, tree)
            result += _habits(name, tree, source)
            if folder != "tests":
                result += _late_imports(name, tree)
                if folder in WITHIN:
                    result += _within(name, tree)
                result += _broad_excepts(name, tree)
    return result


def module_graph(root: Path) -> dict[str, set[str]]:
    """Which modules each module imports, also inside functions and for type checkers alone."""
    folders = [folder for folder in FOLDERS if folder != "tests"]
    files = [file for folder in folders for file in sorted((root / folder).rglob("*.py"))]
    names = {
        file: ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for file in files
    }
    modules = set(names.values())
    graph: dict[str, set[str]] = {}
    for file, name in names.items():
        imported = [
            target
            for node in ast.walk(ast.parse(file.read_text()))
            for target in (*_imported_modules(node), *_imported(node))
        ]
        nearest = {_nearest(target, modules) for target in imported}
        graph[name] = {target for target in nearest if target is not None and target != name}
    return graph


def _nearest(target: str, modules: set[str]) -> str | None:
    """The module that ``target``, a module or a name in one, belongs to."""
    return target if target in modules else next(iter({target.rpartition(".")[0]} & modules), None)


def circle(graph: Mapping[str, Set[str]]) -> list[str]:
    """One circle of modules that import each other, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        result: list[str] = error.args[1]
        return result
    return []


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


def _within(name: str, tree: ast.Module) -> Iterator[Violation]:
    """Import between the sub-packages of a folder."""
    parts = name.removesuffix(".py").split("/")
    unit = _unit(".".join(parts))
    if len(parts) > 2 and unit == parts[0]:
        yield Violation(name, f"{parts[0]}/{parts[1]} is not in the table of sub-packages")
        return
    for node in ast.walk(tree):
        for imported in _imported_modules(node):
            target = _unit(imported)
            if target == unit or imported.partition(".")[0] not in MAY_IMPORT or "." not in imported:
                continue
            same_folder = imported.partition(".")[0] == parts[0]
            allowed = target in WITHIN[unit] or any(_is_below(imported, entry) for entry in WITHIN[unit])
            if (same_folder and not allowed) or target in STARTED_BY_NAME:
                yield Violation(f"{name}:{node.lineno}", f"{unit} may not import {imported}")  # type: ignore[attr-defined]


def _unit(module: str) -> str:
    """The entry of `WITHIN` that a module belongs to."""
    first_two = ".".join(module.split(".")[:2])
    return first_two if first_two in WITHIN else module.partition(".")[0]


def _is_below(module: str, entry: str) -> bool:
    return "." in entry and (module == entry or module.startswith(f"{entry}."))


def _imported_modules(node: ast.AST) -> list[str]:
    """As `_imported`; of ``from a.b import c`` what may be a module, ``a.b.c``, which lies below ``a.b``."""
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return _imported(node)


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
