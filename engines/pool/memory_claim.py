"""The memory of one engine, in bytes: estimated before it wakes, measured while it runs."""

from engines.pool.memory_budget import MemoryBudget, MemoryReservation
from engines.sizing import PROCESS_BYTES
from engines.spec import ModelSpec


class Footprint:
    """The expected memory of the engines of one model, in bytes."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._learned = 0

    def cold(self) -> int:
        """The need of an engine that starts cold: as earlier ones used, or estimated from the files."""
        return self._learned or self._spec.weights_bytes() + self._spec.kv_cache_bytes + PROCESS_BYTES

    def restored(self, measured: int) -> int:
        """The need of a restored engine. ``measured``: its use before its KV cache was filled, or 0."""
        return measured + self._spec.kv_cache_bytes if measured else self.cold()

    def learn(self, used: int) -> None:
        """Remember the peak of an engine that started cold."""
        self._learned = max(self._learned, used)


class MemoryClaim:
    """The part of the memory budget that one engine holds, from before its wake to its end."""

    def __init__(self, budget: MemoryBudget, kv_cache_bytes: int) -> None:
        self.reservation: MemoryReservation | None = None
        self.peak_bytes = 0
        self._budget = budget
        self._kv_cache_bytes = kv_cache_bytes
        self._expected = 0

    async def take(self, size: int) -> None:
        """Wait for the memory, unless the engine holds as much already. Raises `InsufficientMemory`."""
        if self.reservation is None or self.reservation.size < size:
            self.release()
            self.reservation = await self._budget.reserve(size)
            self._expected = size

    def measured(self, used: int, *, awake: bool) -> None:
        """Adjust the part to the measured use. An engine that is awake may still fill its KV cache."""
        size = max(used, min(self._expected, used + self._kv_cache_bytes)) if awake else used
        self.peak_bytes = max(self.peak_bytes, size)
        if self.reservation is not None:
            self.reservation.adjust(size)

    def leaves(self) -> None:
        """Note that the engine is leaving memory."""
        if self.reservation is not None:
            self.reservation.leaving = True

    def stays(self) -> None:
        """Note that the engine was to leave, and stays because it is needed."""
        if self.reservation is not None:
            self.reservation.stay()

    def release(self) -> None:
        """Give the memory back. May be called again."""
        if self.reservation is not None:
            self.reservation.release()
            self.reservation = None
