"""``torpor adapter``: upload, list, show, delete and share adapters."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx

from gateway.adapters.validation import CONFIG, WEIGHTS
from gateway.cli.common import Installation, answer, config_option, json_option, print_table, run
from gateway.cli.errors import CommandError

_PROJECT = "TORPOR_API_KEY"
_ADMIN = "TORPOR_ADMIN_KEY"
_ADAPTERS = "/v1/torpor/adapters"
_UPLOAD_TIMEOUT_S = 900.0


@click.group()
def adapter() -> None:
    """LoRA adapters of the project that TORPOR_API_KEY belongs to."""


@adapter.command("add")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--base-model", required=True, help="The model that it was trained on.")
@click.option("--suffix", required=True, help="A word for its name.")
@click.option(
    "--visibility",
    type=click.Choice(["project", "user"]),
    default="project",
    show_default=True,
    help="Whether the project may use it, or only the user whom the token names.",
)
@config_option
@json_option
def add_adapter(
    path: Path, base_model: str, suffix: str, visibility: str, config_file: Path, as_json: bool
) -> None:
    """Upload an adapter, a folder as PEFT saves it or an archive of one, and print its name.

    It is registered when an engine of its base model was seen to serve it, which may take a cold start.
    """
    installation = Installation.load(config_file)
    fields = {"base_model": base_model, "suffix": suffix, "visibility": visibility}
    parts = _parts(path)

    async def work() -> dict[str, Any]:
        key = installation.credential(_PROJECT)
        with ExitStack() as opened:
            files = {name: (file.name, opened.enter_context(file.open("rb"))) for name, file in parts.items()}
            async with installation.api(key, engines=True, timeout_s=_UPLOAD_TIMEOUT_S) as client:
                return answer(await client.post(_ADAPTERS, data=fields, files=files))

    created = run(work)
    click.echo(json.dumps(created, indent=2) if as_json else created["id"])


def _parts(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"file": path}
    files = {"file": path / WEIGHTS, "config": path / CONFIG}
    for file in files.values():
        if not file.is_file():
            raise CommandError(f"there is no {file.name} in {path}; PEFT's save_pretrained writes one")
    return files


@adapter.command("list")
@config_option
@json_option
def list_adapters(config_file: Path, as_json: bool) -> None:
    """List the project's adapters."""
    installation = Installation.load(config_file)

    async def work() -> list[dict[str, Any]]:
        async with installation.api(installation.credential(_PROJECT)) as client:
            return await _all(client)

    items = run(work)
    if as_json:
        click.echo(json.dumps(items, indent=2))
    else:
        columns = ("id", "visibility", "rank", "bytes", "created_at")
        print_table(columns, [tuple(item[column] for column in columns) for item in items])


async def _all(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    parameters = {"limit": "100"}
    while True:
        page = answer(await client.get(_ADAPTERS, params=parameters))
        items += page["data"]
        if not page["has_more"]:
            return items
        parameters["after"] = page["last_id"]


@adapter.command("show")
@click.argument("name")
@config_option
@json_option
def show_adapter(name: str, config_file: Path, as_json: bool) -> None:
    """Show what is known of an adapter."""
    fields = _call(config_file, _PROJECT, "GET", f"{_ADAPTERS}/{quote(name, safe='')}")
    if as_json:
        click.echo(json.dumps(fields, indent=2))
    else:
        print_table(("", ""), [(key, str(value)) for key, value in fields.items() if value is not None])


@adapter.command("delete")
@click.argument("name")
@config_option
@json_option
def delete_adapter(name: str, config_file: Path, as_json: bool) -> None:
    """Delete an adapter. No request may use it from now on."""
    gone = _call(config_file, _PROJECT, "DELETE", f"{_ADAPTERS}/{quote(name, safe='')}")
    click.echo(json.dumps(gone, indent=2) if as_json else f"{gone['id']} deleted")


@adapter.command("share")
@click.argument("name")
@click.argument("project_ids", nargs=-1, required=True)
@config_option
@json_option
def share_adapter(name: str, project_ids: tuple[str, ...], config_file: Path, as_json: bool) -> None:
    """Let other projects of the organization use an adapter (with the admin key)."""
    path = f"/v1/fine_tuning/checkpoints/{quote(name, safe='')}/permissions"
    permissions = _call(config_file, _ADMIN, "POST", path, {"project_ids": list(project_ids)})
    if as_json:
        click.echo(json.dumps(permissions["data"], indent=2))
    else:
        print_table(
            ("id", "project_id"),
            [(permission["id"], permission["project_id"]) for permission in permissions["data"]],
        )


def _call(
    config_file: Path, credential: str, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    installation = Installation.load(config_file)

    async def work() -> dict[str, Any]:
        async with installation.api(installation.credential(credential)) as client:
            return answer(await client.request(method, path, json=body))

    return run(work)
