"""Reference pages made from the code: ``python -m tests.references`` writes them, a test holds them to it."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from gateway.api.openapi.document import openapi_document
from gateway.cli import torpor
from tests.process import REPOSITORY

_REFERENCE = REPOSITORY / "docs/reference"
_METHODS = ("get", "post", "put", "patch", "delete")


def cli_page() -> str:
    """Every command of ``torpor`` with its arguments and options, from click's own objects."""
    lines = [
        "# The `torpor` command",
        "",
        "Made from the commands by `python -m tests.references`. `torpor COMMAND --help` prints the same.",
        "",
    ]
    for path, entry in commands(torpor, "torpor"):
        lines += _command(path, entry)
    return "\n".join(lines).rstrip() + "\n"


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Each command below the group, as it is typed; groups only stand for their commands."""
    context = click.Context(group)
    for name in group.list_commands(context):
        entry = group.get_command(context, name)
        if isinstance(entry, click.Group):
            yield from commands(entry, f"{path} {name}")
        elif entry is not None and not entry.hidden:
            yield f"{path} {name}", entry


def _command(path: str, entry: click.Command) -> Iterator[str]:
    context = click.Context(entry, info_name=path)
    usage = " ".join(entry.collect_usage_pieces(context))
    yield f"## {path}"
    yield ""
    yield f"`{f'{path} {usage}'.strip()}`"
    yield ""
    yield inspect.cleandoc(entry.help or "").replace("\b\n", "").replace("\n\n\n", "\n\n")
    yield ""
    options = [option for option in entry.params if isinstance(option, click.Option) and not option.hidden]
    if options:
        yield "| option | meaning |"
        yield "|---|---|"
        for option in options:
            record = option.get_help_record(context)
            if record is not None:
                names, text = record
                yield f"| `{_cell(names)}` | {_cell(text)} |"
        yield ""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def http_page() -> str:
    """Every route with who may call it, from the OpenAPI document."""
    lines = [
        "# HTTP API",
        "",
        "Made from the OpenAPI document by `python -m tests.references`. A running gateway serves the",
        "document, with all bodies and answers, at `/openapi.json`. [Requests](requests.md) has the fields",
        "of inference requests, [errors](errors.md) the codes.",
        "",
    ]
    by_tag: dict[str, list[str]] = {}
    for path, methods in openapi_document()["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = methods[method]
                keys = ", ".join(name for need in operation["security"] for name in need) or "none"
                row = f"| `{method.upper()} {path}` | {keys} | {operation['summary']} |"
                by_tag.setdefault(operation["tags"][0], []).append(row)
    for tag, rows in by_tag.items():
        lines += [f"## {tag.capitalize()}", "", "| route | key | what it does |", "|---|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


PAGES = {_REFERENCE / "cli.md": cli_page, _REFERENCE / "http-api.md": http_page}


def main(folder: Path | None = None) -> None:
    """Write the pages."""
    for page, text in PAGES.items():
        (page if folder is None else folder / page.name).write_text(text())


if __name__ == "__main__":
    main()
