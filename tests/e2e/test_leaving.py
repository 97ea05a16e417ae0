"""A client that leaves while the engine of its request is being started."""

import json
import sqlite3
import time

import pytest

from tests.gateway.raw_http import Call, Connection
from tests.process import CHAT_MODEL, Gateway


def _outcome(gateway: Gateway, request_id: str) -> str | None:
    path = gateway.folder / ".torpor/torpor.db"
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        query = "SELECT outcome FROM ledger_entries WHERE request_id = ?"
        row = database.execute(query, (request_id,)).fetchone()
    finally:
        database.close()
    return None if row is None else row[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [100, 400_000])
def test_a_client_that_leaves_while_its_engine_wakes(gateway: Gateway, stream: bool, size: int) -> None:
    with gateway.http(gateway.root_key) as root:
        slept = root.post(f"/v1/torpor/engines/{CHAT_MODEL}/sleep", json={"tier": "cold"})
        assert slept.status_code == 200
    request_id = f"waking-{stream}-{size}"
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": CHAT_MODEL, "messages": messages, "stream": stream, "unknown": "u" * size}
    call = Call(gateway, "/v1/chat/completions", json.dumps(body).encode())
    connection = Connection(gateway.port)
    connection.send(call.request(f"X-Request-Id: {request_id}"))
    time.sleep(1)  # a stream has been opened by now
    connection.close()
    deadline = time.monotonic() + 1.5  # one second, and the time until the entry is in the database
    while _outcome(gateway, request_id) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _outcome(gateway, request_id) == "aborted"
