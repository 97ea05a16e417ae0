"""Mixed traffic of a soak: the requests, their right answers, and what the ledger should say of them."""

import random
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadtest.client import Ask, Endpoint, Outcome
from loadtest.gateway import MODEL
from loadtest.generator import chat_body
from loadtest.standin import State
from loadtest.wire import PROMPT_TOKENS

MIX: Mapping[str, int] = {
    "plain": 50,
    "stream": 20,
    "paced stream": 10,
    "disconnect": 12,
    "bad JSON": 2,
    "bad field": 2,
    "unknown model": 2,
    "wrong key": 2,
}
"""Kinds of requests, by how many of a hundred are of them."""


@dataclass(slots=True)
class Sent:
    """A request, and what its client knows of the answer."""

    kind: str
    tokens: int
    received: int = 0
    metered: bool = False
    """Whether an engine was asked for it: it had a good answer, or at least the beginning of one."""
    usage: tuple[int, int] | None = None
    """Input and output tokens as the answer told them."""


class Traffic:
    """Makes the requests, and keeps what became of them. The same seed makes the same traffic."""

    def __init__(self, endpoint: Endpoint, seed: int) -> None:
        self._endpoint = endpoint
        self._wrong = Endpoint(port=endpoint.port, key="torpor-wrong-key")
        self._chance = random.Random(seed)
        self._number = 0
        self._kinds = [kind for kind, share in MIX.items() for _ in range(share)]
        self._under_way: dict[int, str] = {}
        self.sent: dict[str, Sent] = {}

    def next(self) -> Ask:
        """A request of the mix."""
        kind, tokens = self._chance.choice(self._kinds), self._chance.randrange(4, 40)
        request_id = self._new_id()
        named = (("x-request-id", request_id),)
        if kind == "bad JSON":
            ask = Ask(self._endpoint.raw(b'{"model": ', named), expected=400)
        elif kind == "bad field":
            ask = Ask(self._endpoint.request(chat_body(MODEL, tokens=-1), named), expected=400)
        elif kind == "unknown model":
            ask = Ask(self._endpoint.request(chat_body("no-such-model"), named), expected=404)
        elif kind == "wrong key":
            ask = Ask(self._wrong.request(chat_body(MODEL), named), expected=401)
        else:
            ask = self._good(kind, tokens, request_id)
        return self._remember(kind, tokens, request_id, ask)

    def wake(self, model: str) -> Ask:
        """A request to a model that may be asleep."""
        request_id = self._new_id()
        body = chat_body(model, tokens=4)
        ask = Ask(self._endpoint.request(body, (("x-request-id", request_id),)), keep=True)
        return self._remember("wake", 0, request_id, ask)

    def watch(self, outcome: Outcome) -> None:
        """A request has ended."""
        sent = self.sent[self._under_way.pop(id(outcome.ask))]
        if outcome.ask.keep and outcome.error is None:
            usage = msgspec.json.decode(bytes(outcome.body))["usage"]
            sent.usage = (usage["prompt_tokens"], usage["completion_tokens"])
        sent.received = outcome.tokens
        sent.metered = outcome.ask.expected == 200 and (outcome.error is None or outcome.tokens > 0)

    def _good(self, kind: str, tokens: int, request_id: str) -> Ask:
        words = [f"tag={request_id}"] if kind == "disconnect" else []
        words += ["pace=20"] if kind in ("paced stream", "disconnect") else []
        streamed = kind != "plain"
        body = chat_body(MODEL, tokens=tokens, stream=streamed, words=" ".join(words))
        request = self._endpoint.request(body, (("x-request-id", request_id),))
        cut_after = self._chance.randrange(1, tokens) if kind == "disconnect" else None
        return Ask(request, streamed, tokens if streamed else 0, cut_after=cut_after)

    def _new_id(self) -> str:
        self._number += 1
        return f"soak-{self._number}"

    def _remember(self, kind: str, tokens: int, request_id: str, ask: Ask) -> Ask:
        self.sent[request_id] = Sent(kind, tokens)
        self._under_way[id(ask)] = request_id
        return ask


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the ledger."""

    outcome: str | None
    input_tokens: int
    output_tokens: int
    estimated: bool


def entries_of(database: Path) -> dict[str, list[Entry]]:
    """All entries, by request id."""
    entries: dict[str, list[Entry]] = {}
    query = "SELECT request_id, outcome, input_tokens, output_tokens, estimated FROM ledger_entries"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        for request_id, outcome, taken, given, estimated in connection.execute(query):
            entries.setdefault(request_id, []).append(Entry(outcome, taken, given, bool(estimated)))
    return entries


def unsettled(sent: Mapping[str, Sent], entries: Mapping[str, list[Entry]]) -> int:
    """Requests that should have a settled entry and have none yet."""
    return sum(
        1
        for request_id, request in sent.items()
        if request.metered and not any(entry.outcome for entry in entries.get(request_id, []))
    )


def wrong(sent: Mapping[str, Sent], entries: Mapping[str, list[Entry]], state: State) -> Counter[str]:
    """What is not as it should be, by what is wrong with it."""
    mistakes: Counter[str] = Counter()
    for request_id, request in sent.items():
        of_it = entries.get(request_id, [])
        if not request.metered:
            mistakes["entries of refused requests"] += bool(of_it)
        elif len(of_it) != 1:
            mistakes["missing" if not of_it else "counted twice"] += 1
        elif request.kind == "disconnect":
            mistakes[_of_broken_off(request_id, request, of_it[0], state)] += 1
        else:
            tokens = request.usage or (PROMPT_TOKENS, request.tokens)
            exact = Entry("completed", *tokens, estimated=False)
            mistakes["other tokens than received"] += of_it[0] != exact
    del mistakes[""]
    return +mistakes


def _of_broken_off(request_id: str, request: Sent, entry: Entry, state: State) -> str:
    """What is wrong with the entry of a stream whose client left; None if it is right.

    A server behind a ``url`` reports the usage of a whole answer only: for others it is estimated.
    """
    generated = state.tags.get(request_id)
    if entry.outcome is None:
        return "not settled"
    if generated is None or generated.whole or entry.estimated:
        return ""
    return (
        ""
        if request.received <= entry.output_tokens <= generated.generated
        else "tokens of a broken-off stream"
    )
