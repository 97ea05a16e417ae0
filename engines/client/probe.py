"""Whether an engine that failed a request is well: it answers its health check, and one token's work."""

import json

from engines.client.engine_client import EngineClient
from engines.errors import EngineBroken

_HEALTH_TIMEOUT_S = 10.0
_WORK_TIMEOUT_S = 30.0
# Before every request that waits in the engine: vLLM serves the smallest first.
_FIRST = -(2**62)


async def is_well(client: EngineClient, model: str, *, embeds: bool) -> bool:
    """Ask an engine of this host for its health and for the least work that it does for a request."""
    body: dict[str, object] = {"model": model, "priority": _FIRST}
    if embeds:
        path, body = "/v1/embeddings", {**body, "input": [1]}
    else:
        path, body = "/v1/completions", {**body, "prompt": [1], "max_tokens": 1}
    try:
        health = await client.request("GET", "/health", timeout_s=_HEALTH_TIMEOUT_S)
        if health.status != 200:
            return False
        work = await client.request("POST", path, json.dumps(body).encode(), timeout_s=_WORK_TIMEOUT_S)
    except EngineBroken:
        return False
    return work.status < 500
