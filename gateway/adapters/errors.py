"""What is wrong with an upload."""


class InvalidAdapter(Exception):
    """The files are no adapter that can be served. ``message`` is fit to show to a client.

    ``param`` names the part of the upload: ``file`` or ``config``.
    """

    def __init__(self, message: str, param: str = "file") -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def shown(text: str, most: int = 128) -> str:
    """Somebody else's text as a message may show it: printable, and not long."""
    return repr(text if len(text) <= most else text[:most] + "...")[1:-1]
