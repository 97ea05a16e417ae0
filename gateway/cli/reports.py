"""``torpor usage``: tokens by day, project and model."""

import json
import time
from pathlib import Path
from typing import Any

import click

from gateway.cli.common import Installation, answer, config_option, json_option, print_table, run

_DAY_S = 86_400
_HEADS = ("day", "project_id", "model", "requests", "input", "cached", "output")


@click.command()
@click.option("--days", type=click.IntRange(1, 31), default=7, show_default=True)
@config_option
@json_option
def usage(days: int, config_file: Path, as_json: bool) -> None:
    """Tokens of the organization that TORPOR_ADMIN_KEY belongs to."""
    installation = Installation.load(config_file)
    buckets = run(lambda: _fetch(installation, days))
    if as_json:
        click.echo(json.dumps(buckets, indent=2))
        return
    rows: list[tuple[Any, ...]] = [
        (
            time.strftime("%Y-%m-%d", time.gmtime(bucket["start_time"])),
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
    print_table(_HEADS, rows)


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
