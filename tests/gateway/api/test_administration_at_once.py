"""Administrators at the same time, and a database that fails in between."""

import asyncio
from collections import Counter

import httpx
from sqlalchemy import text

from tests.gateway.app_fixture import Stage

AT_ONCE = 24


def _tally(answers: list[httpx.Response]) -> dict[tuple[int, str | None], int]:
    return dict(
        Counter(
            (item.status_code, None if item.is_success else item.json()["error"]["code"]) for item in answers
        )
    )


async def test_one_of_many_wins_and_the_others_are_told(stage: Stage) -> None:
    project, admin = f"/v1/organization/projects/{stage.tenant.project_id}", stage.admin
    for body in ({"user_id": "ada"}, {"email": "bob@example.com"}):
        calls = [admin.post(f"{project}/users", json={"role": "member", **body}) for _ in range(AT_ONCE)]
        tally = _tally(await asyncio.gather(*calls))
        assert tally == {(200, None): 1, (400, "already_exists"): AT_ONCE - 1}
    assert len((await admin.get("/v1/organization/users")).json()["data"]) == 2
    key = f"{project}/api_keys/{stage.tenant.key_id}"
    tally = _tally(await asyncio.gather(*[admin.delete(key) for _ in range(AT_ONCE)]))
    assert tally == {(200, None): 1, (404, "not_found"): AT_ONCE - 1}
    logs = (await admin.get("/v1/organization/audit_logs", params={"event_types": "api_key.deleted"})).json()
    assert len(logs["data"]) == 1


async def test_archiving_meets_creating(stage: Stage) -> None:
    project, admin = f"/v1/organization/projects/{stage.tenant.project_id}", stage.admin
    created = [admin.post(f"{project}/service_accounts", json={"name": "late"}) for _ in range(AT_ONCE)]
    archived = [admin.post(f"{project}/archive") for _ in range(4)]
    permitted = [
        admin.post(f"{project}/model_permissions", json={"mode": "deny_list", "model_ids": ["near"]})
        for _ in range(AT_ONCE)
    ]
    answers = await asyncio.gather(*created, *archived, *permitted)
    assert all(item.is_success for item in answers[AT_ONCE : AT_ONCE + 4])
    for item in answers:
        assert item.is_success or item.json()["error"]["param"] == "project_id", item.text
    secrets = [item.json()["api_key"]["value"] for item in answers[:AT_ONCE] if item.is_success]
    # No more of them than an address may try wrong keys.
    assert {await stage.status(secret) for secret in secrets[-8:]} <= {401}
    logs = (await admin.get("/v1/organization/audit_logs", params={"event_types": "project.archived"})).json()
    assert len(logs["data"]) == 1


async def test_an_act_that_cannot_be_recorded_does_not_happen(stage: Stage) -> None:
    project = f"/v1/organization/projects/{stage.tenant.project_id}"
    async with stage.services.database.begin() as connection:
        await connection.execute(text("ALTER TABLE audit_logs RENAME TO hidden"))
    calls = [
        ("POST", "/v1/organization/projects", {"name": "unseen"}),
        ("POST", f"{project}/service_accounts", {"name": "unseen"}),
        ("POST", f"{project}/archive", {}),
        ("DELETE", f"{project}/api_keys/{stage.tenant.key_id}", None),
        ("POST", f"/v1/torpor/keys/{stage.tenant.key_id}/rotate", {}),
        ("POST", f"{project}/model_permissions", {"mode": "deny_list", "model_ids": ["near"]}),
        ("POST", f"{project}/users", {"role": "member", "user_id": "ada"}),
        ("POST", f"{project}/rate_limits/rl-near", {"max_requests_per_1_minute": 1}),
        ("POST", "/v1/torpor/limits", {"subject_type": "user", "subject_id": "u", "max_tokens_per_1_day": 1}),
        ("POST", "/v1/organization/admin_api_keys", {"name": "unseen"}),
    ]
    for method, path, body in calls:
        answer = await stage.admin.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable"), path
    async with stage.services.database.begin() as connection:
        await connection.execute(text("ALTER TABLE hidden RENAME TO audit_logs"))
    assert await stage.status(stage.tenant.key) == 200
    assert await stage.status(stage.tenant.key, "/v1/models/near") == 200
    for path, names in (
        ("/v1/organization/projects", ["web"]),
        (f"{project}/service_accounts", ["key"]),
        ("/v1/organization/admin_api_keys", ["admin"]),
        ("/v1/organization/users", []),
        ("/v1/torpor/limits", []),
    ):
        assert [item["name"] for item in (await stage.admin.get(path)).json()["data"]] == names
    limits = (await stage.admin.get(f"{project}/rate_limits")).json()["data"]
    assert limits[0]["max_requests_per_1_minute"] > 1
