"""Every package is pinned by version and hash, and the bill of materials lists what the lock file pins."""

import json
import re

import pytest

from engines.setup.lock_file import bill_of_materials
from tests.process import REPOSITORY

PIN = re.compile(r"([\w-]+)==([\w.+!-]+) --hash=sha256:([0-9a-f]{64})")
LOCKS = ("requirements.lock", "requirements-audit.lock", "tests/e2e/clients/requirements.txt")


def _lines(name: str) -> list[str]:
    text = (REPOSITORY / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", LOCKS)
def test_each_pin_has_a_hash(name: str) -> None:
    lines = _lines(name)
    assert len(lines) > 20
    assert [line for line in lines if not PIN.fullmatch(line)] == []


def test_the_bill_of_materials_is_that_of_the_lock_file() -> None:
    document = json.loads((REPOSITORY / "sbom.cdx.json").read_text())
    listed = {
        (component["name"], component["version"], component["hashes"][0]["content"])
        for component in document["components"]
    }
    pinned = {match.groups() for line in _lines("requirements.lock") if (match := PIN.fullmatch(line))}
    assert listed == pinned, "run: make lock KEEP=1"


def test_a_component_is_named_by_its_package_url() -> None:
    package = {
        "metadata": {"name": "Jinja2.Ext", "version": "3.1"},
        "download_info": {"archive_info": {"hashes": {"sha256": "ab" * 32}}},
    }
    (component,) = bill_of_materials([package])["components"]
    assert component["purl"] == "pkg:pypi/jinja2-ext@3.1"
    assert component["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
