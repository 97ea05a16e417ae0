"""Exchanges that the ledger counts: settled with what was really generated, whatever the ending.

`PlainExchange` answers as a whole, `StreamExchange` relays server-sent events. When the client disappears,
the engine is asked for the tokens that were generated until then.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec
from sse_starlette.event import ServerSentEvent
from starlette.types import Receive, Scope, Send

from coldstart.tiers import SleepTier
from engines.client.engine_client import EngineClient, EngineStream
from engines.errors import AdapterUnfit, EngineBroken
from gateway.http.context import RequestRecord
from gateway.http.errors import ApiError
from gateway.http.translation import translate
from gateway.inference.admission import Admitted
from gateway.inference.engine_errors import engine_error, refusal
from gateway.inference.estimates import Estimate, RelayedText
from gateway.inference.exchange import Exchange, Heartbeat, Plan, RelayContext
from gateway.inference.heartbeats import Heartbeats
from gateway.inference.plain_answer import PlainAnswer
from gateway.inference.reported_usage import NOTHING, ReportedUsage
from gateway.inference.service_tiers import with_tier
from gateway.inference.sse import DONE, EventTooLarge, StreamFilter
from gateway.inference.usage_extractor import UsageExtractor
from metering.ledger.service import Meter
from metering.types import Attempt, Operation, Outcome, Usage

_logger = logging.getLogger("torpor.exchange")

OPEN_AFTER_S = 0.5
"""A stream whose engine is being woken is opened after so long."""
COUNTS_TIMEOUT_S = 3.0
ABORTED_COUNTS_TIMEOUT_S = 60.0


class MeteredPlan(Plan, frozen=True, kw_only=True):
    """What the ledger records, and what of the answer the client requested.

    ``estimate`` counts tokens if no engine has. ``remote``: a server behind a ``url``.
    ``prioritized``: the engine is told the request's place in the model's queue; ``body`` is a JSON object
    with at least one field then.
    ``longest_wait_s``: in the queue and for engines, until one answers or the client gets an error.
    ``service_tier``: what the answer names as the tier that was used; None if the client asked for none.
    """

    attempt: Attempt
    estimate: Estimate
    longest_wait_s: float = 3600.0
    remote: bool = False
    prioritized: bool = False
    service_tier: str | None = None
    include_usage: bool = False
    continuous_usage: bool = False


@dataclass(frozen=True, slots=True)
class _Ending:
    """How an exchange ended, and the status in the log and in the ledger."""

    outcome: Outcome
    status: int


_NOTHING = Usage()
_COMPLETED = _Ending(Outcome.COMPLETED, 200)


class MeteredExchange(Exchange):
    """An exchange with an entry in the ledger."""

    _plan: MeteredPlan
    _patient = False
    """Nothing of the answer leaves before the settlement is durable."""

    def __init__(
        self, context: RelayContext, plan: MeteredPlan, record: RequestRecord, admitted: Admitted
    ) -> None:
        super().__init__(context, plan, record)
        self._admitted = admitted
        self._meter: Meter | None = None
        self._relayed = RelayedText()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._admitted.withdraw()  # where it never came to an entry in the ledger

    async def _attempt(self, send: Send) -> None:
        meter = self._meter = self._context.ledger.open(self._plan.attempt, patient=self._patient)
        ending = _Ending(Outcome.FAILED, 500)
        try:
            await self._ask(send, lambda client: self._work_at(client, meter, send))
            ending = _COMPLETED
        except BaseException as error:
            ending = self._ending(error)
            raise
        finally:
            self._close(meter, ending)

    async def _work_at(self, client: EngineClient, meter: Meter, send: Send) -> None:
        ending = _Ending(Outcome.FAILED, 500)
        try:
            await self._judged(client, self._exchange(client, meter, send))
            ending = _COMPLETED
        except BaseException as error:
            ending = self._ending(error)
            raise
        finally:
            if not self._unfit(sys.exception()):
                await self._settle(meter, client, ending)

    def _body(self) -> bytes:
        """What the engine is sent: with its own scheduler's share of the turn's order, where it is ours."""
        body = super()._body()
        if self._slot is None or not self._plan.prioritized:
            return body
        return b'%s,"priority":%d}' % (body[:-1], self._slot.priority)

    def _sequences_at_once(self) -> int | None:
        """How many of the request's sequences the engine may compute at a time; None for all of them."""
        request = self._plan.queue_request
        if self._slot is None or request is None or not self._plan.prioritized:
            return None
        return self._slot.slots if self._slot.slots < request.sequences else None

    def _ending(self, error: BaseException) -> "_Ending":
        if isinstance(error, asyncio.CancelledError):
            return _Ending(Outcome.INTERRUPTED, 503) if self._expired else _Ending(Outcome.ABORTED, 499)
        return _Ending(Outcome.FAILED, translate(error).status if isinstance(error, Exception) else 500)

    async def _exchange(self, client: EngineClient, meter: Meter, send: Send) -> None:
        raise NotImplementedError

    async def _settle(self, meter: Meter, client: EngineClient, ending: "_Ending") -> None:
        """Settles what the exchange itself did not: with what the engine says that it generated."""
        if meter.settled:
            return
        usage = meter.usage
        # The cost of an aborted request is not urgent, and a busy engine answers only between two steps.
        patience_s = ABORTED_COUNTS_TIMEOUT_S if ending.outcome is Outcome.ABORTED else COUNTS_TIMEOUT_S
        reports_exactly = not self._plan.remote
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
            reports_exactly = False
            _logger.info("no count from the engine; settled with what was relayed, or estimated")
        charged = ending.outcome is not Outcome.FAILED or self._relayed
        if not reports_exactly and charged and (self._plan.remote or usage == _NOTHING):
            usage = await self._usage_of(self._reported())
        await self._settle_with(meter, ending, usage)

    def _reported(self) -> ReportedUsage:
        """What the engine has reported so far."""
        return NOTHING

    async def _usage_of(self, reported: ReportedUsage) -> Usage:
        """What is settled: estimated where it was not reported, or cannot be true."""
        estimate = self._plan.estimate
        if estimate.is_plausible(reported, self._relayed):
            return reported.usage()
        return await asyncio.to_thread(estimate.judge, reported, self._relayed)

    def _refused(self, upstream: EngineStream, body: bytes) -> ApiError | AdapterUnfit:
        """The error for an answer that is not 200."""
        return refusal(upstream.status, body, upstream.headers, remote=self._plan.remote)

    async def _settle_with(self, meter: Meter, ending: "_Ending", usage: Usage) -> None:
        self._record.usage, self._record.outcome = usage, ending.outcome
        self._admitted.settle(usage, ending.outcome)
        if self._slot is not None:
            self._slot.end(usage)  # the engine has done its work: the next one need not wait for the ledger
        await meter.settle(ending.outcome, usage, self._record.timings(), ending.status)

    def _close(self, meter: Meter, ending: "_Ending") -> None:
        """Where no engine was reached, or the settling was cut short, the entry is queued as it stands."""
        if not meter.settled:
            self._record.outcome = ending.outcome
            if ending.outcome is Outcome.FAILED and meter.usage == Usage():
                self._admitted.withdraw()
            self._admitted.settle(meter.usage, ending.outcome)
            meter.finish(ending.outcome, self._record.timings(), ending.status)


