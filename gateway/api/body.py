"""Administrative request bodies: each is one `Body`, which gives parsing, messages and the OpenAPI schema."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin
from unicodedata import category

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request

from gateway.api.requests import read_body
from gateway.http.errors import ApiError, invalid_request
from gateway.inference.call_checks import missing, validation_fault, wrong_type

MAX_NAME = 200
MAX_ID = 256
_MAX_LIFETIME_S = 100 * 366 * 24 * 3600
_MAX_EXCERPT = 64
_CONTROLS = ("Cc", "Cs")


class Body(Struct, forbid_unknown_fields=True):
    """The base of request bodies. A field's `Meta` holds its limits; ``Meta.extra`` may hold:

    - ``codes``: error codes to use instead of the usual ones,
    - ``check`` and ``requirement``: a function that says whether a string is allowed, and what it requires.

    Rules over several fields belong in ``__post_init__``, which may raise `ApiError`.
    """

    unsupported_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of OpenAI's that must be absent or null."""


B = TypeVar("B", bound=Body)


def _is_name(value: str) -> bool:
    return bool(value.strip()) and not any(category(character) in _CONTROLS for character in value)


def text_meta(most: int) -> Meta:
    """The limits of a text: 1 to ``most`` characters, not all spaces, and no control characters."""
    requirement = f"1 to {most} characters that are not all spaces, without control characters"
    return Meta(min_length=1, max_length=most, extra={"check": _is_name, "requirement": requirement})


PRINTABLE: Mapping[str, Any] = {"check": str.isprintable, "requirement": "printable characters"}
"""For `Meta.extra`: the string, or each string of the list, must be printable."""
ONLY_INVALID_VALUE: Mapping[str, Any] = {
    "codes": {"missing_required_parameter": "invalid_value", "invalid_type": "invalid_value"}
}
"""For `Meta.extra`: whatever is wrong with the field, the code is ``invalid_value``."""

MISSING_IS_INVALID_VALUE: Mapping[str, Any] = {"codes": {"missing_required_parameter": "invalid_value"}}
"""For `Meta.extra`: the code for a missing field is ``invalid_value``."""

Name = Annotated[str, text_meta(MAX_NAME)]
Identifier = Annotated[str, text_meta(MAX_ID)]
Lifetime = Annotated[int, Meta(ge=1, le=_MAX_LIFETIME_S)]
"""Seconds from now on."""


async def read(request: Request, kind: type[B]) -> B:
    """Read and parse the body within the configured limits; raises 400, 408, 413 and 415."""
    return parse(await read_body(request), kind)


def parse(body: Mapping[str, Any], kind: type[B], prefix: str = "") -> B:
    """Convert a JSON object into the struct.

    Raises 400: for fields that the struct does not have, then for the first field, in the order of
    declaration, that is missing or wrong. Null counts as missing in a required field. Errors put
    ``prefix`` before the names of fields.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    _check_names(body, kind, list(fields), prefix)
    values = {
        field.name: _value(body.get(name), field, kind, prefix)
        for name, field in fields.items()
        if name in body or field.required
    }
    return kind(**values)


def _check_names(body: Mapping[str, Any], kind: type[Body], allowed: list[str], prefix: str) -> None:
    tag_field = kind.__struct_config__.tag_field
    for name, value in body.items():
        param = prefix + name[:_MAX_EXCERPT]
        if name in kind.unsupported_fields:
            if value is not None:
                message = f"'{param}' is not supported by this gateway."
                raise invalid_request(message, param, "unsupported_parameter")
        elif kind.__struct_config__.forbid_unknown_fields and name not in allowed and name != tag_field:
            message = f"Unknown parameter: '{param}'. Supported parameters are: {', '.join(allowed)}."
            raise invalid_request(message, param, "unknown_parameter")


def _value(value: Any, field: msgspec.structs.FieldInfo, kind: type[Body], prefix: str) -> Any:
    """The value of one field, converted; raises 400."""
    param, extra = prefix + field.encode_name, _extra(field.type)
    try:
        if value is None and field.required:
            raise missing(param)
        if channels := _tagged(field.type):
            return _nested(value, channels, param)
        converted = _converted(value, field, kind, param)
    except ApiError as error:
        error.code = extra.get("codes", {}).get(error.code, error.code)
        raise
    check: Callable[[str], bool] | None = extra.get("check")
    if check is not None and converted is not None:
        texts = converted if isinstance(converted, list) else [converted]
        if not all(map(check, texts)):
            message = f"Invalid value for '{param}': it must have {extra['requirement']}."
            raise invalid_request(message, param, "invalid_value")
    return converted


def _converted(value: Any, field: msgspec.structs.FieldInfo, kind: type[Body], param: str) -> Any:
    try:
        converted = msgspec.convert(value, field.type, strict=True)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        message = f"{what} - at `$.{field.encode_name}{path.rstrip('`')}`"
        fault = validation_fault(message, {field.encode_name: value}, kind)
        fault.message = fault.message.replace(f"'{field.encode_name}", f"'{param}", 1)
        fault.param = param
        raise fault from None
    if type(value) is float and type(converted) is int:
        raise wrong_type(param, "an integer", "a number")
    return converted


def _extra(hint: Any) -> dict[str, Any]:
    """``Meta.extra`` of a field's type, or of the alternatives of a union."""
    metadata = [
        item
        for part in (hint, *get_args(hint))
        if get_origin(part) is Annotated
        for item in part.__metadata__
    ]
    result: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, Meta) and item.extra:
            result |= item.extra
    return result


def _tagged(hint: Any) -> dict[str, type[Body]]:
    """The structs of a tagged union by their tags; empty for any other type."""
    union = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    structs = [part for part in get_args(union) if isinstance(part, type) and issubclass(part, Body)]
    return {str(struct.__struct_config__.tag): struct for struct in structs}


def _nested(value: Any, structs: Mapping[str, type[Body]], param: str) -> Body:
    """Parse an object of a tagged union; what is wrong in it is named ``param.field``."""
    tag = value.get("type") if isinstance(value, dict) else None
    if not isinstance(tag, str) or tag not in structs:
        message = f"'{param}' must be an object with the 'type' {' or '.join(structs)}."
        raise invalid_request(message, param, "invalid_value")
    return parse(value, structs[tag], f"{param}.")
