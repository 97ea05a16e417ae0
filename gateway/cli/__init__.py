"""The ``torpor`` command."""

import sys

import click

from gateway.cli.errors import CommandError
from gateway.cli.lazy import LazyGroup
from gateway.storage.privacy import DataDirectoryError

_COMMANDS = {
    "serve": "gateway.cli.running:serve",
    "start": "gateway.cli.running:start",
    "stop": "gateway.cli.running:stop",
    "wait": "gateway.cli.running:wait",
    "setup": "gateway.cli.setup:setup",
    "hello": "gateway.cli.setup:hello",
    "doctor": "gateway.cli.doctor:doctor",
    "chat": "gateway.cli.chat:chat",
    "engines": "gateway.cli.engines:engines",
    "snapshot": "gateway.cli.engines:snapshot",
    "usage": "gateway.cli.reports:usage",
    "advise": "gateway.cli.advise:advise_command",
    "org": "gateway.cli.accounts:org",
    "project": "gateway.cli.accounts:project",
    "key": "gateway.cli.accounts:key",
    "adapter": "gateway.cli.adapters:adapter",
}


@click.group(cls=LazyGroup, commands_in=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="torpor")
def torpor() -> None:
    """An OpenAI-compatible gateway in front of vLLM engines that sleep until they are asked for."""


def main() -> None:
    """The entry point: an expected failure is one line on standard error and exit code 1."""
    try:
        torpor(prog_name="torpor")
    except (CommandError, DataDirectoryError) as error:
        click.echo(f"torpor: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"torpor: {error.filename} cannot be used: {error.strerror}", err=True)
        sys.exit(1)
