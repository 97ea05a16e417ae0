"""What metering/ raises, beside `tenants.errors.StorageUnavailable`::

MeteringError
├── InvalidEntry        the database refuses this one entry, whatever is tried
├── InvalidQuery        a parameter of a usage query is wrong; ``param`` names it
├── InvalidTokenizer    the model folder has no tokenizer that can be used
└── TemplateError       the chat template is missing, broken, or refuses the messages
"""


class MeteringError(Exception):
    """Root of what metering/ raises."""


class InvalidEntry(MeteringError):
    """The database refuses this entry, and will refuse it again (a count beyond 64 bits, say)."""


class InvalidQuery(MeteringError):
    """A parameter of a usage query is wrong. ``message`` is fit to show to a client."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.message = message


class InvalidTokenizer(MeteringError):
    """The model folder has no tokenizer that can be used."""


class TemplateError(MeteringError):
    """The chat template is missing or broken, or it refuses the messages."""
