"""The generic cell rate algorithm, in whole numbers, over any number of limits at once.

Source: ITU-T Recommendation I.371, Annex A (virtual scheduling algorithm): a limit is one number, the
theoretical arrival time (TAT), at which it has forgotten all that it was charged. Used for requests as in
Brandur Leach, "Rate Limiting, Cells, and GCRA", 2015.

The unit of all state is a token's nanosecond: a token weighs ``period_ns`` units, and in each nanosecond
``amount`` units drain. So nothing is ever divided, and nothing is rounded but what is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

_EXAMINED_FOR_ONE = 2
"""Entries that are looked at for each new one: as many idle ones are dropped as new ones come."""


@dataclass(frozen=True, slots=True)
class Rate:
    """``amount`` tokens in each ``period_ns``, and as many at once: the burst is the whole amount.

    So over any span of time at most ``amount * (1 + span / period)`` tokens pass. ``key`` names the state,
    which outlives a change of the amount, but not one of the period.
    """

    key: str
    amount: int
    period_ns: int
    capacity: int = field(init=False)

    def __post_init__(self) -> None:
        if self.amount < 1 or self.period_ns < 1:
            raise ValueError("a rate needs an amount and a period of at least 1")
        object.__setattr__(self, "capacity", self.amount * self.period_ns)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which demand, by its place, has to wait longest, and for how many nanoseconds until all would pass."""

    index: int
    wait_ns: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Of a limit: its size, the whole tokens that are left, and the nanoseconds until all of them are."""

    limit: int
    remaining: int
    reset_ns: int


class Gcra:
    """The state of all limits. One that has forgotten everything takes no memory.

    Times are of any clock that does not go back, in nanoseconds. Not thread-safe.
    """

    def __init__(self) -> None:
        self._arrivals: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def admit(self, demands: Sequence[tuple[Rate, int]], now_ns: int) -> Refusal | None:
        """Charges every demand, a rate and a weight of tokens, or none: the refusal says how long to wait.

        Each rate may be there once. A weight beyond the rate's amount never passes.
        """
        arrivals = self._arrivals
        charged: list[tuple[str, tuple[int, int]]] = []
        refused, longest = -1, 0
        for index, (rate, weight) in enumerate(demands):
            amount = rate.amount
            after = weight * rate.period_ns
            drains = amount
            state = arrivals.get(rate.key)
            if state is not None:
                arrival, drains = state
                backlog = arrival - now_ns * drains
                if backlog > 0:
                    after += backlog
            if after > rate.capacity:
                wait_ns = -(-(after - rate.capacity) // drains)
                if wait_ns > longest:
                    refused, longest = index, wait_ns
            else:
                charged.append((rate.key, (now_ns * amount + after, amount)))
        if refused >= 0:
            return Refusal(refused, longest)
        new = -len(arrivals)
        arrivals.update(charged)
        new += len(arrivals)
        if new:
            self._sweep(new * _EXAMINED_FOR_ONE, now_ns)
        return None

    def charge(self, rate: Rate, weight: int, now_ns: int) -> None:
        """Charges what has been used already, whether or not there is room: debt delays who comes next."""
        known = rate.key in self._arrivals
        after = self._backlog(rate, now_ns) + weight * rate.period_ns
        self._arrivals[rate.key] = (now_ns * rate.amount + after, rate.amount)
        if not known:
            self._sweep(_EXAMINED_FOR_ONE, now_ns)

    def arrival(self, rate: Rate) -> int:
        """The theoretical arrival time after the last charge, in units, to be given to `give_back`."""
        state = self._arrivals.get(rate.key)
        return 0 if state is None else state[0]

    def give_back(self, rate: Rate, weight: int, arrival: int, now_ns: int) -> None:
        """Takes ``weight`` tokens back from the charge after which the arrival time was ``arrival``.

        What of it has drained since is gone: a charge drains after those before it and before those after
        it. So nobody gets more than if the charge had never been. After a change of the amount nothing is
        given back.
        """
        state = self._arrivals.get(rate.key)
        if state is None or state[1] != rate.amount:
            return
        left = min(weight * rate.period_ns, arrival - now_ns * rate.amount)
        if left <= 0:
            return
        before = state[0] - left
        if before > now_ns * rate.amount:
            self._arrivals[rate.key] = (before, rate.amount)
        else:
            del self._arrivals[rate.key]

    def standing(self, rate: Rate, now_ns: int) -> Standing:
        """What is left of the limit; nothing is charged."""
        backlog = self._backlog(rate, now_ns)
        remaining = max(0, rate.capacity - backlog) // rate.period_ns
        drains = self._arrivals[rate.key][1] if backlog else rate.amount
        return Standing(rate.amount, remaining, -(-backlog // drains))

    def _backlog(self, rate: Rate, now_ns: int) -> int:
        """What was charged and has not drained, in units; it drains at the rate at which it was charged."""
        state = self._arrivals.get(rate.key)
        if state is None:
            return 0
        return max(0, state[0] - now_ns * state[1])

    def _sweep(self, examined: int, now_ns: int) -> None:
        """Looks at the oldest entries: drops the idle ones, puts the others behind the youngest."""
        arrivals = self._arrivals
        for _ in range(min(examined, len(arrivals))):
            key = next(iter(arrivals))
            state = arrivals.pop(key)
            if state[0] > now_ns * state[1]:
                arrivals[key] = state
