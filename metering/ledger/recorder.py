"""Makes writes durable in the local journal, in groups, and hands them on to the database.

A separate thread appends to the journal, so a slow disk does not stop the event loop. A caller that waits is
woken when the journal has its write; the database follows as soon as it can.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from metering.errors import InvalidEntry, MeteringError
from metering.ledger.durability import Durability, Lag
from metering.ledger.entries import Write, is_storable
from metering.ledger.journal import Group, Journal
from metering.ledger.writer import MAX_BATCH, MAX_QUEUED, RETRY_S, DatabaseWriter, Listener
from tenants.errors import StorageUnavailable

_logger = logging.getLogger("torpor.ledger")

GATHER_S = 0.002
"""Between two groups, while each is of many writes: a thread that runs in between slows the loop down."""
GIVE_S = 0.05
"""The database's thread is woken so seldom; it waits for a while anyway."""
PATIENCE_S = 0.1
"""So long may a write wait for the one that takes its place."""
_MANY = 4
_RESERVED = 0.9
"""Part of the journal beyond which no entry is opened; the rest is for settling open ones."""
_SPARSE = 0.1
_UNSTORABLE = (OverflowError, TypeError, ValueError)


class Recorder:
    """Takes writes, and makes them durable in groups. Create it on the event loop.

    It has many attributes because two threads and the event loop share the queue between them.
    """

    def __init__(self, journal: Journal, database: DatabaseWriter, max_queued: int = MAX_QUEUED) -> None:
        self._journal = journal
        self._database = database
        self._max_queued = max_queued
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[list[Write] | int | None] = queue.SimpleQueue()
        self._gathered: list[Write] = []
        self._put_by: dict[str, Write] = {}
        self._put_by_timer: asyncio.TimerHandle | None = None
        self._many = False
        self._handed_over_at = 0.0
        self._given: list[Group] = []
        self._thread: threading.Thread | None = None
        self._kept: list[Write] = []
        self._pending = 0
        self._broken = False
        self._put = 0
        self._recorded = 0
        self._applied = 0
        self._last = 0
        self._journal_lag = Lag()
        self._database_lag = Lag()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def start(self) -> None:
        """Begins to write; the journal has been emptied by `Journal.restart`."""
        self._database.start(Listener(self._has_applied, self._has_failed))
        self._thread = threading.Thread(target=self._run, name="ledger-journal", daemon=True)
        self._thread.start()

    @property
    def owner(self) -> str:
        """That of the journal."""
        return self._journal.owner

    @property
    def accepts(self) -> bool:
        """Whether entries should be opened: the journal works, and has room, and so has the queue."""
        room = self._journal.used_bytes < _RESERVED * self._journal.max_bytes
        return not self._broken and room and self._pending < self._max_queued

    @property
    def waiting(self) -> int:
        """The number of writes that callers wait for."""
        return self._pending

    @property
    def journal_lag_s(self) -> float:
        """How long the oldest write has waited that the journal does not have; 0 where it has them all."""
        return self._journal_lag.seconds(self._loop.time())

    @property
    def database_lag_s(self) -> float:
        """The same of what the journal has, and the database does not."""
        return self._database_lag.seconds(self._loop.time())

    @property
    def journal_bytes(self) -> int:
        """What of the journal is taken."""
        return self._journal.used_bytes

    def put(self, write: Write) -> None:
        """Queues a write. Never fails, never waits."""
        self._pending += len(write.tickets)
        self._queue_up(write)

    def defer(self, write: Write) -> None:
        """Keep a write back, for `PATIENCE_S` at most, for `undefer`; then it is queued."""
        self._pending += len(write.tickets)
        self._put_by[write.attempt.id] = write
        if self._put_by_timer is None:
            self._put_by_timer = self._loop.call_later(PATIENCE_S, self._queue_all)

    def undefer(self, attempt_id: str) -> Write | None:
        """What `defer` was given for this attempt, if it has not been queued; it is the caller's again."""
        write = self._put_by.pop(attempt_id, None)
        if write is not None:
            self._pending -= len(write.tickets)
        return write

    def _queue_all(self) -> None:
        """What was put by. The timer is not cancelled where all of it was taken back: it would cost more."""
        self._put_by_timer = None
        writes, self._put_by = self._put_by, {}
        for write in writes.values():
            self._queue_up(write)

    def _queue_up(self, write: Write) -> None:
        self._put += 1
        self._gathered.append(write)
        if len(self._gathered) == 1:
            self._gather()

    def _gather(self) -> None:
        """Until the end of this turn of the loop; a while longer where the groups come thick and fast."""
        rest_s = self._handed_over_at + GATHER_S - self._loop.time() if self._many else 0.0
        if rest_s > 0:
            self._loop.call_later(rest_s, self._hand_over)
        else:
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        if self._gathered:
            self._many = len(self._gathered) >= _MANY
            self._handed_over_at = self._loop.time()
            self._journal_lag.leads(self._put, self._handed_over_at)
            self._queue.put(self._gathered)
            self._gathered = []

    async def applied(self, patience_s: float) -> bool:
        """Return when the database has what was put until now; ``False`` where it is away, or late."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                target = self._put
                while self._recorded < target:
                    if not await self._told(-1):
                        return False
                number = self._last
                while self._applied < number:
                    self._give()
                    self._database.hurry(number)
                    if not await self._told(number):
                        return False
                return True
        return False

    async def close(self) -> None:
        """Write everything, and end. What the database does not take stays in the journal."""
        if self._put_by_timer is not None:
            self._put_by_timer.cancel()
        self._queue_all()
        if self._thread is not None:
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
            await asyncio.sleep(0)  # what the thread told the loop goes on to the database first
        self._give()
        remain = await self._database.close()
        if remain:
            _logger.warning("%d entries wait in the journal for the database", remain)
        self._journal.close(empty=remain == 0)

    async def _told(self, number: int) -> bool:
        """Wait for news of a group, or of any with -1; whether it is good."""
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = (number, future)
        self._waiting.append(waiting)
        try:
            await future
        except StorageUnavailable:
            return False
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
        return True

    def _run(self) -> None:
        more = True
        while more:
            writes, more = self._next()
            self._journal.applied(self._applied)
            for start in range(0, len(writes), MAX_BATCH):
                self._record(writes[start : start + MAX_BATCH])
        self._log_lost()

    def _next(self) -> tuple[list[Write], bool]:
        """What is queued, at least one write unless failed ones are due again; and whether to go on."""
        writes, self._kept = self._kept, []
        try:
            item = self._queue.get(timeout=RETRY_S if writes else None)
            while item is not None:
                if isinstance(item, list):
                    writes += item
                if len(writes) >= MAX_BATCH:
                    return writes, True
                item = self._queue.get_nowait()
        except queue.Empty:
            return writes, True
        return writes, False

    def _record(self, writes: list[Write]) -> None:
        owner = self._journal.owner
        rows = [write.row(owner) for write in writes]
        try:
            if not all(map(is_storable, rows)):
                raise OverflowError("a count is negative, or beyond 64 bits")
            number = self._journal.append(rows)
        except _UNSTORABLE as error:
            if len(writes) == 1:
                self._refuse(writes[0], error)
                return
            for write in writes:
                self._record([write])
        except StorageUnavailable as error:
            self._fail(writes, error)
        else:
            if self._broken:
                _logger.warning("the ledger's journal can be written again")
            self._broken = False
            self._tell(self._has_recorded, writes, Group(number, rows))

    def _log_lost(self) -> None:
        """Log the writes that could not be stored anywhere; accounting can then enter them by hand."""
        for write in self._kept:
            usage, attempt = write.usage, write.attempt
            fields = {
                "attempt": attempt.id,
                "organization": attempt.organization_id,
                "project": attempt.project_id,
                "model": attempt.model,
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
            }
            _logger.error("a ledger entry was not stored before the end", extra={"fields": fields})
        self._resolve(self._kept, StorageUnavailable("the ledger is closed"))

    def _refuse(self, write: Write, error: Exception) -> None:
        _logger.error("a ledger entry cannot be stored: %s: %s", write.attempt.id, error)
        invalid = InvalidEntry("the entry cannot be stored")
        self._resolve([write], invalid)

    def _fail(self, writes: list[Write], error: StorageUnavailable) -> None:
        """Settlements are kept and tried again: their tokens have been generated. Openings are refused."""
        if not self._broken:
            _logger.error("the ledger cannot be written: %s", error)
        self._kept += [write for write in writes if write.settlement is not None]
        self._broken = bool(self._kept)
        self._resolve(writes, error, gone=[write for write in writes if write.settlement is None])

    def _resolve(
        self,
        writes: Sequence[Write],
        error: MeteringError | StorageUnavailable,
        gone: Sequence[Write] | None = None,
    ) -> None:
        tickets = [ticket for write in writes for ticket in write.tickets]
        for write in writes:
            write.tickets = []
        self._tell(self._has_refused, tickets, error, len(writes if gone is None else gone))

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: no caller waits
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _give(self) -> None:
        """The database what it has not been given yet."""
        for group in self._given:
            self._database.put(group)
        self._given.clear()

    def _has_recorded(self, writes: list[Write], group: Group) -> None:
        self._given.append(group)
        if len(self._given) == 1:
            self._loop.call_later(GIVE_S, self._give)
        now = self._loop.time()
        self._recorded += len(writes)
        self._journal_lag.follows(self._recorded, now)
        self._last = group.number
        self._database_lag.leads(group.number, now)
        for write in writes:
            for ticket in write.tickets:
                self._pending -= 1
                ticket.resolve(None)
        self._wake(0)

    def _has_refused(
        self, tickets: list[Durability], error: MeteringError | StorageUnavailable, gone: int
    ) -> None:
        self._recorded += gone
        self._journal_lag.follows(self._recorded, self._loop.time())
        for ticket in tickets:
            self._pending -= 1
            ticket.resolve(error)
        self._wake(0)

    def _has_applied(self, number: int) -> None:
        self._applied = number
        self._database_lag.follows(number, self._loop.time())
        if self._journal.used_bytes > _SPARSE * self._journal.max_bytes:
            self._queue.put(number)  # the thread has room to make
        self._wake(number)

    def _has_failed(self) -> None:
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(StorageUnavailable("the database of the ledger is away"))

    def _wake(self, number: int) -> None:
        for awaited, future in self._waiting:
            if awaited <= number and not future.done():
                future.set_result(None)
