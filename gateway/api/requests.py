"""What the administration's endpoints share: who asks, and what of a request may be believed."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.api.authentication import authenticate, authenticate_member
from gateway.http.errors import ApiError, invalid_request
from gateway.http.json_body import read_json
from gateway.services import Services, services_of
from tenants.errors import NotFound
from tenants.types import KeyKind

T = TypeVar("T")
_MAX_ID = 256
_MAX_VALUES = 100


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
    return await read_json(request, config.limits, config.server.body_timeout_s, dict)


async def read_body_as(request: Request, convert: Callable[[dict[str, Any]], T]) -> T:
    """As `read_body`, converted by a function that takes time in proportion to the body."""
    config = services_of(request).config
    return await read_json(request, config.limits, config.server.body_timeout_s, convert)


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
