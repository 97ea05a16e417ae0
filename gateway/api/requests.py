"""What the administration's endpoints share: who asks, and what of a request may be believed."""

import time
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import category

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.api.authentication import authenticate, authenticate_member
from gateway.http.errors import ApiError, invalid_request
from gateway.http.json_body import read_json
from gateway.services import Services, services_of
from tenants.errors import NotFound
from tenants.scopes import ALL, READ, SCOPES
from tenants.types import ALL_SCOPES, KeyKind

MAX_NAME = 200
_MAX_ID = 256
_MAX_LIFETIME_S = 100 * 366 * 24 * 3600
_MAX_VALUES = 100
_CONTROLS = ("Cc", "Cs")
_OPENAI_SCOPES = {"api.all": ALL, "api.all.read": READ} | {
    f"api.{scope}": scope for scope in SCOPES if scope.startswith("model.")
}
"""Names that OpenAI has for scopes that Torpor calls otherwise."""


async def admin_of(request: Request) -> tuple[Services, str]:
    """The services, and the organization that the admin key belongs to."""
    principal = await authenticate_member(request, KeyKind.ADMIN)
    return services_of(request), principal.organization_id


async def root_of(request: Request) -> Services:
    """The services, for requests with the root key."""
    await authenticate(request, KeyKind.ROOT)
    return services_of(request)


def path_id(request: Request, name: str) -> str:
    """An id in the path; one that cannot be an id is one of nothing (404)."""
    value: str = request.path_params[name]
    if len(value) > _MAX_ID or not value.isprintable():
        raise NotFound(f"No such {name.replace('_', ' ')}.")
    return value


def project_of(request: Request) -> str | None:
    """The project's id where the path names one; without it the organization itself is meant."""
    return path_id(request, "project") if "project" in request.path_params else None


async def read_body(request: Request) -> dict[str, Any]:
    """The body, a JSON object, read within the configured limits; raises 400, 408, 413 and 415."""
    config = services_of(request).config
    return await read_json(request, config.limits, config.server.body_timeout_s)


async def fields_of(request: Request, allowed: Sequence[str], not_here: Sequence[str] = ()) -> dict[str, Any]:
    """The body, which may hold the known fields; those of OpenAI's that are ``not_here`` must be null."""
    body = await read_body(request)
    for name, value in body.items():
        excerpt = name[:64]
        if name in not_here:
            if value is not None:
                message = f"'{excerpt}' is not supported by this gateway."
                raise invalid_request(message, excerpt, "unsupported_parameter")
        elif name not in allowed:
            message = f"Unknown parameter: '{excerpt}'. Known are {', '.join(allowed)}."
            raise invalid_request(message, excerpt, "unknown_parameter")
    return body


