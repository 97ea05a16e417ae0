"""``torpor advise``: what the engines cost as they are run, and what would cost less."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from gateway.cli.common import Installation, config_option, json_option, print_table, run
from gateway.cli.errors import CommandError
from gateway.cli.reports import ledger_database
from metering.reports.advice import Advice, PriceAssumptions, advise, work_between

_HOUR_S = 3_600
_HEADS = (
    "model",
    "requests",
    "tokens",
    "utilisation",
    "waking",
    "idle",
    "keep warm s",
    "idle seconds at that setting",
)
_COSTS = (
    "$ per million tokens",
    "as run",
    "always on",
    "hosted API",
    "reserved cheaper above",
    "own cheaper above",
)


@click.command("advise")
@click.option(
    "--days", type=click.IntRange(1, 366), default=7, show_default=True, help="Days of traffic to look at."
)
@click.option(
    "--hardware-hour", type=click.FloatRange(min=0), required=True, help="Dollars an hour of the machine."
)
@click.option(
    "--reserved-hour", type=click.FloatRange(min=0), help="Dollars an hour of the same one, reserved."
)
@click.option(
    "--hosted-input", type=click.FloatRange(min=0), help="Dollars a million tokens of a hosted API."
)
@click.option(
    "--hosted-output", type=click.FloatRange(min=0), help="Dollars a million tokens of a hosted API."
)
@config_option
@json_option
def advise_command(
    days: int,
    hardware_hour: float,
    reserved_hour: float | None,
    hosted_input: float | None,
    hosted_output: float | None,
    config_file: Path,
    as_json: bool,
) -> None:
    """Advise on keeping engines awake.

    Utilisation, costs, and the keep-warm setting that would cost least, from the ledger.
    """
    rates = PriceAssumptions(
        hardware_hour=hardware_hour,
        reserved_hour=reserved_hour,
        hosted_input=hosted_input,
        hosted_output=hosted_output,
    )
    installation = Installation.load(config_file)
    advice = [advise(work, rates) for work in run(lambda: _work(installation, days))]
    if as_json:
        click.echo(json.dumps([_object(item) for item in advice], indent=2))
        return
    print_table(_HEADS, [_what(item) for item in advice])
    click.echo()
    print_table(_COSTS, [_costs(item) for item in advice])


async def _work(installation: Installation, days: int) -> list[Any]:
    end = -(-int(time.time()) // _HOUR_S) * _HOUR_S
    database = await ledger_database(installation)
    try:
        async with database.connect() as connection:
            return await work_between(connection, end - days * 24 * _HOUR_S, end)
    except SQLAlchemyError as error:
        raise CommandError(f"the ledger cannot be read: {type(error).__name__}") from None
    finally:
        await database.dispose()


def _object(advice: Advice) -> dict[str, Any]:
    result = asdict(advice)
    del result["work"]["gaps_s"]
    costs = {"as_run": advice.as_run, "always_on": advice.always_on, "hosted": advice.hosted}
    return result | {"per_million": {name: advice.per_million(cost) for name, cost in costs.items()}}


def _what(advice: Advice) -> tuple[Any, ...]:
    keep = advice.keep_warm
    return (
        advice.work.model,
        advice.work.requests,
        advice.work.tokens,
        _percent(advice.utilisation),
        _percent(advice.wake_share),
        _percent(advice.idle_share),
        "-" if keep is None else f"{keep.seconds:.1f}",
        "-" if keep is None else f"{keep.idle_s:.0f}",
    )


def _costs(advice: Advice) -> tuple[Any, ...]:
    return (
        advice.work.model,
        _dollars(advice.per_million(advice.as_run)),
        _dollars(advice.per_million(advice.always_on)),
        _dollars(advice.per_million(advice.hosted)),
        _percent(advice.reserved_above),
        _percent(advice.own_above),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _dollars(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:,.4f}"
