"""Adapters over HTTP, from the upload to the end, and who sees them."""

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import NotFoundError, PermissionDeniedError
from sqlalchemy import insert
from starlette.requests import Request

from tenants.tables import adapters
from tenants.types import ProjectPrincipal
from tests.gateway.adapters_fixture import ADAPTERS, AdapterStage, adapter_stage_at, add, fields, files

MIB = 1024**2


@pytest.fixture
async def stage(tmp_path: Path, standin: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AdapterStage]:
    async with adapter_stage_at(tmp_path, standin, monkeypatch) as opened:
        yield opened


async def test_an_upload_is_registered_listed_and_deleted(stage: AdapterStage) -> None:
    http, tenant = stage.stage.http, stage.stage.tenant
    created = await add(http, suffix="support-v1")
    digest = created["digest"]
    name = created["id"]
    assert name.startswith("ft:near:acme:support-v1:")
    assert created == {
        "id": name,
        "object": "torpor.adapter",
        "created_at": created["created_at"],
        "base_model": "near",
        "suffix": "support-v1",
        "visibility": "project",
        "project_id": tenant.project_id,
        "user_id": None,
        "rank": 1,
        "bytes": sum(file.stat().st_size for file in _folder(stage).iterdir()),
        "digest": digest,
        "status": "ready",
    }
    assert stage.contents() == {digest}
    assert (await http.get(f"{ADAPTERS}/{name}")).json() == created
    assert (await http.get(ADAPTERS)).json()["data"] == [created]
    await stage.reopen()
    assert (await http.get(f"{ADAPTERS}/{name}")).json() == created, "it is durable"
    gone = await http.delete(f"{ADAPTERS}/{name}")
    assert gone.json() == {"id": name, "object": "torpor.adapter.deleted", "deleted": True}
    assert (await http.get(ADAPTERS)).json()["data"] == []
    assert (await http.get(f"{ADAPTERS}/{name}")).status_code == 404
    assert (await http.delete(f"{ADAPTERS}/{name}")).status_code == 404
    assert stage.contents() == set()
    assert stage.examiner.forgotten == [digest]


def _folder(stage: AdapterStage) -> Path:
    """The folder with the content of the first tenant's only adapter."""
    (adapter,) = stage.adapters.registry.index._places[stage.stage.tenant.project_id, None].values()
    return stage.adapters.for_engine(adapter).folder


async def test_archives_are_taken_as_well(stage: AdapterStage) -> None:
    plain = await add(stage.stage.http)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, data in files().values():
            info = tarfile.TarInfo(f"my-adapter/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    answer = await stage.stage.http.post(
        ADAPTERS, data=fields(), files={"file": ("adapter.tar.gz", raw.getvalue())}
    )
    assert answer.json()["digest"] == plain["digest"]


async def test_the_official_client_sees_and_deletes_its_models(stage: AdapterStage) -> None:
    created = await add(stage.stage.http)
    async with stage.stage.openai() as client:
        listed = {model.id: model async for model in client.models.list()}
        assert set(listed) == {"near", "away", created["id"]}
        model = await client.models.retrieve(created["id"])
        assert (model.id, model.created, model.owned_by) == (created["id"], created["created_at"], "acme")
        assert model.model_extra is not None
        assert model.model_extra["parent"] == "near"
        gone = await client.models.delete(created["id"])
        assert (gone.id, gone.deleted, gone.object) == (created["id"], True, "model")
        with pytest.raises(NotFoundError):
            await client.models.retrieve(created["id"])
        with pytest.raises(PermissionDeniedError, match="is a base model"):
            await client.models.delete("near")


async def test_content_is_kept_once_and_leaves_with_its_last_adapter(stage: AdapterStage) -> None:
    first = await add(stage.stage.http)
    async with stage.stage.client(stage.stage.other.key) as other:
        second = await add(other)
        assert second["digest"] == first["digest"]
        assert len(stage.contents()) == 1
        assert len(stage.examiner.examined) == 2, "another's content saves no work, which would tell of it"
        await stage.stage.http.delete(f"{ADAPTERS}/{first['id']}")
        assert stage.contents() == {first["digest"]}
        assert stage.examiner.forgotten == []
        await other.delete(f"{ADAPTERS}/{second['id']}")
    assert stage.contents() == set()
    assert stage.examiner.forgotten == [first["digest"]]


async def test_content_stays_while_it_is_being_registered_again(stage: AdapterStage) -> None:
    first = await add(stage.stage.http)
    stage.examiner.go_on.clear()
    again = asyncio.create_task(add(stage.stage.http))
    while len(stage.examiner.examined) < 2:
        await asyncio.sleep(0.005)
    await stage.stage.http.delete(f"{ADAPTERS}/{first['id']}")
    stage.examiner.go_on.set()
    second = await again
    assert stage.contents() == {second["digest"]}
    assert _folder(stage).is_dir()


async def test_a_registration_that_is_cancelled_is_whole_or_not_there(stage: AdapterStage) -> None:
    """As at a shutdown: what has begun to be registered is, with its content."""
    sent = httpx.Request("POST", "http://gateway", data=fields(), files=files())
    body = sent.read()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "headers": [(b"content-type", sent.headers["content-type"].encode())]}
    services, tenant = stage.stage.services, stage.stage.tenant
    who = await services.tenants.credentials.authenticate(tenant.key)
    assert isinstance(who, ProjectPrincipal)
    stage.examiner.go_on.clear()
    work = asyncio.create_task(stage.adapters.register(Request(scope, receive), who, services.catalog))
    while not stage.examiner.examined:
        await asyncio.sleep(0.005)
    work.cancel()
    await asyncio.sleep(0.02)
    assert not work.done()
    stage.examiner.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    (listed,) = (await stage.stage.http.get(ADAPTERS)).json()["data"]
    assert stage.contents() == {listed["digest"]}


