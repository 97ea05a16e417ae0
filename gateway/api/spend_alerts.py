"""Spend alerts over HTTP, in OpenAI's shape, with webhooks as a channel of Torpor's own."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.alerts.webhooks import url_fault
from gateway.api.requests import (
    admin_of,
    bad_value,
    choice,
    cursor_of,
    fields_of,
    limit_of,
    optional_text,
    owner_kind,
    page,
    path_id,
    project_of,
    secret,
    texts,
)
from gateway.config.alerts import AlertsConfig, is_address
from gateway.http.errors import invalid_request, unsupported
from tenants.alerts.spend_alerts import AlertQuery, SpendAlert
from tenants.limits.spend_limits import MAX_CENTS

_CHANNEL = "notification_channel"
_FIELDS = ("threshold_amount", "currency", "interval", _CHANNEL)
_CHANNEL_FIELDS = {"email": ("type", "recipients", "subject_prefix"), "webhook": ("type", "url")}
_MAX_RECIPIENTS = 50
_MAX_PREFIX = 100


def alert_object(alert: SpendAlert) -> dict[str, Any]:
    """OpenAI's ``project.spend_alert`` or ``organization.spend_alert`` object."""
    return {
        "id": alert.id,
        "object": f"{owner_kind(alert.project_id)}.spend_alert",
        "threshold_amount": alert.threshold_cents,
        "currency": "USD",
        "interval": "month",
        _CHANNEL: dict(alert.channel),
    }


async def create_alert(request: Request) -> Response:
    """``POST``. The answer for a webhook has its ``secret``, which is not seen again."""
    services, organization_id = await admin_of(request)
    cents, channel = await _wanted(request, services.config.alerts)
    project_id = project_of(request)
    alert = await services.alerts.store.create(organization_id, project_id, cents, channel)
    services.alerts.changed(alert.subject_id)
    result = alert_object(alert)
    if channel["type"] == "webhook":
        result[_CHANNEL]["secret"] = services.alerts.secret(alert.id)
    return secret(result)


async def list_alerts(request: Request) -> Response:
    """``GET``, in order of creation or, with ``order=desc``, the newest first."""
    services, organization_id = await admin_of(request)
    query = AlertQuery(
        after=cursor_of(request),
        before=cursor_of(request, "before"),
        limit=limit_of(request),
        newest_first=choice(request, "order", ("asc", "desc")) == "desc",
    )
    alerts = await services.alerts.store.listed(organization_id, project_of(request), query)
    return page([alert_object(alert) for alert in alerts.items], alerts.has_more)


async def retrieve_alert(request: Request) -> Response:
    """``GET .../{alert}``."""
    services, organization_id = await admin_of(request)
    names = project_of(request), path_id(request, "alert")
    return JSONResponse(alert_object(await services.alerts.store.get(organization_id, *names)))


async def update_alert(request: Request) -> Response:
    """``POST .../{alert}``, with all that ``POST`` of the list takes. The secret of a webhook stays."""
    services, organization_id = await admin_of(request)
    cents, channel = await _wanted(request, services.config.alerts)
    names = project_of(request), path_id(request, "alert")
    alert = await services.alerts.store.update(organization_id, *names, cents, channel)
    services.alerts.changed(alert.subject_id)
    return JSONResponse(alert_object(alert))


async def delete_alert(request: Request) -> Response:
    """``DELETE .../{alert}``."""
    services, organization_id = await admin_of(request)
    project_id, alert_id = project_of(request), path_id(request, "alert")
    await services.alerts.store.delete(organization_id, project_id, alert_id)
    services.alerts.changed(project_id or organization_id)
    kind = f"{owner_kind(project_id)}.spend_alert.deleted"
    return JSONResponse({"id": alert_id, "object": kind, "deleted": True})


async def _wanted(request: Request, config: AlertsConfig) -> tuple[int, dict[str, Any]]:
    """The threshold in cents and the channel of a body; raises 400, and 501 for email without a server."""
    body = await fields_of(request, _FIELDS)
    cents = body.get("threshold_amount")
    if type(cents) is not int or not 1 <= cents <= MAX_CENTS:
        raise bad_value("threshold_amount", f"a whole number of cents from 1 to {MAX_CENTS}")
    for name, only in (("currency", "USD"), ("interval", "month")):
        if body.get(name) != only:
            raise bad_value(name, f"'{only}'")
    channel = body.get(_CHANNEL)
    kind = channel.get("type") if isinstance(channel, dict) else None
    if not isinstance(channel, dict) or kind not in ("email", "webhook"):
        raise bad_value(_CHANNEL, "an object with the 'type' email or webhook")
    allowed = _CHANNEL_FIELDS[kind]
    for name in channel:
        if name not in allowed:
            message = f"Unknown parameter: '{_CHANNEL}.{name[:64]}'. Known are {', '.join(allowed)}."
            raise invalid_request(message, f"{_CHANNEL}.{name[:64]}", "unknown_parameter")
    return cents, _email(channel, config) if kind == "email" else _webhook(channel, config)


def _email(channel: Mapping[str, Any], config: AlertsConfig) -> dict[str, Any]:
    named = {f"{_CHANNEL}.{name}": value for name, value in channel.items()}
    recipients = texts(named, f"{_CHANNEL}.recipients", _MAX_RECIPIENTS)
    if not recipients or not all(is_address(address) for address in recipients):
        raise bad_value(f"{_CHANNEL}.recipients", f"1 to {_MAX_RECIPIENTS} addresses of email")
    prefix = optional_text(named, f"{_CHANNEL}.subject_prefix", _MAX_PREFIX)
    if config.smtp_host is None:
        message = "Alerts by email are not supported by this gateway: [alerts] configures no SMTP server."
        raise unsupported(message)
    return {"type": "email", "recipients": recipients, "subject_prefix": prefix}


def _webhook(channel: Mapping[str, Any], config: AlertsConfig) -> dict[str, Any]:
    url = channel.get("url")
    name = f"{_CHANNEL}.url"
    if not isinstance(url, str):
        raise bad_value(name, "a string")
    if fault := url_fault(url, private=config.allow_private_addresses):
        raise invalid_request(f"'{name}' {fault}.", name, "invalid_value")
    return {"type": "webhook", "url": url}


_PATHS = ("/v1/organization/spend_alerts", "/v1/organization/projects/{project}/spend_alerts")
"""Of the organization, and of one of its projects."""
ROUTES: list[Route] = [
    route
    for path in _PATHS
    for route in (
        Route(path, list_alerts, methods=["GET"]),
        Route(path, create_alert, methods=["POST"]),
        Route(f"{path}/{{alert}}", retrieve_alert, methods=["GET"]),
        Route(f"{path}/{{alert}}", update_alert, methods=["POST"]),
        Route(f"{path}/{{alert}}", delete_alert, methods=["DELETE"]),
    )
]