def text(body: Mapping[str, Any], name: str, most: int = MAX_NAME) -> str:
    """A text that must be there; raises 400."""
    value = optional_text(body, name, most)
    if value is None:
        raise invalid_request(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    return value


def optional_text(body: Mapping[str, Any], name: str, most: int = MAX_NAME) -> str | None:
    """A text, or ``None`` where it is missing or null; raises 400."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise invalid_request(f"'{name}' must be a string.", name, "invalid_type")
    if not value.strip() or len(value) > most or any(category(character) in _CONTROLS for character in value):
        message = f"'{name}' must be 1 to {most} characters, and no control characters."
        raise invalid_request(message, name, "invalid_value")
    return value


def optional_bool(body: Mapping[str, Any], name: str) -> bool:
    """A truth value; missing and null are false."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid_request(f"'{name}' must be true or false.", name, "invalid_type")
    return bool(value)


def texts(body: Mapping[str, Any], name: str, most: int = _MAX_VALUES) -> list[str] | None:
    """A list of texts, or ``None`` where it is missing or null; raises 400."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise invalid_request(f"'{name}' must be a list of strings.", name, "invalid_type")
    if len(value) > most:
        raise invalid_request(f"'{name}' may hold at most {most} strings.", name, "invalid_value")
    return value


def expiry(body: Mapping[str, Any]) -> int | None:
    """``expires_in_seconds``, or Torpor's own ``expires_at``, as unix seconds; raises 400."""
    seconds, at = body.get("expires_in_seconds"), body.get("expires_at")
    if seconds is not None and at is not None:
        message = "Give either 'expires_in_seconds' or 'expires_at'."
        raise invalid_request(message, "expires_at", "invalid_value")
    for name, value in (("expires_in_seconds", seconds), ("expires_at", at)):
        if value is not None and type(value) is not int:
            raise invalid_request(f"'{name}' must be a whole number of seconds.", name, "invalid_type")
    if seconds is None:
        return at
    if not 1 <= seconds <= _MAX_LIFETIME_S:
        message = f"'expires_in_seconds' must be between 1 and {_MAX_LIFETIME_S}."
        raise invalid_request(message, "expires_in_seconds", "invalid_value")
    return int(time.time()) + int(seconds)


def scopes(body: Mapping[str, Any], *, empty_is_all: bool = False) -> frozenset[str] | None:
    """Scopes by Torpor's names or OpenAI's, or ``None`` where they are missing; raises 400."""
    named = texts(body, "scopes")
    if named is None:
        return None
    if not named and empty_is_all:
        return ALL_SCOPES
    result = frozenset(_OPENAI_SCOPES.get(name, name) for name in named)
    if not result or not result <= SCOPES:
        allowed = ", ".join(sorted(SCOPES))
        raise invalid_request(f"'scopes' must be some of {allowed}.", "scopes", "invalid_value")
    return result


def limit_of(request: Request, default: int = 20) -> int:
    """``limit`` of the query, from 1 to 100."""
    raw = request.query_params.get("limit", str(default))
    if not (raw.isascii() and raw.isdecimal() and len(raw) < 4) or not 1 <= int(raw) <= 100:
        raise invalid_request("'limit' must be between 1 and 100.", "limit", "invalid_value")
    return int(raw)


def owner_kind(project_id: str | None) -> str:
    """The prefix of OpenAI's object names for what a project or its organization may have."""
    return "organization" if project_id is None else "project"


def bad_value(name: str, requirement: str) -> ApiError:
    """400: the field has a value that is not allowed."""
    return invalid_request(f"'{name}' must be {requirement}.", name, "invalid_value")


def cursor_of(request: Request, name: str = "after") -> str | None:
    """A cursor of the query; raises 400 for what can be none."""
    value = request.query_params.get(name)
    if value is not None and (len(value) > _MAX_ID or not value.isprintable()):
        raise invalid_request(f"'{name}' is not the id of an item of this list.", name, "invalid_value")
    return value


def paging(request: Request) -> tuple[str | None, int]:
    """``after`` and ``limit`` of the query."""
    return cursor_of(request), limit_of(request)


def flag(request: Request, name: str) -> bool:
    """A truth value of the query; raises 400."""
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false"):
        raise invalid_request(f"'{name}' must be true or false.", name, "invalid_value")
    return value == "true"


def choice(request: Request, name: str, choices: Sequence[str]) -> str:
    """A value of the query from a list, the first if it is missing; raises 400."""
    value = request.query_params.get(name, choices[0])
    if value not in choices:
        raise invalid_request(f"'{name}' must be one of {', '.join(choices)}.", name, "invalid_value")
    return value


def values_of(request: Request, name: str) -> list[str]:
    """The values of an array in the query, ``name[]=a&name[]=b`` or ``name=a&name=b``; raises 400."""
    query = request.query_params
    values = [*query.getlist(f"{name}[]"), *query.getlist(name)]
    if len(values) > _MAX_VALUES or not all(
        value.isprintable() and len(value) <= _MAX_ID for value in values
    ):
        message = f"'{name}' must be at most {_MAX_VALUES} printable strings."
        raise invalid_request(message, name, "invalid_value")
    return values


def page(items: list[dict[str, Any]], has_more: bool) -> Response:
    """OpenAI's ``list`` object, with what its cursors need."""
    return JSONResponse(
        {
            "object": "list",
            "data": items,
            "first_id": items[0]["id"] if items else None,
            "last_id": items[-1]["id"] if items else None,
            "has_more": has_more,
        }
    )


def secret(body: dict[str, Any]) -> Response:
    """A response that holds a secret, which no cache may keep."""
    return JSONResponse(body, headers={"cache-control": "no-store"})
