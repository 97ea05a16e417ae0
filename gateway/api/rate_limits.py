"""Limits over HTTP: OpenAI's rate limits of a project, and Torpor's own of projects, keys and users."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.body import MAX_ID, ONLY_INVALID_VALUE, PRINTABLE, Body, read
from gateway.api.requests import admin_of, cursor_of, limit_of, page, path_id
from gateway.http.errors import invalid_request
from tenants.adapters.registry import PREFIX
from tenants.errors import NotFound
from tenants.limits.rate_limits import MOST, RateLimit, SubjectLimit, SubjectType

_SHARED_SIZES = {
    "max_requests_per_1_minute": "requests_per_minute",
    "max_tokens_per_1_minute": "tokens_per_minute",
    "max_requests_per_1_day": "requests_per_day",
}
MODEL_SIZES = {**_SHARED_SIZES, "batch_1_day_max_input_tokens": "batch_input_tokens_per_day"}
SUBJECT_SIZES = {
    **_SHARED_SIZES,
    "max_tokens_per_1_day": "tokens_per_day",
    "max_concurrent_requests": "concurrent_requests",
}
_ALWAYS_SHOWN = ("max_requests_per_1_minute", "max_tokens_per_1_minute")
"""OpenAI's type has these as integers: without a limit they are `MOST`."""
_ID_PREFIX = "rl-"
Size = Annotated[int, Meta(ge=1, le=MOST, extra={**ONLY_INVALID_VALUE})]


class _Sizes(Body):
    unsupported_fields = ("max_images_per_1_minute", "max_audio_megabytes_per_1_minute")
    max_requests_per_1_minute: Size | UnsetType | None = UNSET
    max_tokens_per_1_minute: Size | UnsetType | None = UNSET
    max_requests_per_1_day: Size | UnsetType | None = UNSET


class RateLimitChange(_Sizes):
    """A project's limits for one model. An absent size stays as it is; null removes a limit."""

    batch_1_day_max_input_tokens: Size | UnsetType | None = UNSET


class LimitChange(_Sizes, kw_only=True):
    """Limits of a project, key or user. An absent size stays as it is; null removes a limit."""

    subject_type: Annotated[SubjectType, Meta(extra={**ONLY_INVALID_VALUE})]
    subject_id: Annotated[
        str, Meta(min_length=1, max_length=MAX_ID, extra={**ONLY_INVALID_VALUE, **PRINTABLE})
    ]
    max_tokens_per_1_day: Size | UnsetType | None = UNSET
    max_concurrent_requests: Size | UnsetType | None = UNSET


def _sizes(body: _Sizes, names: Mapping[str, str]) -> dict[str, int | None]:
    """The sizes that a body names, by the names of `RateLimit`; None removes a limit."""
    sizes = {name: getattr(body, wire) for wire, name in names.items()}
    return {name: size for name, size in sizes.items() if size is not UNSET}


def rate_limit_object(model: str, limit: RateLimit) -> dict[str, Any]:
    """OpenAI's ``project.rate_limit`` object."""
    result: dict[str, Any] = {"id": _ID_PREFIX + model, "object": "project.rate_limit", "model": model}
    for wire, name in MODEL_SIZES.items():
        size = getattr(limit, name)
        if size is not None or wire in _ALWAYS_SHOWN:
            result[wire] = MOST if size is None else size
    return result


async def list_rate_limits(request: Request) -> Response:
    """``GET /v1/organization/projects/{project}/rate_limits``: one for each model of the catalog.

    After those come the adapters for which the project has limits of their own.
    """
    services, organization_id = await admin_of(request)
    project_id = path_id(request, "project")
    await services.tenants.projects.get(organization_id, project_id)
    named = services.control.limits.adapters(project_id, PREFIX)
    adapters = [name for name in named if services.adapters.usable(project_id, name)]
    models, has_more = _window([*services.catalog.ids(), *adapters], request)
    limits = [await services.control.limits.of_model(organization_id, project_id, model) for model in models]
    return page([rate_limit_object(*pair) for pair in zip(models, limits, strict=True)], has_more)


