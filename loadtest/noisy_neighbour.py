"""What one tenant's requests do to another's: ``python -m loadtest noisy-neighbour [--write PAGE]``.

Starts a gateway of its own with the real engine and model. Tenant B asks for one token, twice a second; its
time to the answer is taken alone, and beside tenant A, which sends one kind of request without a pause over
two connections, from a process of its own. The last column has what became of A's requests.

``--figures FILE`` keeps the figures as JSON; ``--before FILE`` adds those of an earlier version to the table.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import httpx

from loadtest.gateway import Gateway
from loadtest.report import table

MODEL = "smollm2-135m"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CONNECTIONS = 2
PERIOD_S = 0.5
WARM_UP_S = 3.0
LONGEST_S = 120.0
_RATIO, _LEAST_MS = 3.0, 1000.0

CONFIG = """
[server]
port = {port}

[metrics]
enabled = false

[engines]
snapshots = false

[[models]]
id = "smollm2-135m"
source = "{root}/models/smollm2-135m"
idle_pause_s = 7200
"""

_MESSAGES = [{"role": "user", "content": "Hello"}]
_SAMPLED: dict[str, Any] = {"temperature": 1, "ignore_eos": True}
_PLAIN = {"messages": _MESSAGES, "max_tokens": 1}
_CONSTRAINED = {**_PLAIN, "structured_outputs": {"choice": ["yes", "no"]}}


def _schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


_CHOICES = [f"{{number}}{at:0115d}" for at in range(5000)]
_LONG = "word " * 800_000


@dataclass(frozen=True, slots=True)
class Attack:
    """Requests of tenant A; in some of them ``{number}`` makes each different. ``victim``: B's request."""

    name: str
    path: str
    body: dict[str, Any]
    victim: dict[str, Any] = field(default_factory=lambda: _PLAIN)

    def content(self, number: int) -> bytes:
        """The body of request ``number``."""
        text = json.dumps({"model": MODEL, **self.body})
        return text.replace("{number}", str(number)).encode()


ATTACKS = (
    Attack("64 prompts, n 64", TEXT, {"prompt": ["Hi"] * 64, "n": 64, "max_tokens": 64, **_SAMPLED}),
    Attack("32 prompts, n 4", TEXT, {"prompt": ["Hi"] * 32, "n": 4, "max_tokens": 64, **_SAMPLED}),
    Attack("a chat with n 128", CHAT, {"messages": _MESSAGES, "n": 128, "max_tokens": 64, **_SAMPLED}),
    Attack(
        "choices of 609 KB",
        CHAT,
        {
            "messages": _MESSAGES,
            "structured_outputs": {"choice": _CHOICES},
        },
        _CONSTRAINED,
    ),
    Attack(
        "a schema of 50 lengths",
        CHAT,
        {
            "messages": _MESSAGES,
            "max_tokens": 1,
            "response_format": _schema(
                {f"k{at}_{{number}}": {"type": "string", "maxLength": 1000 + at} for at in range(50)}
            ),
        },
        _CONSTRAINED,
    ),
    Attack("4 MB to tokenize", "/tokenize", {"prompt": _LONG}),
    Attack("1,000,000 tokens to detokenize", "/detokenize", {"tokens": [1] * 1_000_000}),
    Attack("100 KB to tokenize", "/tokenize", {"prompt": "word " * 20_000}),
    Attack(
        "4 MB, truncated to 5",
        TEXT,
        {"prompt": _LONG, "truncate_prompt_tokens": 5, "max_tokens": 1},
    ),
    Attack("4 MB", TEXT, {"prompt": _LONG, "max_tokens": 1}),
    Attack("a prompt of 7,900 tokens", TEXT, {"prompt": "{number}" + " word" * 7_890, "max_tokens": 1}),
)


