"""The layering table holds, and the check of it can fail."""

from pathlib import Path

import pytest

from tests.layering import FOLDERS, WITHIN, circle, module_graph, violations
from tests.process import REPOSITORY


def test_the_layering_table_holds() -> None:
    assert [str(violation) for violation in violations(REPOSITORY)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(module_graph(REPOSITORY)) == []


def test_the_table_of_sub_packages_is_of_those_that_exist_and_has_no_circle() -> None:
    for name in WITHIN:
        path = REPOSITORY / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
    units = {name: {".".join(entry.split(".")[:2]) for entry in entries} for name, entries in WITHIN.items()}
    assert all(entries <= WITHIN.keys() | {"engines.wire"} for entries in units.values())
    assert circle(units) == []


def test_what_runs_in_vllms_processes_loads_nothing_of_the_host() -> None:
    """Whatever it imports, and whatever that imports in turn: it is frozen into every snapshot."""
    graph = module_graph(REPOSITORY)
    reached: set[str] = set()
    to_visit = [name for name in graph if name.startswith("engines.vllm_process.")]
    while to_visit:
        name = to_visit.pop()
        if name not in reached:
            reached.add(name)
            to_visit += graph[name]
    others = {name for name in reached if not name.startswith("engines.vllm_process")}
    assert others == {"engines.wire"}


@pytest.mark.parametrize(
    ("files", "modules"),
    [
        ({"a": "import tenants.b", "b": "from tenants.a import x"}, {"tenants.a", "tenants.b"}),
        (
            {"a": "def f():\n    from tenants import b", "b": "from tenants import a"},
            {"tenants.a", "tenants.b"},
        ),
        (
            {
                "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tenants.c import X",
                "b": "from tenants.a import x",
                "c": "from tenants.b import y",
            },
            {"tenants.a", "tenants.b", "tenants.c"},
        ),
        ({"a": "import tenants.b", "b": "from tenants import types"}, set()),
    ],
)
def test_a_circle_is_seen(tmp_path: Path, files: dict[str, str], modules: set[str]) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    for name, source in files.items():
        (tmp_path / f"tenants/{name}.py").write_text(source)
    assert set(circle(module_graph(tmp_path))) == modules


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("tenants/a.py", "import gateway.app", "tenants/ may not import gateway.app"),
        ("metering/a.py", "from tenants.store import Tenants", "metering/ may not import tenants.store"),
        ("metering/a.py", "from tenants import store", "metering/ may not import tenants.store"),
        ("engines/a.py", "from metering.types import Usage", "engines/ may not import metering.types"),
        (
            "coldstart/a.py",
            "def f():\n    from engines import host",
            "coldstart/ may not import engines.host",
        ),
        ("loadtest/a.py", "import gateway", "loadtest/ may not import gateway"),
        ("loadtest/policy_sim.py", "import engines.host", "loadtest/ may not import engines.host"),
        ("loadtest/policy_sim.py", "x = 1", "is listed for importing coldstart, and does not"),
        (
            "gateway/http/a.py",
            "from gateway.inference import sse",
            "gateway.http may not import gateway.inference",
        ),
        (
            "gateway/inference/a.py",
            "import gateway.api.models",
            "gateway.inference may not import gateway.api",
        ),
        ("gateway/api/a.py", "from gateway import app", "gateway.api may not import gateway.app"),
        ("gateway/new.py", "from gateway.http import errors", "gateway may not import gateway.http.errors"),
        ("gateway/new/a.py", "x = 1", "gateway/new is not in the table of sub-packages"),
        ("engines/pool/a.py", "from engines.lifecycle import process", "engines.pool may not import"),
        (
            "engines/vllm_process/a.py",
            "from engines.errors import EngineError",
            "engines.vllm_process may not",
        ),
        ("engines/host.py", "from engines.vllm_process import canary", "engines.host may not import"),
        ("gateway/api/a.py", "import engines.vllm_process.canary", "gateway.api may not import engines.vllm"),
        ("metering/reports/a.py", "from metering.ledger.journal import Journal", "metering.reports may not"),
        ("tenants/a.py", "from tenants.accounts import keys", "tenants may not import tenants.accounts.keys"),
        ("gateway/a.py", "x = 1\ndef f():\n    global x", "a global statement"),
        ("gateway/a.py", "def f():\n    import json", "an import inside a function"),
        ("gateway/a.py", "try:\n    x = 1\nexcept:\n    x = 2", "a bare except"),
        ("gateway/a.py", "try:\n    x = 1\nexcept Exception:\n    x = 2", "a broad except"),
        ("gateway/a.py", "try:\n    x = 1\nexcept (OSError, BaseException):\n    x = 2", "a broad except"),
        ("engines/lifecycle/waking.py", "x = 1", "is listed for a broad except, and has none"),
        ("gateway/a.py", "x = 1\n" * 501, "501 lines of code, more than 500"),
    ],
)
def test_a_planted_violation_is_seen(tmp_path: Path, file: str, source: str, message: str) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    assert any(message in str(violation) for violation in violations(tmp_path))


def test_what_is_allowed_is_not_a_violation(tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "metering/a.py").write_text(
        "from tenants.types import Principal\nfrom metering import errors\n"
    )
    (tmp_path / "loadtest/policy_sim.py").write_text("from coldstart.tiers import SleepTier\n")
    (tmp_path / "engines/pool").mkdir()
    (tmp_path / "engines/pool/a.py").write_text(
        "from engines import spec\nfrom engines.lifecycle import waking\nfrom engines.pool import actor\n"
        "from engines.lifecycle.engine import Engine\n"
    )
    (tmp_path / "gateway/a.py").write_text("import json\nfrom engines.host import EngineHost\n")
    (tmp_path / "gateway/c.py").write_text("\n# a comment" * 501 + "\nx = 1\n" * 500)
    (tmp_path / "gateway/b.py").write_text(
        "try:\n    x = 1\nexcept Exception as error:\n    raise KeyError from error"
    )
    assert violations(tmp_path) == []
