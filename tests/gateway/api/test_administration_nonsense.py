"""No nonsense that is sent to the administration is answered as a fault of the gateway's own."""

import random
import re
from collections.abc import Iterator

from gateway.api import admin_keys, audit_logs, organizations, project_keys, projects, users
from tests.gateway.app_fixture import Stage, Tenant

FIELDS = (
    "name", "slug", "role", "email", "user_id", "mode", "model_ids", "scopes", "expires_in_seconds",
    "expires_at", "overlap_seconds", "create_service_account_only", "geography", "", "\u202e", "x" * 300,
)  # fmt: skip
VALUES = (
    "null", "true", "0", "-1", "1.5", "1e400", str(10**30), str(2**63), '""', '" "', '"a"', '"owner"',
    '"a\\u0000b"', '"\\ud800"', '"' + "x" * 5000 + '"', "[]", "[1]", '["a"]', '[["a"]]', '["all"]', "{}",
    '{"a": 1}', '"allow_list"', '"\u202e"', '"a@b"', '"%00"', "60",
)  # fmt: skip
QUERIES = (
    "", "limit=1", "limit=-1", "limit=1e9", "limit=%EF%BC%95", "after=", "after=%00", "after=x",
    "before=%F0%9F", "order=desc", "order=", "include_archived=1", "owner_project_access=inactive",
    "emails[]=%00", "emails=a@b",
    "effective_at=1", "effective_at[gt]=", "effective_at[gte]=99999999999999999999", "event_types[]=%25",
    "project_ids=", "actor_ids[]=x&actor_ids=y", "resource_ids[]=%ED%A0%80", "tenant_only=true",
    "after=x&before=y", "&".join(["emails=a"] * 200),
)  # fmt: skip
STRANGE_IDS = ("x", "%00", "%20", "%E2%80%AE", "..", "a" * 300, "proj_%F0%9F", "'", "*", "org-1;--")
ROUNDS = 250


def _routes() -> list[tuple[str, str]]:
    modules = (organizations, projects, project_keys, admin_keys, users, audit_logs)
    supported = [route for module in modules for route in module.ROUTES]
    return [
        (method, item.path) for item in supported for method in sorted(item.methods or ()) if method != "HEAD"
    ]


def _path(template: str, tenant: Tenant, dice: random.Random) -> str:
    existing = {"project": tenant.project_id, "key": tenant.key_id, "organization": "other"}

    def value(match: re.Match[str]) -> str:
        real = existing.get(match[1])
        return real if real is not None and dice.random() < 0.7 else dice.choice(STRANGE_IDS)

    return re.sub(r"{(\w+)}", value, template)


def _bodies(dice: random.Random) -> Iterator[bytes]:
    while True:
        chosen = dice.sample(FIELDS, dice.randint(0, 4))
        inner = ", ".join(f'"{name}": {dice.choice(VALUES)}' for name in chosen)
        yield f"{{{inner}}}".encode()


async def test_no_fault_of_the_gateways_own(stage: Stage) -> None:
    dice = random.Random(7)
    _, root_key = await stage.services.tenants.keys.create_root()
    routes, bodies = _routes(), _bodies(dice)
    assert len(routes) > 35
    seen = set()
    async with stage.client(root_key) as root:
        for _ in range(ROUNDS):
            method, template = dice.choice(routes)
            path = f"{_path(template, stage.tenant, dice)}?{dice.choice(QUERIES)}"
            body = next(bodies) if method == "POST" else None
            client = root if "/v1/torpor/organizations" in template else stage.admin
            headers = {"content-type": "application/json"}
            answer = await client.request(method, path, content=body, headers=headers)
            reply = (method, path, body, answer.status_code, answer.text)
            assert answer.status_code in (200, 400, 403, 404, 405), reply
            if not answer.is_success:
                assert answer.json()["error"]["message"], reply
            seen.add(answer.status_code)
    assert {200, 400, 404} <= seen