def _window(models: list[str], request: Request) -> tuple[list[str], bool]:
    """The models after or before the one of the cursor, and whether there are more in that direction."""
    most = limit_of(request, 100)
    cursors = {name: request.query_params.get(name) for name in ("after", "before")}
    given = [name for name, cursor in cursors.items() if cursor is not None]
    if not given:
        return models[:most], len(models) > most
    name, cursor = given[0], cursors[given[0]] or ""
    model = cursor.removeprefix(_ID_PREFIX)
    if len(given) > 1 or model == cursor or model not in models:
        raise invalid_request(f"'{name}' is not the id of an item of this list.", name, "invalid_value")
    at = models.index(model)
    if name == "after":
        return models[at + 1 :][:most], at + 1 + most < len(models)
    return models[max(0, at - most) : at], at > most


async def update_rate_limit(request: Request) -> Response:
    """``POST /v1/organization/projects/{project}/rate_limits/{id}``: holds from the next request on."""
    services, organization_id = await admin_of(request)
    project_id, limit_id = path_id(request, "project"), path_id(request, "limit")
    sizes = _sizes(await read(request, RateLimitChange), MODEL_SIZES)
    model = limit_id.removeprefix(_ID_PREFIX)
    await services.tenants.projects.get(organization_id, project_id)
    exists = model in services.catalog.ids() or services.adapters.usable(project_id, model)
    if not limit_id.startswith(_ID_PREFIX) or not exists:
        raise NotFound("No such rate limit.")
    limit = await services.control.limits.update_model(organization_id, project_id, model, sizes)
    return JSONResponse(rate_limit_object(model, limit))


def subject_limit_object(limit: SubjectLimit) -> dict[str, Any]:
    """Torpor's ``torpor.limit`` object; what is null is not limited."""
    return {
        "id": limit.id,
        "object": "torpor.limit",
        "subject_type": limit.subject_type.value,
        "subject_id": limit.subject_id,
        **{wire: getattr(limit.limit, name) for wire, name in SUBJECT_SIZES.items()},
        "created_at": limit.created_at,
    }


async def list_limits(request: Request) -> Response:
    """``GET /v1/torpor/limits``."""
    services, organization_id = await admin_of(request)
    limits = await services.control.limits.list_subjects(
        organization_id, after=cursor_of(request), limit=limit_of(request, 20)
    )
    return page([subject_limit_object(limit) for limit in limits.items], limits.has_more)


async def set_limit(request: Request) -> Response:
    """``POST /v1/torpor/limits``: makes the subject's limits, or changes those that are named."""
    services, organization_id = await admin_of(request)
    body = await read(request, LimitChange)
    sizes = _sizes(body, SUBJECT_SIZES)
    if not sizes:
        message = f"Name at least one limit: {', '.join(SUBJECT_SIZES)}."
        raise invalid_request(message, code="missing_required_parameter")
    limit = await services.control.limits.set_subject(
        organization_id, body.subject_type, body.subject_id, sizes
    )
    return JSONResponse(subject_limit_object(limit))


async def retrieve_limit(request: Request) -> Response:
    """``GET /v1/torpor/limits/{id}``."""
    services, organization_id = await admin_of(request)
    limit = await services.control.limits.get_subject(organization_id, path_id(request, "limit"))
    return JSONResponse(subject_limit_object(limit))


async def delete_limit(request: Request) -> Response:
    """``DELETE /v1/torpor/limits/{id}``."""
    services, organization_id = await admin_of(request)
    limit_id = path_id(request, "limit")
    await services.control.limits.delete_subject(organization_id, limit_id)
    return JSONResponse({"id": limit_id, "object": "torpor.limit.deleted", "deleted": True})


_RATE_LIMITS, _LIMITS = "/v1/organization/projects/{project}/rate_limits", "/v1/torpor/limits"
ROUTES: list[Route] = [
    Route(_RATE_LIMITS, list_rate_limits, methods=["GET"]),
    Route(f"{_RATE_LIMITS}/{{limit}}", update_rate_limit, methods=["POST"]),
    Route(_LIMITS, list_limits, methods=["GET"]),
    Route(_LIMITS, set_limit, methods=["POST"]),
    Route(f"{_LIMITS}/{{limit}}", retrieve_limit, methods=["GET"]),
    Route(f"{_LIMITS}/{{limit}}", delete_limit, methods=["DELETE"]),
]
