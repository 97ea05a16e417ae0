"""Where requests wait for their turn at a model, before an engine is asked for.

Two decisions, with an owner each. A model's turnstile decides which requests run and how many at once: so
many for each engine that is awake, or for one engine if none is, which is then woken. The engine host decides
how many engines are awake; it is told how many requests wait, and reports how many engines are awake.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from engines.host import EngineHost
from gateway.config.sections import LimitsConfig, ModelConfig, QueueDiscipline
from metering.types import Usage
from tenants.queueing.fair_queue import Discipline, FairQueue, FifoQueue, ServiceTier, Ticket, token_cost
from tenants.queueing.turnstile import Turn, Turnstile

_FIRST_OUTPUT = 128.0
_LEARNING = 0.125
_KEPT_OUTPUTS = 4096
_BATCH_PRIORITY = 1 << 60
_PRIORITY_STEPS = 16


_DISCIPLINES: Mapping[QueueDiscipline, Callable[[], Discipline]] = {
    QueueDiscipline.FAIR: FairQueue,
    QueueDiscipline.FIFO: FifoQueue,
}


_SLOTS_A_RESERVED = 16
"""One slot in so many is kept for projects of which nothing is in service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Settings of the queue of one model. ``slots`` and ``reserved`` are for each engine; None: no queue.

    ``max_queued`` is for each project. ``dedicated`` names the projects that have engines of their own.
    """

    slots: int | None
    reserved: int
    max_queued: int
    timeout_s: float
    discipline: QueueDiscipline
    dedicated: frozenset[str]


def queue_of(model: ModelConfig, limits: LimitsConfig) -> QueueSettings:
    """How requests wait for the model. A model behind a ``url`` has no queue unless it is limited."""
    slots = model.max_concurrent or (None if model.url else model.max_running)
    reserved = (slots or 0) // _SLOTS_A_RESERVED if model.reserved_slots is None else model.reserved_slots
    return QueueSettings(
        slots=slots,
        reserved=reserved,
        max_queued=model.max_queued,
        timeout_s=model.queue_timeout_s or limits.queue_timeout_s,
        discipline=model.queue_discipline,
        dedicated=frozenset(model.dedicated_projects),
    )


class QueueRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that wants a turn. ``input_tokens`` is an estimate, ``sequences`` how many answers it wants,
    ``max_output`` the most tokens of one of them (None: no limit), and ``slots`` how many slots it takes if
    they are free."""

    model_id: str
    project_id: str
    weight: float
    tier: ServiceTier
    input_tokens: int
    sequences: int
    max_output: int | None
    slots: int = 1


class QueueSlot:
    """A turn at a model, from the grant until `end` or `leave`."""

    __slots__ = ("_outputs", "_turn")

    def __init__(self, turn: Turn, outputs: "_Outputs") -> None:
        self._turn = turn
        self._outputs = outputs

    @property
    def priority(self) -> int:
        """The same order for the engine's own scheduler, which serves the smallest first."""
        ticket = self._turn.ticket
        return _BATCH_PRIORITY * ticket.batch + round(ticket.start * _PRIORITY_STEPS)

    @property
    def slots(self) -> int:
        """How many sequences of the request may run at a time."""
        return self._turn.slots

    def end(self, usage: Usage) -> None:
        """The engine's work is over, and this is what it was. The first call counts."""
        if not self._turn.ended:
            self._outputs.learn(self._turn.ticket.project_id, usage.output_tokens)
            uncached = max(0, usage.input_tokens - usage.cached_tokens)
            self._turn.end(token_cost(uncached, usage.output_tokens))

    def charge(self, input_tokens: int) -> None:
        """End the turn of a call that generates nothing, at the cost of its input."""
        self._turn.end(token_cost(input_tokens, 0))

    def leave(self) -> None:
        """The turn is over. Where `end` was not called, nothing was done."""
        self._turn.end(0.0)


