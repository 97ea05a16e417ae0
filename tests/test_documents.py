"""The documents name what there is: links, pages, paths, names of the code, make targets."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process import REPOSITORY

_ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_PAGES = [REPOSITORY / name for name in _ROOT_PAGES] + sorted((REPOSITORY / "docs").rglob("*.md"))
# Decisions and the changelog may name what was not chosen, or what there was.
_CURRENT_PAGES = [page for page in _PAGES if page.parent.name != "decisions" and page.name != "CHANGELOG.md"]
_FOLDERS = ("coldstart", "docs", "engines", "gateway", "loadtest", "metering", "tenants", "tests")

_FENCE = re.compile(r"^```.*?^```$", flags=re.M | re.S)
_CODE_SPAN = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", flags=re.M)
_PATH = re.compile(rf"`((?:{'|'.join(_FOLDERS)})/[\w./-]*)`")
_NAMES_IN_FILE = re.compile(r"((?:`\w+`(?:, )?)+) in `([\w/]+\.py)`")
_TARGET = re.compile(r"`make ([a-z-]+)")


def _anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def _broken_links(page: Path) -> Iterator[str]:
    text = _FENCE.sub("", page.read_text())
    for link in _LINK.findall(_CODE_SPAN.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield link
        elif fragment:
            headings = _HEADING.findall(_FENCE.sub("", target.read_text()))
            if fragment not in {_anchor(heading) for heading in headings}:
                yield link


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    assert list(_broken_links(page)) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page, twice\n[here](#a-page-twice) [gone](no.md) [self](page.md#no)\n`[code](x)`\n"
        "```\n[code](y)\n```\n[away](https://example.com)\n"
    )
    assert list(_broken_links(page)) == ["no.md", "page.md#no"]


def test_the_index_has_every_page() -> None:
    docs = REPOSITORY / "docs"
    listed = {link.partition("#")[0] for link in _LINK.findall((docs / "README.md").read_text())}
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    assert pages - listed == {"README.md"}


@pytest.mark.parametrize("page", _CURRENT_PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_paths_of_the_repository_exist(page: Path) -> None:
    paths = _PATH.findall(page.read_text())
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_the_glossary_names_what_the_code_has() -> None:
    entries = _NAMES_IN_FILE.findall((REPOSITORY / "docs/glossary.md").read_text())
    missing = [
        f"{name} in {path}"
        for names, path in entries
        for name in re.findall(r"\w+", names)
        if not re.search(rf"\b{name}\b", (REPOSITORY / path).read_text())
    ]
    assert entries
    assert missing == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/explanation/development.md"])
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    assert set(_TARGET.findall((REPOSITORY / name).read_text())) <= targets


def test_the_changelog_begins_with_unreleased_and_has_the_known_sections() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, flags=re.M)
    sections = set(re.findall(r"^### (.+)$", text, flags=re.M))
    assert versions[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_hooks_and_the_workflow_run_what_the_checks_run() -> None:
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"^ *entry: \.venv/bin/(.+?)(?: --force-exclude)?$", hooks, flags=re.M)
    checks = (REPOSITORY / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    assert len(entries) == checks.count("$(BIN)/")
    assert [entry for entry in entries if f"$(BIN)/{entry}" not in checks] == []
    workflow = (REPOSITORY / ".github/workflows/ci.yml").read_text()
    assert re.findall(r"run: bash (.+)$", workflow, flags=re.M) == [".ci/run"]
    assert (REPOSITORY / ".ci/run").is_file()
