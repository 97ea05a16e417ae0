"""The bodies that the gateway takes."""

from collections.abc import Mapping

import msgspec

from gateway.api.admin_keys import KeyRotation, NewAdminKey
from gateway.api.checkpoint_permissions import NewPermissions
from gateway.api.engines import Sleep
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
from gateway.api.organizations import NewOrganization, OrganizationChange
from gateway.api.project_keys import NewProjectKey, NewServiceAccount, ProjectKeyChange, ServiceAccountChange
from gateway.api.project_weights import WeightChange
from gateway.api.projects import ModelPermissionsChange, NewProject, ProjectChange
from gateway.api.rate_limits import LimitChange, RateLimitChange
from gateway.api.spend_alerts import EmailChannel, SpendAlertChange, WebhookChannel
from gateway.api.spend_limits import SpendLimitChange
from gateway.api.tokens import NewToken
from gateway.api.users import NewProjectUser, ProjectUserChange, UserChange
from gateway.inference.call_checks import MAX_PROMPTS
from gateway.inference.calls import MAX_CHOICES, MAX_STOPS, ROLES


def _between(least: int, most: int) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most}


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


_WRITTEN: Mapping[str, Schema] = {
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
    "NewAdapter": closed(
        {"visibility": choice("project", "user"), "config": BINARY},
        base_model=text(64),
        suffix={"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
        file=BINARY,
    ),
}
"""The bodies of inference and of uploads, by name."""

_ADMINISTRATIVE = (
    EmailChannel, KeyRotation, LimitChange, ModelPermissionsChange, NewAdminKey, NewOrganization,
    NewPermissions, NewProject, NewProjectKey, NewProjectUser, NewServiceAccount, NewToken,
    OrganizationChange, ProjectChange, ProjectKeyChange, ProjectUserChange, RateLimitChange,
    ServiceAccountChange, Sleep, SpendAlertChange, SpendLimitChange, UserChange, WebhookChannel,
    WeightChange,
)  # fmt: skip


def bodies() -> dict[str, Schema]:
    """The schemas of all bodies by name; those of administrative bodies come from their structs."""
    _, components = msgspec.json.schema_components(
        _ADMINISTRATIVE, ref_template="#/components/schemas/{name}"
    )
    return {**_WRITTEN, **components}
