"""Who is served next, by which engine: pure functions over the waiters and the states of the replicas.

1. Waiters are served in the order of their arrival.
2. A request without an adapter goes to the replica with the fewest requests in flight, or to the one that
   served its prefix before, if that has a free slot.
3. A request for an adapter goes to a replica that has it loaded. If none has, and none is loading it, the
   least busy replica with room loads it.
4. If every adapter slot is in use, the waiter claims the adapter that has been in use for the longest:
   requests that arrived later do not get it, so its last request ends and its slot becomes free. No adapter
   is starved by others that are in constant use.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from engines.adapter import Adapter
from engines.pool.adapter_slots import AdapterSlots, LoadedAdapter, Stage
from engines.pool.decisions import Grant, LoadAdapter, Waiter
from engines.pool.replica_state import ReplicaState

_KEPT_ROUTES = 1024


class Routes(OrderedDict[int, int]):
    """The number of the replica that served a prefix last, for the prefixes used most recently."""

    def remember(self, prefix: int, replica: int) -> None:
        """Note that the replica serves the prefix now."""
        self[prefix] = replica
        self.move_to_end(prefix)
        if len(self) > _KEPT_ROUTES:
            self.popitem(last=False)


def plan_grants(
    waiters: Iterable[Waiter],
    replicas: Sequence[ReplicaState],
    capacity: int,
    routes: Mapping[int, int],
) -> list[Grant | LoadAdapter]:
    """What to grant and to load now, in this order.

    ``capacity``: requests that one engine is given at once. More are given only if no other engine is waking.
    ``routes``: the replica that served a prefix last.
    """
    if any(replica.waking for replica in replicas):
        limit: float = capacity
    else:
        limit = float("inf")
    plan = _Plan([_Usage(replica) for replica in replicas if replica.grantable], limit, capacity, routes)
    if plan.usages:
        for waiter in waiters:
            plan.serve(waiter)
    return plan.decisions


class _Usage:
    """A replica with the grants and loads of the plan so far. Slots are copied when first needed."""

    __slots__ = ("_slots", "_state", "leases", "number")

    def __init__(self, state: ReplicaState) -> None:
        self.number = state.number
        self.leases = len(state.leases)
        self._state = state
        self._slots: AdapterSlots | None = None

    @property
    def slots(self) -> AdapterSlots:
        if self._slots is None:
            self._slots = self._state.slots.copy()
        return self._slots


class _Plan:
    """A pass over the waiters, in the order of their arrival."""

    def __init__(
        self, usages: Sequence[_Usage], limit: float, capacity: int, routes: Mapping[int, int]
    ) -> None:
        self.decisions: list[Grant | LoadAdapter] = []
        self.usages = usages
        self._limit = limit
        self._capacity = capacity
        self._routes = routes
        self._new_routes: dict[int, int] = {}
        self._claiming: set[str] = set()  # digests of adapters for which a slot is claimed
        self._claimed: set[LoadedAdapter] = set()

    def serve(self, waiter: Waiter) -> None:
        if not waiter.wants_lease:
            self.decisions.append(Grant(waiter, self.usages[0].number))
            return
        free = [usage for usage in self.usages if usage.leases < self._limit]
        if not free:
            return
        if waiter.adapter is not None:
            self._serve_adapter(waiter, waiter.adapter, free)
        else:
            self._grant(waiter, self._route(free, waiter.prefix), waiter.prefix if len(free) > 1 else None)

    def _route(self, free: Sequence[_Usage], prefix: int | None) -> _Usage:
        number = None if prefix is None else self._new_routes.get(prefix, self._routes.get(prefix))
        for usage in free:
            if usage.number == number and usage.leases < self._capacity:
                return usage
        return min(free, key=lambda usage: usage.leases)

    def _grant(self, waiter: Waiter, usage: _Usage, prefix: int | None) -> None:
        usage.leases += 1
        if prefix is not None:
            self._new_routes[prefix] = usage.number
        self.decisions.append(Grant(waiter, usage.number, prefix))

    def _serve_adapter(self, waiter: Waiter, adapter: Adapter, free: Sequence[_Usage]) -> None:
        by_load = sorted(free, key=lambda usage: usage.leases)
        for usage in by_load:
            loaded = usage.slots.get(adapter.digest)
            if loaded is not None and self._may_take(usage.slots, loaded, adapter):
                usage.slots.take(loaded)
                self._grant(waiter, usage, None)
                return
        if any(_is_coming(usage.slots.get(adapter.digest)) for usage in by_load):
            return
        for usage in by_load:
            if usage.slots.get(adapter.digest) is None and usage.slots.has_room():
                usage.slots.load(adapter)
                self.decisions.append(LoadAdapter(usage.number, adapter))
                return
        self._claim(adapter, by_load)

    def _may_take(self, slots: AdapterSlots, loaded: LoadedAdapter, adapter: Adapter) -> bool:
        if loaded.stage is Stage.RECORDING and adapter.canary is None:
            return loaded.leases == 0
        if not loaded.usable or loaded in self._claimed:
            return False
        return loaded.leases > 0 or slots.has_spare

    def _claim(self, adapter: Adapter, usages: Sequence[_Usage]) -> None:
        if adapter.digest in self._claiming:
            return
        self._claiming.add(adapter.digest)
        in_use = (loaded for usage in usages for loaded in usage.slots.in_use)
        unclaimed = [loaded for loaded in in_use if loaded not in self._claimed]
        if unclaimed:
            self._claimed.add(min(unclaimed, key=lambda loaded: loaded.in_use_since))


def _is_coming(loaded: LoadedAdapter | None) -> bool:
    """Whether the adapter is there, or about to be, but requests may not be given it yet."""
    return loaded is not None and not loaded.usable
