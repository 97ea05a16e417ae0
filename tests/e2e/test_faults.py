"""What happens when something dies: the engine, the gateway, the client's patience."""

import concurrent.futures
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.process import CHAT_MODEL, MODELS, Gateway, running_gateway

MODEL = f"""
[[models]]
id = "{CHAT_MODEL}"
source = "{MODELS / CHAT_MODEL}"
preload = true
"""
LONG = {
    "model": CHAT_MODEL,
    "messages": [{"role": "user", "content": "Write a very long story."}],
    "min_tokens": 2000,
    "max_tokens": 2000,
}


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that these tests may kill and start again, in the order in which they stand."""
    folder = tmp_path_factory.mktemp("mortal")
    with running_gateway(folder, MODEL, sections="drain_timeout_s = 10.0\n") as started:
        yield started


def _ask(gateway: Gateway) -> str:
    answer = gateway.client().chat.completions.create(
        model=CHAT_MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
    )
    return answer.choices[0].message.content or ""


def _leftovers(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    alive: list[psutil.Process] = psutil.wait_procs(processes, timeout_s)[1]
    return alive


def test_the_engine_is_killed_mid_stream(mortal: Gateway) -> None:
    assert "Paris" in _ask(mortal)
    events: list[str] = []
    with mortal.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
            for line in response.iter_lines():
                events.append(line)
                if len(events) == 40:
                    _kill_engine(mortal)
        plain = [event for event in events if event]
        assert '"code":"engine_failed"' in plain[-1]
        assert "data: [DONE]" not in events
    assert "Paris" in _ask(mortal), "the next request starts it again"


def _kill_engine(gateway: Gateway) -> None:
    """SIGKILL to the process that computes: the largest below the gateway."""
    largest = max(gateway.engines(), key=lambda process: process.memory_info().rss)
    largest.kill()


def test_the_engine_is_killed_under_a_plain_call(mortal: Gateway) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        client = mortal.client()
        request = pool.submit(lambda: client.post("/chat/completions", body=LONG, cast_to=httpx.Response))
        time.sleep(2)
        _kill_engine(mortal)
        with pytest.raises(openai.APIStatusError) as caught:
            request.result(30)
    assert caught.value.status_code == 502
    assert caught.value.code == "engine_failed"
    with pytest.raises(openai.APIStatusError) as again:
        _ask(mortal)
    assert again.value.status_code == 503, "a second crash within a minute: the start backs off"
    retry_after_s = int(again.value.response.headers["retry-after"])
    assert 1 <= retry_after_s <= 5
    time.sleep(retry_after_s)
    assert "Paris" in _ask(mortal)


def test_the_gateway_is_killed(mortal: Gateway) -> None:
    assert "Paris" in _ask(mortal)
    below = mortal.engines()
    assert len(below) >= 2
    with (
        mortal.http() as http,
        http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response,
    ):
        next(response.iter_bytes())
        mortal.end(signal.SIGKILL)
    assert _leftovers(below, 5) == []
    mortal.start()
    totals = _outcomes(mortal)
    assert totals >= 1, "the entry that the killed gateway left open is settled at the next start"


def _outcomes(gateway: Gateway) -> int:
    """Interrupted entries in the ledger, read by the standard library from the file."""
    path = Path(gateway.folder) / ".torpor/torpor.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        query = "SELECT count(*) FROM ledger_entries WHERE outcome = 'interrupted'"
        count: int = database.execute(query).fetchone()[0]
    database.close()
    return count


def test_a_second_gateway_on_the_same_data_is_refused(mortal: Gateway) -> None:
    done = mortal.torpor("serve", check=False)
    assert done.returncode == 1
    assert "is in use by another gateway" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sigterm_under_load_drains(mortal: Gateway) -> None:
    """What finishes in time is whole; what does not ends with an error event; nothing is left."""
    assert "Paris" in _ask(mortal)
    below = mortal.engines()
    ended: dict[str, str] = {}
    began = threading.Barrier(3)

    def stream(name: str, tokens: int) -> None:
        body = {**LONG, "min_tokens": tokens, "max_tokens": tokens, "stream": True}
        with mortal.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            began.wait(30)
            ended[name] = [first, *(line for line in lines if line)][-1]

    threads = [
        threading.Thread(target=stream, args=("short", 20)),
        threading.Thread(target=stream, args=("long", 4000)),
    ]
    for thread in threads:
        thread.start()
    began.wait(30)
    assert mortal.end(signal.SIGTERM, 60) == 0
    for thread in threads:
        thread.join(30)
    assert ended["short"] == "data: [DONE]"
    assert '"code":"shutting_down"' in ended["long"]
    assert _leftovers(below, 5) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{mortal.origin}/health/live", trust_env=False)