class _Outputs:
    """How many tokens the requests of a project generate, on average: for estimates."""

    def __init__(self) -> None:
        self._means: OrderedDict[str, float] = OrderedDict()

    def expect(self, request: QueueRequest) -> float:
        if request.max_output is not None and request.max_output <= 0:
            return 0.0
        mean = self._means.get(request.project_id, _FIRST_OUTPUT * request.sequences)
        return (
            mean if request.max_output is None else min(mean, float(request.max_output * request.sequences))
        )

    def learn(self, project_id: str, output_tokens: int) -> None:
        mean = self._means.pop(project_id, None)
        now = float(output_tokens) if mean is None else mean + _LEARNING * (output_tokens - mean)
        self._means[project_id] = now
        if len(self._means) > _KEPT_OUTPUTS:
            self._means.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Lane:
    """The queue of a model's shared engines, or that of a project's own."""

    settings: QueueSettings
    turnstile: Turnstile
    outputs: _Outputs


class ModelQueues:
    """The queues of every model. ``settings`` by model; one that is not named has no queue."""

    def __init__(self, host: EngineHost, settings: Mapping[str, QueueSettings]) -> None:
        self._host = host
        self._settings = settings
        self._lanes: dict[tuple[str, str | None], _Lane] = {}
        host.watch(self._on_awake)

    def pool(self, model_id: str, project_id: str | None) -> str | None:
        """The engines that the project's requests go to: None for the shared ones."""
        settings = self._settings.get(model_id)
        return project_id if settings is not None and project_id in settings.dedicated else None

    def timeout_s(self, model_id: str) -> float:
        """The longest that a request waits for its turn at the model; 0 where it has no queue."""
        settings = self._settings.get(model_id)
        return 0.0 if settings is None or settings.slots is None else settings.timeout_s

    def waiting(self, model_id: str) -> int:
        """How many requests wait for their turn at the model."""
        return sum(lane.turnstile.waiting for (name, _), lane in self._lanes.items() if name == model_id)

    def running(self, model_id: str) -> int:
        """How many requests have their turn at the model."""
        return sum(lane.turnstile.running for (name, _), lane in self._lanes.items() if name == model_id)

    async def enter(self, request: QueueRequest) -> QueueSlot | None:
        """The request's turn, to be left whatever comes of it; None where the model has no queue.

        Raises `QueueFull` at once, and `QueueTimeout` when it has waited for too long.
        """
        lane = self._lane(request.model_id, self.pool(request.model_id, request.project_id))
        if lane is None:
            return None
        ticket = Ticket(
            project_id=request.project_id,
            cost=token_cost(request.input_tokens, round(lane.outputs.expect(request))),
            weight=request.weight,
            tier=request.tier,
            slots=max(request.slots, request.sequences),
        )
        return QueueSlot(await lane.turnstile.enter(ticket, lane.settings.timeout_s), lane.outputs)

    def _lane(self, model_id: str, pool: str | None) -> _Lane | None:
        lane = self._lanes.get((model_id, pool))
        settings = self._settings.get(model_id)
        if lane is None and settings is not None and settings.slots is not None:
            slots, reserved = self._slots(settings, pool, self._host.awake(model_id, pool))
            turnstile = Turnstile(
                _DISCIPLINES[settings.discipline](),
                slots=slots,
                reserved=reserved,
                max_queued=settings.max_queued,
                on_change=lambda waiting: self._host.expect(model_id, waiting, pool),
            )
            lane = self._lanes[model_id, pool] = _Lane(settings, turnstile, _Outputs())
        return lane

    def _on_awake(self, model_id: str, pool: str | None, awake: int) -> None:
        lane = self._lanes.get((model_id, pool))
        if lane is not None:
            lane.turnstile.resize(*self._slots(lane.settings, pool, awake))

    @staticmethod
    def _slots(settings: QueueSettings, pool: str | None, awake: int) -> tuple[int, int]:
        """Slots, and how many of them are reserved: none among engines that one project has for itself."""
        engines = max(1, awake)
        return (settings.slots or 0) * engines, 0 if pool is not None else settings.reserved * engines
