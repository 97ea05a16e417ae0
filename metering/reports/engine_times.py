"""Engine-seconds: how long engines were busy, idle and waking, by hour and model, and whose they were.

An engine is ``busy`` while a request is under way at it, ``idle`` while it is awake without one, ``waking``
while it starts or is restored; awake is busy and idle together. Every gateway adds up what it sees of its own
engines, and writes it every few seconds: a gateway that is killed loses that much.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from metering.tables import engine_times, insert_into, usage_hours
from tenants.errors import StorageUnavailable

_HOUR_S = 3_600
_HOUR_MS = _HOUR_S * 1000
_MEASURES = ("busy_ms", "idle_ms", "waking_ms", "wakes")


@dataclass(slots=True)
class EngineTime:
    """The times of one model in milliseconds, and how many wakes began."""

    busy_ms: int = 0
    idle_ms: int = 0
    waking_ms: int = 0
    wakes: int = 0

    @property
    def awake_ms(self) -> int:
        """Busy and idle."""
        return self.busy_ms + self.idle_ms

    @property
    def total_ms(self) -> int:
        """All that an engine was there for."""
        return self.awake_ms + self.waking_ms

    def add(self, other: "EngineTime") -> None:
        """Add another's."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(frozen=True, slots=True)
class Sample:
    """How many engines of a model do what at a moment."""

    model: str
    busy: int = 0
    idle: int = 0
    waking: int = 0


class EngineClock:
    """Adds up samples: between two of them, what the earlier one saw is taken to have lasted.

    ``clock`` is unix time in seconds and says in which hours time belongs. ``steady``, a clock that is never
    set, says how much time there was: a clock that is put right neither adds a year nor stops the count for
    one. Without ``steady`` it is ``clock``, and time in which that goes back does not count.
    """

    def __init__(self, clock: Callable[[], float], steady: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._steady = steady or clock
        self._seen: dict[str, Sample] = {}
        self._at_ms = round(self._steady() * 1000)
        self._times: dict[tuple[int, str], EngineTime] = {}

    def sample(self, samples: Iterable[Sample]) -> None:
        """What is to be seen now."""
        now_ms, at_ms = round(self._clock() * 1000), round(self._steady() * 1000)
        passed_ms = max(0, at_ms - self._at_ms)
        for model, seen in self._seen.items():
            self._spread(model, seen, now_ms - passed_ms, now_ms)
        current = {sample.model: sample for sample in samples if sample.busy or sample.idle or sample.waking}
        for model, sample in current.items():
            before = self._seen.get(model, Sample(model))
            if sample.waking > before.waking:
                self._of(now_ms, model).wakes += sample.waking - before.waking
        self._seen, self._at_ms = current, at_ms

    def take(self) -> dict[tuple[int, str], EngineTime]:
        """The sums since the last call, by hour and model; they are reset."""
        taken, self._times = self._times, {}
        return taken

    def give_back(self, times: dict[tuple[int, str], EngineTime]) -> None:
        """What could not be written."""
        for key, time in times.items():
            self._times.setdefault(key, EngineTime()).add(time)

    def _spread(self, model: str, seen: Sample, start: int, end: int) -> None:
        """From and to milliseconds since the epoch."""
        while start < end:
            until = min(end, (start // _HOUR_MS + 1) * _HOUR_MS)
            ms = until - start
            added = self._of(start, model)
            added.busy_ms += seen.busy * ms
            added.idle_ms += seen.idle * ms
            added.waking_ms += seen.waking * ms
            start = until

    def _of(self, at_ms: int, model: str) -> EngineTime:
        return self._times.setdefault((at_ms // _HOUR_MS, model), EngineTime())


async def store_times(database: AsyncEngine, owner: str, times: dict[tuple[int, str], EngineTime]) -> None:
    """Add to what is stored. Raises `StorageUnavailable`; nothing of it is stored then."""
    rows = [
        {"hour": hour, "model": model, "owner": owner} | {name: getattr(time, name) for name in _MEASURES}
        for (hour, model), time in sorted(times.items())
    ]
    if not rows:
        return
    try:
        async with database.begin() as connection:
            await connection.execute(_addition(database.dialect.name), rows)
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        raise StorageUnavailable("the time of engines cannot be written") from error


async def times_between(
    connection: AsyncConnection, start: int, end: int
) -> dict[tuple[int, str], EngineTime]:
    """By hour and model, of the hours from ``start`` to ``end`` (unix seconds), of all gateways."""
    time = engine_times.c
    statement = (
        select(time.hour, time.model, *[func.sum(time[name]) for name in _MEASURES])
        .where(time.hour >= start // _HOUR_S, time.hour < -(-end // _HOUR_S))
        .group_by(time.hour, time.model)
    )
    return {
        (hour, model): EngineTime(*map(int, measures))
        for hour, model, *measures in await connection.execute(statement)
    }


async def shares(
    connection: AsyncConnection, start: int, end: int
) -> dict[tuple[str, str | None, str | None], EngineTime]:
    """Whose the time was: by model, organization and project, over hours from ``start`` to ``end``.

    Within each hour a model's time is shared by the engine time that each project's requests took, to the
    millisecond and without a remainder. Unused time has ``None`` as its organization and project.
    """
    used = usage_hours.c
    statement = (
        select(used.hour, used.model, used.organization_id, used.project_id, func.sum(used.engine_ms))
        .where(used.hour >= start // _HOUR_S, used.hour < -(-end // _HOUR_S))
        .group_by(used.hour, used.model, used.organization_id, used.project_id)
        .order_by(used.hour, used.model, used.organization_id, used.project_id)
    )
    users: dict[tuple[int, str], list[tuple[str, str, int]]] = {}
    for hour, model, organization_id, project_id, engine_ms in await connection.execute(statement):
        if engine_ms:
            users.setdefault((hour, model), []).append((organization_id, project_id, int(engine_ms)))
    times: dict[tuple[str, str | None, str | None], EngineTime] = {}
    for (hour, model), time in (await times_between(connection, start, end)).items():
        of_hour = users.get((hour, model))
        if of_hour is None:
            times.setdefault((model, None, None), EngineTime()).add(time)
            continue
        parts = zip(
            *[_split(getattr(time, name), [ms for *_, ms in of_hour]) for name in _MEASURES], strict=True
        )
        for (organization_id, project_id, _), part in zip(of_hour, parts, strict=True):
            times.setdefault((model, organization_id, project_id), EngineTime()).add(EngineTime(*part))
    return times


def _split(amount: int, weights: list[int]) -> list[int]:
    """Whole parts in proportion, whose sum is the amount."""
    total, given, weighed = sum(weights), 0, 0
    parts = []
    for weight in weights:
        weighed += weight
        until = amount * weighed // total
        parts.append(until - given)
        given = until
    return parts


def _addition(dialect: str) -> Any:
    statement = insert_into(engine_times, dialect)
    added = {name: engine_times.c[name] + statement.excluded[name] for name in _MEASURES}
    return statement.on_conflict_do_update(index_elements=["hour", "model", "owner"], set_=added)
