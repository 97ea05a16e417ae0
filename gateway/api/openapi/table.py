"""Every operation of the gateway."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.api.openapi.operations import (
    ADMIN,
    AFTER,
    BEFORE,
    BOOLEAN,
    INTEGER,
    LIMIT,
    ORDER,
    PAGING,
    PROJECT,
    ROOT,
    STRING,
    ApiOperation,
    array,
    choice,
    query,
)
from gateway.api.unsupported import NOT_YET, UNSUPPORTED

_ORGANIZATION = "/v1/organization"
_OF_PROJECT = f"{_ORGANIZATION}/projects/{{project}}"
_OWN = "/v1/torpor"
_ARCHIVED = query("include_archived", BOOLEAN)
_ADAPTERS = f"{_OWN}/adapters"
_SHARING = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"


def _strings(name: str) -> Mapping[str, Any]:
    return query(f"{name}[]", array(STRING, 100))


_AUDIT = (
    *(_strings(name) for name in ("event_types", "project_ids", "actor_ids", "actor_emails", "resource_ids")),
    *(query(f"effective_at[{bound}]", INTEGER) for bound in ("gt", "gte", "lt", "lte")),
    AFTER,
    BEFORE,
    LIMIT,
)


def _usage(*groupings: str) -> tuple[Mapping[str, Any], ...]:
    return (
        query("start_time", INTEGER, required=True),
        query("end_time", INTEGER),
        query("bucket_width", choice("1m", "1h", "1d")),
        query("limit", INTEGER),
        query("page", STRING),
        query("group_by[]", array(choice(*groupings))),
        *(_strings(name) for name in ("project_ids", "user_ids", "api_key_ids", "models")),
    )


_ALWAYS = ("project_id", "user_id", "api_key_id", "model")
_COSTS = (
    query("start_time", INTEGER, required=True),
    query("end_time", INTEGER),
    query("bucket_width", choice("1d")),
    query("limit", INTEGER),
    query("page", STRING),
    query("group_by[]", array(choice("project_id", "user_id", "api_key_id", "line_item"))),
    *(_strings(name) for name in ("project_ids", "user_ids", "api_key_ids", "line_items")),
)
_COMPLETIONS = (*_usage(*_ALWAYS, "batch", "service_tier"), query("batch", BOOLEAN))

Row = tuple[Any, ...]
"""Method, path, summary, body, answer and, where there are any, parameters of the query."""

_OPEN: Sequence[Row] = (
    ("GET", "/health", "The same as /health/ready", None, "Health"),
    ("GET", "/health/live", "Whether the process answers", None, "Health"),
    ("GET", "/health/ready", "Whether requests can be taken", None, "Health"),
    ("GET", "/openapi.json", "This document", None, "Document"),
)
_INFERENCE: Sequence[Row] = (
    ("GET", "/v1/models", "The models that the key may use", None, "ModelList"),
    ("GET", "/v1/models/{id}", "One model", None, "Model"),
    ("DELETE", "/v1/models/{id}", "Delete an adapter of one's own", None, "DeletedModel"),
    ("POST", "/v1/chat/completions", "Continue a conversation", "ChatCall", "Completion"),
    ("POST", "/v1/completions", "Continue a text", "CompletionCall", "Completion"),
    ("POST", "/v1/embeddings", "Turn texts into vectors", "EmbeddingCall", "Embeddings"),
    ("POST", "/tokenize", "Turn a text into tokens", "TokenizeCall", "Tokens"),
    ("POST", "/detokenize", "Turn tokens into a text", "DetokenizeCall", "Text"),
    ("POST", f"{_OWN}/tokens", "Mint a short-lived token", "NewToken", "Token"),
    ("POST", _ADAPTERS, "Upload an adapter", "NewAdapter", "Adapter"),
    ("GET", f"{_OWN}/usage", "The project's own usage", None, "UsagePage", _COMPLETIONS),
    ("GET", f"{_OWN}/usage/completions", "The same", None, "UsagePage", _COMPLETIONS),
    ("GET", f"{_OWN}/usage/embeddings", "The project's own embeddings", None, "UsagePage", _usage(*_ALWAYS)),
    ("GET", f"{_OWN}/costs", "The project's own costs", None, "UsagePage", _COSTS),
)
_HOST: Sequence[Row] = (
    ("POST", f"{_OWN}/organizations", "Create an organization", "NewOrganization", "Organization"),
    ("GET", f"{_OWN}/organizations", "List organizations", None, "OrganizationList", (*PAGING, _ARCHIVED)),
    ("GET", f"{_OWN}/organizations/{{organization}}", "One organization", None, "Organization"),
    (
        "POST",
        f"{_OWN}/organizations/{{organization}}",
        "Rename an organization",
        "OrganizationChange",
        "Organization",
    ),
    ("POST", f"{_OWN}/organizations/{{organization}}/archive", "Archive it", None, "Organization"),
    (
        "POST",
        f"{_OWN}/organizations/{{organization}}/admin_api_keys",
        "Give it a key",
        "NewAdminKey",
        "AdminKey",
    ),
    ("GET", f"{_OWN}/audit_logs", "Acts on the host itself", None, "AuditLogList", _AUDIT),
    ("POST", f"{_OWN}/engines/{{model}}/wake", "Wake an engine", None, "Engine"),
    ("POST", f"{_OWN}/engines/{{model}}/sleep", "Put an engine to sleep", "Sleep", "Engine"),
    ("POST", f"{_OWN}/engines/{{model}}/snapshot", "Make a snapshot", None, "Engine"),
    ("GET", f"{_OWN}/snapshots", "List snapshots", None, "SnapshotList"),
    ("POST", f"{_OWN}/snapshots/{{model}}", "Verify a model's snapshot", None, "SnapshotList"),
    ("DELETE", f"{_OWN}/snapshots/{{model}}", "Remove a model's snapshots", None, "SnapshotList"),
)
_BOTH: Sequence[Row] = (
    ("GET", f"{_OWN}/engines", "The state of every engine", None, "EngineList"),
    ("GET", f"{_OWN}/projects/{{project}}/weight", "A project's share", None, "Weight"),
    ("POST", f"{_OWN}/projects/{{project}}/weight", "Change a project's share", "WeightChange", "Weight"),
)
_PROJECTS: Sequence[Row] = (
    ("POST", f"{_ORGANIZATION}/projects", "Create a project", "NewProject", "Project"),
    ("GET", f"{_ORGANIZATION}/projects", "List projects", None, "ProjectList", (*PAGING, _ARCHIVED)),
    ("GET", _OF_PROJECT, "One project", None, "Project"),
    ("POST", _OF_PROJECT, "Rename a project", "ProjectChange", "Project"),
    ("POST", f"{_OF_PROJECT}/archive", "Archive a project", None, "Project"),
    ("GET", f"{_OF_PROJECT}/model_permissions", "Which models it may use", None, "ModelPermissions"),
    ("POST", f"{_OF_PROJECT}/model_permissions", "Change them", "ModelPermissionsChange", "ModelPermissions"),
    ("DELETE", f"{_OF_PROJECT}/model_permissions", "Allow all", None, "DeletedModelPermissions"),
    ("POST", f"{_OF_PROJECT}/service_accounts", "Add an account", "NewServiceAccount", "ServiceAccount"),
    ("GET", f"{_OF_PROJECT}/service_accounts", "List accounts", None, "ServiceAccountList", PAGING),
    ("GET", f"{_OF_PROJECT}/service_accounts/{{service_account}}", "One account", None, "ServiceAccount"),
    (
        "POST", f"{_OF_PROJECT}/service_accounts/{{service_account}}", "Change an account",
        "ServiceAccountChange", "ServiceAccount",
    ),
    (
        "DELETE", f"{_OF_PROJECT}/service_accounts/{{service_account}}", "Delete an account and its keys",
        None, "DeletedServiceAccount",
    ),
    (
        "POST", f"{_OF_PROJECT}/service_accounts/{{service_account}}/api_keys", "Create a further key",
        "NewProjectKey", "NewKey",
    ),
    (
        "GET", f"{_OF_PROJECT}/api_keys", "List keys", None, "ProjectKeyList",
        (*PAGING, query("owner_project_access", choice("any", "active", "inactive"))),
    ),
    ("GET", f"{_OF_PROJECT}/api_keys/{{key}}", "One key", None, "ProjectKey"),
    ("POST", f"{_OF_PROJECT}/api_keys/{{key}}", "Change a key", "ProjectKeyChange", "ProjectKey"),
    ("DELETE", f"{_OF_PROJECT}/api_keys/{{key}}", "Revoke a key", None, "DeletedProjectKey"),
    ("POST", f"{_OF_PROJECT}/users", "Add a user", "NewProjectUser", "ProjectUser"),
    ("GET", f"{_OF_PROJECT}/users", "List a project's users", None, "ProjectUserList", PAGING),
    ("GET", f"{_OF_PROJECT}/users/{{user}}", "One user of a project", None, "ProjectUser"),
    ("POST", f"{_OF_PROJECT}/users/{{user}}", "Change a user's role", "ProjectUserChange", "ProjectUser"),
    ("DELETE", f"{_OF_PROJECT}/users/{{user}}", "Remove from the project", None, "DeletedProjectUser"),
)  # fmt: skip
_ADMINISTRATION: Sequence[Row] = (
    ("POST", f"{_ORGANIZATION}/admin_api_keys", "Create an admin key", "NewAdminKey", "AdminKey"),
    ("GET", f"{_ORGANIZATION}/admin_api_keys", "List admin keys", None, "AdminKeyList", (*PAGING, ORDER)),
    ("GET", f"{_ORGANIZATION}/admin_api_keys/{{key}}", "One admin key", None, "AdminKey"),
    ("DELETE", f"{_ORGANIZATION}/admin_api_keys/{{key}}", "Revoke an admin key", None, "DeletedAdminKey"),
    ("POST", f"{_OWN}/keys/{{key}}/rotate", "Replace a key", "KeyRotation", "RotatedKey"),
    ("GET", f"{_ORGANIZATION}/users", "List users", None, "UserList", (*PAGING, _strings("emails"))),
    ("GET", f"{_ORGANIZATION}/users/{{user}}", "One user", None, "User"),
    ("POST", f"{_ORGANIZATION}/users/{{user}}", "Change a user's role", "UserChange", "User"),
    ("DELETE", f"{_ORGANIZATION}/users/{{user}}", "Remove a user", None, "DeletedUser"),
    ("GET", f"{_ORGANIZATION}/audit_logs", "Who has done what", None, "AuditLogList", _AUDIT),
    ("GET", f"{_ORGANIZATION}/usage/completions", "Usage of completions", None, "UsagePage", _COMPLETIONS),
    ("GET", f"{_ORGANIZATION}/usage/embeddings", "Usage of embeddings", None, "UsagePage", _usage(*_ALWAYS)),
    ("GET", f"{_ORGANIZATION}/costs", "Costs by day", None, "UsagePage", _COSTS),
)
_OF_BOTH: Sequence[Row] = (
    ("GET", _ADAPTERS, "List adapters", None, "AdapterList", PAGING),
    ("GET", f"{_ADAPTERS}/{{adapter}}", "One adapter", None, "Adapter"),
    ("DELETE", f"{_ADAPTERS}/{{adapter}}", "Delete an adapter", None, "DeletedAdapter"),
)
_PERMISSIONS: Sequence[Row] = (
    ("POST", _SHARING, "Share an adapter with projects", "NewPermissions", "PermissionList"),
    (
        "GET", _SHARING, "With whom it is shared", None, "PermissionList",
        (*PAGING, query("order", choice("ascending", "descending")), query("project_id", STRING)),
    ),
    ("DELETE", f"{_SHARING}/{{permission}}", "Share it no more", None, "DeletedPermission"),
)  # fmt: skip
_LIMITS: Sequence[Row] = (
    (
        "GET", f"{_OF_PROJECT}/rate_limits", "A project's limits by model", None, "RateLimitList",
        (AFTER, BEFORE, LIMIT),
    ),
    ("POST", f"{_OF_PROJECT}/rate_limits/{{limit}}", "Change them", "RateLimitChange", "RateLimit"),
    ("GET", f"{_OWN}/limits", "List limits of projects, keys and users", None, "LimitList", PAGING),
    ("POST", f"{_OWN}/limits", "Set limits", "LimitChange", "Limit"),
    ("GET", f"{_OWN}/limits/{{limit}}", "One subject's limits", None, "Limit"),
    ("DELETE", f"{_OWN}/limits/{{limit}}", "Take them away", None, "DeletedLimit"),
)  # fmt: skip


def _spend() -> Iterator[Row]:
    for path, whose in ((_ORGANIZATION, "Organization"), (_OF_PROJECT, "Project")):
        limit, alerts = f"{path}/spend_limit", f"{path}/spend_alerts"
        pages = (AFTER, BEFORE, LIMIT, ORDER)
        yield "GET", limit, "The monthly spend limit", None, "SpendLimit"
        yield "POST", limit, "Change it", "SpendLimitChange", "SpendLimit"
        yield "DELETE", limit, "Take it away", None, f"Deleted{whose}SpendLimit"
        yield "GET", alerts, "List spend alerts", None, "SpendAlertList", pages
        yield "POST", alerts, "Create a spend alert", "SpendAlertChange", "SpendAlert"
        yield "GET", f"{alerts}/{{alert}}", "One spend alert", None, "SpendAlert"
        yield "POST", f"{alerts}/{{alert}}", "Change it", "SpendAlertChange", "SpendAlert"
        yield "DELETE", f"{alerts}/{{alert}}", "Delete it", None, f"Deleted{whose}SpendAlert"


_STREAMS = ("/v1/chat/completions", "/v1/completions")
_FORMS = ("NewAdapter",)
_MAY_LACK = ("/spend_alerts", "/engines", "/snapshots", "/tokenize", "/detokenize", "/v1/embeddings")
"""Parts of paths of what not every installation has: a mail server, snapshots, an engine that can do it."""


def operations() -> list[ApiOperation]:
    """All of them, in the order of the document."""
    groups: Sequence[tuple[str, Sequence[str], Sequence[Row]]] = (
        ("health", (), _OPEN),
        ("inference", (PROJECT,), _INFERENCE),
        ("adapters", (PROJECT, ADMIN), _OF_BOTH),
        ("adapters", (ADMIN,), _PERMISSIONS),
        ("host", (ROOT,), _HOST),
        ("host", (ROOT, ADMIN), _BOTH),
        ("projects", (ADMIN,), _PROJECTS),
        ("administration", (ADMIN,), _ADMINISTRATION),
        ("limits", (ADMIN,), [*_LIMITS, *_spend()]),
    )
    operations = [_operation(tag, keys, *row) for tag, keys, rows in groups for row in rows]
    return [*operations, *_unsupported()]


def _operation(
    tag: str,
    keys: Sequence[str],
    method: str,
    path: str,
    summary: str,
    body: str | None,
    answer: str | None,
    parameters: Sequence[Mapping[str, Any]] = (),
) -> ApiOperation:
    return ApiOperation(
        method=method,
        path=path,
        summary=summary,
        tag=tag,
        keys=keys,
        body=body,
        answer=answer,
        query=parameters,
        body_type="multipart/form-data" if body in _FORMS else "application/json",
        streams=path in _STREAMS,
        unsupported=any(part in path for part in _MAY_LACK),
    )


def _unsupported() -> Iterator[ApiOperation]:
    """The parts of OpenAI's interface that the gateway does not have."""
    not_yet = [(f"/v1/{name}", PROJECT, "Not supported yet") for name in NOT_YET]
    never = [(path, ADMIN, f"Not supported: {why}") for path, why in UNSUPPORTED.items()]
    for path, key, summary in [*not_yet, *never]:
        for rest in ("", "/{rest}"):
            for method in ("GET", "POST", "DELETE"):
                yield ApiOperation(
                    method=method,
                    path=path + rest,
                    summary=summary,
                    tag="not supported",
                    keys=(key,),
                    answer=None,
                    unsupported=True,
                )
