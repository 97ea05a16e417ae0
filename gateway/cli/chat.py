"""``torpor chat``: a streamed answer at the terminal."""

from pathlib import Path
from typing import Any

import click
import httpx
import msgspec

from gateway.cli.common import Installation, answer, config_option, run
from gateway.cli.errors import CommandError

_READ_TIMEOUT_S = 300.0


@click.command()
@click.argument("model")
@click.argument("prompt")
@click.option("--temperature", type=float, help="The model's own default if not given.")
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Length of the answer.")
@config_option
def chat(model: str, prompt: str, temperature: float | None, max_tokens: int, config_file: Path) -> None:
    """Ask MODEL and stream its answer."""
    installation = Installation.load(config_file)
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": True,
    }
    if temperature is not None:
        body["temperature"] = temperature
    run(lambda: _chat(installation, body))


async def _chat(installation: Installation, body: dict[str, Any]) -> None:
    key = installation.credential("TORPOR_API_KEY")
    async with (
        installation.http(key, _READ_TIMEOUT_S) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        if response.is_error:
            await response.aread()
            answer(response)
        await _print(response)
    click.echo()


async def _print(response: httpx.Response) -> None:
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            return
        chunk = msgspec.json.decode(line.removeprefix("data: "))
        if "error" in chunk:
            raise CommandError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            click.echo(choice["delta"].get("content") or "", nl=False)
    raise CommandError("the stream ended before the answer did")
