"""The generic cell rate algorithm, in whole numbers, over any number of limits at once.

Source: ITU-T Recommendation I.371, Annex A (virtual scheduling algorithm): a limit is one number, the
theoretical arrival time (TAT), at which it has forgotten all that it was charged. Used for requests as in
Brandur Leach, "Rate Limiting, Cells, and GCRA", 2015.

The unit of all state is a token's nanosecond: a token weighs ``period_ns`` units, and in each nanosecond
``amount`` units drain. So nothing is ever divided, and nothing is rounded but what is shown.
"""

from collections import deque
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
    parts: tuple[str, int, int, int] = field(init=False, repr=False, compare=False)
    """Key, amount, period and capacity in units: taken apart at once, which is faster than one by one."""

    def __post_init__(self) -> None:
        if self.amount < 1 or self.period_ns < 1:
            raise ValueError("a rate needs an amount and a period of at least 1")
        parts = (self.key, self.amount, self.period_ns, self.amount * self.period_ns)
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The rate that has to be waited for longest, and how many nanoseconds until all would pass."""

    rate: Rate
    weight: int
    wait_ns: int


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a limit: its size, the whole tokens left, and the nanoseconds until all are back."""

    limit: int
    remaining: int
    reset_ns: int


class Gcra:
    """The state of all limits. One that has forgotten everything takes no memory.

    Times are of any clock that does not go back, in nanoseconds. Not thread-safe.
    """

    def __init__(self) -> None:
        # By key: the theoretical arrival time in units, and the amount at whose rate these drain.
        self._arrivals: dict[str, tuple[int, int]] = {}
        self._circle: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._arrivals)

    def admit(self, rates: Sequence[Rate], weights: Sequence[int], now_ns: int) -> "Refusal | list[Charge]":
        """Charges every rate with its weight of tokens, or none: the refusal says how long to wait.

        Each rate may be there once. A weight beyond the rate's amount never passes.
        """
        get = self._arrivals.get
        charges: list[Charge] = []
        new: list[str] = []
        refusal: Refusal | None = None
        for rate, weight in zip(rates, weights, strict=True):
            key, amount, period_ns, capacity = rate.parts
            idle = arrival = now_ns * amount
            drains = amount
            state = get(key)
            if state is None:
                new.append(key)
            else:
                charged, drains = state
                if drains != amount:
                    charged += now_ns * (amount - drains)
                if charged > idle:
                    arrival = charged
            arrival += weight * period_ns
            over = arrival - idle - capacity
            if over <= 0:
                charges.append((key, (arrival, amount)))
            elif refusal is None or over > refusal.wait_ns * drains:
                refusal = Refusal(rate, weight, -(-over // drains))
        if refusal is not None:
            return refusal
        self._arrivals.update(charges)
        if new:
            self._sweep(new, now_ns)
        return charges

    def charge(self, rates: Sequence[Rate], weight: int, now_ns: int) -> None:
        """Charges what has been used already, whether or not there is room: debt delays who comes next."""
        arrivals = self._arrivals
        new: list[str] = []
        for rate in rates:
            key, amount, period_ns, _ = rate.parts
            arrival = now_ns * amount
            state = arrivals.get(key)
            if state is None:
                new.append(key)
            else:
                charged, drains = state
                if drains != amount:
                    charged += now_ns * (amount - drains)
                if charged > arrival:
                    arrival = charged
            arrivals[key] = (arrival + weight * period_ns, amount)
        if new:
            self._sweep(new, now_ns)

    def give_back(self, rate: Rate, weight: int, charge: "Charge", now_ns: int) -> None:
        """Take ``weight`` tokens back from a charge that `admit` has made of this rate.

        What of it has drained since is gone: a charge drains after those before it and before those after it.
        So no caller gets more than without the charge. After a change of the amount nothing is given back.
        """
        state = self._arrivals.get(rate.key)
        if state is None or not state[1] == charge[1][1] == rate.amount:
            return
        left = min(weight * rate.period_ns, charge[1][0] - now_ns * rate.amount)
        if left <= 0:
            return
        self._arrivals[rate.key] = (state[0] - left, rate.amount)

    def tightest(self, rates: Sequence[Rate], now_ns: int) -> Standing | None:
        """How the rate stands of which the least is left, by whole tokens; ``None`` of none."""
        least: tuple[int, int] | None = None
        limit = 0
        for rate in rates:
            key, amount, period_ns, capacity = rate.parts
            state = self._arrivals.get(key)
            backlog = 0 if state is None else state[0] - now_ns * state[1]
            if state is None or backlog <= 0:
                standing = (amount, 0)
            else:
                remaining = (capacity - backlog) // period_ns if backlog < capacity else 0
                standing = (remaining, backlog // -state[1])
            if least is None or standing < least:
                least, limit = standing, amount
        return None if least is None else Standing(limit, least[0], -least[1])

    def _sweep(self, new: list[str], now_ns: int) -> None:
        """Goes on around the circle of all keys, which the new ones join, and drops what is idle."""
        arrivals, circle = self._arrivals, self._circle
        circle.extend(new)
        for _ in range(min(_EXAMINED_FOR_ONE * len(new), len(circle))):
            key = circle.popleft()
            arrival, amount = arrivals[key]
            if arrival > now_ns * amount:
                circle.append(key)
            else:
                del arrivals[key]


Charge = tuple[str, tuple[int, int]]
"""A rate's key, and its theoretical arrival time after the charge with the amount that it drains by."""
