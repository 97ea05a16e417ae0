"""How an operation is described, and what operations have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BINARY: Schema = {"type": "string", "format": "binary"}
BOOLEAN: Schema = {"type": "boolean"}
TIME: Schema = {"type": "integer", "description": "Unix seconds."}
ANYTHING: Schema = {"type": "object"}

ROOT, ADMIN, PROJECT = "root_key", "admin_key", "project_key"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiOperation:
    """One method of one path.

    ``keys`` open it, any of them; none where no key is needed. ``body`` and ``answer`` name component
    schemas. ``streams``: it may also answer with server-sent events. Without an ``answer`` there is none but
    a 501.
    """

    method: str
    path: str
    summary: str
    tag: str
    keys: Sequence[str]
    answer: str | None
    body: str | None = None
    query: Sequence[Mapping[str, Any]] = ()
    body_type: str = "application/json"
    streams: bool = False
    unsupported: bool = False


def nullable(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def choice(*values: str) -> Schema:
    """A text from a list."""
    return {"type": "string", "enum": list(values)}


def text(most: int) -> Schema:
    """A text that is not empty."""
    return {"type": "string", "minLength": 1, "maxLength": most}


def whole(least: int, most: int) -> Schema:
    """A whole number."""
    return {"type": "integer", "minimum": least, "maximum": most}


def array(items: Schema, most: int | None = None, least: int = 0) -> Schema:
    """A list."""
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": items, **bounds}


def ref(name: str) -> Schema:
    """A component schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """An object with fields that must be there, and others that may be."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def closed(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """As `record`, without any other field."""
    return {**record(optional, **required), "additionalProperties": False}


def named(kind: str, optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """An object of the wire, whose ``object`` says what it is."""
    return record(optional, object={"const": kind}, **required)


def deleted(kind: str) -> Schema:
    """What is answered where something was deleted."""
    return record(object={"const": f"{kind}.deleted"}, deleted={"const": True})


def listing(item: str) -> Schema:
    """A page of a list."""
    return named(
        "list",
        data=array(ref(item)),
        first_id=nullable(STRING),
        last_id=nullable(STRING),
        has_more=BOOLEAN,
    )


def query(name: str, schema: Schema, *, required: bool = False) -> Mapping[str, Any]:
    """A parameter of the query."""
    return {"name": name, "in": "query", "required": required, "schema": schema}


AFTER = query("after", STRING)
BEFORE = query("before", STRING)
LIMIT = query("limit", whole(1, 100))
ORDER = query("order", choice("asc", "desc"))
PAGING = (AFTER, LIMIT)
