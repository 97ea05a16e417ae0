"""One attempt of a request at an engine: lease, work, answer, whatever the ending.

An exchange is an ASGI response that owns what must outlive the endpoint: the client's disappearance cancels
the work, which closes the connection to the engine (that is what aborts it there). What is metered besides
is in `gateway.inference.metered`.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from engines.adapter import Adapter
from engines.client import probe
from engines.client.engine_client import EngineClient, EngineClients
from engines.errors import AdapterUnfit, EngineBroken
from engines.host import EngineHost
from gateway.http.connection import ClientConnection, connection_of
from gateway.http.context import RequestRecord
from gateway.http.errors import JSON, ApiError, request_failed, shutting_down
from gateway.http.translation import translate
from gateway.inference.engine_errors import EngineFault, refusal
from gateway.inference.queues import ModelQueues, QueueRequest, QueueSlot
from gateway.telemetry.request_metrics import RequestMetrics
from metering.ledger.service import Ledger
from tenants.limits.admission import Admission

_logger = logging.getLogger("torpor.exchange")

T = TypeVar("T")
_OF_THE_INPUT = re.compile(r"Token id \d+ is out of vocabulary|prompt cannot be empty")
"""vLLM does not name the field."""
_INPUTS = {"/v1/completions": "prompt", "/v1/embeddings": "input", "/detokenize": "tokens"}
# How many engines are asked where restored ones turn out not to be fit.
MOST_ENGINES = 3
_MOST_LOADS = 2


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to which engine, and how it queues there; without ``queue_request`` it does not queue."""

    model_id: str
    path: str
    body: bytes
    wake_timeout_s: float
    prefix: int | None = None
    pool: str | None = None
    queue_request: QueueRequest | None = None
    adapter: Adapter | None = None
    """If set, ``body`` omits ``model``; the adapter's engine-side name is inserted on sending."""
    constraint: str | None = None
    """The field that constrains the form of the answer, if any, by a grammar that may be impossible."""


@dataclass(frozen=True, slots=True)
class RelayContext:
    """What an exchange goes through: the models' queues, the host's engines, their clients, the ledger.

    ``served`` is told of a stream's tokens. A call outside the ledger may take ``unmetered_timeout_s``.
    """

    host: EngineHost
    clients: EngineClients
    ledger: Ledger
    queues: ModelQueues
    running: "set[Exchange]"
    send_timeout_s: float
    served: RequestMetrics = field(default_factory=RequestMetrics)
    unmetered_timeout_s: float = 30.0


class Heartbeat:
    """What is done while a request waits for its engine: nothing."""

    async def end(self) -> None:
        """Stop waiting. May be called again."""


