"""Which of a model's engines gets a request."""

from collections import OrderedDict
from collections.abc import Sequence

from engines.pool.replica import Replica

_KEPT_PREFIXES = 1024


class Router:
    """The replica with the fewest in flight, or, where it is free, the one that knows how a prompt begins."""

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        self._known: OrderedDict[int, int] = OrderedDict()  # replica numbers by prefix

    def choose(self, replicas: Sequence[Replica], prefix: int | None) -> Replica | None:
        """None when no replica may be used now."""
        free = [replica for replica in replicas if replica.grantable]
        if not free:
            return None
        chosen = min(free, key=lambda replica: len(replica.leases))
        if prefix is None or len(free) == 1:
            return chosen
        known = self._known.get(prefix)
        for replica in free:
            if replica.number == known and len(replica.leases) < self._max_running:
                chosen = replica
        self._known[prefix] = chosen.number
        self._known.move_to_end(prefix)
        if len(self._known) > _KEPT_PREFIXES:
            self._known.popitem(last=False)
        return chosen
