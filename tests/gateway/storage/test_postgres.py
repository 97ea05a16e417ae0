"""The same gateway on PostgreSQL, on a server of the tests' own."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.database import is_migrated, migrate, open_database
from metering.ledger.entries import Write
from metering.ledger.sql_writer import SqlWriter
from metering.reports.spending import spent_since
from metering.types import Usage
from tenants.alerts.outbox import Outbox
from tenants.alerts.spend_alerts import SpendAlertStore
from tenants.errors import StorageUnavailable
from tenants.storage import Storage
from tenants.store import Tenants
from tests.gateway.api import (
    test_administration_at_once,
    test_administration_client,
    test_audit_logs,
    test_key_rotation,
)
from tests.gateway.api import test_users as test_users_client
from tests.gateway.app_fixture import Stage, stage_at
from tests.gateway.storage.test_database import _differences
from tests.metering.conftest import attempt
from tests.postgres import PostgresServer, postgres_server
from tests.process import QUESTION, running_gateway
from tests.tenants.alerts import test_spend_alerts

_CHAT = {"model": "far", "messages": QUESTION}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[AsyncEngine]:
    opened = open_database(await postgres.create())
    yield opened
    await opened.dispose()


@pytest.fixture
async def stage(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage_at(tmp_path, "http://127.0.0.1:9", database=await postgres.create()) as opened:
        yield opened


test_one_of_many_wins = test_administration_at_once.test_one_of_many_wins_and_the_others_are_told
test_archiving_meets_creating = test_administration_at_once.test_archiving_meets_creating
test_projects = test_administration_client.test_projects
test_service_accounts = test_administration_client.test_service_accounts_and_their_keys
test_scopes_and_expiry = test_administration_client.test_scopes_and_expiry_of_a_key_change_at_the_next_request
test_limits_of_the_organization = (
    test_administration_client.test_limits_of_the_organization_work_with_the_client
)
test_model_permissions = test_administration_client.test_a_model_that_is_not_permitted_does_not_exist
test_organizations = test_administration_client.test_organizations_are_the_root_keys
test_audit_logs_paged = test_audit_logs.test_audit_logs_are_filtered_and_paged_in_both_directions
test_rotation = test_key_rotation.test_a_rotated_key_overlaps_with_the_new_one
test_users = test_users_client.test_users_of_an_organization


@pytest.mark.parametrize("of_project", [True, False])
async def test_alerts_are_bounded(postgres: PostgresServer, of_project: bool) -> None:
    """Also if many are made at once; and what there is of them can be read."""
    url = await postgres.create()
    await migrate(url)
    database = open_database(url)
    try:
        store = Tenants.of(database, b"p" * 32)
        organization = await store.organizations.create("acme")
        project = await store.projects.create(organization.id, "search")
        alerts = SpendAlertStore(Storage(database))
        await test_spend_alerts.test_a_crowd_does_not_pass_the_limit(alerts, project, of_project)
        outbox, now_ms = Outbox(Storage(database)), time.time_ns() // 1_000_000
        assert await outbox.fire(project.id, 0, 5, now_ms) == (100 if of_project else 0)
        assert len(await outbox.take(now_ms, now_ms + 1000, 8)) == (8 if of_project else 0)
        assert await spent_since(database, 0, until=int(time.time())) == {}
    finally:
        await database.dispose()


async def test_schema(postgres: PostgresServer) -> None:
    url = await postgres.create("template0")
    assert await is_migrated(url) is None
    # As gateways that start at the same time.
    await asyncio.gather(*[migrate(url) for _ in range(3)])
    assert await is_migrated(url) is True
    database = open_database(url)
    try:
        async with database.connect() as connection:
            assert await connection.run_sync(_differences) == []
    finally:
        await database.dispose()


@pytest.mark.parametrize(
    "state",
    ["25006", "40001", "40P01", "53100", "53300", "55P03", "57P01", "57P03", "58030", "XX000"],
)
async def test_the_servers_failures_are_no_fault_of_the_request(database: AsyncEngine, state: str) -> None:
    failing = text(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$")
    storage = Storage(database)
    with pytest.raises(StorageUnavailable):
        async with storage.write() as connection:
            await connection.execute(failing)
    await storage.ping()


async def test_no_such_database_is_no_storage(postgres: PostgresServer) -> None:
    opened = open_database(postgres.url("absent"))
    with pytest.raises(StorageUnavailable):
        await Storage(opened).ping()
    await opened.dispose()


async def test_an_entry_that_cannot_be_stored_takes_no_other_with_it(database: AsyncEngine) -> None:
    rows = [Write(attempt(id=f"att_{number}"), Usage(1, 0, 1), None).row("me") for number in range(4)]
    rows.append(Write(attempt(id="att_nul", user_id="a\0b"), Usage(1, 0, 1), None).row("me"))
    rows.append(Write(attempt(id="att_large"), Usage(2**70, 0, 1), None).row("me"))
    writer = SqlWriter(database)
    await writer.store(rows)
    assert sorted(row[0] for row in await writer.open_rows("me")) == [f"att_{number}" for number in range(4)]


def test_a_gateway_whose_server_ends_and_comes_back(
    postgres: PostgresServer, standin: str, tmp_path: Path
) -> None:
    url = asyncio.run(postgres.create("template0"))
    models = f'[storage]\ndatabase = "{url}"\n\n[[models]]\nid = "far"\nurl = "{standin}/v1"\n'
    with running_gateway(tmp_path, models) as gateway, gateway.http() as http:
        admin = {"authorization": f"Bearer {gateway.admin_key}"}

        def metered() -> int:
            query: dict[str, str | int] = {"start_time": int(time.time()) - 3600, "bucket_width": "1h"}
            usage = http.get("/v1/organization/usage/completions", params=query, headers=admin).json()
            return sum(item["num_model_requests"] for bucket in usage["data"] for item in bucket["results"])

        def code(answer: httpx.Response) -> tuple[int, str | None]:
            return answer.status_code, answer.json().get("error", {}).get("code")

        assert http.post("/v1/chat/completions", json=_CHAT).status_code == 200
        assert metered() == 1
        postgres.stop()
        try:
            assert http.get("/health/ready").json() == {"status": "storage_unavailable"}
            assert http.post("/v1/chat/completions", json=_CHAT).status_code == 200
            unseen = {"authorization": "Bearer sk-" + "a" * 48}
            assert code(http.get("/v1/models", headers=unseen)) == (503, "storage_unavailable")
            listed = http.get("/v1/organization/projects", headers=admin)
            assert code(listed) == (503, "storage_unavailable")
        finally:
            postgres.start()
        deadline = time.monotonic() + 20
        while http.get("/health/ready").status_code != 200 or metered() != 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert http.get("/v1/models", headers=unseen).status_code == 401