@dataclass
class Row:
    """B's times in milliseconds beside one attack, and how A's requests were answered."""

    name: str
    times: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)

    @property
    def p95(self) -> float:
        """The nearest rank."""
        return sorted(self.times)[max(0, -(-95 * len(self.times) // 100) - 1)]

    @property
    def limit_ms(self) -> float:
        """The most that B's p95 may be."""
        alone = sorted(self.alone)
        return max(_LEAST_MS, _RATIO * alone[max(0, -(-95 * len(alone) // 100) - 1)])


def send(url: str, key: str, attack: Attack, answers: "Queue[str]") -> None:
    """Send A's requests until the process is ended. Run in a process of its own."""

    def client(first: int) -> None:
        number = first
        with httpx.Client(base_url=url, timeout=LONGEST_S, trust_env=False) as http:
            while True:
                number += CONNECTIONS
                headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
                try:
                    response = http.post(attack.path, content=attack.content(number), headers=headers)
                    code = "" if response.is_success else f" {response.json()['error']['code']}"
                    answers.put(f"{response.status_code}{code}")
                except httpx.TransportError as error:
                    answers.put(type(error).__name__)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    threads[0].join()


def ask(gateway: Gateway, key: str, body: Mapping[str, Any], seconds: float) -> list[float]:
    """B's requests, one each `PERIOD_S`, or as the last one ends: milliseconds to each answer."""
    times = []
    headers = {"authorization": f"Bearer {key}"}
    until = time.monotonic() + seconds
    with httpx.Client(base_url=gateway.url, timeout=LONGEST_S, trust_env=False, headers=headers) as http:
        while time.monotonic() < until:
            began = time.perf_counter()
            response = http.post(CHAT, json={"model": MODEL, **body})
            times.append((time.perf_counter() - began) * 1000)
            if response.status_code != 200:
                raise AssertionError(f"B was answered {response.status_code}: {response.text}")
            time.sleep(max(0.0, PERIOD_S - times[-1] / 1000))
    return times


def measure(gateway: Gateway, keys: tuple[str, str], attack: Attack, seconds: float) -> Row:
    """B alone, and then beside the attack."""
    row = Row(attack.name)
    ask(gateway, keys[1], attack.victim, 1.0)
    row.alone = ask(gateway, keys[1], attack.victim, seconds / 2)
    context = multiprocessing.get_context("spawn")
    answers: Queue[str] = context.Queue()
    process = context.Process(target=send, args=(gateway.url, keys[0], attack, answers), daemon=True)
    process.start()
    try:
        time.sleep(WARM_UP_S)
        row.times = ask(gateway, keys[1], attack.victim, seconds)
    finally:
        process.terminate()
        process.join()
    counted: Counter[str] = Counter()
    while not answers.empty():
        counted[answers.get()] += 1
    row.answers = dict(counted)
    time.sleep(2)  # what was aborted leaves the engine
    return row


def run(seconds: float, names: list[str], figures: Path | None) -> list[Row]:
    """Measure every attack, or those whose names are given; write the figures after each."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="torpor-noisy-") as folder:
        gateway = Gateway(Path(folder), CONFIG)
        with gateway.serving():
            keys = gateway.tenant("a"), gateway.tenant("b")
            for attack in ATTACKS:
                if names and attack.name not in names:
                    continue
                row = measure(gateway, keys, attack, seconds)
                rows.append(row)
                if figures is not None:
                    figures.write_text(json.dumps([asdict(row) for row in rows]) + "\n")
                print(f"  {row.name}: p95 {row.p95:.0f} ms, {row.answers}", file=sys.stderr, flush=True)
    return rows


def render(rows: list[Row], before: Mapping[str, Row], seconds: float) -> str:
    """The page. Milliseconds."""
    head = [
        "A sends",
        "B alone, p50",
        "p95 beside A, before",
        "p95 beside A",
        "at most",
        "met",
        "A's requests",
    ]
    lines = []
    for row in rows:
        earlier = before.get(row.name)
        answers = (
            ", ".join(f"{count} x {what}" for what, count in sorted(row.answers.items())) or "none answered"
        )
        lines.append(
            [
                row.name,
                f"{statistics.median(row.alone):.0f}",
                "" if earlier is None else f"{earlier.p95:,.0f}",
                f"{row.p95:,.0f}",
                f"{row.limit_ms:,.0f}",
                "yes" if row.p95 <= row.limit_ms else "NO",
                answers,
            ]
        )
    return (
        "# A noisy neighbour\n\n"
        f"`python -m loadtest noisy-neighbour --seconds {seconds:g}`: {MODEL} on {os.cpu_count()} cores, "
        f"Linux {platform.release()}. Tenant B asks for one token, twice a second, under one of two choices "
        "beside attacks by grammars. Tenant A sends its requests without a pause over two connections. "
        "Milliseconds.\n\n"
        f"{table(head, lines)}\n\n"
        "*Before* are the figures of an earlier version (`--before`); an empty cell was not measured.\n"
    )


def main() -> int:
    """The command line; exit code 1 if B waited too long beside an attack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each attack")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these attacks")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--before", type=Path, metavar="FILE", help="figures of an earlier version")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page")
    options = parser.parse_args()
    rows = run(options.seconds, options.only, options.figures)
    before = {}
    if options.before is not None:
        before = {entry["name"]: Row(**entry) for entry in json.loads(options.before.read_text())}
    page = render(rows, before, options.seconds)
    print(page)
    if options.write is not None:
        options.write.write_text(page)
    return 0 if all(row.p95 <= row.limit_ms for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
