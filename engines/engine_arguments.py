"""What an operator's ``engine_args`` say of vLLM's options, in any of the forms that vLLM accepts."""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")
_POWERS = "kmgt"


def option(engine_args: Sequence[str], *names: str) -> str | None:
    """The last value of an option: ``--name value`` or ``--name=value``, with ``_`` for ``-`` also.

    ``""`` for a flag; None if it is not given.
    """
    value = None
    for index, word in enumerate(engine_args):
        name, equals, rest = word.partition("=")
        if name.replace("_", "-") not in names or not name.startswith("-"):
            continue
        following = engine_args[index + 1] if index + 1 < len(engine_args) else ""
        value = rest if equals else ("" if _is_option(following) else following)
    return value


def number(engine_args: Sequence[str], *names: str) -> int | None:
    """As `option`, for a number such as ``4096``, ``4k`` (4,000) or ``4K`` (4,096); None for any other."""
    match = _NUMBER.fullmatch((option(engine_args, *names) or "").strip())
    if match is None:
        return None
    digits, suffix = match.groups()
    power = _POWERS.find(suffix.lower()) + 1 if suffix else 0
    return int(float(digits) * (1000 if suffix.islower() else 1024) ** power)


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit()
