"""The usage that a server reports with its answer, in the forms in which servers write it.

The form is OpenAI's ``usage`` object. Servers differ in where they put it (beside the choices, in one of
them, in a field of their own) and in what they write for a number (floats, text, null).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from metering.types import Usage

MOST_TOKENS = 1 << 24
"""A greater count is not believed: 2,048 inputs of 8,192 tokens, or 128 choices of 131,072, are as many."""


class ReportedUsage(msgspec.Struct, frozen=True):
    """Tokens as a server reports them; None where it reports no number that could be a count of tokens."""

    input_tokens: int | None = None
    cached_tokens: int = 0
    output_tokens: int | None = None

    def usage(self) -> Usage:
        """As the ledger counts it; what is not reported counts as 0."""
        input_tokens = self.input_tokens or 0
        return Usage(
            input_tokens=input_tokens,
            cached_tokens=min(self.cached_tokens, input_tokens),
            output_tokens=self.output_tokens or 0,
        )


NOTHING = ReportedUsage()


def reported_usage(value: Any, *, generated: bool = True) -> ReportedUsage:
    """OpenAI's ``usage`` object, or whatever is in its place; of embeddings, if not ``generated``.

    Google and xAI leave hidden reasoning out of ``completion_tokens``, but not out of ``total_tokens``. Of
    embeddings some servers report the total alone.
    """
    if not isinstance(value, dict):
        return NOTHING
    input_tokens = _count_in(value, "prompt_tokens", "input_tokens")
    output_tokens = _count_in(value, "completion_tokens", "output_tokens")
    total = _count(value.get("total_tokens"))
    if total is not None and not generated:
        input_tokens = input_tokens or total
    elif total is not None and input_tokens:
        output_tokens = max(output_tokens or 0, total - input_tokens)
    elif total is not None and output_tokens is not None:
        input_tokens = max(0, total - output_tokens)
    return ReportedUsage(input_tokens, _cached_tokens(value), output_tokens)


def _cached_tokens(usage: dict[str, Any]) -> int:
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    if cached is None:  # Moonshot's name, and DeepSeek's
        cached = _count_in(usage, "cached_tokens", "prompt_cache_hit_tokens")
    return cached or 0


def _count_in(usage: dict[str, Any], name: str, other: str) -> int | None:
    """The count under the first name that has one."""
    count = _count(usage.get(name))
    return _count(usage.get(other)) if count is None else count


def _count(value: Any) -> int | None:
    """A number of tokens: a whole number, however it is written, from 0 to `MOST_TOKENS`."""
    if type(value) is int:
        return value if 0 <= value <= MOST_TOKENS else None
    if isinstance(value, bool) or not isinstance(value, float):
        return None
    if not 0 <= value <= MOST_TOKENS or value != int(value):
        return None
    return int(value)


def take_usage(chunk: dict[str, Any]) -> list[Any]:
    """Remove every ``usage`` from a chunk of a stream and return them, that of all choices first.

    Moonshot puts it into the last choice, Groq into ``x_groq``.
    """
    choices = chunk.get("choices")
    holders = [chunk, chunk.get("x_groq"), *(choices if isinstance(choices, list) else ())]
    return [holder.pop("usage") for holder in holders if isinstance(holder, dict) and "usage" in holder]


def usage_object(usage: Usage, *, generated: bool = True) -> dict[str, Any]:
    """OpenAI's ``usage`` object; of embeddings, which are not ``generated``, without output tokens."""
    if not generated:
        return {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def is_openai_form(value: Any, usage: Usage, *, generated: bool = True) -> bool:
    """Whether a reported ``usage`` may stay as it is: OpenAI's object, with the counts of the ledger."""
    if not isinstance(value, Mapping) or usage.estimated:
        return False
    total = value.get("total_tokens")
    if type(total) is not int or not usage.input_tokens + usage.output_tokens <= total <= 2 * MOST_TOKENS:
        return False
    counts = {"prompt_tokens": usage.input_tokens}
    if generated:
        counts["completion_tokens"] = usage.output_tokens
    return all(type(value.get(name)) is int and value[name] == count for name, count in counts.items())
