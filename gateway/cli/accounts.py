"""``torpor org|project|key``: through the running gateway's API, or on the database when none runs."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx

from gateway.cli.common import Installation, answer, config_option, json_option, print_table, run
from gateway.cli.errors import CommandError
from gateway.storage.data_directory import DataDirectoryInUse
from gateway.storage.database import migrate, open_database
from tenants.store import Tenants

_ROOT = "TORPOR_ROOT_KEY"
_ADMIN = "TORPOR_ADMIN_KEY"
_ORGANIZATIONS = "/v1/torpor/organizations"
_PROJECTS = "/v1/organization/projects"


def _call(
    config_file: Path, credential: str, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    installation = Installation.load(config_file)

    async def work() -> dict[str, Any]:
        async with installation.api(installation.credential(credential)) as client:
            return answer(await client.request(method, path, json=body))

    return run(work)


def _list(config_file: Path, credential: str, path: str) -> list[dict[str, Any]]:
    installation = Installation.load(config_file)

    async def work() -> list[dict[str, Any]]:
        async with installation.api(installation.credential(credential)) as client:
            return await _all_pages(client, path)

    return run(work)


async def _all_pages(client: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    parameters: dict[str, str] = {"limit": "100"}
    while True:
        page = answer(await client.get(path, params=parameters))
        items += page["data"]
        if not page["has_more"]:
            return items
        parameters["after"] = page["last_id"]


def _show(items: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(items, indent=2))
    else:
        print_table(columns, [tuple(item.get(column) for column in columns) for item in items])


def _told(item: dict[str, Any], as_json: bool, *lines: str) -> None:
    click.echo(json.dumps(item, indent=2) if as_json else "\n".join(lines))


def _segment(text: str) -> str:
    return quote(text, safe="")


@click.group()
def org() -> None:
    """Organizations (with the root key)."""


@org.command("create")
@click.argument("slug")
@click.option("--name", help="A display name; the slug by default.")
@config_option
@json_option
def create_org(slug: str, name: str | None, config_file: Path, as_json: bool) -> None:
    """Create an organization and its first admin key, which is shown this once."""
    body = {"slug": slug, **({"name": name} if name else {})}
    organization = _call(config_file, _ROOT, "POST", _ORGANIZATIONS, body)
    _told(
        organization,
        as_json,
        f"{organization['id']} {organization['slug']}",
        f"export {_ADMIN}={organization['admin_api_key']['value']}",
    )


@org.command("list")
@config_option
@json_option
def list_orgs(config_file: Path, as_json: bool) -> None:
    """List the organizations."""
    _show(_list(config_file, _ROOT, _ORGANIZATIONS), ("id", "slug", "name", "created_at"), as_json)


@org.command("revoke")
@click.argument("organization")
@config_option
@json_option
def revoke_org(organization: str, config_file: Path, as_json: bool) -> None:
    """Revoke every key of an organization (its id or slug) and archive its projects. Usage stays."""
    path = f"{_ORGANIZATIONS}/{_segment(organization)}/archive"
    gone = _call(config_file, _ROOT, "POST", path, {})
    _told(gone, as_json, f"{gone['id']} {gone['slug']}: {gone['revoked_keys']} keys revoked")


@click.group()
def project() -> None:
    """Projects of the organization that TORPOR_ADMIN_KEY belongs to."""


@project.command("create")
@click.argument("name")
@config_option
@json_option
def create_project(name: str, config_file: Path, as_json: bool) -> None:
    """Create a project and print its id."""
    created = _call(config_file, _ADMIN, "POST", _PROJECTS, {"name": name})
    _told(created, as_json, created["id"])


@project.command("list")
@click.option("--archived", is_flag=True, help="Include archived ones.")
@config_option
@json_option
def list_projects(archived: bool, config_file: Path, as_json: bool) -> None:
    """List the projects."""
    path = f"{_PROJECTS}?include_archived=true" if archived else _PROJECTS
    _show(_list(config_file, _ADMIN, path), ("id", "name", "status", "created_at"), as_json)


@project.command("revoke")
@click.argument("project_id")
@config_option
@json_option
def revoke_project(project_id: str, config_file: Path, as_json: bool) -> None:
    """Archive a project: its keys stop working at once. Usage stays."""
    gone = _call(config_file, _ADMIN, "POST", f"{_PROJECTS}/{_segment(project_id)}/archive", {})
    _told(gone, as_json, f"{gone['id']} {gone['status']}")


@click.group()
def key() -> None:
    """Keys of a project (with the admin key), and the root key."""


_project_option = click.option("--project", "project_id", required=True, help="The project's id.")


@key.command("create")
@_project_option
@click.option("--name", default="key", show_default=True, help="A name for the key.")
@click.option("--expires-at", type=int, help="Unix seconds; never by default.")
@click.option(
    "--scope", "scopes", multiple=True, help="A scope, and as many more as needed; all where not given."
)
@config_option
@json_option
def create_key(
    project_id: str,
    name: str,
    expires_at: int | None,
    scopes: tuple[str, ...],
    config_file: Path,
    as_json: bool,
) -> None:
    """Create a key and print it alone, this once."""
    body: dict[str, Any] = {"name": name}
    if expires_at is not None:
        body["expires_at"] = expires_at
    if scopes:
        body["scopes"] = list(scopes)
    created = _call(config_file, _ADMIN, "POST", f"{_PROJECTS}/{_segment(project_id)}/service_accounts", body)
    _told(created["api_key"], as_json, created["api_key"]["value"])


@key.command("list")
@_project_option
@config_option
@json_option
def list_keys(project_id: str, config_file: Path, as_json: bool) -> None:
    """List a project's keys, by id and by what may be shown of them."""
    keys = _list(config_file, _ADMIN, f"{_PROJECTS}/{_segment(project_id)}/api_keys")
    _show(keys, ("id", "name", "redacted_value", "created_at", "expires_at"), as_json)


