"""One attempt of a request at an engine: lease, relay, settlement, whatever the ending.

`PlainExchange` answers as a whole, `StreamExchange` relays server-sent events. Both are ASGI responses that
own what must outlive the endpoint: the client's disappearance cancels the work, which closes the connection
to the engine (that is what aborts the generation there), asks for the tokens that were generated, and
settles the ledger's entry.
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from sse_starlette.event import ServerSentEvent
from starlette.types import Message, Receive, Scope, Send

from coldstart.tiers import SleepTier
from engines.client import EngineClient, EngineClients, EngineStream
from engines.errors import EngineBroken
from engines.host import EngineHost
from engines.status import EngineLease
from gateway.context import RequestRecord
from gateway.engine_errors import engine_error, refusal
from gateway.errors import JSON, shutting_down, translate
from gateway.sse import DONE, EventSplitter, EventTooLarge, StreamTap, usage_of
from metering.ledger import Ledger, Meter
from metering.types import Attempt, Outcome, Usage

_log = logging.getLogger("torpor.exchange")

OPEN_AFTER_S = 0.5
"""A stream whose engine is being woken is opened after so long."""
HEARTBEAT_S = 1.0
COUNTS_TIMEOUT_S = 3.0
# How many engines are asked where restored ones turn out not to be fit.
_MOST_ENGINES = 3
ABORTED_COUNTS_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be asked of which engine, and what of the answer the client wants to see.

    ``estimate`` counts tokens where no engine could say: it takes the text that was relayed, in bytes.
    """

    model_id: str
    path: str
    body: bytes
    attempt: Attempt
    wake_timeout_s: float
    prefix: int
    estimate: Callable[[int], Usage]
    include_usage: bool = False
    continuous_usage: bool = False


@dataclass(frozen=True, slots=True)
class Door:
    """What an exchange goes through: the host's engines, the clients to them and the ledger."""

    host: EngineHost
    clients: EngineClients
    ledger: Ledger
    running: "set[Exchange]"
    send_timeout_s: float


@dataclass(frozen=True, slots=True)
class _Ending:
    """How an exchange ended, and the status in the log and in the ledger."""

    outcome: Outcome
    status: int


_COMPLETED = _Ending(Outcome.COMPLETED, 200)


class _UnfitEngineError(Exception):
    """An engine that had just been restored broke off before it answered."""


