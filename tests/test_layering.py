"""The layering table holds, and the check of it can fail."""

from pathlib import Path

import pytest

from tests.layering import FOLDERS, violations
from tests.process import REPOSITORY


def test_the_layering_table_holds() -> None:
    assert [str(violation) for violation in violations(REPOSITORY)] == []


@pytest.mark.parametrize(
    ("file", "source", "told"),
    [
        ("tenants/a.py", "import gateway.app", "tenants/ may not import gateway.app"),
        ("metering/a.py", "from tenants.store import TenantStore", "metering/ may not import tenants.store"),
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
        ("gateway/a.py", "x = 1\ndef f():\n    global x", "a global statement"),
        ("gateway/a.py", "def f():\n    import json", "an import inside a function"),
        ("gateway/a.py", "try:\n    x = 1\nexcept:\n    x = 2", "a bare except"),
        ("gateway/a.py", "try:\n    x = 1\nexcept Exception:\n    x = 2", "a broad except"),
        ("gateway/a.py", "try:\n    x = 1\nexcept (OSError, BaseException):\n    x = 2", "a broad except"),
        ("engines/lifecycle/waking.py", "x = 1", "is listed for a broad except, and has none"),
        ("gateway/a.py", "x = 1\n" * 501, "501 lines of code, more than 500"),
    ],
)
def test_a_planted_violation_is_seen(tmp_path: Path, file: str, source: str, told: str) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    assert any(told in str(violation) for violation in violations(tmp_path))


def test_what_is_allowed_is_not_a_violation(tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "metering/a.py").write_text(
        "from tenants.types import Principal\nfrom metering import errors\n"
    )
    (tmp_path / "loadtest/policy_sim.py").write_text("from coldstart.tiers import SleepTier\n")
    (tmp_path / "gateway/a.py").write_text("import json\nfrom engines.host import EngineHost\n")
    (tmp_path / "gateway/c.py").write_text("\n# a comment" * 501 + "\nx = 1\n" * 500)
    (tmp_path / "gateway/b.py").write_text(
        "try:\n    x = 1\nexcept Exception as error:\n    raise KeyError from error"
    )
    assert violations(tmp_path) == []
