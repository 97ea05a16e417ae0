"""A page of benchmarks that several of them write to, each its own section."""

import os
import shlex
import sys
from pathlib import Path


def command(module: str) -> str:
    """The command that this process was started with, as one would type it."""
    return "    python -m " + " ".join([module, *map(shlex.quote, sys.argv[1:])])


def circumstances() -> str:
    """What else the machine was doing. To be asked before the measurement."""
    return f"{os.cpu_count()} CPUs, whose load average was {os.getloadavg()[0]:.1f} before the run."


def section(page: Path, title: str) -> str:
    """The text of the section with this title; empty if there is none."""
    text = page.read_text() if page.exists() else ""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


def write_section(page: Path, title: str, text: str) -> None:
    """Replace the section with this title, or add it at the end. The page's head stays."""
    head = f"## {title}"
    page_text = page.read_text() if page.exists() else f"# {page.stem.capitalize()}\n"
    before, heading, after = page_text.partition(f"\n{head}\n")
    following = after.find("\n## ") if heading else -1
    rest = after[following:] if following >= 0 else ""
    lines = text.strip("\n")
    page.write_text(f"{before.rstrip()}\n\n{head}\n\n{lines}\n{rest}")
