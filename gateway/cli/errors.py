"""What goes wrong in a command in a way that is expected."""


class CommandError(Exception):
    """What a command tells in one line before it ends with exit code 1."""
