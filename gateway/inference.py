"""The inference endpoints: authenticate, read, resolve, check, and hand over to an exchange."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engines.spec import Task
from gateway.authentication import MODEL_REQUEST, authenticate
from gateway.bodies import (
    Call,
    ChatCall,
    CompletionCall,
    DetokenizeCall,
    EmbeddingCall,
    Generation,
    TokenizeCall,
    check_call,
    read_json,
)
from gateway.catalog import Model
from gateway.context import record_of
from gateway.engine_errors import refusal
from gateway.errors import JSON, invalid_request, not_supported, shutting_down
from gateway.exchange import Exchange, PlainExchange, Plan, StreamExchange
from gateway.openai_fields import OPENAI_FIELDS
from gateway.prompt_length import check_prompt_length
from gateway.services import Services, services_of
from metering.types import Attempt, Operation, Usage
from tenants.types import KeyKind, Principal

_OWN_FIELDS = (
    "cache_salt",
    "priority",
    "request_id",
    "session_id",
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
    "stream_options",
)
"""The gateway's own: a client's value never reaches an engine."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One inference call of the API, the same path at the gateway and at the engine."""

    path: str
    kind: type[Call]
    operation: Operation
    task: Task

    async def __call__(self, request: Request) -> Exchange:
        services = services_of(request)
        principal = await authenticate(request, KeyKind.PROJECT, scope=MODEL_REQUEST)
        if services.draining:
            raise shutting_down()
        config = services.config
        body = await read_json(request, config.limits, config.server.body_timeout_s)
        call = check_call(body, self.kind)
        model = services.catalog.resolve(principal, call.model, self.task)
        record = record_of(request.scope)
        record.model = model.id
        plan = self._plan(services, principal, model, call, body, request)
        await check_prompt_length(model, call, body, len(plan.body))
        streamed = isinstance(call, Generation) and bool(call.stream)
        return (StreamExchange if streamed else PlainExchange)(services.door(), plan, record)

    def _plan(
        self,
        services: Services,
        principal: Principal,
        model: Model,
        call: Call,
        body: dict[str, Any],
        request: Request,
    ) -> Plan:
        options = call.stream_options if isinstance(call, Generation) else None
        record = record_of(request.scope)
        return Plan(
            model_id=model.id,
            path=self.path,
            body=_engine_body(model, body, call, principal),
            attempt=Attempt(
                id="att_" + secrets.token_hex(16),
                request_id=record.request_id,
                organization_id=principal.organization_id or "",
                project_id=principal.project_id or "",
                api_key_id=principal.key_id,
                user_id=principal.user_id,
                model=model.id,
                operation=self.operation,
                started_at=record.started_at,
            ),
            wake_timeout_s=model.spec.wake_timeout_s or services.config.limits.wake_timeout_s,
            prefix=_prefix(principal, body),
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
            estimate=_estimator(body, call),
        )


def _engine_body(model: Model, body: dict[str, Any], call: Call, principal: Principal) -> bytes:
    """What the engine is sent. The salt keeps a project's prefix cache from being timed by another's."""
    remote = model.spec.url is not None
    sent = {
        name: value
        for name, value in body.items()
        if name not in _OWN_FIELDS and (not remote or name in OPENAI_FIELDS)
    }
    sent["model"] = model.id
    if isinstance(call, Generation) and call.stream:
        sent["stream_options"] = {"include_usage": True}
        if not remote:
            sent["stream_options"]["continuous_usage_stats"] = True
    if isinstance(call, Generation) and not remote:
        sent["cache_salt"] = principal.project_id
    try:
        return msgspec.json.encode(sent)
    except OverflowError:
        raise invalid_request("A number in the body is out of range.", code="invalid_json") from None


_PREFIX_BYTES = 1024


def _prefix(principal: Principal, body: dict[str, Any]) -> int:
    """The same for conversations of one project that begin alike: an engine's prefix cache knows them."""
    said = body.get("messages") or body.get("prompt") or body.get("input")
    beginning = said[:2] if isinstance(said, list) else said
    return hash((principal.project_id, msgspec.json.encode(beginning)[:_PREFIX_BYTES]))


_BYTES_A_TOKEN = 4


def _estimator(body: dict[str, Any], call: Call) -> Callable[[int], Usage]:
    """Counts tokens where nobody could say: four bytes of text a token, the entry marked estimated."""

    def estimate(relayed_bytes: int) -> Usage:
        sent = msgspec.json.encode(body.get("messages") or body.get("prompt") or body.get("input"))
        generates = isinstance(call, Generation)
        return Usage(
            input_tokens=-(-len(sent) // _BYTES_A_TOKEN),
            output_tokens=-(-relayed_bytes // _BYTES_A_TOKEN) if generates else 0,
            estimated=True,
        )

    return estimate


chat_completions = Endpoint("/v1/chat/completions", ChatCall, Operation.CHAT, Task.GENERATE)
completions = Endpoint("/v1/completions", CompletionCall, Operation.COMPLETION, Task.GENERATE)
embeddings = Endpoint("/v1/embeddings", EmbeddingCall, Operation.EMBEDDING, Task.EMBED)


_UNMETERED_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Unmetered:
    """A call that generates nothing: answered as a whole, and in no ledger."""

    path: str
    kind: type[Call]

    async def __call__(self, request: Request) -> Response:
        services = services_of(request)
        principal = await authenticate(request, KeyKind.PROJECT, scope=MODEL_REQUEST)
        config = services.config
        body = await read_json(request, config.limits, config.server.body_timeout_s)
        call = check_call(body, self.kind)
        model = services.catalog.resolve(principal, call.model)
        record_of(request.scope).model = model.id
        if model.spec.url is not None:
            raise not_supported(f"{self.path} for a model that another server runs")
        sent = _engine_body(model, body, call, principal)
        async with services.host.acquire(model.id, timeout_s=config.limits.wake_timeout_s) as lease:
            client = services.clients.get(lease.address)
            reply = await client.request("POST", self.path, sent, timeout_s=_UNMETERED_TIMEOUT_S)
        if reply.status != 200:
            raise refusal(reply.status, reply.body)
        return Response(reply.body, media_type=JSON)


tokenize = Unmetered("/tokenize", TokenizeCall)
detokenize = Unmetered("/detokenize", DetokenizeCall)
