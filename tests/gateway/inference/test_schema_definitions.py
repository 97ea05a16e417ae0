"""What is a JSON Schema, and what is said of the rest."""

from typing import Any

import pytest

from gateway.inference.schema_definitions import definition_fault

NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
}
LONG_CHAIN = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(5000)}


def _with(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        _with(town={"type": ["string", "null"], "enum": ["Rome", None]}),
        _with(town={"type": "string", "pattern": "^(?=R)[A-Z]\\w+$", "format": "hostname", "x-note": 5}),
        NODE,
        {"$defs": {"node": NODE}, "type": "object", "properties": {"a": {"$ref": "#/$defs/node"}}},
        {"definitions": {"a/b": {"type": "integer"}}, **_with(a={"$ref": "#/definitions/a~1b"})},
        _with(a={"$ref": "#/properties/b"}, b={"type": "integer"}),
        _with(**{"$ref": {"type": "string"}, "enum": {"type": "string"}}),
        _with(a={"const": {"$ref": "nowhere"}}, b={"default": {"$ref": "#/nowhere"}}),
        {"$defs": {"on": True}, **_with(a={"$ref": "#/$defs/on"})},
        # draft 7 and draft 4
        {"$schema": "http://json-schema.org/draft-07/schema#", **_with(a={"items": [{"type": "string"}]})},
        _with(a={"type": "integer", "minimum": 1, "exclusiveMinimum": True}),
        # never fetched
        {"$schema": "http://127.0.0.1:9/schema", "type": "object"},
        {"$defs": {**LONG_CHAIN, "d5000": {"type": "integer"}}, **_with(a={"$ref": "#/$defs/d0"})},
    ],
)
def test_a_good_schema(schema: dict[str, Any]) -> None:
    assert definition_fault(schema) is None


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (
            {"type": "objekt"},
            "\"objekt\" is not valid under any of the schemas listed in the 'anyOf' keyword",
        ),
        (_with(a={"type": 5}), "at ['properties']['a']['type']"),
        (_with(a=None), "null is not of types"),
        ({"type": "object", "properties": []}, "[] is not of type"),
        ({"type": "object", "required": "a"}, '"a" is not of type "array"'),
        (_with(a={"pattern": "("}), "at ['properties']['a']['pattern']"),
        (_with(a={"minimum": "1"}), '"1" is not of type "number"'),
        (_with(a={"$ref": "#/$defs/missing"}), "'#/$defs/missing' leads to no schema"),
        (_with(a={"$ref": "http://127.0.0.1:9/x"}), "leads to no schema"),
        (_with(a={"$ref": "other.json"}), "leads to no schema"),
        (_with(a={"$ref": "#/type"}), "leads to no schema"),
        (_with(a={"$ref": "#/required/x"}) | {"required": ["a"]}, "leads to no schema"),
    ],
)
def test_a_fault_is_told(schema: dict[str, Any], reason: str) -> None:
    fault = definition_fault(schema)
    assert fault is not None
    assert reason in fault
