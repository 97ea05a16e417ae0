"""``torpor setup|hello``: a configuration, a database, a demo tenant with its keys, and how to use them."""

import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path

import click

from coldstart.criu.download import fetch
from coldstart.criu.program import CriuMissing
from gateway.cli.common import Installation, config_option, run
from gateway.cli.errors import CommandError
from gateway.storage.credentials import BASE_URL
from gateway.storage.database import migrate, open_database
from gateway.storage.privacy import private_umask
from tenants.errors import NotFound
from tenants.store import Tenants
from tenants.types import KeyKind, Organization, Project

_DEMO = "demo"
_QUESTION = "What is the capital of France?"


@click.command()
@config_option
def setup(config_file: Path) -> None:
    """Write what is missing to start.

    That is the configuration, the database and the demo tenant's keys.
    """
    if not config_file.exists():
        with as_file(files("gateway") / "torpor.example.toml") as example:
            shutil.copyfile(example, config_file)
        click.echo(f"wrote {config_file}")
    installation = Installation.load(config_file)
    installation.data.create()
    with private_umask():
        _fetch_criu(installation)
    base_url = f"{installation.origin}/v1"
    if not installation.credentials():
        with installation.data.held():
            keys = run(lambda: _make_demo(installation))
            installation.credentials_file.write({BASE_URL: base_url, **keys})
        click.echo(f"made the organization {_DEMO!r}, its project and its keys")
        click.echo(f"wrote {installation.data.credentials_file}")
    elif installation.credentials_file.follow(base_url):
        click.echo(f"wrote {installation.data.credentials_file}")


def _fetch_criu(installation: Installation) -> None:
    """Without it engines cannot sleep in snapshots; everything else is as it was."""
    engines = installation.config.engines
    if not engines.snapshots:
        return
    try:
        criu = fetch(engines.criu or installation.data.criu_folder)
    except CriuMissing as error:
        click.echo(f"CRIU: {error}; engines cannot sleep in snapshots")
    else:
        click.echo(f"CRIU: {criu.version}")


async def _make_demo(installation: Installation) -> dict[str, str]:
    url = installation.config.storage.database_url()
    await migrate(url)
    database = open_database(url)
    try:
        store = Tenants.of(database, installation.data.pepper())
        await _refuse_where_used(store, installation)
        organization = await _organization(store)
        project = await _project(store, organization)
        _, root = await store.keys.rotate_root()
        _, admin = await store.keys.create_admin(organization.id, "demo admin key")
        _, inference = await store.keys.create_for_project(organization.id, project.id, "demo key")
    finally:
        await database.dispose()
    return {"TORPOR_API_KEY": inference, "TORPOR_ADMIN_KEY": admin, "TORPOR_ROOT_KEY": root}


async def _refuse_where_used(store: Tenants, installation: Installation) -> None:
    """Keys that were made once and taken away from here stay good: they are not replaced."""
    for organization in (await store.organizations.listed(limit=2, include_archived=True)).items:
        keys = await store.keys.listed(organization.id, kind=KeyKind.ADMIN, limit=1)
        if organization.slug != _DEMO or keys.items or organization.archived_at is not None:
            raise CommandError(
                f"{installation.data.credentials_file} is missing, but this installation has organizations "
                "and keys: put the file back, or make a new root key with `torpor key rotate-root`"
            )


async def _organization(store: Tenants) -> Organization:
    """The demo organization; it is there already where an earlier run was cut short."""
    try:
        return await store.organizations.get(_DEMO)
    except NotFound:
        return await store.organizations.create(_DEMO)


async def _project(store: Tenants, organization: Organization) -> Project:
    page = await store.projects.listed(organization.id, after=None, limit=1)
    return page.items[0] if page.items else await store.projects.create(organization.id, _DEMO)


@click.command()
@config_option
def hello(config_file: Path) -> None:
    """Print how to talk to the gateway.

    With a curl line and a Python snippet that work as they stand.
    """
    installation = Installation.load(config_file)
    installation.require_running()
    click.echo(greeting(installation))


def greeting(installation: Installation) -> str:
    """How to talk to the gateway, as lines that work as they stand. Raises `CommandError` without a model."""
    models = installation.config.models
    if not models:
        raise CommandError("the configuration names no model")
    credentials = _shown(installation.data.credentials_file)
    python = _shown(Path(sys.executable))
    messages = f'[{{"role": "user", "content": "{_QUESTION}"}}]'
    body = f'{{"model": "{models[0].id}", "temperature": 0, "messages": {messages}}}'
    return f"""
Torpor answers at {installation.origin}/v1. Its keys are in {credentials}.

With curl:

. {credentials} && curl -sS "$TORPOR_BASE_URL/chat/completions" -H "Authorization: Bearer $TORPOR_API_KEY" \
-H "Content-Type: application/json" -d '{body}'

With Python:

. {credentials} && {python} - <<'END'
import os, openai
client = openai.OpenAI(base_url=os.environ["TORPOR_BASE_URL"], api_key=os.environ["TORPOR_API_KEY"])
question = [{{"role": "user", "content": "{_QUESTION}"}}]
answer = client.chat.completions.create(model="{models[0].id}", messages=question, temperature=0)
print(answer.choices[0].message.content)
END
"""


def _shown(path: Path) -> str:
    """The path as it is typed from here."""
    try:
        relative = path.absolute().relative_to(Path.cwd())
    except ValueError:
        return str(path)
    return f"./{relative}"
