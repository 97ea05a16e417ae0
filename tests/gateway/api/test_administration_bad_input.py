"""What the administration's endpoints do with wrong values, and with what is another organization's."""

from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.gateway.app_fixture import Stage

PROJECT = "/v1/organization/projects/{project}"
BAD: list[tuple[str, str, Any, str]] = [
    ("POST", "/v1/organization/projects", {}, "name"),
    ("POST", "/v1/organization/projects", {"name": 7}, "name"),
    ("POST", "/v1/organization/projects", {"name": "x" * 201}, "name"),
    ("POST", "/v1/organization/projects", {"name": "a\0b"}, "name"),
    ("POST", "/v1/organization/projects", {"name": "a", "geography": "EU"}, "geography"),
    ("POST", "/v1/organization/projects", {"name": "a", "colour": "red"}, "colour"),
    ("GET", "/v1/organization/projects?limit=0", None, "limit"),
    ("GET", "/v1/organization/projects?limit=101", None, "limit"),
    ("GET", "/v1/organization/projects?limit=x", None, "limit"),
    ("GET", "/v1/organization/projects?after=proj_unknown", None, "after"),
    ("GET", "/v1/organization/projects?after=%00", None, "after"),
    ("GET", "/v1/organization/projects?include_archived=perhaps", None, "include_archived"),
    ("POST", PROJECT, {"name": []}, "name"),
    ("POST", f"{PROJECT}/service_accounts", {"name": None}, "name"),
    ("POST", f"{PROJECT}/service_accounts", {"name": "a", "expires_in_seconds": "1"}, "expires_in_seconds"),
    ("POST", f"{PROJECT}/service_accounts", {"name": "a", "expires_in_seconds": True}, "expires_in_seconds"),
    ("POST", f"{PROJECT}/service_accounts", {"name": "a", "expires_in_seconds": 0}, "expires_in_seconds"),
    (
        "POST",
        f"{PROJECT}/service_accounts",
        {"name": "a", "expires_in_seconds": 10**20},
        "expires_in_seconds",
    ),
    ("POST", f"{PROJECT}/service_accounts", {"name": "a", "expires_at": 1}, "expires_at"),
    ("POST", f"{PROJECT}/service_accounts", {"name": "a", "expires_at": 10**20}, "expires_at"),
    ("POST", f"{PROJECT}/service_accounts", {"name": "a", "scopes": "all"}, "scopes"),
    ("POST", f"{PROJECT}/service_accounts", {"name": "a", "scopes": []}, "scopes"),
    ("POST", f"{PROJECT}/service_accounts", {"name": "a", "scopes": ["root"]}, "scopes"),
    (
        "POST",
        f"{PROJECT}/service_accounts",
        {"name": "a", "create_service_account_only": 1},
        "create_service_account_only",
    ),
    (
        "POST",
        f"{PROJECT}/service_accounts",
        {"name": "a", "create_service_account_only": True, "expires_in_seconds": 5},
        "expires_in_seconds",
    ),
    ("GET", f"{PROJECT}/service_accounts?after=svc_unknown", None, "after"),
    ("GET", f"{PROJECT}/api_keys?owner_project_access=maybe", None, "owner_project_access"),
    ("GET", f"{PROJECT}/api_keys?after=key_unknown", None, "after"),
    ("POST", f"{PROJECT}/model_permissions", {"mode": "some", "model_ids": []}, "mode"),
    ("POST", f"{PROJECT}/model_permissions", {"mode": "allow_list"}, "model_ids"),
    ("POST", f"{PROJECT}/model_permissions", {"mode": "allow_list", "model_ids": [7]}, "model_ids"),
    ("POST", f"{PROJECT}/model_permissions", {"mode": ["allow_list"], "model_ids": []}, "mode"),
    ("POST", "/v1/organization/admin_api_keys", {}, "name"),
    (
        "POST",
        "/v1/organization/admin_api_keys",
        {"name": "a", "expires_in_seconds": -1},
        "expires_in_seconds",
    ),
    ("GET", "/v1/organization/admin_api_keys?order=up", None, "order"),
    ("GET", "/v1/organization/admin_api_keys?after=key_unknown", None, "after"),
    ("GET", "/v1/organization/audit_logs?limit=0", None, "limit"),
    ("GET", "/v1/organization/audit_logs?after=audit_log-1", None, "after"),
    ("GET", "/v1/organization/audit_logs?before=audit_log-1", None, "before"),
    ("GET", "/v1/organization/audit_logs?effective_at[gt]=now", None, "effective_at"),
    ("GET", "/v1/organization/audit_logs?effective_at[near]=1", None, "effective_at"),
    ("GET", "/v1/organization/audit_logs?event_types[]=No%20Event", None, "event_types"),
    ("GET", "/v1/organization/audit_logs?tenant_only=1", None, "tenant_only"),
    ("POST", "/v1/torpor/keys/{key}/rotate", {"overlap_seconds": "1"}, "overlap_seconds"),
    ("POST", "/v1/torpor/keys/{key}/rotate", {"overlap_seconds": -1}, "overlap_seconds"),
    ("POST", "/v1/torpor/keys/{key}/rotate", {"overlap_seconds": 10**9}, "overlap_seconds"),
    ("POST", "/v1/torpor/keys/{key}/rotate", {"overlap": 1}, "overlap"),
]


