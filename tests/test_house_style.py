"""The house style holds, and the check of it can fail."""

from pathlib import Path

import pytest

from tests.house_style import EXEMPT, of_source, repeated_classes, violations
from tests.layering import FOLDERS
from tests.process import REPOSITORY


def test_the_house_style_holds() -> None:
    assert [str(violation) for violation in violations(REPOSITORY, FOLDERS)] == []


def test_the_name_of_a_class_stands_for_one_thing(tmp_path: Path) -> None:
    assert repeated_classes(REPOSITORY) == []
    for folder in ("gateway", "engines"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("class Turn: ...\n")
    assert repeated_classes(tmp_path) == ["Turn"]


@pytest.mark.parametrize(("file", "phrase"), EXEMPT)
def test_an_exemption_is_needed(file: str, phrase: str) -> None:
    assert phrase in (REPOSITORY / file).read_text()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("told = 1", "a variable called 'told'"),
        ("def f(found: int) -> None: ...", "a variable called 'found'"),
        ("for one in range(3): ...", "a variable called 'one'"),
        ("class A:\n    def f(self) -> None:\n        self._asked = 1", "a variable called 'asked'"),
        ("x = 1  # it is made anew", "'anew'"),
        ('raise ValueError("This is no folder.")', "'is no f'"),
        ('def f() -> None:\n    """Reads the file."""', "use the imperative"),
        ('def f() -> None:\n    """One more."""', "begins with 'One more'"),
        (
            "class A:\n" + "".join(f"    def m{n}(self) -> None: ...\n" for n in range(21)),
            "21 public methods",
        ),
        (
            "class A:\n    def __init__(self) -> None:\n"
            + "".join(f"        self.a{n} = 1\n" for n in range(13)),
            "13 attributes",
        ),
    ],
)
def test_what_breaks_the_house_style_is_seen(source: str, complaint: str) -> None:
    (violation,) = of_source("gateway/a.py", source)
    assert complaint in str(violation)


def test_a_class_may_say_why_it_is_large() -> None:
    body = "".join(f"    def m{n}(self) -> None: ...\n" for n in range(21))
    assert not list(of_source("gateway/a.py", f'class A:\n    """Large, because it is."""\n{body}'))
