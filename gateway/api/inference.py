"""The inference endpoints: authenticate, read, resolve, check, and hand over to an exchange."""

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.routing import Route

from engines.spec import Task
from gateway.api.authentication import authenticate_project
from gateway.api.requests import read_body_as
from gateway.api.resolving import resolve_model
from gateway.http.context import RequestRecord, record_of
from gateway.http.errors import not_supported, shutting_down
from gateway.inference.admission import AdmissionDemand, admit
from gateway.inference.call_checks import check_call, without_nulls
from gateway.inference.calls import (
    ENGINE_FIELDS,
    OWN_FIELDS,
    Call,
    ChatCall,
    CompletionCall,
    DetokenizeCall,
    EmbeddingCall,
    Generation,
    TokenizeCall,
)
from gateway.inference.catalog import Model
from gateway.inference.estimates import Estimate
from gateway.inference.exchange import MOST_ENGINES, Exchange, Plan, UnmeteredExchange
from gateway.inference.local_tokens import LocalExchange, local_answer
from gateway.inference.metered import MeteredPlan, PlainExchange, StreamExchange
from gateway.inference.model_fit import check_fit, fitted
from gateway.inference.openai_fields import OPENAI_FIELDS
from gateway.inference.prompt_size import check_prompt_size
from gateway.inference.queues import QueueRequest
from gateway.inference.sequences import check_sequences, sequences_of
from gateway.inference.service_tiers import tier_of, used_tier
from gateway.inference.tools import check_tools
from gateway.services import Services, services_of
from metering.types import Attempt, Operation, new_attempt_id
from tenants.adapters.index import RegisteredAdapter
from tenants.scopes import MODEL_REQUEST
from tenants.types import ProjectPrincipal


class ParsedCall(msgspec.Struct, frozen=True):
    """A call that has been read and found good, but for the length of its prompt."""

    services: Services
    principal: ProjectPrincipal
    body: dict[str, Any]
    call: Call
    model: Model
    record: RequestRecord


async def _read(request: Request, kind: type[Call], task: Task | None = None) -> ParsedCall:
    """Who asks what of which model. Raises 503 while the gateway drains, and what the steps raise."""
    services = services_of(request)
    principal = await authenticate_project(request, scope=MODEL_REQUEST)
    if services.draining:
        raise shutting_down()
    body, call = await read_body_as(request, partial(_checked, kind))
    model = resolve_model(services, principal, call.model, task)
    check_fit(call, body, model)
    if model.spec.url is None:
        check_sequences(call, services.config.limits.max_sequences)
    if isinstance(call, ChatCall):
        check_tools(call, body, model)
    record = record_of(request.scope)
    record.model = model.id
    record.adapter = model.adapter_name
    return ParsedCall(services, principal, body, call, model, record)


def _checked(kind: type[Call], body: dict[str, Any]) -> tuple[dict[str, Any], Call]:
    present = without_nulls(body)
    return present, check_call(present, kind)


Endpoint = Callable[[Request], Awaitable[Exchange]]


def _metered(path: str, kind: type[Call], operation: Operation, task: Task) -> Endpoint:
    """The endpoint of a call that generates or embeds: the same path at the gateway and at the engine."""

    async def endpoint(request: Request) -> Exchange:
        parsed = await _read(request, kind, task)
        call = parsed.call
        plan = _plan(parsed, path, operation)
        demand = AdmissionDemand(
            principal=parsed.principal,
            model=parsed.model,
            call=call,
            body=parsed.body,
            body_bytes=len(plan.body),
            estimate=plan.estimate,
            record=parsed.record,
        )
        admitted = await admit(parsed.services.control, demand)
        relay = parsed.services.relay
        if isinstance(call, Generation) and call.stream:
            return StreamExchange(relay, plan, parsed.record, admitted)
        return PlainExchange(relay, plan, parsed.record, admitted)

    return endpoint


def _unmetered(path: str, kind: type[Call]) -> Endpoint:
    """The endpoint of a call that generates nothing: limited and queued like the others, but in no ledger."""

    async def endpoint(request: Request) -> Exchange:
        parsed = await _read(request, kind)
        if parsed.model.spec.url is not None:
            raise not_supported(f"{path} for a model that another server runs")
        body, model = _engine_body(parsed), parsed.model
        check_prompt_size(model, parsed.call, parsed.body, len(body))
        queue_request = _queue_request(parsed, len(body))
        plan = Plan(
            model_id=model.id,
            path=path,
            body=body,
            wake_timeout_s=_wake_timeout_s(parsed),
            pool=_pool(parsed),
            queue_request=queue_request,
        )
        admissions, tokens = parsed.services.control.admissions, queue_request.input_tokens
        parsed.record.standings = partial(
            admissions.standings, parsed.principal, model.id, model.adapter_name
        )
        admission = admissions.admit(parsed.principal, model.id, tokens, adapter=model.adapter_name)
        relay, compute = parsed.services.relay, local_answer(model, parsed.call)
        if compute is not None:
            return LocalExchange(relay, plan, parsed.record, admission, tokens, compute)
        return UnmeteredExchange(relay, plan, parsed.record, admission, tokens)

    return endpoint


