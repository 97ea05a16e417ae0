"""Commands that are imported when they are run: most need little of what all of them together import."""

import gc
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """A group whose commands are named ``package.module:attribute`` until they are asked for."""

    def __init__(self, *arguments: Any, commands_in: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._places = commands_in

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the alphabet's order."""
        return sorted({*self._places, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported; None if there is none of this name."""
        location = self._places.get(cmd_name)
        if location is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = location.partition(":")
        gc.disable()  # nothing that is imported is garbage: to look for it takes a fifth of the time
        try:
            command: click.Command = getattr(import_module(module), attribute)
        finally:
            gc.freeze()
            gc.enable()
        return command