async def test_what_a_crash_leaves_is_removed_at_the_next_start(stage: AdapterStage) -> None:
    created = await add(stage.stage.http)
    store = stage.folder / "adapters"
    for left in ("incoming/half", "leaving/gone", "content/ab/abcdef"):
        (store / left).mkdir(parents=True)
        (store / left / "adapter_model.safetensors").write_bytes(b"x")
    await stage.reopen()
    assert stage.contents() == {created["digest"]}
    assert list((store / "incoming").iterdir()) == list((store / "leaving").iterdir()) == []


async def test_scopes_open_what_they_say(stage: AdapterStage) -> None:
    created = await add(stage.stage.http)
    item = f"{ADAPTERS}/{created['id']}"
    async with stage.token("eve", scopes=["api.fine_tuning.read"]) as reader:
        assert (await reader.get(item)).status_code == 200
        assert (await reader.get(ADAPTERS)).status_code == 200
        assert (await reader.delete(item)).status_code == 403
        assert (await reader.post(ADAPTERS, data=fields(), files=files())).status_code == 403
    async with stage.token("eve", scopes=["model.request"]) as asker:
        assert (await asker.get(item)).status_code == 403
        assert (await asker.get(f"/v1/models/{created['id']}")).status_code == 200
        assert (await asker.delete(f"/v1/models/{created['id']}")).status_code == 403


async def test_an_admin_key_sees_all_of_its_organization(stage: AdapterStage) -> None:
    created = await add(stage.stage.http)
    async with stage.token("ann") as ann:
        hers = await add(ann, 2, visibility="user")
    async with stage.stage.client(stage.stage.other.key) as other:
        foreign = await add(other, 3)
    admin = stage.stage.admin
    listed = (await admin.get(ADAPTERS)).json()["data"]
    assert [item["id"] for item in listed] == [created["id"], hers["id"]]
    assert (await admin.get(f"{ADAPTERS}/{hers['id']}")).json() == hers
    assert (await admin.get(f"{ADAPTERS}/{foreign['id']}")).status_code == 404
    assert (await admin.delete(f"{ADAPTERS}/{foreign['id']}")).status_code == 404
    assert (await admin.delete(f"{ADAPTERS}/{hers['id']}")).status_code == 200
    assert (await admin.post(ADAPTERS, data=fields(), files=files())).status_code == 403


async def test_the_audit_log_tells_who_did_it(stage: AdapterStage) -> None:
    tenant, http = stage.stage.tenant, stage.stage.http
    new = await add(http)
    await http.delete(f"{ADAPTERS}/{new['id']}")
    logs = (await stage.stage.admin.get("/v1/organization/audit_logs")).json()["data"]
    deleted, created = logs[0], logs[1]
    assert [deleted["type"], created["type"]] == ["torpor.adapter.deleted", "torpor.adapter.created"]
    assert created["torpor.adapter.created"]["id"] == new["id"]
    assert created["torpor.adapter.created"]["data"]["digest"] == new["digest"]
    for entry in (created, deleted):
        assert entry["actor"]["api_key"] == {"id": tenant.key_id, "kind": "project"}
        assert entry["project"]["id"] == tenant.project_id


async def test_lists_have_pages(stage: AdapterStage) -> None:
    names = [(await add(stage.stage.http, seed))["id"] for seed in range(3)]
    first = (await stage.stage.http.get(f"{ADAPTERS}?limit=2")).json()
    assert [item["id"] for item in first["data"]] == names[:2]
    assert (first["has_more"], first["last_id"]) == (True, names[1])
    second = (await stage.stage.http.get(f"{ADAPTERS}?limit=2&after={names[1]}")).json()
    assert ([item["id"] for item in second["data"]], second["has_more"]) == (names[2:], False)
    async with stage.stage.client(stage.stage.other.key) as other:
        assert (await other.get(f"{ADAPTERS}?after={names[1]}")).status_code == 400


async def test_a_page_of_ten_thousand_is_quick(stage: AdapterStage) -> None:
    """Both lists: the registry's own, by pages, and OpenAI's, which has none."""
    await stage_many(stage, 10_000)
    took = []
    after = ""
    for _ in range(5):
        answer = await stage.stage.http.get(f"{ADAPTERS}?limit=100{after}")
        assert len(answer.json()["data"]) == 100
        after = f"&after={answer.json()['last_id']}"
        took.append(float(answer.headers["openai-processing-ms"]))
    assert sorted(took)[2] < 50, took
    models = await stage.stage.http.get("/v1/models")
    assert len(models.json()["data"]) == 10_002


async def stage_many(stage: AdapterStage, count: int) -> None:
    """Adapters that only the registry knows of."""
    tenant = stage.stage.tenant
    rows = [
        {
            "id": f"a{number:011d}",
            "name": f"ft:near:acme:many:a{number:011d}",
            "organization_id": tenant.organization_id,
            "project_id": tenant.project_id,
            "user_id": None,
            "base_model": "near",
            "suffix": "many",
            "digest": f"{number:064x}",
            "rank": 8,
            "size_bytes": 1000,
            "canary": b"x",
            "created_by": tenant.key_id,
            "created_ms": 1_700_000_000_000 + number,
        }
        for number in range(count)
    ]
    async with stage.stage.services.database.begin() as connection:
        await connection.execute(insert(adapters), rows)
    await stage.adapters.registry.load()
