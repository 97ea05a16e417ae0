"""Spend alerts with the official client, and what the gateway refuses."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from openai import AsyncOpenAI

from gateway.config.alerts import AlertsConfig
from tests.gateway.app_fixture import Stage, stage_at

MAIL: Any = {"type": "email", "recipients": ["a@example.com", "b@example.com"], "subject_prefix": "Bills"}
HOOK: Any = {"type": "webhook", "url": "https://hooks.example.com/spend"}
ALERT: dict[str, Any] = {"threshold_amount": 100, "currency": "USD", "interval": "month"}


@pytest.fixture
async def mailing(tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway that could send mail."""
    alerts = AlertsConfig(smtp_host="127.0.0.1", smtp_port=9, smtp_from="torpor@example.com")
    async with stage_at(tmp_path, "http://127.0.0.1:9", alerts=alerts) as opened:
        yield opened


@pytest.mark.parametrize("of", ["organization", "project"])
async def test_all_of_it_with_the_official_client(mailing: Stage, of: str) -> None:
    async with mailing.openai() as client:
        organization = client.admin.organization
        alerts = cast(
            Any, organization.projects.spend_alerts if of == "project" else organization.spend_alerts
        )
        where = {"project_id": mailing.tenant.project_id} if of == "project" else {}
        created = await alerts.create(**ALERT, **where, notification_channel=MAIL)
        assert created.object == f"{of}.spend_alert"
        assert (created.threshold_amount, created.currency, created.interval) == (100, "USD", "month")
        assert created.notification_channel.recipients == MAIL["recipients"]
        assert created.notification_channel.subject_prefix == "Bills"
        assert await alerts.retrieve(created.id, **where) == created
        changed = await alerts.update(
            created.id, **where, **{**ALERT, "threshold_amount": 250}, notification_channel=HOOK
        )
        assert (changed.id, changed.threshold_amount) == (created.id, 250)
        assert changed.notification_channel.to_dict() == HOOK
        others = [await alerts.create(**ALERT, **where, notification_channel=HOOK) for _ in range(4)]
        ids = [created.id, *(other.id for other in others)]
        assert [item.id async for item in await alerts.list(**where, limit=2)] == ids
        assert [item.id async for item in await alerts.list(**where, limit=2, order="desc")] == ids[::-1]
        back = await alerts.list(**where, before=ids[3], limit=2)
        assert [item.id for item in back.data] == ids[1:3]
        # Deleted while they are listed: the cursor stays good.
        async for item in await alerts.list(**where, limit=2):
            deleted = await alerts.delete(item.id, **where)
            assert (deleted.id, deleted.deleted) == (item.id, True)
            assert deleted.object == f"{of}.spend_alert.deleted"
        assert not (await alerts.list(**where)).data
        with pytest.raises(openai.NotFoundError):
            await alerts.retrieve(created.id, **where)
        kinds = [f"torpor.spend_alert.{what}" for what in ("created", "updated", "deleted")]
        logs = [entry async for entry in await organization.audit_logs.list(resource_ids=[created.id])]
        assert [entry.type for entry in logs] == kinds[::-1]
        assert all(entry.actor and entry.actor.api_key for entry in logs)
        assert "example.com" not in logs[-1].to_json()


async def test_the_secret_of_a_webhook_is_shown_once(stage: Stage) -> None:
    body = {**ALERT, "notification_channel": HOOK}
    created = await stage.admin.post("/v1/organization/spend_alerts", json=body)
    assert created.headers["cache-control"] == "no-store"
    secret = created.json()["notification_channel"]["secret"]
    assert secret.startswith("whsec_")
    assert secret == stage.services.alerts.secret(created.json()["id"])
    path = f"/v1/organization/spend_alerts/{created.json()['id']}"
    for answer in (await stage.admin.get(path), await stage.admin.post(path, json=body)):
        assert answer.json()["notification_channel"] == HOOK
    again = await stage.admin.post("/v1/organization/spend_alerts", json=body)
    assert again.json()["notification_channel"]["secret"] != secret