def _plan(parsed: ParsedCall, path: str, operation: Operation) -> MeteredPlan:
    principal, call = parsed.principal, parsed.call
    options = call.stream_options if isinstance(call, Generation) else None
    body = _engine_body(parsed, parsed.model.adapter)
    adapter = parsed.model.adapter
    return MeteredPlan(
        model_id=parsed.model.id,
        path=path,
        body=body,
        pool=_pool(parsed),
        queue_request=_queue_request(parsed, len(body)),
        adapter=None if adapter is None else parsed.services.adapters.for_engine(adapter),
        prioritized=parsed.model.spec.url is None,
        attempt=Attempt(
            id=new_attempt_id(),
            request_id=parsed.record.request_id,
            organization_id=principal.organization_id,
            project_id=principal.project_id,
            api_key_id=principal.key_id,
            user_id=principal.user_id,
            model=parsed.model.id,
            adapter=parsed.model.adapter_name,
            operation=operation,
            started_at=parsed.record.started_at,
            service_tier=call.service_tier,
        ),
        wake_timeout_s=_wake_timeout_s(parsed),
        longest_wait_s=parsed.services.queues.timeout_s(parsed.model.id)
        + MOST_ENGINES * _wake_timeout_s(parsed),
        constraint=_constraint(call),
        prefix=_prefix(parsed),
        service_tier=None if parsed.model.spec.url else used_tier(call.service_tier),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        estimate=Estimate(parsed.model, call, parsed.body),
        remote=parsed.model.spec.url is not None,
    )


def _engine_body(parsed: ParsedCall, adapter: RegisteredAdapter | None = None) -> bytes:
    """What the engine is sent, without ``model`` where its own name for the adapter is still to be added.

    The salt keeps a project's prefix cache from being timed by another's.
    """
    call, remote = parsed.call, parsed.model.spec.url is not None
    fields = OPENAI_FIELDS - OWN_FIELDS if remote else ENGINE_FIELDS[type(call)]
    sent = {name: value for name, value in parsed.body.items() if name in fields}
    if not remote:
        sent = fitted(sent, parsed.model)
    sent.pop("model", None)
    if adapter is None:
        sent["model"] = parsed.model.id
    if isinstance(call, Generation) and call.stream:
        sent["stream_options"] = {"include_usage": True}
        if not remote:
            sent["stream_options"]["continuous_usage_stats"] = True
    if isinstance(call, Generation) and not remote:
        sent["cache_salt"] = parsed.principal.project_id
    return msgspec.json.encode(sent)


_PREFIX_BYTES = 1024


def _prefix(parsed: ParsedCall) -> int:
    """The same for conversations of one project that begin alike: an engine's prefix cache knows them."""
    body = parsed.body
    said = _beginning(body.get("messages") or body.get("prompt") or body.get("input"))
    return hash((parsed.principal.project_id, parsed.model.name, msgspec.json.encode(said)[:_PREFIX_BYTES]))


def _beginning(value: Any) -> Any:
    """The first kilobyte of texts, and the first two items of arrays: never the size of the body."""
    if isinstance(value, str):
        return value[:_PREFIX_BYTES]
    if isinstance(value, list):
        return [_beginning(item) for item in value[:2]]
    if isinstance(value, dict):
        return {name: _beginning(item) for name, item in islice(value.items(), 8)}
    return value


def _wake_timeout_s(parsed: ParsedCall) -> float:
    return parsed.model.spec.wake_timeout_s or parsed.services.config.limits.wake_timeout_s


def _constraint(call: Call) -> str | None:
    """The field that constrains the form of the answer by a grammar."""
    if not isinstance(call, Generation):
        return None
    if call.response_format is not None and call.response_format.type != "text":
        return "response_format"
    if call.structured_outputs is not None:
        return "structured_outputs"
    return "tools" if isinstance(call, ChatCall) and call.tools else None


def _pool(parsed: ParsedCall) -> str | None:
    return parsed.services.queues.pool(parsed.model.id, parsed.principal.project_id)


_BYTES_A_TOKEN = 4
_SLOT_TOKENS = 512
"""Tokens of input for each slot of the queue: a long prompt takes several, as it keeps the engine busy."""


def _queue_request(parsed: ParsedCall, body_bytes: int) -> QueueRequest:
    """What the request wants of the model, as far as that is known before."""
    call, project_id = parsed.call, parsed.principal.project_id
    most = call.answer_limit if isinstance(call, Generation) else 0
    input_tokens = -(-body_bytes // _BYTES_A_TOKEN)
    return QueueRequest(
        model_id=parsed.model.id,
        project_id=project_id,
        weight=parsed.services.weights.of(project_id),
        tier=tier_of(call.service_tier),
        input_tokens=input_tokens,
        sequences=sequences_of(call),
        slots=max(sequences_of(call), -(-input_tokens // _SLOT_TOKENS)),
        max_output=most,
    )


METERED: list[Route] = [
    Route(path, _metered(path, kind, operation, task), methods=["POST"])
    for path, kind, operation, task in (
        ("/v1/chat/completions", ChatCall, Operation.CHAT, Task.GENERATE),
        ("/v1/completions", CompletionCall, Operation.COMPLETION, Task.GENERATE),
        ("/v1/embeddings", EmbeddingCall, Operation.EMBEDDING, Task.EMBED),
    )
]
"""The routes that take the fast path (`gateway.http.fast_path`)."""
ROUTES: list[Route] = [
    *METERED,
    Route("/tokenize", _unmetered("/tokenize", TokenizeCall), methods=["POST"]),
    Route("/detokenize", _unmetered("/detokenize", DetokenizeCall), methods=["POST"]),
]