async def test_bad_input_is_a_400_that_names_the_parameter(stage: Stage) -> None:
    ids = {"project": stage.tenant.project_id, "key": stage.tenant.key_id}
    for method, path, body, param in BAD:
        answer = await stage.admin.request(method, path.format(**ids), json=body)
        reply = (method, path, body, answer.text)
        assert answer.status_code == 400, reply
        error = answer.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error"), reply
        assert error["message"], reply


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"x"', b"\xff"])
async def test_a_body_that_is_no_object_is_a_400(stage: Stage, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/v1/organization/projects", f"/v1/torpor/keys/{stage.tenant.key_id}/rotate"):
        answer = await stage.admin.post(path, content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_ids_that_can_be_none_are_unknown(stage: Stage) -> None:
    for strange in ("%00", "a" * 300, "%20", "..%2f", "%C3%28"):
        answer = await stage.admin.get(f"/v1/organization/projects/{strange}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_another_organizations_things_answer_as_unknown_ones(client: AsyncOpenAI, stage: Stage) -> None:
    mine, theirs = stage.tenant, stage.other
    async with stage.client(theirs.admin_key) as http:
        accounts = (await http.get(f"/v1/organization/projects/{theirs.project_id}/service_accounts")).json()
        admin_keys = (await http.get("/v1/organization/admin_api_keys")).json()
        logs = (await http.get("/v1/organization/audit_logs")).json()
    account_id, admin_key_id = accounts["data"][0]["id"], admin_keys["data"][0]["id"]
    project, key, account = "/projects/{project}", "/api_keys/{key}", "/service_accounts/{account}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", project, None),
        ("POST", project, {"name": "mine"}),
        ("POST", f"{project}/archive", {}),
        ("GET", f"{project}/api_keys", None),
        ("GET", f"{project}{key}", None),
        ("POST", f"{project}{key}", {"scopes": []}),
        ("DELETE", f"{project}{key}", None),
        ("GET", f"{project}/service_accounts", None),
        ("POST", f"{project}/service_accounts", {"name": "mine"}),
        ("GET", f"{project}{account}", None),
        ("POST", f"{project}{account}", {"name": "mine"}),
        ("DELETE", f"{project}{account}", None),
        ("POST", f"{project}{account}/api_keys", {}),
        ("GET", f"{project}/model_permissions", None),
        ("POST", f"{project}/model_permissions", {"mode": "deny_list", "model_ids": []}),
        ("DELETE", f"{project}/model_permissions", None),
        ("GET", "/admin_api_keys/{admin_key}", None),
        ("DELETE", "/admin_api_keys/{admin_key}", None),
        ("POST", "/../torpor/keys/{key}/rotate", {}),
    ]
    ids = {
        "project": (theirs.project_id, "proj_" + "x" * 24, mine.project_id),
        "key": (theirs.key_id, "key_" + "x" * 24, theirs.key_id),
        "account": (account_id, "svc_" + "x" * 24, account_id),
        "admin_key": (admin_key_id, "key_" + "x" * 24, admin_key_id),
    }
    for method, path, body in calls:
        answers = []
        for which in range(3 if "account}" in path or "key}" in path else 2):
            filled = path.format(**{name: values[which] for name, values in ids.items()})
            url = f"/v1/organization{filled}".replace("/organization/..", "")
            answers.append(await stage.admin.request(method, url, json=body))
        assert [item.status_code for item in answers] == [404] * len(answers), (method, path)
        assert answers[0].content == answers[1].content, (method, path)
    for name, cursor in (("audit_logs", logs["last_id"]), ("projects", theirs.project_id)):
        answer = await stage.admin.get(f"/v1/organization/{name}", params={"after": cursor})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")
    assert await stage.status(theirs.key) == 200
    assert len([item async for item in client.admin.organization.projects.list()]) == 1
