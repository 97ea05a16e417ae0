"""Spend alerts over HTTP, in OpenAI's shape, with webhooks as a channel of Torpor's own."""

from typing import Annotated, Any, Literal

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.alerts.webhooks import url_fault
from gateway.api.body import MISSING_IS_INVALID_VALUE, ONLY_INVALID_VALUE, Body, read, text_meta
from gateway.api.requests import (
    admin_of,
    bad_value,
    choice,
    cursor_of,
    limit_of,
    owner_kind,
    page,
    path_id,
    project_of,
    secret,
)
from gateway.config.alerts import AlertsConfig, is_address
from gateway.http.errors import invalid_request, unsupported
from tenants.alerts.spend_alerts import AlertQuery, SpendAlert
from tenants.limits.spend_limits import MAX_CENTS

_CHANNEL = "notification_channel"
_MAX_RECIPIENTS = 50
_MAX_PREFIX = 100
_Address = Annotated[str, Meta(extra_json_schema={"format": "email"})]
_Currency = Annotated[Literal["USD"], Meta(extra={**ONLY_INVALID_VALUE})]
_Interval = Annotated[Literal["month"], Meta(extra={**ONLY_INVALID_VALUE})]


class EmailChannel(Body, tag_field="type", tag="email"):
    """Email to the recipients."""

    recipients: Annotated[
        list[_Address],
        Meta(
            min_length=1,
            max_length=_MAX_RECIPIENTS,
            extra={**MISSING_IS_INVALID_VALUE},
        ),
    ]
    subject_prefix: Annotated[str, text_meta(_MAX_PREFIX)] | None = None


class WebhookChannel(Body, tag_field="type", tag="webhook"):
    """A signed ``POST`` to the URL."""

    url: Annotated[str, Meta(extra_json_schema={"format": "uri"}, extra={**ONLY_INVALID_VALUE})]


class SpendAlertChange(Body):
    """An alert when the spend of a month reaches the threshold in cents."""

    threshold_amount: Annotated[int, Meta(ge=1, le=MAX_CENTS, extra={**ONLY_INVALID_VALUE})]
    currency: _Currency
    interval: _Interval
    notification_channel: Annotated[EmailChannel | WebhookChannel, Meta(extra={**MISSING_IS_INVALID_VALUE})]


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
    cents, channel = await _change(request, services.config.alerts)
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
    cents, channel = await _change(request, services.config.alerts)
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


async def _change(request: Request, config: AlertsConfig) -> tuple[int, dict[str, Any]]:
    """The threshold in cents and the channel of a body; raises 400, and 501 for email without a server."""
    body = await read(request, SpendAlertChange)
    channel = body.notification_channel
    if isinstance(channel, EmailChannel):
        return body.threshold_amount, _email(channel, config)
    return body.threshold_amount, _webhook(channel, config)


def _email(channel: EmailChannel, config: AlertsConfig) -> dict[str, Any]:
    if not all(is_address(address) for address in channel.recipients):
        raise bad_value(f"{_CHANNEL}.recipients", f"a list of 1 to {_MAX_RECIPIENTS} email addresses")
    if config.smtp_host is None:
        message = "Alerts by email are not supported by this gateway: [alerts] configures no SMTP server."
        raise unsupported(message)
    return {"type": "email", "recipients": channel.recipients, "subject_prefix": channel.subject_prefix}


def _webhook(channel: WebhookChannel, config: AlertsConfig) -> dict[str, Any]:
    if fault := url_fault(channel.url, private=config.allow_private_addresses):
        name = f"{_CHANNEL}.url"
        raise invalid_request(f"'{name}' {fault}.", name, "invalid_value")
    return {"type": "webhook", "url": channel.url}


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
