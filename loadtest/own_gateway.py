"""A gateway with the real engine, in a folder of its own, for benchmarks of wakes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "Paris"
TIMEOUT_S = 600.0
SETTLE_S = 0.8
MEASURED_AFTER_S = 7.0


class Gateway:
    """A gateway in a folder of its own. ``text``: its configuration, with ``{port}`` and ``{root}``."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self.port = free_port()
        text = text.replace("{port}", str(self.port)).replace("{root}", str(ROOT))
        (folder / "torpor.toml").write_text(text)
        self.torpor("setup")
        pairs = (line.removeprefix("export ").split("=", 1) for line in self.lines())
        self.keys = dict(pairs)
        url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    def lines(self) -> list[str]:
        return (self.folder / ".torpor/credentials.env").read_text().splitlines()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "gateway.cli", *arguments]

    def torpor(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    @contextmanager
    def running(self) -> Iterator["Gateway"]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.folder / "gateway.log").open("wb") as log:
            process = subprocess.Popen(
                self.command("serve"), cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        try:
            until(lambda: answers(self.http, "/health/ready"))
            self.process = psutil.Process(process.pid)
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            self.http.close()

    def root(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self.keys['TORPOR_ROOT_KEY']}"}
        answer = self.http.request(method, f"/v1/torpor/{path}", headers=headers, json=body)
        answer.raise_for_status()
        return answer.json()

    def engine(self, model: str = MODEL) -> dict[str, Any]:
        status: dict[str, Any] = next(e for e in self.root("GET", "engines")["data"] if e["id"] == model)
        return status

    def sleep(self, tier: str, model: str = MODEL) -> None:
        self.root("POST", f"engines/{model}/sleep", {"tier": tier})
        time.sleep(SETTLE_S)

    def ask(self, model: str = MODEL, answer_has: str = ANSWER) -> tuple[float, str]:
        """TTFT in milliseconds and the tier that was found. Raises AssertionError for a wrong answer."""
        headers = {"authorization": f"Bearer {self.keys['TORPOR_API_KEY']}"}
        body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 12, "stream": True}
        began, first, text = time.perf_counter(), 0.0, ""
        with self.http.stream("POST", "/v1/chat/completions", headers=headers, json=body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content")
                if piece:
                    first = first or (time.perf_counter() - began) * 1000
                    text += piece
        if answer_has not in text or not first:
            raise AssertionError(f"a wrong answer: {text!r}")
        return first, answer.headers["x-torpor-engine"]

    def complete(self, model: str) -> None:
        """One token that is right or wrong. Raises AssertionError."""
        headers = {"authorization": f"Bearer {self.keys['TORPOR_API_KEY']}"}
        body = {"model": model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 1}
        answer = self.http.post("/v1/completions", headers=headers, json=body)
        if ANSWER not in answer.text:
            raise AssertionError(f"a wrong answer: {answer.text!r}")

    def engine_processes(self) -> list[psutil.Process]:
        """Without spare sandboxes."""
        below = self.process.children(recursive=True)
        return [p for p in below if not any("init.py" in word for word in p.cmdline())]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(http: httpx.Client, path: str) -> bool:
    try:
        return http.get(path).is_success
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], poll_s: float = 0.05) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it took too long")
        time.sleep(poll_s)


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1\n")
