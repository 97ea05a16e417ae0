"""The bodies that the gateway takes."""

from collections.abc import Mapping
from typing import Any

from gateway.api.openapi.operations import (
    ANYTHING,
    BINARY,
    BOOLEAN,
    INTEGER,
    STRING,
    Schema,
    array,
    choice,
    closed,
    nullable,
    record,
    text,
    whole,
)
from gateway.api.rate_limits import MODEL_SIZES, SUBJECT_SIZES
from gateway.api.requests import MAX_NAME
from gateway.inference.call_checks import MAX_PROMPTS
from gateway.inference.calls import MAX_CHOICES, MAX_STOPS, ROLES
from tenants.limits.rate_limits import MOST, SubjectType
from tenants.limits.spend_limits import MAX_CENTS
from tenants.queueing.project_weights import LEAST_WEIGHT, MOST_WEIGHT
from tenants.scopes import SCOPES
from tenants.tokens.minting import MAX_LIFETIME_S, MAX_MODELS
from tenants.types import PermissionMode


def _between(least: int, most: int) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most}


_NAME = text(MAX_NAME)
_SCOPES = array(choice(*sorted(SCOPES)))
_LIFETIME = whole(1, 100 * 366 * 24 * 3600)
_NEW_KEY = {
    "expires_in_seconds": nullable(_LIFETIME),
    "expires_at": nullable(INTEGER),
    "scopes": nullable(_SCOPES),
}
_MESSAGE = record({"content": nullable({"anyOf": [STRING, array(ANYTHING)]})}, role=choice(*ROLES))
_TEXT = {"type": "string", "minLength": 1}
_TEXTS, _TOKENS = array(STRING, MAX_PROMPTS, 1), array(INTEGER, None, 1)
_PROMPT = {"anyOf": [STRING, _TEXTS, _TOKENS, array(_TOKENS, MAX_PROMPTS, 1)]}
_CALL = {
    "user": nullable(STRING),
    "service_tier": nullable(choice("auto", "default", "fast", "flex", "priority", "scale")),
}
_GENERATION = {
    **_CALL,
    "stream": nullable(BOOLEAN),
    "stream_options": nullable(record({"include_usage": BOOLEAN})),
    "n": nullable(whole(1, MAX_CHOICES)),
    "max_tokens": nullable({"type": "integer", "minimum": 1}),
    "temperature": nullable(_between(0, 2)),
    "top_p": nullable(_between(0, 1)),
    "frequency_penalty": nullable(_between(-2, 2)),
    "presence_penalty": nullable(_between(-2, 2)),
    "seed": nullable(whole(-(2**63), 2**63 - 1)),
    "stop": nullable({"anyOf": [_TEXT, array(_TEXT, MAX_STOPS)]}),
}


def _sizes(names: Mapping[str, str]) -> dict[str, Any]:
    return {name: nullable(whole(1, MOST)) for name in names}


_EMAIL = closed(
    {"subject_prefix": nullable(text(100))},
    type={"const": "email"},
    recipients=array({"type": "string", "format": "email"}, 50, 1),
)
_WEBHOOK = closed(type={"const": "webhook"}, url={"type": "string", "format": "uri"})

BODIES: Mapping[str, Schema] = {
    "ChatCall": record(
        {
            **_GENERATION,
            "max_completion_tokens": nullable({"type": "integer", "minimum": 1}),
            "tools": nullable(array(ANYTHING, 128, 1)),
            "tool_choice": nullable({"anyOf": [choice("none", "auto", "required"), ANYTHING]}),
            "parallel_tool_calls": nullable(BOOLEAN),
            "response_format": nullable(ANYTHING),
            "logprobs": nullable(BOOLEAN),
            "top_logprobs": nullable(INTEGER),
        },
        model=STRING,
        messages=array(_MESSAGE, None, 1),
    ),
    "CompletionCall": record(
        {
            **_GENERATION,
            "logprobs": nullable(INTEGER),
            "echo": nullable(BOOLEAN),
            "suffix": nullable(STRING),
            "best_of": nullable(INTEGER),
        },
        model=STRING,
        prompt=_PROMPT,
    ),
    "EmbeddingCall": record(
        {**_CALL, "encoding_format": nullable(choice("float", "base64")), "dimensions": nullable(INTEGER)},
        model=STRING,
        input=_PROMPT,
    ),
    "TokenizeCall": record({"prompt": STRING, "messages": array(_MESSAGE)}, model=STRING),
    "DetokenizeCall": record(model=STRING, tokens=array(INTEGER)),
    "NewOrganization": closed(
        {"name": nullable(_NAME)}, slug={"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}
    ),
    "NewAdapter": closed(
        {"visibility": choice("project", "user"), "config": BINARY},
        base_model=text(64),
        suffix={"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
        file=BINARY,
    ),
    "NewPermissions": closed(project_ids=array(text(256), 100, 1)),
    "Name": closed(name=_NAME),
    "NewAdminKey": closed({"expires_in_seconds": nullable(_LIFETIME)}, name=_NAME),
    "NewServiceAccount": closed({"create_service_account_only": nullable(BOOLEAN), **_NEW_KEY}, name=_NAME),
    "ServiceAccountChange": closed({"name": nullable(_NAME), "role": nullable(STRING)}),
    "NewProjectKey": closed({"name": nullable(_NAME), **_NEW_KEY}),
    "ProjectKeyChange": closed(_NEW_KEY),
    "Rotation": closed({"overlap_seconds": whole(0, 30 * 24 * 3600)}),
    "Permissions": closed(mode=choice(*PermissionMode), model_ids=array(text(256), 1000)),
    "UserChange": closed({"role": nullable(choice("owner", "reader"))}),
    "NewProjectUser": closed(
        {"user_id": nullable(text(256)), "email": nullable(text(256))},
        role=choice("owner", "member"),
    ),
    "ProjectUserChange": closed({"role": nullable(choice("owner", "member"))}),
    "RateLimitChange": closed(_sizes(MODEL_SIZES)),
    "LimitChange": closed(_sizes(SUBJECT_SIZES), subject_type=choice(*SubjectType), subject_id=text(256)),
    "SpendLimitChange": record(
        threshold_amount=whole(0, MAX_CENTS), currency={"const": "USD"}, interval={"const": "month"}
    ),
    "SpendAlertChange": closed(
        threshold_amount=whole(1, MAX_CENTS),
        currency={"const": "USD"},
        interval={"const": "month"},
        notification_channel={"anyOf": [_EMAIL, _WEBHOOK]},
    ),
    "WeightChange": record(weight={"type": "number", "minimum": LEAST_WEIGHT, "maximum": MOST_WEIGHT}),
    "Sleep": record(tier=choice("paused", "snapshot", "cold")),
    "NewToken": closed(
        {
            "user": nullable(text(256)),
            "scopes": nullable(array(choice(*sorted(SCOPES)), 16, 1)),
            "models": nullable(array(STRING, MAX_MODELS, 1)),
            "expires_in_seconds": nullable(whole(1, MAX_LIFETIME_S)),
        },
    ),
}
"""By name, in the components of the document."""
