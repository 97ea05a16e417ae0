"""Every route of the document, asked with what it takes and with what it does not: never a 5xx.

The gateway is a real one in front of the stand-in engine. What is asked is the same in every run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode

from gateway.openapi.document import openapi_document
from tests.process import Gateway, running_gateway

EXAMPLES = 12
"""Of each kind for each operation."""
BODY: dict[str, Any] = {"threshold_amount": 100, "currency": "USD", "interval": "month"}
HOOK = {"type": "webhook", "url": "https://hooks.example.com/spend"}


@dataclass
class Target:
    """The gateway, what exists in it, and the answers that were wrong."""

    gateway: Gateway
    known: dict[str, list[str]]
    session: requests.Session
    statuses: dict[str, set[int]] = field(default_factory=dict)

    def ask(self, case: Case) -> requests.Response:
        """With the key that opens the operation."""
        keys = {
            "root_key": self.gateway.root_key,
            "admin_key": self.gateway.admin_key,
            "project_key": self.gateway.api_key,
        }
        kinds = [kind for entry in case.operation.definition.raw["security"] for kind in entry]
        headers = {"authorization": f"Bearer {keys[kinds[0]]}"} if kinds else {}
        sent = case.as_transport_kwargs(base_url=self.gateway.origin, headers=headers)
        return self.session.request(**sent, allow_redirects=False, timeout=30)


def _made(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.is_success, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _populated(gateway: Gateway) -> dict[str, list[str]]:
    """Ids of things that are there, by the parameter of a path. None of the keys that are used is."""
    organization = "/v1/organization"
    with gateway.http(gateway.admin_key) as admin, gateway.http(gateway.root_key) as root:
        project = _made(admin, f"{organization}/projects", name="fuzzed")["id"]
        of_project = f"{organization}/projects/{project}"
        account = _made(admin, f"{of_project}/service_accounts", name="robot")
        user = _made(admin, f"{of_project}/users", user_id="alice", role="member")
        limit = _made(
            admin, "/v1/torpor/limits", subject_type="user", subject_id="bob", max_requests_per_1_minute=9
        )
        alerts = [
            _made(admin, f"{path}/spend_alerts", **BODY, notification_channel=HOOK)["id"]
            for path in (organization, of_project)
        ]
        other = _made(root, "/v1/torpor/organizations", slug="other")["id"]
        admin_key = _made(admin, f"{organization}/admin_api_keys", name="spare")["id"]
    return {
        "project": [project],
        "service_account": [account["id"]],
        "key": [account["api_key"]["id"], admin_key],
        "user": [user["id"]],
        "limit": [limit["id"], "rl-far"],
        "alert": alerts,
        "organization": [other, "other"],
        "model": ["far"],
        "id": ["far"],
        "rest": ["a", "a/b"],
    }


@pytest.fixture(scope="module")
def target(standin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A gateway of its own, since all that is in it may be changed."""
    models = f'[[models]]\nid = "far"\nurl = "{standin}/v1"\n'
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    with running_gateway(folder, models) as gateway, requests.Session() as session:
        session.trust_env = False
        yield Target(gateway, _populated(gateway), session)


_SCHEMA = schemathesis.openapi.from_dict(openapi_document())
_OPERATIONS = {result.ok().label: result.ok() for result in _SCHEMA.get_all_operations()}
_LAST = ("DELETE", "archive", "rotate")
"""What takes things away comes after what needs them."""


def _ending(label: str) -> bool:
    return any(word in label for word in _LAST)


def _strategy(label: str, known: Mapping[str, list[str]]) -> st.SearchStrategy[Case]:
    """What the operation takes and what it does not, three of four times of things that are there."""
    operation = _OPERATIONS[label]
    names = [parameter.name for parameter in operation.path_parameters]
    there = st.fixed_dictionaries({name: st.sampled_from(known[name]) for name in names})
    elsewhere = st.fixed_dictionaries({name: st.text(min_size=1) for name in names})
    kinds = [operation.as_strategy(generation_mode=GenerationMode.POSITIVE)]
    if operation.body or operation.query:
        kinds.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    def placed(case: Case, place: dict[str, str]) -> Case:
        case.path_parameters = place or case.path_parameters
        return case

    return st.builds(placed, st.one_of(kinds), st.one_of(there, there, there, elsewhere))


def _check(case: Case, answer: requests.Response) -> None:
    operation = case.operation.definition.raw
    status = answer.status_code
    declared = "501" in operation["responses"]
    assert status < 500 or (status == 501 and declared), answer.text
    if status < 400:
        assert status == 200
        if answer.headers["content-type"].startswith("text/event-stream"):
            return
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    else:
        schema = {"$ref": "#/components/schemas/Error"}
    components = {"components": openapi_document()["components"]}
    Draft202012Validator({**schema, **components}).validate(answer.json())


@pytest.mark.parametrize("label", sorted(_OPERATIONS, key=_ending))
def test_no_answer_is_a_fault_of_the_gateway(label: str, target: Target) -> None:
    unsupported = _OPERATIONS[label].tags == ["not supported"]

    @settings(
        max_examples=2 if unsupported else EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=_strategy(label, target.known))
    def ask(case: Case) -> None:
        _check(case, target.ask(case))

    ask()
