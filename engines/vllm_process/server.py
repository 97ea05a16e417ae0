"""vLLM's OpenAI server with a counter of tokens built in. Imported in the engine's API server process alone.

Two seams of vLLM are used: the class that receives every output of the engine core (`OutputProcessor`, where
a subclass counts), and the function that builds the application (which gets one more middleware). The
middleware names the attempt for all that its HTTP call starts, through a context variable: so the counter
needs to know nothing of the ids that vLLM derives (``chatcmpl-{id}``, ``cmpl-{id}-{prompt}``, random ends).
"""

import asyncio
import functools
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server import entry
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.utils import length_from_prompt_token_ids_or_embeds
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import async_llm, utils
from vllm.v1.engine.output_processor import OutputProcessor

from engines.vllm_process import control, forced_calls, forking, grammar_compiler, greedy, json_whitespace
from engines.vllm_process.canary_batch import CanaryTurn, depends_on
from engines.vllm_process.control import Control
from engines.vllm_process.token_counter import RequestCounter
from engines.wire import SEQUENCES_HEADER, UNFIT_ADAPTER, on_cpu

_HEADER = b"x-request-id"
_SEQUENCES = SEQUENCES_HEADER.encode()
_HEALTH = "/health"
_LONGEST_ID = 128
_LONGEST_NUMBER = 9
# The answer in the place of one whose adapter's canary differs.
_WITHHELD, _UNFIT_ADAPTER = 503, {"error": {"message": "the adapter is not fit", "code": UNFIT_ADAPTER}}
# vLLM asks for each token of each beam as a request of its own, which repeats the prompt.
_BEAMS = "-beam-"
_WATCH_S = 0.1
_LAST_WORDS_S = 0.5
_ENGINE_DEAD = 70

_attempt: ContextVar[str | None] = ContextVar("attempt", default=None)
_sequences: ContextVar[int | None] = ContextVar("sequences", default=None)
"""How many sequences of the HTTP call may be in the engine core at a time; None for all of them."""
_logger = logging.getLogger("vllm.torpor")


