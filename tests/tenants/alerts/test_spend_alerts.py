"""How many spend alerts there may be: of a project, of an organization, and of all its projects together."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.alerts.spend_alerts import MAX_ALERTS, SpendAlertStore
from tenants.errors import InvalidValue
from tenants.storage import Storage
from tenants.store import Tenants
from tenants.types import Project

HOOK = {"type": "webhook", "url": "https://example.com/"}


@pytest.fixture
def alerts(database: AsyncEngine) -> SpendAlertStore:
    return SpendAlertStore(Storage(database))


@pytest.mark.parametrize("of_project", [True, False])
async def test_a_crowd_does_not_pass_the_limit(
    alerts: SpendAlertStore, project: Project, of_project: bool
) -> None:
    """The last places are wanted by many at once."""
    organization_id, project_id = project.organization_id, project.id if of_project else None
    for _ in range(MAX_ALERTS - 3):
        await alerts.create(organization_id, project_id, 5, HOOK)
    crowd = [alerts.create(organization_id, project_id, 5, HOOK) for _ in range(12)]
    done = await asyncio.gather(*crowd, return_exceptions=True)
    refused = [each for each in done if isinstance(each, BaseException)]
    assert len(refused) == 9
    assert {type(each) for each in refused} == {InvalidValue}
    owner = "the project" if of_project else "the organization itself"
    assert f"There are {MAX_ALERTS} alerts of {owner} already, the maximum." in str(refused[0])
    assert len(await alerts.every()) == MAX_ALERTS


async def test_an_organization_with_many_projects_is_bounded_in_all(store: Tenants, project: Project) -> None:
    alerts = SpendAlertStore(store.storage, max_in_all=12)
    organization_id = project.organization_id
    projects = [await store.projects.create(organization_id, f"p{number}") for number in range(6)]
    await alerts.create(organization_id, None, 5, HOOK)
    crowd = [alerts.create(organization_id, each.id, 5, HOOK) for each in projects for _ in range(4)]
    done = await asyncio.gather(*crowd, return_exceptions=True)
    assert sum(isinstance(each, InvalidValue) for each in done) == 24 - 11
    created = await alerts.every()
    assert len(created) == 12
    # Another organization has its own, and a place that is given up is free.
    other = await store.organizations.create("other")
    await alerts.create(other.id, None, 5, HOOK)
    await alerts.delete(organization_id, created[0].project_id, created[0].id)
    await alerts.create(organization_id, projects[0].id, 5, HOOK)
    with pytest.raises(InvalidValue, match="12 alerts of the organization with its projects"):
        await alerts.create(organization_id, None, 5, HOOK)