class PlainExchange(MeteredExchange):
    """Answers with the engine's whole body."""

    _patient = True

    async def _exchange(self, client: EngineClient, meter: Meter, send: Send) -> None:
        plan, record = self._plan, self._record
        async with client.stream(
            plan.path, self._body(), attempt_id=plan.attempt.id, sequences=self._sequences_at_once()
        ) as upstream:
            record.ttft_ms = record.elapsed_ms()
            body = await upstream.read()
        if upstream.status != 200:
            raise self._refused(upstream, body)
        answer = PlainAnswer(body, generated=plan.attempt.operation is not Operation.EMBEDDING)
        if answer.error is not None:
            raise engine_error(answer.error, remote=plan.remote)
        usage = await self._usage_in(answer)
        await self._settle_with(meter, _COMPLETED, usage)
        await self._answer(with_tier(answer.body(usage), plan.service_tier), send)

    async def _usage_in(self, answer: PlainAnswer) -> Usage:
        reported = answer.reported
        if self._plan.remote or not reported.output_tokens:
            self._relayed.add_choices(answer.choices)
        return await self._usage_of(reported)


class StreamExchange(MeteredExchange):
    """Relays whole events as they come; only the last one waits, for the ledger."""

    def __init__(
        self, context: RelayContext, plan: MeteredPlan, record: RequestRecord, admitted: Admitted
    ) -> None:
        super().__init__(context, plan, record, admitted)
        self._choices = plan.queue_request.sequences if plan.queue_request is not None else 1
        extractor = UsageExtractor(
            self._relayed,
            include_usage=plan.include_usage,
            continuous=plan.continuous_usage,
            remote=plan.remote,
        )
        self._filter = StreamFilter(
            extractor, multiple_choices=plan.queue_request is None or self._choices > 1
        )
        self._heartbeats = Heartbeats(plan.longest_wait_s)
        self._began: float | None = None  # when it was found to wait, for a stream that did
        self._onward = b""  # what could not be pushed to the client, and is to be sent

    async def _exchange(self, client: EngineClient, meter: Meter, send: Send) -> None:
        plan = self._plan
        async with client.stream(
            plan.path, self._body(), attempt_id=plan.attempt.id, sequences=self._sequences_at_once()
        ) as upstream:
            if upstream.status != 200:
                raise self._refused(upstream, await upstream.read())
            await self._relay(upstream, meter, send)
        usage = await self._usage_of(self._reported())
        await self._settle_with(meter, _COMPLETED, usage)
        last = with_tier(self._filter.extractor.closing(usage, self._head()), plan.service_tier) + DONE
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _relay(self, upstream: EngineStream, meter: Meter, send: Send) -> None:
        extractor, flow = self._filter.extractor, self._flow(meter)
        going_on = True
        while going_on and not extractor.done:
            going_on = await upstream.pour(flow)
            if not going_on and not extractor.done:
                self._onward += self._filtered()
            await self._send_on(send)
            if extractor.error is not None:
                raise engine_error(extractor.error, remote=self._plan.remote)
        if extractor.done:
            upstream.over()
        elif not extractor.has_finished(self._choices):
            raise EngineBroken("the engine's stream ended before every choice was finished")
        await self._open(send)

    async def _send_on(self, send: Send) -> None:
        onward, self._onward = self._onward, b""
        if onward:
            await self._open(send)
            await send({"type": "http.response.body", "body": onward, "more_body": True})

    def _flow(self, meter: Meter) -> Callable[[bytes], bool]:
        """What takes each piece of the engine's stream; False when something is left for `_relay` to do."""
        extractor, record, admitted = self._filter.extractor, self._record, self._admitted
        push = self._link.push if self._link is not None else _never
        served, told_at = self._context.served.of(self._plan.model_id, record.tier), 0.0

        def flow(chunk: bytes) -> bool:
            nonlocal told_at
            onward = self._filtered(chunk)
            seen = extractor.seen
            meter.observe(seen)
            admitted.generated(seen.output_tokens)
            if onward:
                if not onward.startswith(b":"):  # comments alone keep the connection alive
                    now = time.perf_counter()
                    if told_at:
                        served.gaps.observe(now - told_at)
                    elif record.ttft_ms is None:
                        record.ttft_ms = (now - record.started) * 1000
                        served.first.observe(now - record.started)
                    told_at = now
                if not self.started or not push(onward):
                    self._onward = onward
                    return False
            return not extractor.done and extractor.error is None

        return flow

    def _filtered(self, chunk: bytes | None = None) -> bytes:
        """What goes on of a piece of the engine's stream; without one, of its end."""
        try:
            onward = self._filter.end() if chunk is None else self._filter.feed(chunk)
        except EventTooLarge:
            raise EngineBroken("the engine sent an event without an end") from None
        except msgspec.DecodeError:
            raise EngineBroken("the engine sent usage that is not JSON") from None
        return with_tier(onward, self._plan.service_tier)

    def _reported(self) -> ReportedUsage:
        return self._filter.extractor.reported()

    def _head(self) -> dict[str, Any]:
        """The fields of a chunk before its choices, for a stream that had none."""
        attempt = self._plan.attempt
        kind = "chat.completion.chunk" if attempt.operation is Operation.CHAT else "text_completion"
        return {"id": attempt.id, "object": kind, "created": int(attempt.started_at), "model": attempt.model}

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

    def _keep_alive(self, send: Send) -> Heartbeat:
        return _Heartbeat(lambda: self._heartbeat(send))

    async def _heartbeat(self, send: Send) -> None:
        """Open a stream that has waited, and keep it alive with comments (`inference.heartbeats`)."""
        if self._began is None:
            self._began = time.perf_counter() - OPEN_AFTER_S
        began = self._began
        self._record.tier = self._found_tier()
        if self._queued:
            self._record.queue_ms = (time.perf_counter() - began) * 1000
        await self._open(send)
        while True:
            waited = time.perf_counter() - began
            what = "queued" if self._queued else "waking"
            text = f"{what} {self._plan.model_id} {self._record.tier} {waited:.1f}s"
            comment = ServerSentEvent(comment=text, sep="\n").encode()
            await send({"type": "http.response.body", "body": comment, "more_body": True})
            pause_s = self._heartbeats.next_s(waited)
            if pause_s is None:
                return
            await asyncio.sleep(pause_s)

    def _found_tier(self) -> SleepTier:
        return next(
            (engine.tier for engine in self._context.host.status() if engine.id == self._plan.model_id),
            SleepTier.COLD,
        )


def _never(_: bytes) -> bool:
    """Pushes nothing: beyond ASGI nothing is known of the connection."""
    return False


class _Heartbeat(Heartbeat):
    """Begins ``beat`` after `OPEN_AFTER_S`, and ends it. Most requests have their engine long before."""

    def __init__(self, beat: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._beat = beat
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(OPEN_AFTER_S, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._beat())

    async def end(self) -> None:
        self._timer.cancel()
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
