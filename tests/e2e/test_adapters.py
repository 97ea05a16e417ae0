"""Adapters on a real engine: uploaded, answered with, counted, deleted, each by whom it belongs to alone."""

import io
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import NotFoundError, OpenAI

from loadtest.adapter_files import make_adapter
from tests.process import CHAT_MODEL, EMBED_MODEL, MODELS, QUESTION, Gateway

ADAPTERS = "/v1/torpor/adapters"


@dataclass
class Tenant:
    """A tenant with an adapter of its own, and what it answers."""

    client: OpenAI
    http: httpx.Client
    name: str

    def answer(self, model: str | None = None) -> str:
        request = self.client.chat.completions.create(
            model=model or self.name, messages=QUESTION, max_tokens=12, temperature=0
        )
        assert request.model == (model or self.name)
        return request.choices[0].message.content or ""


def _archive(folder: Path) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    return raw.getvalue()


@pytest.fixture(scope="module")
def tenants(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tenant, Tenant]]:
    """Two organizations, each with an adapter of the suffix ``support``: one by command, one by HTTP."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        make_adapter(folder / str(seed), MODELS / CHAT_MODEL, seed=seed, strength=1.0)
    added = gateway.torpor(
        "adapter", "add", str(folder / "1"), "--base-model", CHAT_MODEL, "--suffix", "support"
    )
    key = _second_tenant(gateway)
    with gateway.http() as http, gateway.http(key) as other:
        answer = other.post(
            ADAPTERS,
            data={"base_model": CHAT_MODEL, "suffix": "support"},
            files={"file": ("support.tar.gz", _archive(folder / "2"))},
        )
        assert answer.status_code == 200, answer.text
        yield (
            Tenant(gateway.client(), http, added.stdout.strip()),
            Tenant(gateway.client(key), other, answer.json()["id"]),
        )
        # The gateway is other modules' as well, and they know its models.
        http.delete(f"{ADAPTERS}/{added.stdout.strip()}")


def _second_tenant(gateway: Gateway) -> str:
    with gateway.http(gateway.root_key) as root:
        created = root.post("/v1/torpor/organizations", json={"slug": "second"}).json()
    with gateway.http(created["admin_api_key"]["value"]) as admin:
        project = admin.post("/v1/organization/projects", json={"name": "web"}).json()["id"]
        path = f"/v1/organization/projects/{project}/service_accounts"
        key: str = admin.post(path, json={"name": "web"}).json()["api_key"]["value"]
    return key


def test_two_tenants_with_the_same_suffix_each_get_their_own(tenants: tuple[Tenant, Tenant]) -> None:
    mine, theirs = tenants
    assert mine.name.split(":")[3] == theirs.name.split(":")[3] == "support"
    answers = [mine.answer(), theirs.answer(), mine.answer(CHAT_MODEL)]
    assert len(set(answers)) == 3, answers
    # Each is the adapter's own, whatever else the engine has been asked for in between.
    assert [mine.answer(), theirs.answer(), theirs.answer(CHAT_MODEL)] == answers


def test_a_stream_calls_the_adapter_by_its_name(tenants: tuple[Tenant, Tenant]) -> None:
    mine, _ = tenants
    stream = mine.client.chat.completions.create(
        model=mine.name, messages=QUESTION, max_tokens=12, temperature=0, stream=True
    )
    chunks = list(stream)
    assert {chunk.model for chunk in chunks} == {mine.name}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == mine.answer()


def test_text_completions_and_tokens_know_adapters(tenants: tuple[Tenant, Tenant]) -> None:
    def text(tenant: Tenant) -> str:
        request = tenant.client.completions.create(
            model=tenant.name, prompt="The capital of France", max_tokens=8, temperature=0
        )
        return request.choices[0].text

    def tokens(tenant: Tenant, model: str) -> list[int]:
        reply: list[int] = tenant.http.post("/tokenize", json={"model": model, "prompt": "hello"}).json()[
            "tokens"
        ]
        return reply

    mine, theirs = tenants
    assert text(mine) != text(theirs)
    assert tokens(mine, mine.name) == tokens(theirs, CHAT_MODEL)


def test_the_adapter_of_the_other_does_not_exist(tenants: tuple[Tenant, Tenant]) -> None:
    for item, other in (tenants, tenants[::-1]):
        assert other.name not in [model.id for model in item.client.models.list()]
        assert item.name in [model.id for model in item.client.models.list()]
        with pytest.raises(NotFoundError):
            item.answer(other.name)


def test_usage_names_the_adapter(gateway: Gateway, tenants: tuple[Tenant, Tenant]) -> None:
    mine, _ = tenants
    mine.answer()
    start = int(time.time()) - 3600
    query = f"start_time={start}&group_by[]=model&models[]={mine.name}"
    buckets: list[dict[str, Any]] = mine.http.get(f"/v1/torpor/usage?{query}").json()["data"]
    results = [result for bucket in buckets for result in bucket["results"]]
    assert {result["model"] for result in results} == {mine.name}
    assert sum(result["output_tokens"] for result in results) > 0


def test_a_model_without_adapters_says_so(gateway: Gateway, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", MODELS / CHAT_MODEL, seed=3)
    done = gateway.torpor(
        "adapter", "add", str(folder), "--base-model", EMBED_MODEL, "--suffix", "x", check=False
    )
    assert done.returncode == 1
    assert f"The model `{EMBED_MODEL}` takes no adapters" in done.stderr


def test_the_commands_list_show_share_and_delete(
    gateway: Gateway, tenants: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a", MODELS / CHAT_MODEL, seed=4)
    with gateway.http() as http, gateway.http(gateway.admin_key) as admin:
        data = {"base_model": CHAT_MODEL, "suffix": "gone"}
        name = http.post(ADAPTERS, data=data, files={"file": ("a.tar.gz", _archive(folder))}).json()["id"]
        project = admin.post("/v1/organization/projects", json={"name": "sharer"}).json()["id"]
    client = gateway.client()
    assert client.chat.completions.create(model=name, messages=QUESTION, max_tokens=1).model == name
    assert name in gateway.torpor("adapter", "list").stdout
    assert "rank" in gateway.torpor("adapter", "show", name).stdout
    assert project in gateway.torpor("adapter", "share", name, project).stdout
    assert gateway.torpor("adapter", "delete", name).stdout == f"{name} deleted\n"
    assert name not in [model.id for model in client.models.list()]
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model=name, messages=QUESTION, max_tokens=1)
    assert tenants[0].answer(), "another adapter is there as before"
