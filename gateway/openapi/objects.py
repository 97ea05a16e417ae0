"""The objects that the gateway answers with."""

from collections.abc import Mapping

from gateway.openapi.operations import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    TIME,
    Schema,
    array,
    choice,
    deleted,
    listing,
    named,
    nullable,
    record,
    ref,
)

_MAYBE_TIME = nullable(TIME)
_STRINGS = array(STRING)
_SIZE = nullable(INTEGER)

_ITEMS: Mapping[str, Schema] = {
    "Model": named("model", id=STRING, created=TIME, owned_by=STRING),
    "Organization": named(
        "organization",
        {"admin_api_key": ref("AdminKey"), "revoked_keys": INTEGER},
        id=STRING,
        slug=STRING,
        name=STRING,
        status=choice("active", "archived"),
        created_at=TIME,
        archived_at=_MAYBE_TIME,
    ),
    "Project": named(
        "organization.project",
        id=STRING,
        name=STRING,
        status=choice("active", "archived"),
        created_at=TIME,
        archived_at=_MAYBE_TIME,
    ),
    "ServiceAccount": named(
        "organization.project.service_account",
        {"api_key": nullable(ref("NewKey"))},
        id=STRING,
        name=STRING,
        role=STRING,
        created_at=TIME,
    ),
    "ProjectKey": named(
        "organization.project.api_key",
        id=STRING,
        name=STRING,
        redacted_value=STRING,
        created_at=TIME,
        expires_at=_MAYBE_TIME,
        last_used_at=_MAYBE_TIME,
        owner=ANYTHING,
        owner_project_access=choice("active", "inactive"),
        scopes=_STRINGS,
    ),
    "AdminKey": named(
        "organization.admin_api_key",
        {"value": STRING},
        id=STRING,
        name=STRING,
        redacted_value=STRING,
        created_at=TIME,
        expires_at=_MAYBE_TIME,
        last_used_at=_MAYBE_TIME,
        owner=ANYTHING,
    ),
    "User": named(
        "organization.user",
        id=STRING,
        email=nullable(STRING),
        name=nullable(STRING),
        role=STRING,
        added_at=TIME,
        is_service_account=BOOLEAN,
    ),
    "ProjectUser": named(
        "organization.project.user",
        id=STRING,
        email=nullable(STRING),
        name=nullable(STRING),
        role=STRING,
        added_at=TIME,
    ),
    "AuditLog": named(
        "organization.audit_log", id=STRING, type=STRING, effective_at=TIME, actor=nullable(ANYTHING)
    ),
    "RateLimit": named(
        "project.rate_limit",
        id=STRING,
        model=STRING,
        max_requests_per_1_minute=INTEGER,
        max_tokens_per_1_minute=INTEGER,
    ),
    "Limit": named(
        "torpor.limit",
        id=STRING,
        subject_type=STRING,
        subject_id=STRING,
        max_requests_per_1_minute=_SIZE,
        max_tokens_per_1_minute=_SIZE,
        max_requests_per_1_day=_SIZE,
        max_tokens_per_1_day=_SIZE,
        max_concurrent_requests=_SIZE,
        created_at=TIME,
    ),
    "SpendAlert": record(
        id=STRING,
        object=choice("organization.spend_alert", "project.spend_alert"),
        threshold_amount=INTEGER,
        currency={"const": "USD"},
        interval={"const": "month"},
        notification_channel=record({"secret": STRING}, type=choice("email", "webhook")),
    ),
}
_LISTS = {f"{name}List": listing(name) for name in _ITEMS if name != "Model"}

OBJECTS: Mapping[str, Schema] = {
    **_ITEMS,
    **_LISTS,
    "ModelList": named("list", data=array(ref("Model"))),
    "NewKey": named(
        "organization.project.service_account.api_key",
        id=STRING,
        name=STRING,
        value=STRING,
        created_at=TIME,
        expires_at=_MAYBE_TIME,
        scopes=_STRINGS,
    ),
    "RotatedKey": named(
        "torpor.key",
        id=STRING,
        name=STRING,
        value=STRING,
        scopes=_STRINGS,
        created_at=TIME,
        expires_at=_MAYBE_TIME,
        replaces=record(id=STRING, expires_at=_MAYBE_TIME),
    ),
    "ModelPermissions": named(
        "project.model_permissions", mode=choice("allow_list", "deny_list"), model_ids=_STRINGS
    ),
    "SpendLimit": record(
        object=choice("organization.spend_limit", "project.spend_limit"),
        threshold_amount=INTEGER,
        currency={"const": "USD"},
        interval={"const": "month"},
        enforcement=record(status=choice("inactive", "enforcing")),
    ),
    "Weight": named("torpor.project.weight", project_id=STRING, weight=NUMBER),
    "Token": named("torpor.token", value=STRING, expires_at=TIME),
    "Engine": named(
        "torpor.engine",
        {"failure": nullable(STRING)},
        id=STRING,
        state=STRING,
        tier=STRING,
        memory_bytes=INTEGER,
        in_flight=INTEGER,
        replicas=array(ANYTHING),
        wakes=array(ANYTHING),
    ),
    "EngineList": named("list", {"memory": ANYTHING}, data=array(ref("Engine"))),
    "SnapshotList": named("list", data=array(record(id=STRING, object=STRING))),
    "UsagePage": named("page", data=array(ANYTHING), has_more=BOOLEAN, next_page=nullable(STRING)),
    "Health": record(status=STRING),
    "Document": record(openapi=STRING, info=ANYTHING, paths=ANYTHING),
    "Completion": record(id=STRING, object=STRING, model=STRING, choices=array(ANYTHING)),
    "Embeddings": named("list", data=array(ANYTHING), model=STRING),
    "Tokens": record(tokens=array(INTEGER)),
    "Text": record(prompt=STRING),
    "Error": record(error=record(message=STRING, type=STRING, param=nullable(STRING), code=nullable(STRING))),
    **{
        f"Deleted{name}": deleted(kind)
        for name, kind in {
            "Model": "model",
            "ServiceAccount": "organization.project.service_account",
            "ProjectKey": "organization.project.api_key",
            "AdminKey": "organization.admin_api_key",
            "User": "organization.user",
            "ProjectUser": "organization.project.user",
            "ModelPermissions": "project.model_permissions",
            "Limit": "torpor.limit",
            "ProjectSpendLimit": "project.spend_limit",
            "OrganizationSpendLimit": "organization.spend_limit",
            "ProjectSpendAlert": "project.spend_alert",
            "OrganizationSpendAlert": "organization.spend_alert",
        }.items()
    },
}
"""By name, in the components of the document."""
