"""The administration of limits and budgets, with the official client where it has a resource for it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.admin.organization.projects import ProjectRateLimit

from tenants.limits.rate_limits import MOST
from tests.gateway.app_fixture import Stage, stage_at


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage_at(tmp_path, "http://127.0.0.1:9") as opened:
        yield opened


async def test_the_official_client_lists_and_updates_rate_limits(stage: Stage) -> None:
    project_id = stage.tenant.project_id
    async with stage.openai() as client:
        rate_limits = client.admin.organization.projects.rate_limits
        listed = [item async for item in rate_limits.list_rate_limits(project_id, limit=2)]
        assert [item.model for item in listed] == ["near", "away", "far"]
        assert listed[0] == ProjectRateLimit(
            id="rl-near",
            object="project.rate_limit",
            model="near",
            max_requests_per_1_minute=MOST,
            max_tokens_per_1_minute=MOST,
        )
        assert listed[0].to_dict().keys() == {
            "id", "object", "model", "max_requests_per_1_minute", "max_tokens_per_1_minute",
        }  # fmt: skip
        changed = await rate_limits.update_rate_limit(
            "rl-away",
            project_id=project_id,
            max_requests_per_1_minute=5,
            max_requests_per_1_day=50,
            batch_1_day_max_input_tokens=500,
        )
        assert changed.max_requests_per_1_minute == 5
        assert (changed.max_requests_per_1_day, changed.batch_1_day_max_input_tokens) == (50, 500)
        assert changed.max_tokens_per_1_minute == MOST
        page = await rate_limits.list_rate_limits(project_id, after="rl-near", limit=1)
        assert (page.data, page.has_more, page.last_id) == ([changed], True, "rl-away")
        back = await rate_limits.list_rate_limits(project_id, before="rl-far", limit=1)
        assert (back.data, back.has_more) == ([changed], True)
        first = await rate_limits.list_rate_limits(project_id, before="rl-away")
        assert ([item.id for item in first.data], first.has_more) == (["rl-near"], False)


async def test_the_official_client_administers_spend_limits(stage: Stage) -> None:
    async with stage.openai() as client:
        organization = client.admin.organization
        with pytest.raises(openai.NotFoundError):
            await organization.spend_limit.retrieve()
        created = await organization.spend_limit.update(
            currency="USD", interval="month", threshold_amount=500
        )
        assert created.object == "organization.spend_limit"
        assert (created.threshold_amount, created.enforcement.status) == (500, "inactive")
        assert await organization.spend_limit.retrieve() == created
        of_project = organization.projects.spend_limit
        project_id = stage.tenant.project_id
        for cents in (1, 2):
            visible = await of_project.update(
                project_id, currency="USD", interval="month", threshold_amount=cents
            )
        assert (visible.object, visible.threshold_amount) == ("project.spend_limit", 2)
        assert (await of_project.retrieve(project_id)).threshold_amount == 2
        assert (await of_project.delete(project_id)).deleted
        with pytest.raises(openai.NotFoundError):
            await of_project.delete(project_id)
        gone = await organization.spend_limit.delete()
        assert (gone.object, gone.deleted) == ("organization.spend_limit.deleted", True)


async def test_limits_of_subjects_are_listed_set_and_deleted(stage: Stage) -> None:
    first = await stage.limit_key(max_requests_per_1_minute=5, max_concurrent_requests=2)
    created = [first]
    for number in range(3):
        body = {"subject_type": "user", "subject_id": f"user-{number}", "max_tokens_per_1_day": 10}
        created.append((await stage.admin.post("/v1/torpor/limits", json=body)).json()["id"])
    page = (await stage.admin.get("/v1/torpor/limits", params={"limit": 3})).json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (created[:3], True)
    rest = (await stage.admin.get("/v1/torpor/limits", params={"after": page["last_id"]})).json()
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == (created[3:], False)
    visible = (await stage.admin.get(f"/v1/torpor/limits/{first}")).json()
    assert visible == {
        "id": first,
        "object": "torpor.limit",
        "subject_type": "key",
        "subject_id": stage.tenant.key_id,
        "max_requests_per_1_minute": 5,
        "max_tokens_per_1_minute": None,
        "max_requests_per_1_day": None,
        "max_tokens_per_1_day": None,
        "max_concurrent_requests": 2,
        "created_at": visible["created_at"],
    }
    gone = await stage.admin.delete(f"/v1/torpor/limits/{first}")
    assert gone.json() == {"id": first, "object": "torpor.limit.deleted", "deleted": True}
    assert (await stage.admin.get(f"/v1/torpor/limits/{first}")).status_code == 404


_LIMITS = "/v1/torpor/limits"
_RATES = "/v1/organization/projects/{project}/rate_limits"
_SPEND = "/v1/organization/projects/{project}/spend_limit"
_USD = {"currency": "USD", "interval": "month"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (f"{_RATES}/rl-near", {"max_requests_per_1_minute": 0}, "max_requests_per_1_minute"),
        (f"{_RATES}/rl-near", {"max_requests_per_1_minute": -1}, "max_requests_per_1_minute"),
        (f"{_RATES}/rl-near", {"max_requests_per_1_minute": MOST + 1}, "max_requests_per_1_minute"),
        (f"{_RATES}/rl-near", {"max_requests_per_1_minute": 1.5}, "max_requests_per_1_minute"),
        (f"{_RATES}/rl-near", {"max_tokens_per_1_minute": "many"}, "max_tokens_per_1_minute"),
        (f"{_RATES}/rl-near", {"max_tokens_per_1_minute": True}, "max_tokens_per_1_minute"),
        (f"{_RATES}/rl-near", {"max_tokens": 5}, "max_tokens"),
        (f"{_RATES}/rl-near", {"max_images_per_1_minute": 5}, "max_images_per_1_minute"),
        (_LIMITS, {"subject_id": "u", "max_requests_per_1_minute": 1}, "subject_type"),
        (_LIMITS, {"subject_type": [], "subject_id": "u", "max_requests_per_1_minute": 1}, "subject_type"),
        (_LIMITS, {"subject_type": "user", "max_requests_per_1_minute": 1}, "subject_id"),
        (_LIMITS, {"subject_type": "user", "subject_id": 7, "max_requests_per_1_minute": 1}, "subject_id"),
        (_LIMITS, {"subject_type": "user", "subject_id": "\0", "max_requests_per_1_minute": 1}, "subject_id"),
        (_LIMITS, {"subject_type": "user", "subject_id": "u"}, None),
        (_LIMITS, {"subject_type": "user", "subject_id": "u", "batch_1_day_max_input_tokens": 1},
         "batch_1_day_max_input_tokens"),
        (_SPEND, {**_USD, "threshold_amount": -1}, "threshold_amount"),
        (_SPEND, {**_USD, "threshold_amount": 1.5}, "threshold_amount"),
        (_SPEND, {**_USD, "threshold_amount": True}, "threshold_amount"),
        (_SPEND, {**_USD, "threshold_amount": 10**30}, "threshold_amount"),
        (_SPEND, {**_USD}, "threshold_amount"),
        (_SPEND, {**_USD, "threshold_amount": 1, "currency": "EUR"}, "currency"),
        (_SPEND, {"currency": "USD", "threshold_amount": 1, "interval": "year"}, "interval"),
    ],
)  # fmt: skip
async def test_bad_input_is_named_and_changes_nothing(
    stage: Stage, path: str, body: dict[str, Any], param: str | None
) -> None:
    response = await stage.admin.post(path.format(project=stage.tenant.project_id), json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert (await stage.admin.get(_LIMITS)).json()["data"] == []
    assert (await stage.admin.get(_SPEND.format(project=stage.tenant.project_id))).status_code == 404


async def test_what_is_not_there_and_what_is_not_ones_own_are_the_same(stage: Stage) -> None:
    """Byte for byte, for another organization's project, key and limit as for made-up ones."""
    mine = await stage.limit_key(max_requests_per_1_minute=5)
    sizes = {"max_requests_per_1_minute": 5}
    async with stage.client(stage.other.admin_key) as foreign:
        for real, unknown, method, body in (
            (_RATES.format(project=stage.tenant.project_id), _RATES.format(project="proj_x"), "GET", None),
            (_RATES.format(project=stage.tenant.project_id) + "/rl-near",
             _RATES.format(project="proj_x") + "/rl-near", "POST", sizes),
            (_SPEND.format(project=stage.tenant.project_id), _SPEND.format(project="proj_x"), "GET", None),
            (_SPEND.format(project=stage.tenant.project_id), _SPEND.format(project="proj_x"), "POST",
             {**_USD, "threshold_amount": 1}),
            (_SPEND.format(project=stage.tenant.project_id), _SPEND.format(project="proj_x"), "DELETE", None),
            (f"{_LIMITS}/{mine}", f"{_LIMITS}/lim_x", "GET", None),
            (f"{_LIMITS}/{mine}", f"{_LIMITS}/lim_x", "DELETE", None),
        ):  # fmt: skip
            answers = [await foreign.request(method, path, json=body) for path in (real, unknown)]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert answers[0].content == answers[1].content
        bodies = [
            {"subject_type": "key", "subject_id": subject_id, **sizes}
            for subject_id in (stage.tenant.key_id, "key_x")
        ]
        answers = [await foreign.post(_LIMITS, json=body) for body in bodies]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].content == answers[1].content
        assert (await foreign.get(_LIMITS)).json()["data"] == []
    assert (await stage.admin.get(f"{_LIMITS}/{mine}")).is_success


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        (_RATES, {"limit": "0"}),
        (_RATES, {"limit": "101"}),
        (_RATES, {"limit": "x"}),
        (_RATES, {"after": "rl-nothing"}),
        (_RATES, {"after": "near"}),
        (_RATES, {"before": ""}),
        (_RATES, {"after": "rl-near", "before": "rl-far"}),
        (_LIMITS, {"after": "lim_x"}),
        (_LIMITS, {"limit": "-1"}),
    ],
)
async def test_a_bad_page_is_named(stage: Stage, path: str, parameters: dict[str, str]) -> None:
    response = await stage.admin.get(path.format(project=stage.tenant.project_id), params=parameters)
    assert response.status_code == 400
    assert response.json()["error"]["param"] in parameters


@pytest.mark.parametrize("path", [_LIMITS, _RATES, _SPEND, "/v1/organization/spend_limit"])
async def test_a_projects_key_opens_none_of_it(stage: Stage, path: str) -> None:
    response = await stage.http.get(path.format(project=stage.tenant.project_id))
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "insufficient_scope"


async def test_an_unknown_model_has_no_rate_limit(stage: Stage) -> None:
    path = _RATES.format(project=stage.tenant.project_id)
    for limit_id in ("rl-nothing", "near", "rl-"):
        response = await stage.admin.post(f"{path}/{limit_id}", json={})
        assert response.status_code == 404
