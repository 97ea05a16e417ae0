"""Whose turn it is at a model: start-time fair queueing among projects, or first come first served.

Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996), in the form for a
server that works on several requests at once (SFQ(D): Jin, Chase, Kaur, SIGMETRICS 2004). A request of cost
*c* of a project of weight *w* has the start tag S = max(v, F) and leaves the project with the finish tag F =
S + c/w, where the virtual time *v* is the start tag of the request that was served last. The smallest start
tag is next, so two projects that always have requests waiting never differ in c/w by more than the
largest request of each. A project that asks rarely starts at *v*, and so is served before those who ask for
more than their share, without credit for the time in which it asked for nothing.

The cost is in tokens, as in the Virtual Token Counter (Sheng et al.: "Fairness in Serving Large Language
Models", OSDI 2024): one for each token of input, `OUTPUT_COST` for each of output. What a request will
generate is not known before: it is charged with an estimate, and its project's finish tag is corrected when
it ends.

There are two levels of it. Between interactive requests and those of the service tier ``flex`` it shares
`INTERACTIVE_WEIGHT` : 1, so batches yield but are never starved; an interactive request goes before a
batch that has come at the same time. Below each, it shares between projects.
What a project calls ``priority`` goes before the rest of its own requests, never before another project's.

Every operation is O(log n) in the number of projects that wait, but for a sweep of forgotten projects, which
is O(1) amortized.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from tenants.queueing.indexed_heap import IndexedHeap

INTERACTIVE_WEIGHT = 16.0
"""The share of interactive requests, when that of a batch is 1."""
OUTPUT_COST = 2.0
"""What a token of output costs, when one of input costs 1 (VTC's weights)."""
_SWEEP_AT_LEAST = 64


class ServiceTier(StrEnum):
    """How urgent a request is, in OpenAI's words. ``flex`` is a batch; the others are interactive."""

    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"


def token_cost(input_tokens: int, output_tokens: int) -> float:
    """What a request costs; input that the engine had in its cache is not to be counted."""
    return input_tokens + OUTPUT_COST * output_tokens


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A request in a queue, and then in service.

    ``cost`` is the estimate that is charged when its turn comes. ``start`` is its virtual start tag from then
    on, in tokens by weight, and ``class_start`` that of the level above.
    """

    project_id: str
    cost: float
    weight: float = 1.0
    tier: ServiceTier = ServiceTier.DEFAULT
    slots: int = 1
    start: float = 0.0
    class_start: float = 0.0

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.cost < 0:
            raise ValueError("a weight is more than 0, and a cost not less than 0")

    @property
    def batch(self) -> bool:
        """Whether it may wait for those who do not want to."""
        return self.tier is ServiceTier.FLEX


class Discipline(Protocol):
    """The order in which requests are taken. Each that was put is either taken and finished, or discarded."""

    def put(self, ticket: Ticket) -> None: ...
    def take(self, *, reserved: bool = False) -> Ticket | None: ...
    def discard(self, ticket: Ticket) -> None: ...
    def finish(self, ticket: Ticket, cost: float) -> None: ...
    def waiting(self, project_id: str) -> int: ...
    def __len__(self) -> int: ...


@dataclass(slots=True, eq=False)
class _Account:
    """What a project has been served, in virtual time. ``floor``: where it last began to wait again."""

    weight: float
    tag: float = 0.0
    floor: float = 0.0

    def rejoin(self, now: float) -> None:
        """Note that the project has a request waiting again; it gets no credit for the time without."""
        if now > self.tag:
            self.tag = self.floor = now

    def charge(self, cost: float) -> float:
        """The start tag of what is served."""
        start = self.tag
        self.tag += cost / self.weight
        return start

    def correct(self, start: float, difference: float, weight: float) -> None:
        """What started at ``start`` cost so much more than it was charged with, or less.

        What was paid in excess before the account was last raised to its floor, is not given back: the raise
        has cancelled it.
        """
        if difference > 0 or start >= self.floor:
            self.tag += difference / weight


@dataclass(slots=True, eq=False)
class _Flow(_Account):
    """One project in one class: those who wait, by tier, and how many are in service."""

    urgent: "OrderedDict[Ticket, None]" = field(default_factory=OrderedDict)
    others: "OrderedDict[Ticket, None]" = field(default_factory=OrderedDict)
    running: int = 0
    arrival: int = 0  # the order in which it began to wait

    def lane(self, ticket: Ticket) -> "OrderedDict[Ticket, None]":
        return self.urgent if ticket.tier is ServiceTier.PRIORITY else self.others

    def __len__(self) -> int:
        return len(self.urgent) + len(self.others)


class _Class(_Account):
    """Interactive requests, or batches: start-time fair queueing among projects."""

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self.now = 0.0  # virtual time
        self.flows: dict[str, _Flow] = {}
        self._heap: IndexedHeap[_Flow] = IndexedHeap()
        self._arrivals = 0
        self._sweep_at = _SWEEP_AT_LEAST

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, ticket: Ticket) -> None:
        flow = self.flows.get(ticket.project_id)
        if flow is None:
            self._sweep()
            flow = self.flows[ticket.project_id] = _Flow(ticket.weight, self.now, self.now)
        if not flow:
            flow.rejoin(self.now)
            self._arrivals += 1
            flow.arrival = self._arrivals
        flow.lane(ticket)[ticket] = None
        self._order(flow)

    def take(self, *, reserved: bool) -> Ticket | None:
        flow = self._heap.first()
        if flow is None or (reserved and flow.running):
            return None
        ticket, _ = (flow.urgent or flow.others).popitem(last=False)
        self.now = max(self.now, flow.tag)
        flow.weight = ticket.weight
        ticket.start = flow.charge(ticket.cost)
        flow.running += 1
        self._order(flow)
        return ticket

    def next_cost(self) -> float:
        """The start tag of the next request; there must be one."""
        flow = self._heap.first()
        return 0.0 if flow is None else next(iter(flow.urgent or flow.others)).cost

    def discard(self, ticket: Ticket) -> None:
        flow = self.flows[ticket.project_id]
        del flow.lane(ticket)[ticket]
        self._order(flow)

    def finish(self, ticket: Ticket, cost: float) -> None:
        flow = self.flows[ticket.project_id]
        flow.running -= 1
        flow.correct(ticket.start, cost - ticket.cost, ticket.weight)
        self._order(flow)

    def _order(self, flow: _Flow) -> None:
        """Order equal tags: fewer requests in service first, then the longer wait."""
        if flow:
            self._heap.put(flow, (flow.tag, flow.running, flow.arrival))
        else:
            self._heap.discard(flow)

    def _sweep(self) -> None:
        """Forget who is owed nothing and owes nothing."""
        if len(self.flows) < self._sweep_at:
            return
        self.flows = {
            name: flow for name, flow in self.flows.items() if flow or flow.running or flow.tag > self.now
        }
        self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self.flows))

    def reset(self) -> None:
        """Reset all tags at the end of a busy period, when no request waits or runs."""
        self.now = self.tag = self.floor = 0.0
        self.flows.clear()
        self._sweep_at = _SWEEP_AT_LEAST


class FairQueue:
    """Start-time fair queueing by service tier and then by project; a `Discipline`.

    ``take(reserved=True)`` is for slots that are kept for projects of which nothing is in service: it takes
    the interactive request whose turn it is, if it is such a one's.
    """

    def __init__(self) -> None:
        self._interactive, self._batch = _Class(INTERACTIVE_WEIGHT), _Class(1.0)
        self._now = 0.0
        self._waiting = 0
        self._running = 0

    def __len__(self) -> int:
        return self._waiting

    def waiting(self, project_id: str) -> int:
        """How many requests of the project wait."""
        flows = (self._interactive.flows.get(project_id), self._batch.flows.get(project_id))
        return sum(len(flow) for flow in flows if flow is not None)

    def put(self, ticket: Ticket) -> None:
        """Add a request to the queue."""
        its = self._class_of(ticket)
        if not its:
            its.rejoin(self._now)
        its.put(ticket)
        self._waiting += 1

    def take(self, *, reserved: bool = False) -> Ticket | None:
        """Take the next request into service; None if no request waits that may be served."""
        chosen = self._interactive if reserved else self._next_class()
        ticket = chosen.take(reserved=reserved)
        if ticket is None:
            return None
        self._now = max(self._now, chosen.tag if not reserved else min(chosen.tag, self._batch_tag()))
        ticket.class_start = chosen.charge(ticket.cost)
        self._waiting -= 1
        self._running += 1
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """Remove a request from the queue; it costs nothing."""
        self._class_of(ticket).discard(ticket)
        self._waiting -= 1
        self._rest()

    def finish(self, ticket: Ticket, cost: float) -> None:
        """What was taken has ended, and this is what it really cost."""
        its = self._class_of(ticket)
        its.finish(ticket, cost)
        its.correct(ticket.class_start, cost - ticket.cost, its.weight)
        self._running -= 1
        self._rest()

    def _class_of(self, ticket: Ticket) -> _Class:
        return self._batch if ticket.batch else self._interactive

    def _next_class(self) -> _Class:
        if not self._batch:
            return self._interactive
        if not self._interactive:
            return self._batch
        # A batch goes by its finish tag: an interactive request that has come with it is first.
        finish = self._batch.tag + self._batch.next_cost() / self._batch.weight
        return self._batch if finish < self._interactive.tag else self._interactive

    def _batch_tag(self) -> float:
        return self._batch.tag if self._batch else float("inf")

    def _rest(self) -> None:
        if not self._waiting and not self._running:
            self._now = 0.0
            self._interactive.reset()
            self._batch.reset()


class FifoQueue:
    """First come, first served (a `Discipline`). Ignores reserved slots."""

    def __init__(self) -> None:
        self._queue: OrderedDict[Ticket, None] = OrderedDict()
        self._of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def waiting(self, project_id: str) -> int:
        """How many requests of the project wait."""
        return self._of.get(project_id, 0)

    def put(self, ticket: Ticket) -> None:
        """Add a request to the queue."""
        self._queue[ticket] = None
        self._of[ticket.project_id] = self.waiting(ticket.project_id) + 1

    def take(self, *, reserved: bool = False) -> Ticket | None:
        """The one that has waited for longest."""
        if not self._queue:
            return None
        ticket, _ = self._queue.popitem(last=False)
        self._left(ticket)
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """Remove a request from the queue."""
        del self._queue[ticket]
        self._left(ticket)

    def finish(self, ticket: Ticket, cost: float) -> None:
        """What was taken has ended; what it cost makes no difference."""

    def _left(self, ticket: Ticket) -> None:
        self._of[ticket.project_id] -= 1
        if not self._of[ticket.project_id]:
            del self._of[ticket.project_id]