async def test_without_a_server_there_is_no_mail(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.with_options(max_retries=3).admin.organization.spend_alerts.create(
            **ALERT, notification_channel=MAIL
        )
    assert (caught.value.status_code, caught.value.code) == (501, "not_supported")


async def test_another_organizations_alerts_are_not_there(stage: Stage) -> None:
    body = {**ALERT, "notification_channel": HOOK}
    tenant, other = stage.tenant, stage.other
    paths = ["/v1/organization/spend_alerts", f"/v1/organization/projects/{tenant.project_id}/spend_alerts"]
    mine, of_project = [(await stage.admin.post(path, json=body)).json()["id"] for path in paths]
    # An alert of the organization is none of its project, and the other way round.
    for path in (f"{paths[0]}/{of_project}", f"{paths[1]}/{mine}"):
        assert (await stage.admin.get(path)).status_code == 404
    async with stage.client(other.admin_key) as http:
        assert (await http.get(paths[0])).json()["data"] == []
        for path in (f"{paths[0]}/{mine}", f"{paths[1]}/{of_project}", paths[1]):
            answers = [await http.get(path), await http.post(path, json=body), await http.delete(path)]
            assert {answer.status_code for answer in answers} <= {404, 405}, path
        stranger = (await http.get(f"{paths[0]}?after={mine}")).json()["error"]
        assert (stranger["code"], stranger["param"]) == ("invalid_value", "after")
    async with stage.client(tenant.key) as http:
        assert (await http.get(paths[0])).status_code == 403


def _bad_channels() -> list[tuple[Any, str]]:
    name = "notification_channel"
    channels: tuple[Any, ...] = (None, [], "email", {}, 1)
    kinds: tuple[Any, ...] = (None, "sms", ["email"], {})
    result: list[tuple[Any, str]] = [(channel, name) for channel in channels]
    result += [({"type": kind}, name) for kind in kinds]
    recipients: list[Any] = [
        [], ["a"], ["a@b\r\nBcc: c@d"], ["A <a@b>"], ["a@b,c@d"], ["\u00fc@example.com"],
        None, [1], ["a@b"] * 51, {},
    ]  # fmt: skip
    result += [({**MAIL, "recipients": value}, f"{name}.recipients") for value in recipients]
    prefixes: tuple[Any, ...] = ("a\r\nBcc: b@c", "a" * 101, "", 1)
    result += [({**MAIL, "subject_prefix": value}, f"{name}.subject_prefix") for value in prefixes]
    result.append(({**MAIL, "url": "https://a.example"}, f"{name}.url"))
    result.append(({**HOOK, "secret": "mine"}, f"{name}.secret"))
    return result


async def test_bad_input_is_named(stage: Stage) -> None:
    amounts: tuple[Any, ...] = (None, 0, -1, 10**14, 10**30, 1.5, "100", True, [], {})
    currencies: tuple[Any, ...] = (None, "EUR", 1)
    intervals: tuple[Any, ...] = (None, "day", [])
    changes: list[tuple[dict[str, Any], str]] = [
        *[({"threshold_amount": value}, "threshold_amount") for value in amounts],
        *[({"currency": currency}, "currency") for currency in currencies],
        *[({"interval": interval}, "interval") for interval in intervals],
        *[({"notification_channel": channel}, param) for channel, param in _bad_channels()],
        ({"colour": "red"}, "colour"),
    ]
    for change, param in changes:
        body = {**ALERT, "notification_channel": HOOK, **change}
        answer = await stage.admin.post("/v1/organization/spend_alerts", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


URLS: list[Any] = [
    None, 1, "", " ", "hooks.example.com", "ftp://example.com/a", "file:///etc/passwd", "http://",
    "https:///a", "javascript:alert(1)", "http://user:secret@example.com/", "http://example.com/#a",
    "http://exa mple.com/", "http://example.com:99999/", "http://example.com/\n", "http://ex\u00e4mple.com/",
    "https://" + "a" * 3000, "http://localhost/", "http://LOCALHOST./", "http://a.localhost/", "http://127.0.0.1:8080/a",
    "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data",
    "http://0.0.0.0/", "http://100.64.0.1/", "http://224.0.0.1/", "http://[::1]/", "http://[::]/",
    "http://[fd00::1]/", "http://[fe80::1]/", "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/",
    "http://[2002:a00:1::]/", "http://[ff02::1]/", "http://240.0.0.1/",
]  # fmt: skip


async def test_urls_that_no_event_is_sent_to(stage: Stage) -> None:
    for url in URLS:
        body = {**ALERT, "notification_channel": {"type": "webhook", "url": url}}
        answer = await stage.admin.post("/v1/organization/spend_alerts", json=body)
        assert answer.status_code == 400, (url, answer.text)
        assert answer.json()["error"]["param"] == "notification_channel.url"


async def test_an_archived_project_gets_no_alert(stage: Stage) -> None:
    project = f"/v1/organization/projects/{stage.tenant.project_id}"
    body = {**ALERT, "notification_channel": HOOK}
    created = (await stage.admin.post(f"{project}/spend_alerts", json=body)).json()["id"]
    assert (await stage.admin.post(f"{project}/archive")).is_success
    assert (await stage.admin.post(f"{project}/spend_alerts", json=body)).status_code == 400
    assert (await stage.admin.post(f"{project}/spend_alerts/{created}", json=body)).status_code == 400
    assert (await stage.admin.get(f"{project}/spend_alerts")).json()["last_id"] == created


async def test_there_is_a_number_of_alerts_that_is_enough(stage: Stage) -> None:
    body = {**ALERT, "notification_channel": HOOK}
    for _ in range(100):
        assert (await stage.admin.post("/v1/organization/spend_alerts", json=body)).status_code == 200
    assert (await stage.admin.post("/v1/organization/spend_alerts", json=body)).status_code == 400