class Exchange:
    """An ASGI response that works at an engine until it is over or its client is gone."""

    def __init__(self, door: Door, plan: Plan, record: RequestRecord) -> None:
        self._door = door
        self._plan = plan
        self._record = record
        self._work: asyncio.Task[None] | None = None
        self._meter: Meter | None = None
        self._expired = False
        self._relayed_bytes = 0
        self.started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._work = asyncio.create_task(self._serve(self._bounded(send)))
        gone = asyncio.create_task(_disconnected(receive))
        self._door.running.add(self)
        try:
            await asyncio.wait({self._work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not self._work.done():
                self._record.client_gone = True
                self._work.cancel()
            await asyncio.wait({self._work})
        finally:
            self._door.running.discard(self)
            self._work.cancel()
            gone.cancel()
            await asyncio.wait({self._work, gone})
        if not self._work.cancelled():
            self._work.result()

    def _bounded(self, send: Send) -> Send:
        """A client that takes nothing for too long counts as gone: it holds a lease and an engine's work."""

        async def bounded(message: Message) -> None:
            try:
                async with asyncio.timeout(self._door.send_timeout_s):
                    await send(message)
            except TimeoutError:
                self._record.client_gone = True
                raise asyncio.CancelledError from None

        return bounded

    def expire(self) -> None:
        """Ends the exchange because the gateway's time to drain is over."""
        self._expired = True
        if self._work is not None:
            self._work.cancel()

    async def _serve(self, send: Send) -> None:
        meter = self._meter = self._door.ledger.open(self._plan.attempt)
        ending = _Ending(Outcome.FAILED, 500)
        try:
            ending = await self._attempt(meter, send)
        except asyncio.CancelledError as error:
            ending = self._ending(error)
            if not self._expired:
                raise
            await self._fail(shutting_down(), send)
        except Exception as error:  # noqa: BLE001 - the outermost boundary of a stream that has begun
            ending = self._ending(error)
            await self._fail(error, send)
        finally:
            self._close(meter, ending)

    async def _attempt(self, meter: Meter, send: Send) -> "_Ending":
        """Ask an engine; another one where the first, just restored, turned out not to be fit.

        Such an engine has held its answer back, so nothing of it was seen, or is to be paid for.
        """
        for _ in range(_MOST_ENGINES - 1):
            try:
                return await self._ask(meter, send, last=False)
            except _UnfitEngineError:
                _log.warning("%s: a restored engine was not fit, asking another", self._plan.model_id)
        return await self._ask(meter, send, last=True)

    async def _ask(self, meter: Meter, send: Send, *, last: bool) -> "_Ending":
        ending = _Ending(Outcome.FAILED, 500)
        async with self._lease(send) as (lease, client):
            try:
                await self._exchange(client, meter, send)
                ending = _COMPLETED
            except EngineBroken as error:
                ending = self._ending(error)
                if lease.fresh and self._record.ttft_ms is None and not last:
                    raise _UnfitEngineError from error
                raise
            except BaseException as error:
                ending = self._ending(error)
                raise
            finally:
                if not isinstance(sys.exception(), _UnfitEngineError):
                    await self._settle(meter, client, ending)
        return ending

    def _ending(self, error: BaseException) -> "_Ending":
        if isinstance(error, asyncio.CancelledError):
            return _Ending(Outcome.INTERRUPTED, 503) if self._expired else _Ending(Outcome.ABORTED, 499)
        return _Ending(Outcome.FAILED, translate(error).status if isinstance(error, Exception) else 500)

    async def _exchange(self, client: EngineClient, meter: Meter, send: Send) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def _lease(self, send: Send) -> AsyncIterator[tuple[EngineLease, EngineClient]]:
        """An awake engine and the client to it; the heartbeat runs while it is being woken."""
        asked = time.perf_counter()
        acquiring = self._door.host.acquire(
            self._plan.model_id, timeout_s=self._plan.wake_timeout_s, prefix=self._plan.prefix
        )
        async with contextlib.AsyncExitStack() as stack:
            async with self._waiting(send):
                lease = await stack.enter_async_context(acquiring)
            waited_ms = (time.perf_counter() - asked) * 1000
            record = self._record
            record.tier = record.tier if self.started else lease.tier
            record.wake_ms = lease.wake_s * 1000
            record.queue_ms = max(0.0, waited_ms - record.wake_ms)
            try:
                yield lease, self._door.clients.get(lease.address)
            except Exception as error:
                if isinstance(error, _UnfitEngineError) or translate(error).code == "engine_failed":
                    self._door.host.report_broken(lease)
                raise

    @asynccontextmanager
    async def _waiting(self, send: Send) -> AsyncIterator[None]:
        """What goes on while the engine is awaited; nothing, unless there is a stream to keep alive."""
        yield

    async def _settle(self, meter: Meter, client: EngineClient, ending: "_Ending") -> None:
        """Settles what the exchange itself did not: with what the engine says that it generated."""
        if meter.settled:
            return
        usage = meter.usage
        # Nobody waits for what an aborted request has cost, and a busy engine answers between two steps only.
        patience_s = ABORTED_COUNTS_TIMEOUT_S if ending.outcome is Outcome.ABORTED else COUNTS_TIMEOUT_S
        told = client.address.url is None
        try:
            async with asyncio.timeout(patience_s):
                counts = await client.counts(self._plan.attempt.id)
            if counts is not None:
                usage = Usage(
                    input_tokens=counts.input_tokens,
                    cached_tokens=counts.cached_tokens,
                    output_tokens=counts.output_tokens,
                )
        except (EngineBroken, TimeoutError):
            told = False
            _log.info("no count from the engine; settled with what was relayed, or estimated")
        if not told and usage == Usage() and ending.outcome is not Outcome.FAILED:
            usage = self._plan.estimate(self._relayed_bytes)
        await self._settle_with(meter, ending, usage)

    async def _settle_with(self, meter: Meter, ending: "_Ending", usage: Usage) -> None:
        self._record.usage, self._record.outcome = usage, ending.outcome
        await meter.settle(ending.outcome, usage, self._record.timings(), ending.status)

    def _close(self, meter: Meter, ending: "_Ending") -> None:
        """Where no engine was reached, or the settling was cut short, the entry is queued as it stands."""
        if not meter.settled:
            self._record.outcome = ending.outcome
            meter.finish(ending.outcome, self._record.timings(), ending.status)

    async def _fail(self, error: Exception, send: Send) -> None:
        """Before the answer has begun the error is the answer; afterwards a stream ends with it."""
        if not self.started:
            raise error
        told = translate(error)
        if told.status == 500:
            _log.error("an exchange failed", exc_info=error)
        await send({"type": "http.response.body", "body": told.event(), "more_body": False})


class PlainExchange(Exchange):
    """Answers with the engine's whole body."""

    async def _exchange(self, client: EngineClient, meter: Meter, send: Send) -> None:
        plan, record = self._plan, self._record
        async with client.stream(plan.path, plan.body, attempt_id=plan.attempt.id) as upstream:
            record.ttft_ms = record.elapsed_ms()
            body = await upstream.read()
        if upstream.status != 200:
            raise refusal(upstream.status, body)
        await self._settle_with(meter, _COMPLETED, self._usage_in(body))
        headers = [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]
        await self._answer(headers, body, send)

    def _usage_in(self, body: bytes) -> Usage:
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineBroken("the engine's answer is no JSON") from None
        reported = answer.get("usage") if isinstance(answer, dict) else None
        if reported is None:
            return self._plan.estimate(len(body))
        return usage_of(reported)

    async def _answer(self, headers: list[tuple[bytes, bytes]], body: bytes, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.started = True
        await send({"type": "http.response.body", "body": body, "more_body": False})


class StreamExchange(Exchange):
    """Relays whole events as they come; only the last one waits, for the ledger."""

    def __init__(self, door: Door, plan: Plan, record: RequestRecord) -> None:
        super().__init__(door, plan, record)
        self._tap = StreamTap(include_usage=plan.include_usage, continuous=plan.continuous_usage)

    async def _exchange(self, client: EngineClient, meter: Meter, send: Send) -> None:
        plan = self._plan
        async with client.stream(plan.path, plan.body, attempt_id=plan.attempt.id) as upstream:
            if upstream.status != 200:
                raise refusal(upstream.status, await upstream.read())
            await self._relay(upstream, meter, send)
        await self._settle_with(meter, _COMPLETED, self._usage())
        await send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def _relay(self, upstream: EngineStream, meter: Meter, send: Send) -> None:
        tap, record, splitter = self._tap, self._record, EventSplitter()
        async with contextlib.aclosing(upstream.chunks()) as chunks:
            async for chunk in chunks:
                events = self._split(splitter, chunk)
                if not events:
                    continue
                onward = b"".join([tap.pass_on(event) for event in events])
                meter.observe(tap.seen)
                if onward:
                    if record.ttft_ms is None:
                        record.ttft_ms = record.elapsed_ms()
                    await self._open(send)
                    self._relayed_bytes += len(onward)
                    await send({"type": "http.response.body", "body": onward, "more_body": True})
                if tap.error is not None:
                    raise engine_error(tap.error)
                if tap.done:
                    await self._open(send)
                    return
        raise EngineBroken("the engine's stream ended without [DONE]")

    def _split(self, splitter: EventSplitter, chunk: bytes) -> list[bytes]:
        try:
            return splitter.feed(chunk)
        except EventTooLarge:
            raise EngineBroken("the engine sent an event without an end") from None

    def _usage(self) -> Usage:
        seen = self._tap.seen
        if seen == Usage():
            return self._plan.estimate(self._relayed_bytes)
        return seen

    async def _open(self, send: Send) -> None:
        if self.started:
            return
        if self._meter is not None:
            await self._meter.opened()
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.started = True

    @asynccontextmanager
    async def _waiting(self, send: Send) -> AsyncIterator[None]:
        heartbeat = asyncio.create_task(self._heartbeat(send))
        try:
            yield
        finally:
            heartbeat.cancel()
            await asyncio.wait({heartbeat})
        if not heartbeat.cancelled():
            heartbeat.result()

    async def _heartbeat(self, send: Send) -> None:
        """Opens the stream of a waking engine and keeps it alive with comments, at least one a second."""
        asked = time.perf_counter()
        await asyncio.sleep(OPEN_AFTER_S)
        self._record.tier = self._found_tier()
        await self._open(send)
        while True:
            waited = time.perf_counter() - asked
            text = f"waking {self._plan.model_id} {self._record.tier} {waited:.1f}s"
            comment = ServerSentEvent(comment=text, sep="\n").encode()
            await send({"type": "http.response.body", "body": comment, "more_body": True})
            await asyncio.sleep(HEARTBEAT_S)

    def _found_tier(self) -> SleepTier:
        return next(
            (engine.tier for engine in self._door.host.status() if engine.id == self._plan.model_id),
            SleepTier.COLD,
        )


async def _disconnected(receive: Receive) -> None:
    """Returns when the client is gone: the one way in which uvicorn tells."""
    message: MutableMapping[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = await receive()
