"""``torpor serve|start|stop|wait``: the life of the gateway's process."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import click
import httpx

from engines.spec import Task
from gateway.cli.common import APPLY_CHANGES, Installation, config_option, run
from gateway.cli.engine_objects import why_failed
from gateway.cli.errors import CommandError
from gateway.cli.setup import greeting
from gateway.config.sections import ModelConfig
from gateway.listening import CannotListen, check_ports
from gateway.server import StartFailed
from gateway.server import serve as serve_gateway
from gateway.storage.data_directory import RunningGateway
from gateway.storage.privacy import private_umask
from gateway.telemetry.logs import LogFile

_POLL_S = 0.2
_READY_TIMEOUT_S = 2.0
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
    except StartFailed as error:
        raise CommandError(str(error)) from None


def _greet(installation: Installation) -> None:
    try:
        run(lambda: _wait(installation, _WAIT_S, pid=os.getpid()))
        click.echo(greeting(installation))
    except CommandError as error:
        click.echo(f"torpor: {error}", err=True)


timeout_option = click.option(
    "--timeout", "timeout_s", default=_WAIT_S, show_default=True, help="Seconds to wait for the answer."
)


@click.command()
@timeout_option
@config_option
def start(timeout_s: float, config_file: Path) -> None:
    """Run the gateway in the background.

    The command returns when the default model has answered.
    Its output goes to the configured log file, or else to gateway.log in the data directory; those of the
    runs before are kept beside it. A gateway that this command has started does not outlive its failure.
    """
    installation = Installation.load(config_file)
    _default_model(installation)
    server = installation.config.server
    log = server.log_file or installation.data.path / "gateway.log"
    launched: AbstractContextManager[subprocess.Popen[bytes] | None] = nullcontext()
    running = installation.data.running()
    if running is not None:
        click.echo(f"the gateway runs already, at {running.origin}")
        if installation.data.changed_since_start(config_file):
            click.echo(f"{config_file} has changed since the gateway started: {APPLY_CHANGES}")
    else:
        _check_ports(installation)
        file = LogFile(log, server.log_file_bytes, server.log_files_kept)
        launched = _launched(installation, config_file, file)
    # A SIGTERM to this command must not leave anything behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with launched as process:
            run(lambda: _wait(installation, timeout_s, process))
    except CommandError as error:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
        raise CommandError(f"{error}\nThe last lines of {log}:\n{last}") from None


def _check_ports(installation: Installation) -> None:
    """Raise `CommandError` if the port is in use: the answer there would not be the new gateway's."""
    try:
        check_ports(installation.config)
    except CannotListen as error:
        raise CommandError(f"{error}; no gateway was started") from None


@contextmanager
def _launched(
    installation: Installation, config_file: Path, log: LogFile
) -> Iterator["subprocess.Popen[bytes]"]:
    """A gateway in a process of its own, which outlives the block only where the block succeeds."""
    installation.data.create()
    # What it says before it writes its log reaches the same file: appended, as the log is.
    with private_umask(), _opened(log) as output:
        process = subprocess.Popen(  # noqa: S603 - this command again
            [sys.executable, "-m", "gateway.cli", "serve", "--config", str(config_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TORPOR_SERVER__LOG_FILE": str(log.path)},
            start_new_session=True,
        )
    try:
        yield process
    except BaseException as error:
        _end(process, installation.config.server.drain_timeout_s + _AFTER_DRAIN_S)
        if isinstance(error, CommandError):
            raise CommandError(f"{error}; the gateway that was started has ended") from None
        raise


def _opened(log: LogFile) -> BinaryIO:
    """The log, emptied."""
    try:
        log.begin()
        return log.path.open("ab")
    except OSError as error:
        raise CommandError(f"the log {log.path} cannot be written: {error.strerror}") from None


def _end(process: "subprocess.Popen[bytes]", patience_s: float) -> None:
    """End the gateway; its engines end with it, however it does."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@click.command()
@config_option
def stop(config_file: Path) -> None:
    """End the gateway and every engine."""
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
@timeout_option
@config_option
def wait(timeout_s: float, config_file: Path) -> None:
    """Wait until the default model has answered a request."""
    installation = Installation.load(config_file)
    run(lambda: _wait(installation, timeout_s))


def _default_model(installation: Installation) -> tuple[ModelConfig, str]:
    """The model, and a key that opens it."""
    key = installation.credentials().get("TORPOR_API_KEY") or installation.credential("TORPOR_API_KEY")
    if not installation.config.models:
        raise CommandError("the configuration names no model")
    return installation.config.models[0], key


async def _wait(
    installation: Installation,
    timeout_s: float,
    process: "subprocess.Popen[bytes] | None" = None,
    *,
    pid: int | None = None,
) -> None:
    """Wait for the default model of a gateway: of ``process``, of the process ``pid``, or of any."""
    model, key = _default_model(installation)
    began = time.monotonic()
    gateway: RunningGateway | None = None
    try:
        async with asyncio.timeout(timeout_s):
            gateway = await _until_ready(installation, process, pid)
            click.echo(f"the gateway listens at {gateway.origin}; waking {model.id}")
            async with installation.http(key, timeout_s=timeout_s) as client, _telling(began):
                response = await _ask(client, model)
    except TimeoutError:
        if gateway is None:
            path = installation.data.path
            raise CommandError(
                f"no gateway with the data directory {path} was ready within {timeout_s:g} s"
            ) from None
        raise CommandError(f"{model.id} did not answer within {timeout_s:g} s") from None
    if response.is_error:
        reason = await why_failed(installation, model.id) or response.text
        raise CommandError(f"{model.id} did not answer: {reason}")
    click.echo(f"{model.id} answered after {time.monotonic() - began:.0f} s")


async def _ask(client: httpx.AsyncClient, model: ModelConfig) -> httpx.Response:
    if model.task is Task.EMBED:
        return await client.post("/v1/embeddings", json={"model": model.id, "input": "Hello"})
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": model.id, "messages": messages, "max_tokens": 8}
    response = await client.post("/v1/chat/completions", json=body)
    if response.status_code != httpx.codes.BAD_REQUEST:
        return response
    # A base model has no chat template.
    return await client.post("/v1/completions", json={"model": model.id, "prompt": "Hello", "max_tokens": 8})


@asynccontextmanager
async def _telling(began: float) -> AsyncIterator[None]:
    """A line every five seconds."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(5)
            click.echo(f"  still waking, {time.monotonic() - began:.0f} s")

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()


async def _until_ready(
    installation: Installation, process: "subprocess.Popen[bytes] | None", pid: int | None
) -> RunningGateway:
    """The gateway, once it takes requests.

    It is known by what it wrote into the data directory, and queried through its socket there: an answer
    on its port proves nothing.
    """
    expected = pid if process is None else process.pid
    while True:
        if process is not None and process.poll() is not None:
            raise CommandError(f"the gateway ended by itself, with exit code {process.returncode}")
        gateway = installation.data.running()
        if gateway is not None and expected in (None, gateway.pid) and await _is_ready(installation):
            return gateway
        await asyncio.sleep(_POLL_S)


async def _is_ready(installation: Installation) -> bool:
    try:
        async with installation.http(None, _READY_TIMEOUT_S) as client:
            return (await client.get("/health/ready")).is_success
    except (httpx.TransportError, CommandError):
        return False
