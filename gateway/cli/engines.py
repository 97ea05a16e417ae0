"""``torpor engines|snapshot``: what the engines are doing, and what they sleep in."""

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import click
import httpx

from gateway.cli.common import (
    APPLY_CHANGES,
    Installation,
    answer,
    config_option,
    json_option,
    print_table,
    run,
)
from gateway.cli.engine_objects import engine_objects, first_line
from gateway.cli.errors import CommandError

_REFRESH_S = 1.0
_MAKING_S = 1800.0
_PROGRESS_S = 15.0
_SNAPSHOTS_AT_ONCE = 2
"""Each starts an engine, which keeps about one core busy. One waits if the memory budget has no room."""
_MB = 1_000_000
_ENGINE_HEADS = ("model", "state", "tier", "memory MB", "in flight", "replicas", "last wake", "phases ms")
_SNAPSHOT_HEADS = ("model", "snapshot", "made", "disk MB", "usable")


@click.command()
@click.option("--once", is_flag=True, help="Print the table once instead of keeping it up to date.")
@config_option
@json_option
def engines(once: bool, config_file: Path, as_json: bool) -> None:
    """Watch the engines of the gateway.

    Every second: state, tier, memory, the last wake and its phases, and why an engine failed.
    """
    installation = Installation.load(config_file)
    installation.require_running()
    key = installation.credential("TORPOR_ROOT_KEY")
    while True:
        objects = run(lambda: engine_objects(installation, key))
        if as_json:
            click.echo(json.dumps(objects, indent=2))
            return
        if not once:
            click.clear()
        print_table(_ENGINE_HEADS, [_engine_row(engine) for engine in objects])
        for engine in objects:
            if failure := first_line(engine):
                click.echo(f"{engine['id']}: {failure}")
        if once:
            return
        time.sleep(_REFRESH_S)


def _engine_row(engine: dict[str, Any]) -> tuple[Any, ...]:
    wake = engine["wakes"][-1] if engine["wakes"] else None
    return (
        engine["id"],
        engine["state"],
        engine["tier"],
        engine["memory_bytes"] // _MB,
        engine["in_flight"],
        len(engine["replicas"]),
        f"{wake['from']} {time.time() - wake['at']:.0f} s ago" if wake else "",
        " ".join(f"{phase}={ms:g}" for phase, ms in wake["ms"].items()) if wake else "",
    )


@click.group()
def snapshot() -> None:
    """The snapshots that engines sleep in."""


@snapshot.command("create")
@click.argument("models", nargs=-1)
@click.option("--missing", is_flag=True, help="Only if there is no usable one.")
@config_option
def create(models: tuple[str, ...], missing: bool, config_file: Path) -> None:
    """Take new snapshots of MODELS, or of all. Engines go on serving.

    A small model takes half a minute, one of 1.7 B parameters a minute.
    """
    logging.getLogger("torpor.engine").setLevel(
        logging.CRITICAL
    )  # only progress is shown, not the engine's output
    installation = Installation.load(config_file)
    run(lambda: _create(installation, models, missing))


async def _create(installation: Installation, models: tuple[str, ...], missing: bool) -> None:
    local = [model.id for model in installation.config.models if model.source is not None]
    unknown = set(models) - set(local)
    if unknown:
        raise CommandError(f"the configuration has no model {sorted(unknown)[0]} with a source")
    key = installation.credential("TORPOR_ROOT_KEY")
    async with installation.api(key, engines=True, timeout_s=_MAKING_S) as client:
        listed = await client.get("/v1/torpor/snapshots")
        if listed.status_code == 501 and missing:
            click.echo("snapshots: not possible here, `torpor doctor` says why; engines start cold")
            return
        served = {engine["id"] for engine in answer(await client.get("/v1/torpor/engines"))["data"]}
        for name in models or local:
            if name not in served:
                raise CommandError(f"the running gateway was started without model {name}: {APPLY_CHANGES}")
        usable = {snapshot["model"] for snapshot in answer(listed)["data"] if snapshot["usable"]}
        names = [name for name in models or local if not (missing and name in usable)]
        turns = asyncio.Semaphore(_SNAPSHOTS_AT_ONCE)
        outcomes = await asyncio.gather(
            *(_create_one(client, name, turns) for name in names), return_exceptions=True
        )
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


async def _create_one(client: httpx.AsyncClient, name: str, turns: asyncio.Semaphore) -> None:
    async with turns:
        began = time.monotonic()
        click.echo(f"snapshot of {name}: starting the engine, warming it up, dumping it")
        request = asyncio.create_task(client.post(f"/v1/torpor/engines/{name}/snapshot"))
        while not (await asyncio.wait({request}, timeout=_PROGRESS_S))[0]:
            click.echo(f"snapshot of {name}: still working ({time.monotonic() - began:.0f} s)")
        answer(request.result())
        snapshots = answer(await client.get("/v1/torpor/snapshots"))["data"]
        (megabytes,) = [snapshot["disk_bytes"] // _MB for snapshot in snapshots if snapshot["model"] == name]
        took_s = time.monotonic() - began
        click.echo(f"snapshot of {name}: {megabytes} MB, made and verified in {took_s:.0f} s")


@snapshot.command("list")
@config_option
@json_option
def list_snapshots(config_file: Path, as_json: bool) -> None:
    """The snapshots on disk, and whether a wake would use them."""
    snapshots = _ask(Installation.load(config_file), "GET", "/v1/torpor/snapshots")
    _show(snapshots, as_json)


@snapshot.command("verify")
@click.argument("model")
@config_option
@json_option
def verify(model: str, config_file: Path, as_json: bool) -> None:
    """Read every byte of MODEL's snapshot. Exit code 1 where it is missing or must not be used."""
    snapshots = _ask(Installation.load(config_file), "POST", f"/v1/torpor/snapshots/{model}")
    _show(snapshots, as_json)
    if not snapshots:
        raise CommandError(f"there is no snapshot of {model}")
    if not snapshots[0]["usable"]:
        raise CommandError(f"the snapshot of {model} will be made again: {snapshots[0]['stale']}")


@snapshot.command("rm")
@click.argument("model")
@config_option
def remove(model: str, config_file: Path) -> None:
    """Delete MODEL's snapshots. Its next first start makes a new one."""
    removed = _ask(Installation.load(config_file), "DELETE", f"/v1/torpor/snapshots/{model}")
    click.echo(f"deleted {len(removed)} snapshots of {model}")


def _ask(installation: Installation, method: str, path: str) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]]:
        key = installation.credential("TORPOR_ROOT_KEY")
        async with installation.api(key, engines=True, timeout_s=_MAKING_S) as client:
            data: list[dict[str, Any]] = answer(await client.request(method, path))["data"]
            return data

    return run(ask)


def _show(snapshots: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(snapshots, indent=2))
        return
    rows: list[tuple[Any, ...]] = [
        (
            snapshot["model"],
            snapshot["id"],
            time.strftime("%Y-%m-%d %H:%M", time.localtime(snapshot["created_at"])),
            snapshot["disk_bytes"] // _MB,
            "yes" if snapshot["usable"] else f"no: {snapshot['stale']}",
        )
        for snapshot in snapshots
    ]
    print_table(_SNAPSHOT_HEADS, rows)
