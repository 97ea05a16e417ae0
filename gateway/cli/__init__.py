"""The ``torpor`` command."""

import sys

import click

from gateway.cli.accounts import key, org, project
from gateway.cli.adapters import adapter
from gateway.cli.advise import advise_command
from gateway.cli.chat import chat
from gateway.cli.common import CommandError
from gateway.cli.doctor import doctor
from gateway.cli.engines import engines, snapshot
from gateway.cli.export import export
from gateway.cli.reports import usage
from gateway.cli.running import serve, start, stop, wait
from gateway.cli.setup import hello, setup


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torpor")
def torpor() -> None:
    """An OpenAI-compatible gateway in front of vLLM engines that sleep until they are asked for."""


for command in (
    serve,
    start,
    stop,
    wait,
    setup,
    hello,
    doctor,
    chat,
    engines,
    snapshot,
    usage,
    advise_command,
    org,
    project,
    key,
    adapter,
):
    torpor.add_command(command)
usage.add_command(export)


def main() -> None:
    """The entry point: an expected failure is one line on standard error and exit code 1."""
    try:
        torpor()
    except CommandError as error:
        click.echo(f"torpor: {error}", err=True)
        sys.exit(1)