class CountingOutputProcessor(OutputProcessor):  # type: ignore[misc]
    """vLLM's own, reporting each sequence and each of its tokens to a counter."""

    def __init__(self, counter: RequestCounter, control: Control, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counter = counter
        self._control = control

    def add_request(
        self, request: Any, prompt: Any, parent_req: Any = None, request_index: int = 0, queue: Any = None
    ) -> None:
        if request.lora_request is not None and not self._control.attached(request.lora_request):
            raise ValueError("the adapter was unloaded")
        super().add_request(request, prompt, parent_req, request_index, queue)
        attempt_id = _attempt.get()
        if attempt_id is not None:
            self._counter.admit(
                attempt_id,
                request.request_id,
                _prompt_id(request, parent_req),
                length_from_prompt_token_ids_or_embeds(request.prompt_token_ids, request.prompt_embeds),
                greedy.copies_of(request.sampling_params),
            )

    def process_outputs(self, engine_core_outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        processed = super().process_outputs(engine_core_outputs, *args, **kwargs)
        stopped = frozenset(processed.reqs_to_abort)
        for output in engine_core_outputs:
            stats = output.prefill_stats
            self._counter.observe(
                output.request_id,
                # Counted after vLLM has cut off what was generated beyond a stop string.
                len(output.new_token_ids),
                None if stats is None else stats.num_cached_tokens,
                output.finish_reason is not None or output.request_id in stopped,
            )
        return processed

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        aborted: list[str] = super().abort_requests(request_ids, internal)
        self._counter.abort(aborted)
        return aborted


class TorporMiddleware:
    """Names the attempt of each HTTP call, and answers what is asked below ``/torpor/``."""

    def __init__(self, app: ASGIApp, counter: RequestCounter, control: Control) -> None:
        self._app = app
        self._counter = counter
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(control.PREFIX):
            await self._answer(Request(scope, receive), send)
            return
        if scope["path"] == _HEALTH:
            await self._app(scope, receive, send)
            return

        turns: list[CanaryTurn] = []
        held = _Held(self._control, turns, send)
        dependency = depends_on.set(turns)
        attempt_id = _attempt_id(scope)
        token = _attempt.set(attempt_id)
        width = _sequences.set(_sequences_at_once(scope))
        if attempt_id is not None:
            self._counter.begin(attempt_id)
        try:
            await self._app(scope, receive, held)
        except* _Withheld:
            _logger.warning("an answer was withheld: the canary of its adapter differs")
        finally:
            if attempt_id is not None:
                self._counter.end(attempt_id)
            _attempt.reset(token)
            _sequences.reset(width)
            depends_on.reset(dependency)
        if held.withheld:
            self._counter.withdraw(attempt_id or "")
            await JSONResponse(_UNFIT_ADAPTER, _WITHHELD)(scope, receive, send)

    async def _answer(self, request: Request, send: Send) -> None:
        body = await request.body()
        status, value = await self._control.answer(request.app, request.method, request.url.path, body)
        await JSONResponse(value, status)(request.scope, request.receive, send)


class _Withheld(Exception):
    """An answer that must not be sent: what makes it may stop."""


class _Held:
    """Sends nothing before the canaries that the answer depends on have passed, and nothing if one differs.

    The head of an answer is put aside until there is a body: a stream asks the engine only once its head has
    been taken, and is to be computed in one batch with the canary.
    """

    def __init__(self, control: Control, turns: list[CanaryTurn], send: Send) -> None:
        self._control = control
        self._turns = turns
        self._send = send
        self._head: Message | None = None
        self.withheld = False

    async def __call__(self, message: Message) -> None:
        if self.withheld:
            raise _Withheld
        if message["type"] == "http.response.start" and (self._turns or self._control.holds):
            self._head = message
            return
        await self._control.proven()
        while self._turns:
            if not await self._turns[-1].passed():
                self.withheld = True
                raise _Withheld
            self._turns.pop()
        if self._head is not None:
            head, self._head = self._head, None
            await self._send(head)
        await self._send(message)


def _prompt_id(request: Any, parent_req: Any) -> str:
    """Sequences of one prompt share it: choices, and every step of every beam of a beam search."""
    if parent_req is not None:
        return str(parent_req.request_id)
    return _BEAMS if _BEAMS in request.request_id else str(request.request_id)


def _attempt_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == _HEADER and 0 < len(value) <= _LONGEST_ID:
            return str(value, "latin-1")
    return None


def _sequences_at_once(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == _SEQUENCES and value.isdigit() and len(value) <= _LONGEST_NUMBER:
            return max(1, int(value))
    return None


async def _end_with(engine: Any) -> None:
    """End this process when the engine core has died. vLLM's own watch takes up to five seconds for it."""
    while not engine.errored:  # noqa: ASYNC110 (vLLM offers no event for it)
        await asyncio.sleep(_WATCH_S)
    await asyncio.sleep(_LAST_WORDS_S)  # the error events of running streams
    _logger.error("the engine core has died")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_ENGINE_DEAD)


def _aborting(add_request: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """``AsyncLLM._add_request``, with an abort if the request does not reach the engine core.

    vLLM aborts requests of several choices only. One of a single choice would be counted as running, and stay
    in memory, for ever.
    """

    @functools.wraps(add_request)
    async def adding(engine: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        try:
            await add_request(engine, request, *args, **kwargs)
        except BaseException:
            await engine.abort(request.request_id, internal=True)
            raise

    return adding


def _narrowed(
    send: Callable[..., Awaitable[None]], counter: RequestCounter
) -> Callable[..., Awaitable[None]]:
    """``add_request_async`` of the client of the engine core, for some sequences of a call at a time.

    vLLM hands all sequences of a call to the core at once, where they would keep others from running.
    """

    @functools.wraps(send)
    async def sending(core: Any, request: Any) -> None:
        attempt_id, most = _attempt.get(), _sequences.get()
        if attempt_id is not None and most is not None:
            await counter.enter(attempt_id, request.request_id, most)
        await send(core, request)

    return sending


def _counted(build_app: Callable[..., Any], counter: RequestCounter, control: Control) -> Callable[..., Any]:
    def build(*args: Any, **kwargs: Any) -> Any:
        app = build_app(*args, **kwargs)
        # vLLM has built the stack of middleware already: this one goes around all of it.
        stack = app.middleware_stack or app.build_middleware_stack()
        app.middleware_stack = TorporMiddleware(stack, counter, control)
        return app

    return build


def _watched(build_and_serve: Callable[..., Any], counter: RequestCounter) -> Callable[..., Any]:
    async def serve(engine_client: EngineClient, *args: Any, **kwargs: Any) -> Any:
        client: Any = engine_client
        core = type(client.engine_core)
        core.add_request_async = _narrowed(core.add_request_async, counter)
        watch = asyncio.create_task(_end_with(engine_client))
        shutdown = await build_and_serve(engine_client, *args, **kwargs)
        if engine_client.errored:  # vLLM has ended its server by itself, and would say that all is well
            await watch
        watch.cancel()
        return shutdown

    return serve


def parse(arguments: Sequence[str]) -> Namespace:
    """vLLM's own parsing and checking of its arguments."""
    parser = make_arg_parser(FlexibleArgumentParser(description="An engine of Torpor"))
    args: Namespace = parser.parse_args(list(arguments))
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    return args


def serve(arguments: Sequence[str]) -> None:
    """Run vLLM's server with these arguments until SIGTERM, under the standard event loop (no io_uring)."""
    cli_env_setup()
    args = parse(arguments)
    counter = RequestCounter()
    control = Control(counter)
    async_llm.OutputProcessor = functools.partial(CountingOutputProcessor, counter, control)
    async_llm.AsyncLLM._add_request = _aborting(async_llm.AsyncLLM._add_request)  # noqa: SLF001
    greedy.install()
    entry.build_app = _counted(entry.build_app, counter, control)
    entry.build_and_serve = _watched(entry.build_and_serve, counter)
    forced_calls.install()
    json_whitespace.install()
    grammar_compiler.install()
    if on_cpu():
        utils.get_mp_context = forking.context
    asyncio.run(entry.run_server(args))
