"""A gateway with the real engine, as benchmarks of wakes use it, and the page cache that wakes depend on."""

import json
import os
import time
from typing import Any

import psutil

from loadtest.gateway import Gateway

MODEL = "smollm2-135m"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "Paris"
SETTLE_S = 0.8
MEASURED_AFTER_S = 7.0


class WakingGateway(Gateway):
    """A gateway whose engines are put to sleep and woken one by one."""

    def engine(self, model: str = MODEL) -> dict[str, Any]:
        """The entry of ``GET /v1/torpor/engines`` for a model."""
        engines = self.request("GET", "/v1/torpor/engines")["data"]
        status: dict[str, Any] = next(engine for engine in engines if engine["id"] == model)
        return status

    def sleep(self, tier: str, model: str = MODEL) -> None:
        """Put a model's engines to sleep in a tier, and wait until the machine has settled."""
        self.request("POST", f"/v1/torpor/engines/{model}/sleep", {"tier": tier})
        time.sleep(SETTLE_S)

    def ask(self, model: str = MODEL, answer_has: str = ANSWER) -> tuple[float, str]:
        """Stream an answer; returns TTFT in milliseconds and the tier in which the engine was.

        Raises AssertionError for a wrong answer.
        """
        body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 12, "stream": True}
        began, first, text = time.perf_counter(), 0.0, ""
        with self.http.stream("POST", "/v1/chat/completions", headers=self.bearer(), json=body) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content")
                if piece:
                    first = first or (time.perf_counter() - began) * 1000
                    text += piece
        if answer_has not in text or not first:
            raise AssertionError(f"a wrong answer: {text!r}")
        return first, response.headers["x-torpor-engine"]

    def complete(self, model: str) -> None:
        """Generate one token that is right or wrong. Raises AssertionError."""
        body = {"model": model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 1}
        response = self.http.post("/v1/completions", headers=self.bearer(), json=body)
        if ANSWER not in response.text:
            raise AssertionError(f"a wrong answer: {response.text!r}")

    def engine_processes(self) -> list[psutil.Process]:
        """The processes of engines, without those of spare sandboxes."""
        below = psutil.Process(self.child.pid).children(recursive=True)
        return [process for process in below if not any("init.py" in word for word in process.cmdline())]


def drop_page_cache() -> None:
    """Empty the page cache. Needs root."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("1\n")
