"""Whether what a client sends as a JSON Schema is one. Nothing is ever fetched, whatever it refers to."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from gateway.inference.json_schemas import referenced

_MOST_SHOWN = 200
_DATA = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords whose values are data, not schemas."""


def definition_fault(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a schema, as the end of a sentence. Drafts 4 and 7 are good as well as 2020-12.

    Every ``$ref`` has to lead to a schema within the document.
    """
    newest, *older = _validators()
    error = next(newest.iter_errors(schema), None)
    if error is not None and not any(validator.is_valid(schema) for validator in older):
        path = "".join(f"[{step!r}]" for step in error.instance_path)
        return f"{error.message[:_MOST_SHOWN]}{f' at {path[:_MOST_SHOWN]}' if path else ''}"
    for reference in _references(schema):
        if not isinstance(referenced(schema, reference), dict | bool):
            return f"the reference {reference[:64]!r} leads to no schema: it must be '#' or begin with '#/'"
    return None


@cache
def _validators() -> list[Any]:
    from jsonschema_rs import Draft4Validator, Draft7Validator, Draft202012Validator

    newest = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    return [
        Draft202012Validator(newest, validate_formats=True, ignore_unknown_formats=True),
        Draft7Validator({"$ref": "http://json-schema.org/draft-07/schema#"}),
        Draft4Validator({"$ref": "http://json-schema.org/draft-04/schema#"}),
    ]


def _references(schema: Mapping[str, Any]) -> Iterator[str]:
    pending: list[Any] = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(inner for key, inner in value.items() if key not in _DATA)
            if isinstance(reference := value.get("$ref"), str):
                yield reference
