"""``torpor usage``: tokens by day, project and model, and the check of the sums."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from gateway.cli.common import Installation, answer, config_option, json_option, print_table, run
from gateway.cli.errors import CommandError
from gateway.cli.lazy import LazyGroup
from gateway.storage.database import is_migrated, open_database
from metering.reports.verify import differences

_DAY_S = 86_400
_HEADS = ("day", "project_id", "model", "requests", "input", "cached", "output")
_BAR = 48


@click.group(
    cls=LazyGroup,
    commands_in={"export": "gateway.cli.export:export"},
    invoke_without_command=True,
)
@click.option(
    "--days", type=click.IntRange(1, 31), default=7, show_default=True, help="Days, today included."
)
@config_option
@json_option
@click.pass_context
def usage(context: click.Context, days: int, config_file: Path, as_json: bool) -> None:
    """Tokens of the organization that TORPOR_ADMIN_KEY belongs to."""
    if context.invoked_subcommand is not None:
        return
    buckets = run(lambda: _fetch(Installation.load(config_file), days))
    if as_json:
        click.echo(json.dumps(buckets, indent=2))
        return
    print_table(_HEADS, _rows(buckets))


@usage.command()
@click.option(
    "--days", type=click.IntRange(1, 31), default=7, show_default=True, help="Days, today included."
)
@config_option
def report(days: int, config_file: Path) -> None:
    """A table, and a plot of tokens per day by project."""
    buckets = run(lambda: _fetch(Installation.load(config_file), days))
    print_table(_HEADS, _rows(buckets))
    click.echo()
    for line in _plot(buckets):
        click.echo(line)


@usage.command()
@config_option
def verify(config_file: Path) -> None:
    """Recomputes every rollup from the entries; exit code 1 where anything differs."""
    installation = Installation.load(config_file)
    differing = run(lambda: _differences(installation))
    for difference in differing:
        key = " ".join(f"{name}={value}" for name, value in difference.key.items())
        missing = " ".join(f"{name}{value:+}" for name, value in difference.missing.items())
        click.echo(f"{difference.rollup} {key}: {missing}")
    if differing:
        raise CommandError(f"{len(differing)} rows of the rollups differ from the entries")
    click.echo("every rollup is what the entries say")


def _rows(buckets: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (
            _day(bucket),
            result["project_id"],
            result["model"],
            result["num_model_requests"],
            result["input_tokens"],
            result.get("input_cached_tokens", 0),
            result.get("output_tokens", 0),
        )
        for bucket in buckets
        for result in bucket["results"]
    ]


def _plot(buckets: list[dict[str, Any]]) -> Iterator[str]:
    """Tokens of each day and project as a bar, all to one scale."""
    tokens: dict[str, dict[str, int]] = {}
    for bucket in buckets:
        for result in bucket["results"]:
            days = tokens.setdefault(result["project_id"], {})
            used = result["input_tokens"] + result.get("output_tokens", 0)
            days[_day(bucket)] = days.get(_day(bucket), 0) + used
    most = max((used for days in tokens.values() for used in days.values()), default=0)
    for project_id, days in sorted(tokens.items()):
        yield f"{project_id}, tokens per day"
        for day in sorted({_day(bucket) for bucket in buckets}):
            used = days.get(day, 0)
            bar = "█" * max(1, round(used * _BAR / most)) if used else ""
            yield f"  {day}  {used:>14,}  {bar}".rstrip()


def _day(bucket: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(bucket["start_time"]))


async def _differences(installation: Installation) -> list[Any]:
    database = await ledger_database(installation)
    try:
        return [difference async for difference in differences(database)]
    except SQLAlchemyError as error:
        raise CommandError(f"the ledger cannot be read: {type(error).__name__}") from None
    finally:
        await database.dispose()


async def ledger_database(installation: Installation) -> Any:
    """The database, to be read and disposed of. Raises `CommandError` where it has no ledger yet."""
    url = installation.config.storage.database_url()
    if not await is_migrated(url):
        raise CommandError("the database has no ledger of this version yet: start the gateway once")
    return open_database(url)


async def _fetch(installation: Installation, days: int) -> list[dict[str, Any]]:
    today = int(time.time()) // _DAY_S * _DAY_S
    parameters: list[tuple[str, str | int | float | bool | None]] = [
        ("start_time", str(today - (days - 1) * _DAY_S)),
        ("group_by", "project_id"),
        ("group_by", "model"),
        ("limit", str(days)),
    ]
    buckets: list[dict[str, Any]] = []
    async with installation.api(installation.credential("TORPOR_ADMIN_KEY")) as client:
        for kind in ("completions", "embeddings"):
            page = answer(await client.get(f"/v1/organization/usage/{kind}", params=parameters))
            buckets += page["data"]
    return sorted(buckets, key=lambda bucket: int(bucket["start_time"]))