@key.command("revoke")
@click.argument("key_id")
@_project_option
@config_option
@json_option
def revoke_key(key_id: str, project_id: str, config_file: Path, as_json: bool) -> None:
    """Revoke a key: the next request with it is refused."""
    path = f"{_PROJECTS}/{_segment(project_id)}/api_keys/{_segment(key_id)}"
    gone = _call(config_file, _ADMIN, "DELETE", path)
    _told(gone, as_json, f"{gone['id']} revoked")


@key.command("rotate")
@click.argument("key_id")
@click.option("--overlap-seconds", type=int, default=0, show_default=True, help="How long the old key works.")
@config_option
@json_option
def rotate_key(key_id: str, overlap_seconds: int, config_file: Path, as_json: bool) -> None:
    """Replace a key of a project, or an admin key, and print the new one alone, this once."""
    path = f"/v1/torpor/keys/{_segment(key_id)}/rotate"
    created = _call(config_file, _ADMIN, "POST", path, {"overlap_seconds": overlap_seconds})
    _told(created, as_json, created["value"])


@key.command("rotate-root")
@config_option
@json_option
def rotate_root(config_file: Path, as_json: bool) -> None:
    """Replace a lost root key, on the host itself and while no gateway runs. Prints the new one."""
    installation = Installation.load(config_file)

    async def work() -> str:
        url = installation.config.storage.database_url()
        await migrate(url)
        database = open_database(url)
        try:
            store = Tenants.of(database, installation.data.pepper())
            return (await store.keys.rotate_root())[1]
        finally:
            await database.dispose()

    try:
        with installation.data.held():
            secret = run(work)
            installation.credentials_file.change(_ROOT, secret)
    except DataDirectoryInUse as error:
        raise CommandError(str(error)) from None
    _told({"object": "torpor.root_key", "value": secret}, as_json, secret)
