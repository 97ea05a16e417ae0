"""What is wrong with an upload."""


class InvalidAdapter(Exception):
    """The files are not an adapter that can be served. ``message`` may be shown to a client.

    ``param`` names the part of the upload: ``file`` or ``config``.
    """

    def __init__(self, message: str, param: str = "file") -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def shown(text: str, most: int = 128) -> str:
    """Make a stranger's text printable and short enough for a message."""
    return repr(text if len(text) <= most else text[:most] + "...")[1:-1]
