"""The parameters of a URL, taken by name."""

from collections.abc import Sequence

from metering.errors import InvalidQuery

_BOOLEANS = {"true": True, "false": False}
LAST_SECOND = 253_402_300_799
"""Of the year 9999."""


class Parameters:
    """Reads query parameters by name; those that were not read are unknown. Lists come as ``a[]=1&a[]=2`` or
    ``a=1&a=2``.

    Every method raises `InvalidQuery` with the parameter's name for a bad value.
    """

    def __init__(self, params: Sequence[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in params:
            self._values.setdefault(name.removesuffix("[]"), []).append(value)

    def many(self, name: str) -> tuple[str, ...]:
        """All values; empty if there are none."""
        values = tuple(self._values.pop(name, ()))
        if any("\0" in value for value in values):
            raise InvalidQuery(name, f"'{name}' must not contain NUL characters.")
        return values

    def one(self, name: str) -> str | None:
        """The only value."""
        values = self.many(name)
        if len(values) > 1:
            raise InvalidQuery(name, f"'{name}' is given more than once.")
        return values[0] if values else None

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        """The value, which must be among those allowed."""
        value = self.one(name) or default
        if value not in allowed:
            raise InvalidQuery(name, f"'{name}' must be one of {listed(allowed)}.")
        return value

    def choices(self, name: str, allowed: Sequence[str]) -> tuple[str, ...]:
        """Any of the allowed values, each once."""
        values = tuple(dict.fromkeys(self.many(name)))
        if not set(values) <= set(allowed):
            raise InvalidQuery(name, f"'{name}' must be any of {listed(allowed)}.")
        return values

    def number(self, name: str, least: int, most: int) -> int | None:
        """A whole number."""
        text = self.one(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()) or len(text) > 15 or not least <= int(text) <= most:
            raise InvalidQuery(name, f"'{name}' must be a whole number from {least} to {most}.")
        return int(text)

    def span(self) -> tuple[int, int | None]:
        """``start_time`` and ``end_time``, in unix seconds."""
        start = self.number("start_time", 0, LAST_SECOND)
        if start is None:
            raise InvalidQuery("start_time", "'start_time' is required, in unix seconds.")
        end = self.number("end_time", 0, LAST_SECOND)
        if end is not None and end <= start:
            raise InvalidQuery("end_time", "'end_time' must be after 'start_time'.")
        return start, end

    def boolean(self, name: str) -> bool | None:
        """``true`` or ``false``."""
        text = self.one(name)
        if text is not None and text.lower() not in _BOOLEANS:
            raise InvalidQuery(name, f"'{name}' must be true or false.")
        return None if text is None else _BOOLEANS[text.lower()]

    def refuse_others(self) -> None:
        """Ignoring a mistyped filter would answer with more than was asked for."""
        for name in self._values:
            excerpt = name[:64]
            raise InvalidQuery(excerpt, f"There is no parameter {excerpt!r}.")


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    return ", ".join(f"'{name}'" for name in names)
