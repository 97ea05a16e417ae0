"""Schemas that no grammar could be made of."""

from typing import Any

import pytest

from gateway.inference.json_schemas import MOST_OPTIONAL, MOST_PROPERTIES, MOST_VALUES, schema_fault

TEXT = {"type": "string"}


def _properties(count: int, *, required: bool) -> dict[str, Any]:
    names = [f"p{number}" for number in range(count)]
    return {"type": "object", "properties": dict.fromkeys(names, TEXT), "required": names if required else []}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"anyOf": [{"type": "integer"}, {"$ref": "#"}]},
        {"allOf": [{"$ref": "#/allOf/0"}]},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
        {"oneOf": [{"anyOf": [{"allOf": [{"$ref": "#"}]}]}]},
        {"definitions": {"a/b": {"$ref": "#/definitions/a~1b"}}},
        {"properties": {"a b": {"$ref": "#/properties/%61%20b"}}},
    ],
)
def test_a_circle_of_references_is_found(schema: dict[str, Any]) -> None:
    assert "leads back to itself" in (schema_fault(schema) or "")


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}}]},
        {"$ref": "http://example.com/schema"},
        {"$ref": "#/missing"},
        {"$ref": "#anchor"},
        {"type": "object", "properties": {"$ref": {"type": "string"}, "enum": TEXT}},
        {"$defs": {"a": TEXT}, "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]},
        _properties(MOST_PROPERTIES, required=True),
        _properties(MOST_OPTIONAL, required=False),
        {"enum": list(range(MOST_VALUES))},
        {"properties": [1], "required": 5, "enum": "x", "anyOf": {}},
        None,
        True,
    ],
)
def test_other_schemas_are_left_to_the_engine(schema: Any) -> None:
    assert schema_fault(schema) is None


@pytest.mark.parametrize(
    ("schema", "count"),
    [
        (_properties(MOST_PROPERTIES + 1, required=True), MOST_PROPERTIES + 1),
        ({"anyOf": [_properties(600, required=False), _properties(600, required=False)]}, 1200),
        ({"properties": {"a": {"enum": ["x"] * 3000}, "b": {"enum": ["x"] * 3000}}}, 6000),
    ],
)
def test_a_schema_has_a_largest_size(schema: dict[str, Any], count: int) -> None:
    assert f"it has {count} " in (schema_fault(schema) or "")


def test_a_long_chain_of_references_is_followed() -> None:
    count = 20_000
    steps: dict[str, Any] = {f"d{step}": {"$ref": f"#/$defs/d{step + 1}"} for step in range(count)}
    assert schema_fault({"$ref": "#/$defs/d0", "$defs": {**steps, f"d{count}": TEXT}}) is None
    assert schema_fault({"$ref": "#/$defs/d0", "$defs": {**steps, f"d{count}": {"$ref": "#"}}}) is not None
