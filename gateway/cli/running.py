"""``torpor serve|stop|wait``: the life of the gateway's process."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import httpx

from engines.spec import Task
from gateway.cli.common import CommandError, Installation, config_option, run
from gateway.cli.setup import greeting
from gateway.datadir import DataDirectoryInUse
from gateway.server import StartFailed
from gateway.server import serve as serve_gateway

_POLL_S = 0.2
_WAIT_S = 600.0
_AFTER_DRAIN_S = 30.0
_STOP_NEEDS = {"storage": ("data_dir",), "server": ("drain_timeout_s",)}
"""A gateway can be stopped whatever else has become of its configuration."""


@click.command()
@click.option("--hello", "greet", is_flag=True, help="Print how to use it once the default model answered.")
@config_option
def serve(greet: bool, config_file: Path) -> None:
    """Run the gateway in the foreground until SIGTERM or SIGINT."""
    installation = Installation.load(config_file)
    if greet:
        threading.Thread(target=_greet, args=(installation,), daemon=True).start()
    try:
        with installation.data.held():
            serve_gateway(installation.config, installation.data)
    except (DataDirectoryInUse, StartFailed) as error:
        raise CommandError(str(error)) from None


def _greet(installation: Installation) -> None:
    try:
        run(lambda: _wait(installation, _WAIT_S))
        click.echo(greeting(installation))
    except CommandError as error:
        click.echo(f"torpor: {error}", err=True)


@click.command()
@config_option
def start(config_file: Path) -> None:
    """Run the gateway in the background, and return when its default model has answered.

    Its output goes to gateway.log in the data directory; that of the run before is kept beside it.
    """
    installation = Installation.load(config_file)
    data = installation.data
    process = None
    log = data.path / "gateway.log"
    if data.running() is not None:
        click.echo("the gateway runs already")
    else:
        data.create()
        if log.exists():
            log.replace(log.with_name("gateway.log.1"))
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - this command again
                [sys.executable, "-m", "gateway.cli", "serve", "--config", str(config_file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    try:
        run(lambda: _wait(installation, _WAIT_S, process))
    except CommandError as error:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
        raise CommandError(f"{error}\nThe last lines of {log}:\n{last}") from None


@click.command()
@config_option
def stop(config_file: Path) -> None:
    """End the gateway of this data directory, and with it every engine."""
    installation = Installation.load(config_file, only=_STOP_NEEDS)
    gateway = installation.data.running()
    if gateway is None:
        click.echo("no gateway is running")
        return
    gateway.terminate()
    patience_s = installation.config.server.drain_timeout_s + _AFTER_DRAIN_S
    deadline = time.monotonic() + patience_s
    while gateway.alive():
        if time.monotonic() > deadline:
            raise CommandError(f"the gateway (process {gateway.pid}) did not end within {patience_s:g} s")
        time.sleep(_POLL_S)
    click.echo(f"the gateway (process {gateway.pid}) has ended")


@click.command()
@click.option("--timeout", "timeout_s", default=_WAIT_S, show_default=True, help="Seconds.")
@config_option
def wait(timeout_s: float, config_file: Path) -> None:
    """Wait until the default model has answered a request."""
    installation = Installation.load(config_file)
    run(lambda: _wait(installation, timeout_s))


async def _wait(
    installation: Installation, timeout_s: float, process: "subprocess.Popen[bytes] | None" = None
) -> None:
    started = time.monotonic()
    key = installation.credentials().get("TORPOR_API_KEY") or installation.credential("TORPOR_API_KEY")
    if not installation.config.models:
        raise CommandError("the configuration names no model")
    model = installation.config.models[0]
    async with installation.http(key, timeout_s=timeout_s) as client:
        await _until_listening(client, started + timeout_s, process)
        click.echo(f"the gateway listens; waking {model.id} (a cold start takes about half a minute)")
        if model.task is Task.EMBED:
            request = client.post("/v1/embeddings", json={"model": model.id, "input": "Hello"})
        else:
            messages = [{"role": "user", "content": "Hello"}]
            body = {"model": model.id, "messages": messages, "max_tokens": 8}
            request = client.post("/v1/chat/completions", json=body)
        asking = asyncio.create_task(request)
        while not (await asyncio.wait({asking}, timeout=5))[0]:
            click.echo(f"  still waking, {time.monotonic() - started:.0f} s")
        response = asking.result()
    if response.is_error:
        raise CommandError(f"{model.id} did not answer: {response.text}")
    click.echo(f"{model.id} answered after {time.monotonic() - started:.0f} s")


async def _until_listening(
    client: httpx.AsyncClient, deadline: float, process: "subprocess.Popen[bytes] | None"
) -> None:
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise CommandError("the gateway has ended")
        try:
            response = await client.get("/health/ready")
        except httpx.TransportError:
            response = None
        if response is not None and response.is_success:
            return
        await asyncio.sleep(_POLL_S)
    raise CommandError("the gateway did not begin to listen in time; its log says why")