class Exchange:
    """An ASGI response that an engine produces, until it is complete or the client has left.

    It has many attributes because it holds the state of one request at every stage: queued, leased,
    answering.
    """

    def __init__(self, context: RelayContext, plan: Plan, record: RequestRecord) -> None:
        self._context = context
        self._plan = plan
        self._record = record
        self._task: asyncio.Task[None] | None = None
        self._link: ClientConnection | None = None
        self._ended = False
        self._expired = False
        self._fresh = False  # the engine was restored and its canary has not answered yet
        self._engines_tried = 0
        self._served_name = plan.model_id
        self._slot: QueueSlot | None = None
        self._queued = plan.queue_request is not None  # it has not had its turn yet
        self._queue_ms = 0.0
        self.started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = self._task = asyncio.current_task()
        link = self._link = connection_of(scope)
        watcher = None
        if link is not None:
            link.on_gone = self._gone
            if link.gone:  # the client left during admission, before `on_gone` was set
                self._gone()
        else:
            watcher = asyncio.create_task(_tell_when_gone(receive, self._gone))
        self._context.running.add(self)
        try:
            await self._serve(self._bounded(send))
        except asyncio.CancelledError:
            if not self._ended or (task is not None and task.cancelling() and task.uncancel()):
                raise
        finally:
            self._context.running.discard(self)
            if link is not None:
                link.on_gone = None
            if watcher is not None:
                watcher.cancel()

    def _gone(self) -> None:
        """End the exchange because the client has left."""
        self._record.client_gone = True
        self._end()

    def expire(self) -> None:
        """End the exchange because the gateway's time to drain is over."""
        self._expired = True
        self._end()

    def _end(self) -> None:
        if self._task is not None and not self._ended:
            self._ended = True
            self._task.cancel()

    def _bounded(self, send: Send) -> Send:
        """A client that takes nothing for too long counts as gone: it holds a lease and an engine's work."""
        link = self._link

        async def bounded(message: Message) -> None:
            if link is not None and not link.congested:
                await send(message)
                return
            try:
                async with asyncio.timeout(self._context.send_timeout_s):
                    await send(message)
            except TimeoutError:
                self._record.client_gone = self._ended = True
                raise asyncio.CancelledError from None

        return bounded

    async def _serve(self, send: Send) -> None:
        try:
            await self._attempt(send)
        except asyncio.CancelledError:
            if not self._expired:
                raise
            if self._task is not None:
                self._task.uncancel()
            await self._fail(shutting_down(), send)
        except Exception as error:  # noqa: BLE001 - the outermost boundary of a stream that has begun
            await self._fail(error, send)

    async def _attempt(self, send: Send) -> None:
        """The work at the engine, with the lease that it takes, and the answer."""
        raise NotImplementedError

    async def _ask(self, send: Send, work: Callable[[EngineClient], Awaitable[T]]) -> T:
        """Do the work with an awake engine; with another where the first turned out not to be fit.

        The turn at the model, once it has come, lasts until all of it is over.
        """
        try:
            while True:
                self._engines_tried += 1
                try:
                    return await self._with_engine(send, work)
                except EngineBroken as error:
                    if not self._unfit(error):
                        raise
                _logger.warning("%s: an engine or an adapter was not fit, asking again", self._plan.model_id)
        finally:
            if self._slot is not None:
                self._slot.leave()

    def _body(self) -> bytes:
        """What the engine is sent."""
        if self._plan.adapter is None:
            return self._plan.body
        return b'{"model":%s,%s' % (msgspec.json.encode(self._served_name), self._plan.body[1:])

    def _unfit(self, error: BaseException | None) -> bool:
        """Whether a restored engine broke off before it answered, or the canary of an adapter failed.

        The answer was held back until the canary had passed, so the client saw and pays nothing. An adapter
        is loaded once more.
        """
        if isinstance(error, AdapterUnfit):
            return self._engines_tried < _MOST_LOADS
        answered = self._record.ttft_ms is not None
        return (
            isinstance(error, EngineBroken)
            and self._fresh
            and not answered
            and self._engines_tried < MOST_ENGINES
        )

    async def _with_engine(self, send: Send, work: Callable[[EngineClient], Awaitable[T]]) -> T:
        """Do the work with an awake engine. A stream is kept alive until there is one."""
        plan, record, host = self._plan, self._record, self._context.host
        waiting = self._keep_alive(send)
        try:
            await self._queue()
            began = time.perf_counter()
            async with host.acquire(
                plan.model_id, plan.adapter, timeout_s=plan.wake_timeout_s, prefix=plan.prefix, pool=plan.pool
            ) as lease:
                await waiting.end()
                waited_ms = (time.perf_counter() - began) * 1000
                record.tier = record.tier if self.started else lease.tier
                self._fresh = lease.unverified
                self._served_name = lease.served_model_name
                record.wake_ms = lease.wake_s * 1000
                record.queue_ms = self._queue_ms + max(0.0, waited_ms - record.wake_ms)
                try:
                    return await work(self._context.clients.get(lease.address))
                except Exception as error:
                    if translate(error).code == "engine_failed":
                        host.report_broken(lease)
                    raise
        finally:
            await waiting.end()

    async def _judged(self, client: EngineClient, work: Awaitable[T]) -> T:
        """Do the work; if the engine says that it failed, find out whether it or the request is at fault.

        Raises `gateway.http.errors.request_failed` for an engine of this host that proves to be well.
        """
        try:
            return await work
        except EngineFault as error:
            plan = self._plan
            embeds = plan.path == "/v1/embeddings"
            if client.address.url is None and await probe.is_well(client, plan.model_id, embeds=embeds):
                raise request_failed(plan.constraint) from error
            raise
        except ApiError as error:
            if error.status == 400 and error.param is None and "rammar" in error.message:
                raise replace(error, param=self._plan.constraint) from error
            if error.status == 400 and error.param is None and _OF_THE_INPUT.search(error.message):
                raise replace(error, param=_INPUTS.get(self._plan.path)) from error
            if error.param == "logprobs" and self._plan.path == "/v1/chat/completions":
                raise replace(error, param="top_logprobs") from error  # vLLM's name for their number
            raise

    async def _queue(self) -> None:
        """Wait for the turn, unless it has come already."""
        if not self._queued or self._plan.queue_request is None:
            return
        began = time.perf_counter()
        try:
            self._slot = await self._context.queues.enter(self._plan.queue_request)
        finally:
            self._record.queue_ms = self._queue_ms = (time.perf_counter() - began) * 1000
        self._queued = False

    def _keep_alive(self, send: Send) -> "Heartbeat":
        """What goes on while the engine is awaited; nothing, unless there is a stream to keep alive."""
        return Heartbeat()

    async def _fail(self, error: Exception, send: Send) -> None:
        """Before the answer has begun the error is the answer; afterwards a stream ends with it."""
        if not self.started:
            raise error
        api_error = translate(error)
        self._record.code = api_error.code
        if api_error.status == 500:
            _logger.error("an exchange failed", exc_info=error)
        await send({"type": "http.response.body", "body": api_error.event(), "more_body": False})

    async def _answer(self, body: bytes, send: Send) -> None:
        """The whole answer, as JSON."""
        headers = [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.started = True
        await send({"type": "http.response.body", "body": body, "more_body": False})


class UnmeteredExchange(Exchange):
    """Answers with the engine's whole body, and is in no ledger: nothing is generated.

    ``admission`` is settled with the tokens that it was charged with, or withdrawn if there is no answer.
    None: the call was charged nothing.
    """

    def __init__(
        self,
        context: RelayContext,
        plan: Plan,
        record: RequestRecord,
        admission: Admission | None = None,
        input_tokens: int = 0,
    ) -> None:
        super().__init__(context, plan, record)
        self._admission = admission
        self._input_tokens = input_tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._admission is not None and self.started:
                self._admission.settle(self._input_tokens, 0, 0)
            elif self._admission is not None:
                self._admission.withdraw()

    async def _attempt(self, send: Send) -> None:
        plan = self._plan

        async def work(client: EngineClient) -> bytes:
            timeout_s = self._context.unmetered_timeout_s
            reply = await client.request("POST", plan.path, self._body(), timeout_s=timeout_s)
            if self._slot is not None:
                self._slot.charge(self._input_tokens)
            if reply.status != 200:
                raise refusal(reply.status, reply.body, reply.headers)
            return reply.body

        await self._answer(await self._ask(send, lambda client: self._judged(client, work(client))), send)


async def _tell_when_gone(receive: Receive, tell: Callable[[], None]) -> None:
    """For a server that tells of a client that has gone in ASGI's way alone."""
    message: MutableMapping[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = await receive()
    tell()
