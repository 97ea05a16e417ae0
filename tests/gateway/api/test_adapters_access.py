"""Whose adapters are whose: what another sees of them, what they are asked by, counted and charged as."""

import json
import statistics
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError

from gateway.config.prices import PriceConfig, price_faults
from tests.gateway.adapters_fixture import ADAPTERS, AdapterStage, adapter_stage_at, add, fields, files

CHAT = "/v1/chat/completions"


@pytest.fixture
async def stage(tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AdapterStage]:
    async with adapter_stage_at(tmp_path, standin, monkeypatch) as opened:
        yield opened


def _question(model: str, text: str = "echo", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def _every_route(http: httpx.AsyncClient, name: str) -> dict[str, tuple[int, str]]:
    """What each route answers to the name, with the name itself taken out."""
    request = {
        "chat": http.post(CHAT, json=_question(name)),
        "stream": http.post(CHAT, json=_question(name, stream=True)),
        "completions": http.post("/v1/completions", json={"model": name, "prompt": "x"}),
        "embeddings": http.post("/v1/embeddings", json={"model": name, "input": "x"}),
        "tokenize": http.post("/tokenize", json={"model": name, "prompt": "x"}),
        "detokenize": http.post("/detokenize", json={"model": name, "tokens": [1]}),
        "model": http.get(f"/v1/models/{name}"),
        "delete": http.delete(f"/v1/models/{name}"),
        "adapter": http.get(f"{ADAPTERS}/{name}"),
        "delete adapter": http.delete(f"{ADAPTERS}/{name}"),
        "token": http.post("/v1/torpor/tokens", json={"models": [name]}),
        "upload": http.post(ADAPTERS, data=fields(base_model=name), files=files()),
    }
    result = {}
    for what, call in request.items():
        answer = await call
        result[what] = answer.status_code, answer.text.replace(name, "NAME")
    return result


async def test_anothers_adapter_answers_as_one_that_does_not_exist(stage: AdapterStage) -> None:
    created = await add(stage.stage.http)
    nothing = created["id"][:-12] + "x" * 12
    async with stage.stage.client(stage.stage.other.key) as other, stage.token("eve") as eve:
        hers = await add(eve, 2, visibility="user")
        for name, http in ((created["id"], other), (hers["id"], other), (hers["id"], stage.stage.http)):
            foreign, absent = await _every_route(http, name), await _every_route(http, nothing)
            assert foreign == absent
            assert {status for status, _ in foreign.values()} == {404}
        assert (await eve.get(f"{ADAPTERS}/{hers['id']}")).status_code == 200, "and it is all there"
        assert (await stage.stage.http.get(f"{ADAPTERS}/{created['id']}")).status_code == 200


async def test_anothers_adapter_takes_no_longer_than_none(stage: AdapterStage) -> None:
    """Both are looked up among one's own: the medians of many calls in turn are as good as equal."""
    created = await add(stage.stage.http)
    names = {"foreign": created["id"], "absent": created["id"][:-12] + "x" * 12}
    took: dict[str, list[float]] = {name: [] for name in names}
    async with stage.stage.client(stage.stage.other.key) as other:
        for _ in range(150):
            for which, name in names.items():
                began = time.perf_counter()
                assert (await other.post(CHAT, json=_question(name))).status_code == 404
                took[which].append(time.perf_counter() - began)
    foreign, absent = (statistics.median(took[which]) for which in ("foreign", "absent"))
    assert abs(foreign - absent) < max(0.2 * absent, 0.0005), (foreign, absent)


async def test_nobody_else_sees_it_in_a_list(stage: AdapterStage) -> None:
    created = await add(stage.stage.http)
    async with (
        stage.stage.client(stage.stage.other.key) as other,
        stage.token("eve") as eve,
        stage.token("bob") as bob,
        stage.token("eve", stage.stage.other.key) as namesake,
    ):
        hers = await add(eve, 2, visibility="user")
        assert (hers["visibility"], hers["user_id"]) == ("user", "eve")
        for http, names in (
            (eve, {created["id"], hers["id"]}),
            (bob, {created["id"]}),
            (stage.stage.http, {created["id"]}),
            (other, set()),
            (namesake, set()),
        ):
            listed = (await http.get(ADAPTERS)).json()["data"]
            assert {item["id"] for item in listed} == names
            models = (await http.get("/v1/models")).json()["data"]
            assert {item["id"] for item in models} == {"near", "away", *names}


async def test_two_tenants_with_the_same_suffix_each_get_their_own(stage: AdapterStage) -> None:
    async with stage.stage.client(stage.stage.other.key) as other:
        mine, theirs = await add(stage.stage.http, 1), await add(other, 2)
        assert mine["suffix"] == theirs["suffix"]
        for http, own_value, foreign in ((stage.stage.http, mine, theirs), (other, theirs, mine)):
            answer = await http.post(CHAT, json=_question(own_value["id"]))
            assert answer.status_code == 200
            sent = json.loads(answer.json()["choices"][0]["message"]["content"])["body"]
            lease = stage.leases[-1]
            assert lease.adapter is not None
            assert (lease.adapter.name, lease.adapter.digest) == (own_value["id"], own_value["digest"])
            assert lease.adapter.canary == f"canary of near with {own_value['digest']}".encode()
            assert sent["model"] == lease.served_model_name
            assert (await http.post(CHAT, json=_question(foreign["id"]))).status_code == 404
        base = await other.post(CHAT, json=_question("near"))
        assert json.loads(base.json()["choices"][0]["message"]["content"])["body"]["model"] == "near"
        assert stage.leases[-1].adapter is None


async def test_an_adapter_is_shared_with_the_official_client(stage: AdapterStage) -> None:
    tenant, services = stage.stage.tenant, stage.stage.services
    second = await services.tenants.projects.create(tenant.organization_id, "second")
    third = await services.tenants.projects.create(tenant.organization_id, "third")
    _, secret = await services.tenants.keys.create_for_project(tenant.organization_id, second.id, "key")
    created = await add(stage.stage.http)
    async with (
        AsyncOpenAI(base_url=f"http://127.0.0.1:{stage.stage.port}/v1", api_key=tenant.admin_key) as admin,
        stage.stage.client(secret) as sharer,
    ):
        permissions = admin.fine_tuning.checkpoints.permissions
        assert (await sharer.post(CHAT, json=_question(created["id"]))).status_code == 404
        shared = [item async for item in permissions.create(created["id"], project_ids=[second.id, third.id])]
        assert [item.project_id for item in shared] == [second.id, third.id]
        assert {item.object for item in shared} == {"checkpoint.permission"}
        again = [item async for item in permissions.create(created["id"], project_ids=[second.id])]
        assert again == shared[:1]
        assert (await sharer.post(CHAT, json=_question(created["id"]))).status_code == 200
        assert (await sharer.get(f"/v1/models/{created['id']}")).status_code == 200
        assert (await sharer.get(f"{ADAPTERS}/{created['id']}")).status_code == 200
        assert (await sharer.get(ADAPTERS)).json()["data"] == [], "it is not the project's own"
        assert (await sharer.delete(f"{ADAPTERS}/{created['id']}")).status_code == 403
        await stage.reopen()
        assert (await sharer.post(CHAT, json=_question(created["id"]))).status_code == 200, "it is durable"
        listed = [item async for item in permissions.list(created["id"], limit=1)]
        assert [item.project_id for item in listed] == [third.id, second.id]
        oldest = await permissions.list(created["id"], order="ascending", limit=1)
        assert (oldest.data[0].id, oldest.has_more) == (shared[0].id, True)
        with pytest.warns(DeprecationWarning, match="Retrieve is deprecated"):
            retrieved = await permissions.retrieve(created["id"], project_id=third.id)
        assert [item.id for item in retrieved.data] == [shared[1].id]
        gone = await permissions.delete(shared[0].id, fine_tuned_model_checkpoint=created["id"])
        assert (gone.id, gone.deleted, gone.object) == (shared[0].id, True, "checkpoint.permission")
        assert (await sharer.post(CHAT, json=_question(created["id"]))).status_code == 404
        with pytest.raises(NotFoundError):
            await permissions.delete(shared[0].id, fine_tuned_model_checkpoint=created["id"])
        await _check_logs(stage, created["id"], shared[0].id)


async def _check_logs(stage: AdapterStage, name: str, permission_id: str) -> None:
    kinds = "event_types[]=checkpoint.permission.created&event_types[]=checkpoint.permission.deleted"
    logs = (await stage.stage.admin.get(f"/v1/organization/audit_logs?{kinds}")).json()["data"]
    assert [entry["type"].rpartition(".")[2] for entry in logs] == ["deleted", "created", "created"]
    assert logs[0]["checkpoint.permission.deleted"] == {"id": permission_id}
    assert logs[2]["checkpoint.permission.created"]["data"]["fine_tuned_model_checkpoint"] == name


async def test_what_cannot_be_shared(stage: AdapterStage) -> None:
    tenant, other = stage.stage.tenant, stage.stage.other
    created = await add(stage.stage.http)
    async with stage.token("eve") as eve, stage.stage.client(other.admin_key) as stranger:
        hers = await add(eve, 2, visibility="user")

        async def share(name: str, *projects: Any, http: httpx.AsyncClient = stage.stage.admin) -> int:
            path = f"/v1/fine_tuning/checkpoints/{name}/permissions"
            return (await http.post(path, json={"project_ids": list(projects)})).status_code

        assert await share(created["id"], other.project_id) == 404, "only within the organization"
        assert await share(created["id"], tenant.project_id) == 400
        assert await share(created["id"]) == 400
        assert await share(created["id"], 5) == 400
        assert await share(hers["id"], tenant.project_id) == 400
        assert await share("near", tenant.project_id) == 404
        assert await share(created["id"], other.project_id, http=stranger) == 404
        assert await share(created["id"], tenant.project_id, http=stage.stage.http) == 403


async def test_a_credential_for_certain_models_must_name_the_adapter(stage: AdapterStage) -> None:
    mine, another = await add(stage.stage.http), await add(stage.stage.http, 2)
    async with stage.token("eve", models=[mine["id"]]) as only:
        assert (await only.post(CHAT, json=_question(mine["id"]))).status_code == 200
        assert (await only.post(CHAT, json=_question(another["id"]))).status_code == 404
        assert (await only.post(CHAT, json=_question("near"))).status_code == 404
        assert [item["id"] for item in (await only.get("/v1/models")).json()["data"]] == [mine["id"]]
    async with stage.token("eve", models=["near"]) as base:
        assert (await base.post(CHAT, json=_question("near"))).status_code == 200
        assert (await base.post(CHAT, json=_question(mine["id"]))).status_code == 404
    async with stage.token("eve") as eve:
        hers = await add(eve, 3, visibility="user")
    async with stage.token("eve", models=[hers["id"]]) as only:
        assert (await only.post(CHAT, json=_question(hers["id"]))).status_code == 200
    refused = await stage.stage.http.post("/v1/torpor/tokens", json={"user": "bob", "models": [hers["id"]]})
    assert refused.status_code == 404


@pytest.mark.parametrize(
    ("mode", "named", "base", "adapter"),
    [
        ("allow_list", "near", 200, 200),
        ("allow_list", "adapter", 404, 200),
        ("allow_list", "away", 404, 404),
        ("deny_list", "near", 404, 404),
        ("deny_list", "adapter", 200, 404),
        ("deny_list", "away", 200, 200),
    ],
)
async def test_permissions_of_a_project_name_an_adapter_or_its_base(
    stage: AdapterStage, mode: str, named: str, base: int, adapter: int
) -> None:
    created = await add(stage.stage.http)
    path = f"/v1/organization/projects/{stage.stage.tenant.project_id}/model_permissions"
    models = [created["id"] if named == "adapter" else named]
    assert (await stage.stage.admin.post(path, json={"mode": mode, "model_ids": models})).is_success
    http = stage.stage.http
    assert (await http.post(CHAT, json=_question("near"))).status_code == base
    assert (await http.post(CHAT, json=_question(created["id"]))).status_code == adapter
    assert (await http.get(f"{ADAPTERS}/{created['id']}")).status_code == adapter


async def test_usage_is_of_the_name_that_was_asked_for(stage: AdapterStage) -> None:
    created = await add(stage.stage.http)
    for model in ("near", created["id"], created["id"]):
        assert (await stage.stage.http.post(CHAT, json=_question(model, "hello"))).status_code == 200
    await stage.stage.http.post(CHAT, json=_question(created["id"], "hello", stream=True))
    start = int(time.time()) - 3600
    path = f"/v1/organization/usage/completions?start_time={start}"

    async def usage(query: str) -> dict[str | None, int]:
        buckets = (await stage.stage.admin.get(path + query)).json()["data"]
        results = [result for bucket in buckets for result in bucket["results"]]
        return {result["model"]: result["num_model_requests"] for result in results}

    assert await usage("&group_by[]=model") == {"near": 1, created["id"]: 3}
    assert await usage(f"&models[]={created['id']}") == {None: 3}
    assert await usage("&models[]=near") == {None: 1}
    assert await usage("") == {None: 4}


async def test_an_adapter_has_prices_of_its_own(
    tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the configuration to the cost report, the budget included."""
    monkeypatch.setattr("tenants.adapters.registry.new_id", lambda prefix: prefix + "a" * 24)
    dear = "ft:near:acme:mine:aaaaaaaaaaaa"
    prices = [
        PriceConfig(model="near", input=Decimal(1), output=Decimal(2)),
        PriceConfig(model="near", adapter=dear, input=Decimal(1000), output=Decimal(2000)),
    ]
    async with adapter_stage_at(tmp_path, standin, monkeypatch, prices=prices) as stage:
        http = stage.stage.http
        assert (await add(http))["id"] == dear
        for model in ("near", dear):
            assert (await http.post(CHAT, json=_question(model, "hello"))).status_code == 200
        start = int(time.time()) - 3600
        path = f"/v1/organization/costs?start_time={start}&group_by[]=line_item"
        buckets = (await stage.stage.admin.get(path)).json()["data"]
        costs = {item["line_item"]: item["amount"]["value"] for day in buckets for item in day["results"]}
        assert costs == {
            "near, input_tokens": pytest.approx(37e-6),
            "near, output_tokens": pytest.approx(14e-6),
            f"{dear}, input_tokens": pytest.approx(37e-3),
            f"{dear}, output_tokens": pytest.approx(14e-3),
        }
        await stage.stage.spend_limit(6)
        assert (await http.post(CHAT, json=_question(dear, max_tokens=100))).status_code == 429
        assert (await http.post(CHAT, json=_question("near", max_tokens=100))).status_code == 200


@pytest.mark.parametrize("adapter", ["x", "ft:far:acme:a:1", "near"])
def test_the_price_of_an_adapter_must_be_of_its_model(adapter: str) -> None:
    (fault,) = price_faults([PriceConfig(model="near", adapter=adapter)], 0, ["near", "far"])
    assert fault.key == "adapter"
    assert fault.message == "must be the name of an adapter of the model, which begins with ft:near:"


async def test_limits_are_by_adapter(stage: AdapterStage) -> None:
    tenant, admin = stage.stage.tenant, stage.stage.admin
    created, another = await add(stage.stage.http), await add(stage.stage.http, 2)
    limits = f"/v1/organization/projects/{tenant.project_id}/rate_limits"
    answer = await admin.post(f"{limits}/rl-{created['id']}", json={"max_requests_per_1_minute": 1})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == created["id"]
    listed = (await admin.get(limits)).json()["data"]
    assert [item["model"] for item in listed] == ["near", "away", created["id"]]
    assert (await stage.stage.http.post(CHAT, json=_question(created["id"]))).status_code == 200
    refused = await stage.stage.http.post(CHAT, json=_question(created["id"]))
    assert refused.status_code == 429
    assert f"requests per minute of the project for `{created['id']}`" in refused.json()["error"]["message"]
    for other in ("near", another["id"]):
        assert (await stage.stage.http.post(CHAT, json=_question(other))).status_code == 200
    nobody = f"/v1/organization/projects/{stage.stage.other.project_id}/rate_limits/rl-{created['id']}"
    async with stage.stage.client(stage.stage.other.admin_key) as stranger:
        assert (await stranger.post(nobody, json={"max_requests_per_1_minute": 1})).status_code == 404


async def test_limits_of_the_base_model_hold_for_its_adapters(stage: AdapterStage) -> None:
    created = await add(stage.stage.http)
    await stage.stage.limit(max_requests_per_1_minute=1)
    assert (await stage.stage.http.post(CHAT, json=_question(created["id"]))).status_code == 200
    assert (await stage.stage.http.post(CHAT, json=_question("near"))).status_code == 429
