"""JSON Schemas that no engine could follow, found before one is asked.

A schema that refers to itself without any member or item in between says nothing of a value: compilers of
grammars fail on it, or never end. Source: JSON Schema 2020-12, core, sections 8.2.3 (``$ref``) and 10.2.
"""

from typing import Any
from urllib.parse import unquote

MOST_PROPERTIES = 5000
MOST_OPTIONAL = 1000
MOST_VALUES = 5000
"""Of all ``enum``s of a schema together. OpenAI takes 5,000 properties, all required, and 1,000 values.
A grammar grows with the square of an object's optional properties: 800 compile in 2 s, 5,000 in a minute."""
_SAME_VALUE = ("allOf", "anyOf", "oneOf")


def schema_fault(schema: Any) -> str | None:
    """What is wrong with a JSON Schema as a constraint of an answer; None if nothing is known to be."""
    if not isinstance(schema, dict):
        return None
    fault = _size_fault(schema)
    if fault is not None:
        return fault
    reference = circular_reference(schema)
    if reference is None:
        return None
    return f"the reference {reference[:64]!r} leads back to itself without any member or item in between"


def _size_fault(root: dict[str, Any]) -> str | None:
    properties = optional = values = 0
    for schema in _objects(root):
        members, required, enumerated = (schema.get(name) for name in ("properties", "required", "enum"))
        if isinstance(members, dict):
            properties += len(members)
            optional += len(members) - (len(required) if isinstance(required, list) else 0)
        if isinstance(enumerated, list):
            values += len(enumerated)
    for count, most, what in (
        (properties, MOST_PROPERTIES, "properties"),
        (optional, MOST_OPTIONAL, "properties that are not required"),
        (values, MOST_VALUES, "enumerated values"),
    ):
        if count > most:
            return f"it has {count} {what}, and at most {most} are supported"
    return None


def circular_reference(root: dict[str, Any]) -> str | None:
    """A ``$ref`` on a circle of schemas that all apply to one value.

    Takes schemas away that lead nowhere, until only circles, and what leads to them, are left (Kahn, 1962).
    """
    schemas = {id(schema): schema for schema in _objects(root)}
    leads_to = {number: _same_value(root, schema) for number, schema in schemas.items()}
    led_from: dict[int, list[int]] = {}
    for number, targets in leads_to.items():
        for target in targets:
            led_from.setdefault(target, []).append(number)
    open_ends = {number: len(targets) for number, targets in leads_to.items()}
    ends = [number for number, count in open_ends.items() if count == 0]
    while ends:
        number = ends.pop()
        del open_ends[number]
        for source in led_from.get(number, ()):
            open_ends[source] -= 1
            if open_ends[source] == 0:
                ends.append(source)
    return next((str(schemas[number]["$ref"]) for number in open_ends if "$ref" in schemas[number]), None)


def _same_value(root: dict[str, Any], schema: dict[str, Any]) -> list[int]:
    """The objects of the document that apply to the same value as the schema."""
    members = [
        member for name in _SAME_VALUE if isinstance(schema.get(name), list) for member in schema[name]
    ]
    if "$ref" in schema:
        members.append(referenced(root, schema["$ref"]))
    return [id(member) for member in members if isinstance(member, dict)]


def referenced(root: Any, reference: Any) -> Any:
    """What a reference such as ``#/$defs/node`` leads to (RFC 6901, in a URI's fragment).

    None for one that leads nowhere, or out of the document.
    """
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        return None
    value = root
    for step in unquote(reference).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and len(key) < 8 and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    """Every object of the document."""
    objects: list[dict[str, Any]] = []
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            objects.append(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return objects
