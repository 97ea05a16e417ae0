"""The audit log, read with the official client over real HTTP."""

import time

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.admin.organization.audit_log_list_response import AuditLogListResponse

from tests.gateway.app_fixture import Stage


async def test_audit_logs_tell_who_did_what_and_from_where(client: AsyncOpenAI, stage: Stage) -> None:
    organization = client.admin.organization
    project = await organization.projects.create(name="audited")
    account = await organization.projects.service_accounts.create(project.id, name="robot")
    assert account.api_key is not None
    await organization.projects.rate_limits.update_rate_limit(
        "rl-near", project_id=project.id, max_requests_per_1_minute=7
    )
    await organization.projects.spend_limit.update(
        project.id, currency="USD", interval="month", threshold_amount=5
    )
    await organization.projects.model_permissions.update(project.id, mode="deny_list", model_ids=["near"])
    await stage.admin.post(f"/v1/torpor/projects/{project.id}/weight", json={"weight": 0.5})
    await organization.projects.archive(project.id)
    await organization.projects.archive(project.id)
    entries = [item async for item in organization.audit_logs.list(project_ids=[project.id], limit=2)]
    assert [item.type for item in entries] == [
        "project.archived",
        "torpor.project.weight.updated",
        "torpor.model_permissions.updated",
        "torpor.spend_limit.updated",
        "rate_limit.updated",
        "api_key.created",
        "service_account.created",
        "project.created",
    ]
    first = entries[-1]
    assert type(first) is AuditLogListResponse
    assert first.effective_at == pytest.approx(time.time(), abs=30)
    assert first.actor is not None
    assert first.actor.type == "api_key"
    assert first.actor.api_key is not None
    assert first.actor.session is not None
    admin_keys = [item async for item in organization.admin_api_keys.list()]
    assert first.actor.api_key.id == admin_keys[0].id
    assert first.actor.session.ip_address == "127.0.0.1"
    assert "OpenAI" in first.actor.session.to_dict()["user_agent"]  # type: ignore[operator]
    assert first.project is not None
    assert (first.project.id, first.project.name) == (project.id, "audited")
    assert first.project_created is not None
    assert first.project_created.data is not None
    assert first.project_created.data.name == "audited"
    limited = entries[4].rate_limit_updated
    assert limited is not None
    assert limited.changes_requested is not None
    assert limited.changes_requested.max_requests_per_1_minute == 7
    text = "".join(item.to_json() for item in entries)
    assert account.api_key.value not in text
    assert stage.tenant.admin_key not in text


async def test_audit_logs_are_filtered_and_paged_in_both_directions(
    client: AsyncOpenAI, stage: Stage
) -> None:
    organization = client.admin.organization
    logs = organization.audit_logs
    new = [await organization.projects.create(name=f"p{number}") for number in range(5)]
    created = await logs.list(event_types=["project.created"], limit=100)
    ids = [item.id for item in created.data]
    assert len(ids) == 6
    middle = await logs.list(event_types=["project.created"], after=ids[1], limit=2)
    assert ([item.id for item in middle.data], middle.has_more) == (ids[2:4], True)
    back = await logs.list(event_types=["project.created"], before=ids[3], limit=2)
    assert ([item.id for item in back.data], back.has_more) == (ids[1:3], True)
    of_one = await logs.list(resource_ids=[new[2].id])
    assert [item.type for item in of_one.data] == ["project.created"]
    two = await logs.list(project_ids=[new[0].id, new[1].id])
    assert len(two.data) == 2
    key_id = created.data[0].actor.api_key.id  # type: ignore[union-attr]
    assert key_id is not None
    by_key = await logs.list(actor_ids=[key_id], limit=100)
    assert [item.id for item in by_key.data] == ids[:5]
    now = int(time.time())
    assert len((await logs.list(effective_at={"gte": now - 60, "lt": now + 60}, limit=100)).data) >= 6
    assert (await logs.list(effective_at={"gt": now + 60})).data == []
    assert (await logs.list(effective_at={"lte": now - 60})).data == []
    assert (await logs.list(actor_emails=["a@example.com"])).data == []
    assert (await logs.list(event_types=["login.failed"])).data == []


async def test_what_fails_is_not_in_the_audit_log(client: AsyncOpenAI, stage: Stage) -> None:
    organization = client.admin.organization
    before = (await organization.audit_logs.list(limit=100)).data
    for attempt in (
        organization.projects.archive(stage.other.project_id),
        organization.projects.create(name=" "),
        organization.projects.spend_limit.delete(stage.tenant.project_id),
    ):
        with pytest.raises(openai.APIStatusError):
            await attempt
    assert (await organization.audit_logs.list(limit=100)).data == before


async def test_acts_on_the_host_are_the_root_keys_to_see(root: httpx.AsyncClient, stage: Stage) -> None:
    await root.post("/v1/torpor/organizations", json={"slug": "fresh"})
    for path in ("wake", "snapshot"):
        await root.post(f"/v1/torpor/engines/near/{path}")
    await root.post("/v1/torpor/engines/unknown/wake")
    woken = (await root.get("/v1/torpor/audit_logs?event_types=torpor.engine.wake")).json()["data"]
    host = (await root.get("/v1/torpor/audit_logs")).json()["data"]
    assert [item["type"] for item in host] == [
        "torpor.engine.snapshot",
        "torpor.engine.wake",
        "torpor.root_key.created",
    ]
    assert host[-1]["actor"] is None
    assert (woken[0]["torpor.engine.wake"], len(woken)) == ({"id": "near"}, 1)
    assert woken[0]["actor"]["api_key"]["kind"] == "root"
    refused = await stage.admin.get("/v1/torpor/audit_logs")
    assert refused.status_code == 403
