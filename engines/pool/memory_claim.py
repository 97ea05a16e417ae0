"""What an engine uses of the host's memory: estimated before it wakes, measured while it runs. In bytes."""

from engines.pool.memory_budget import MemoryBudget, Reservation
from engines.sizing import PROCESS_BYTES
from engines.spec import ModelSpec


class Footprint:
    """What the engines of one model will probably use."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._learned = 0

    def cold(self) -> int:
        """One that is started: as such ones did before, or estimated from the files and the KV cache."""
        return self._learned or self._spec.weights_bytes() + self._spec.kv_cache_bytes + PROCESS_BYTES

    def restored(self, measured: int) -> int:
        """One that is restored, which used so much before its KV cache was touched; 0: not known."""
        return measured + self._spec.kv_cache_bytes if measured else self.cold()

    def learn(self, used: int) -> None:
        """One that was started has needed so much."""
        self._learned = max(self._learned, used)


class Claim:
    """What one engine has of the budget, from before its wake to its end."""

    def __init__(self, budget: MemoryBudget, kv_cache_bytes: int) -> None:
        self.reservation: Reservation | None = None
        self.peak_bytes = 0
        self._budget = budget
        self._kv_cache_bytes = kv_cache_bytes
        self._expected = 0

    async def take(self, size: int) -> None:
        """Wait for so much, unless it has that already. Raises `InsufficientMemory`."""
        if self.reservation is None or self.reservation.size < size:
            self.release()
            self.reservation = await self._budget.reserve(size)
            self._expected = size

    def measured(self, used: int, *, awake: bool) -> None:
        """It uses so much. Awake it may yet fill its KV cache; paused it has given that back."""
        size = max(used, min(self._expected, used + self._kv_cache_bytes)) if awake else used
        self.peak_bytes = max(self.peak_bytes, size)
        if self.reservation is not None:
            self.reservation.adjust(size)

    def leaves(self) -> None:
        """Its owner is on its way out of memory."""
        if self.reservation is not None:
            self.reservation.leaving = True

    def stays(self) -> None:
        """Its owner was to leave, and is needed."""
        if self.reservation is not None:
            self.reservation.stay()

    def release(self) -> None:
        """Idempotent."""
        if self.reservation is not None:
            self.reservation.release()
            self.reservation = None
