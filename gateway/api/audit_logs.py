"""``/v1/organization/audit_logs``: who has done what, when, and from where."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.rate_limits import MODEL_SIZES, SUBJECT_SIZES
from gateway.api.requests import admin_of, cursor_of, flag, limit_of, page, root_of, values_of
from gateway.http.errors import invalid_request
from tenants.audit import Actor, AuditEntry, AuditQuery
from tenants.types import Page

_TYPE = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_MAX_TIME = 253_402_300_799
_NOTHING: Page[AuditEntry] = Page([], has_more=False)
_WIRE_SIZES = {
    "rate_limit.updated": {name: wire for wire, name in MODEL_SIZES.items()},
    "torpor.limit.updated": {name: wire for wire, name in SUBJECT_SIZES.items()},
}


def entry_object(entry: AuditEntry) -> dict[str, Any]:
    """OpenAI's audit log object: the details stand under the name of the type.

    ``actor.session`` says from where the key was used; ``actor`` is null for a command on the host itself.
    """
    result: dict[str, Any] = {
        "id": entry.id,
        "object": "organization.audit_log",
        "type": entry.type,
        "effective_at": entry.at,
        "actor": None if entry.actor is None else _actor_object(entry.actor),
        entry.type: _details(entry),
    }
    if entry.project_id is not None:
        result["project"] = {"id": entry.project_id, "name": entry.project_name}
    return result


def _actor_object(actor: Actor) -> dict[str, Any]:
    return {
        "type": "api_key",
        "api_key": {"id": actor.key_id, "kind": actor.kind.value},
        "session": {"ip_address": actor.address, "user_agent": actor.user_agent, "user": None},
    }


def _details(entry: AuditEntry) -> dict[str, Any]:
    """Sizes of limits under the names that they have on the wire."""
    details, names = dict(entry.details), _WIRE_SIZES.get(entry.type)
    if names is not None:
        details["changes_requested"] = {
            names.get(name, name): size for name, size in details.get("changes_requested", {}).items()
        }
    return details


async def list_audit_logs(request: Request) -> Response:
    """``GET``: the organization's, the newest first."""
    services, organization_id = await admin_of(request)
    query = _query(request)
    # Who acts has a key and no address of mail, and no act is of a tenant in OpenAI's sense.
    if values_of(request, "actor_emails") or flag(request, "tenant_only"):
        entries = _NOTHING
    else:
        entries = await services.tenants.audit.listed(organization_id, query)
    return page([entry_object(item) for item in entries.items], entries.has_more)


async def list_host_logs(request: Request) -> Response:
    """``GET /v1/torpor/audit_logs``: acts on the host itself, for the root key."""
    services = await root_of(request)
    entries = await services.tenants.audit.listed(None, _query(request))
    return page([entry_object(item) for item in entries.items], entries.has_more)


def _query(request: Request) -> AuditQuery:
    types = values_of(request, "event_types")
    if not all(_TYPE.fullmatch(name) for name in types):
        message = "'event_types' must be names of events, such as 'project.created'."
        raise invalid_request(message, "event_types", "invalid_value")
    first, last = _effective_at(request)
    return AuditQuery(
        first_at=first,
        last_at=last,
        types=frozenset(types),
        project_ids=frozenset(values_of(request, "project_ids")),
        actor_ids=frozenset(values_of(request, "actor_ids")),
        resource_ids=frozenset(values_of(request, "resource_ids")),
        after=cursor_of(request),
        before=cursor_of(request, "before"),
        limit=limit_of(request),
    )


def _effective_at(request: Request) -> tuple[int | None, int | None]:
    """``effective_at[gt|gte|lt|lte]`` as the first and the last second."""
    bounds: dict[str, int] = {}
    for name, raw in request.query_params.multi_items():
        if not name.startswith("effective_at"):
            continue
        bound = name.removeprefix("effective_at[").removesuffix("]")
        if bound not in ("gt", "gte", "lt", "lte"):
            message = "'effective_at' takes gt, gte, lt and lte, as in 'effective_at[gte]=1767225600'."
            raise invalid_request(message, "effective_at", "invalid_value")
        if not (raw.isascii() and raw.isdecimal() and len(raw) < 13) or int(raw) > _MAX_TIME:
            message = f"'effective_at[{bound}]' must be in unix seconds."
            raise invalid_request(message, "effective_at", "invalid_value")
        bounds[bound] = int(raw)
    firsts = [bounds[name] + more for name, more in (("gt", 1), ("gte", 0)) if name in bounds]
    lasts = [bounds[name] - less for name, less in (("lt", 1), ("lte", 0)) if name in bounds]
    return max(firsts, default=None), min(lasts, default=None)


ROUTES: list[Route] = [
    Route("/v1/organization/audit_logs", list_audit_logs, methods=["GET"]),
    Route("/v1/torpor/audit_logs", list_host_logs, methods=["GET"]),
]
