"""What commands read of ``/v1/torpor/engines``, with the root key."""

from typing import Any

import httpx

from gateway.cli.common import Installation, answer
from gateway.cli.errors import CommandError


async def engine_objects(installation: Installation, key: str) -> list[dict[str, Any]]:
    """The engines of the running gateway. Raises `CommandError` and what httpx raises."""
    async with installation.http(key) as client:
        data: list[dict[str, Any]] = answer(await client.get("/v1/torpor/engines"))["data"]
        return data


def first_line(engine: dict[str, Any]) -> str:
    """How the engine last failed and why, without its last words; empty if it has not failed."""
    return str(engine.get("failure") or "").partition("\n")[0]


async def why_failed(installation: Installation, model_id: str) -> str:
    """As `first_line`; empty also without the root key, or if the gateway does not answer."""
    key = installation.credentials().get("TORPOR_ROOT_KEY")
    if key is None:
        return ""
    try:
        engines = await engine_objects(installation, key)
    except (httpx.HTTPError, CommandError):
        return ""
    return next((first_line(engine) for engine in engines if engine["id"] == model_id), "")
