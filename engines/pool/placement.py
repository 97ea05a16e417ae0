"""Which of a model's engines serves a request for an adapter, and which one loads it."""

from collections.abc import Sequence

from engines.adapter import Adapter
from engines.pool.adapter_slots import Resident, Stage
from engines.pool.replica import Replica


class Places:
    """One walk through those who wait, in the order of their coming.

    Who finds the adapter loaded joins those who use it. Who finds every slot in use claims one: the adapter
    that has been in use for the longest is given to nobody who came later, so that its last request ends and
    the slot comes free, however many ask for the adapters that have one.
    """

    def __init__(self) -> None:
        self._blocked: set[str] = set()
        self._claimed: set[Resident] = set()

    def find(self, adapter: Adapter, free: Sequence[Replica]) -> Replica | None:
        """The engine that may be given to the next one who waits, out of those that take requests.

        None where there is none now. The adapter's load is begun where there is room for it and nobody has
        begun it.
        """
        by_load = sorted(free, key=lambda replica: len(replica.leases))
        for replica in by_load:
            if self._ready(replica, adapter):
                return replica
        if any(self._coming(replica, adapter) for replica in by_load):
            return None
        for replica in by_load:
            slots = replica.adapters.slots
            if slots.get(adapter.digest) is None and slots.room():
                replica.adapters.load(adapter)
                return None
        self._claim(adapter, by_load)
        return None

    def _ready(self, replica: Replica, adapter: Adapter) -> bool:
        resident = replica.adapters.slots.get(adapter.digest)
        if resident is None:
            return False
        if resident.stage is Stage.RECORDING and adapter.canary is None:
            return resident.leases == 0
        if not resident.usable or resident in self._claimed:
            return False
        return resident.leases > 0 or replica.adapters.slots.spare

    @staticmethod
    def _coming(replica: Replica, adapter: Adapter) -> bool:
        resident = replica.adapters.slots.get(adapter.digest)
        return resident is not None and (not resident.usable)

    def _claim(self, adapter: Adapter, replicas: Sequence[Replica]) -> None:
        if adapter.digest in self._blocked:
            return
        self._blocked.add(adapter.digest)
        in_use = [one for replica in replicas for one in replica.adapters.slots.in_use]
        others = [one for one in in_use if one not in self._claimed]
        if others:
            self._claimed.add(min(others, key=lambda one: one.in_use_since))
