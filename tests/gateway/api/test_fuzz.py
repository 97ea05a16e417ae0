"""Every route of the document, asked with what it takes and with what it does not: never a 5xx.

The gateway is a real one in front of the stand-in engine. What is asked is the same in every run.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig

from gateway.api.openapi.document import openapi_document
from tests.process import Gateway, running_gateway

Case = schemathesis.Case[Any]
EXAMPLES = 20
"""Of each kind for each operation."""
ALERT: dict[str, Any] = {
    "threshold_amount": 100,
    "currency": "USD",
    "interval": "month",
    "notification_channel": {"type": "webhook", "url": "https://hooks.example.com/spend"},
}


@dataclass
class Target:
    """The gateway, and what exists in it."""

    gateway: Gateway
    examples: dict[str, str]
    session: requests.Session
    http: httpx.Client

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
    created: dict[str, Any] = answer.json()
    return created


def _populated(gateway: Gateway) -> dict[str, str]:
    """Ids of things that are there, by the end of the path that names them. None of the keys in use is."""
    organization = "/v1/organization"
    with gateway.http(gateway.admin_key) as admin, gateway.http(gateway.root_key) as root:
        project = _made(admin, f"{organization}/projects", name="fuzzed")["id"]
        of_project = f"{organization}/projects/{project}"
        robots = [_made(admin, f"{of_project}/service_accounts", name=f"robot {n}") for n in range(3)]
        limit = {"subject_type": "user", "subject_id": "bob", "max_requests_per_1_minute": 9}
        return {
            "{project}": project,
            "{service_account}": robots[0]["id"],
            "/api_keys/{key}": robots[1]["api_key"]["id"],
            "/torpor/keys/{key}": robots[2]["api_key"]["id"],
            "/admin_api_keys/{key}": _made(admin, f"{organization}/admin_api_keys", name="spare")["id"],
            "{user}": _made(admin, f"{of_project}/users", user_id="alice", role="member")["id"],
            "/limits/{limit}": _made(admin, "/v1/torpor/limits", **limit)["id"],
            "/rate_limits/{limit}": "rl-far",
            "/organization/spend_alerts/{alert}": _made(admin, f"{organization}/spend_alerts", **ALERT)["id"],
            "/{project}/spend_alerts/{alert}": _made(admin, f"{of_project}/spend_alerts", **ALERT)["id"],
            "{organization}": _made(root, "/v1/torpor/organizations", slug="other")["id"],
            "{model}": "far",
            "{id}": "far",
            "{adapter}": "ft:far:demo:none:1",
            "{checkpoint}": "ft:far:demo:none:1",
            "{permission}": "cp_none",
            "{rest}": "a/b",
        }


@pytest.fixture(scope="module")
def target(standin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A gateway of its own, since all that is in it may be changed."""
    models = "".join(
        f'[[models]]\nid = "{name}"\ntask = "{task}"\nurl = "{standin}/v1"\n'
        for name, task in (("far", "generate"), ("vector", "embed"))
    )
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    with (
        running_gateway(folder, models) as gateway,
        requests.Session() as session,
        httpx.Client(trust_env=False, timeout=30) as http,
    ):
        session.trust_env = False
        yield Target(gateway, _populated(gateway), session, http)


_GENERATION = GenerationConfig(with_security_parameters=False)
_CONFIG = SchemathesisConfig(projects=ProjectsConfig(default=ProjectConfig(generation=_GENERATION)))
_SCHEMA: Any = schemathesis.openapi.from_dict(openapi_document(), config=_CONFIG)
_OPERATIONS: dict[str, Any] = {result.ok().label: result.ok() for result in _SCHEMA.get_all_operations()}
_LAST = ("DELETE", "archive", "rotate")
"""What takes things away comes after what needs them, and what they are in after that."""


def _ending(label: str) -> tuple[bool, int]:
    ends = any(word in label for word in _LAST)
    return ends, -len(label) if ends else 0


def _parameters(path: str, examples: Mapping[str, str]) -> dict[str, str]:
    """Values for all the parameters of the path, of things that are there."""
    result = {}
    for name in re.findall(r"\{(\w+)\}", path):
        before = path[: path.index(f"{{{name}}}") + len(name) + 2]
        result[name] = next(value for end, value in examples.items() if before.endswith(end))
    return result


def _strategy(label: str, examples: Mapping[str, str]) -> st.SearchStrategy[Case]:
    """What the operation takes and what it does not, three of four times of things that are there."""
    operation = _OPERATIONS[label]
    parameters = _parameters(operation.path, examples)
    there = st.just(parameters)
    elsewhere = st.fixed_dictionaries({name: st.text(min_size=1) for name in parameters})
    kinds = [operation.as_strategy(generation_mode=GenerationMode.POSITIVE)]
    if operation.body or operation.query:
        kinds.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    def placed(case: Case, parameters: dict[str, str], model: str | None) -> Case:
        case.path_parameters = parameters
        if model is not None and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = model
        return case

    model = "vector" if "embeddings" in label else "far"
    models = st.sampled_from([model, model, model, None])
    return st.builds(placed, st.one_of(kinds), st.one_of(there, there, there, elsewhere), models)


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


_LABELS: list[str] = sorted(_OPERATIONS, key=_ending)


@pytest.mark.parametrize("label", _LABELS)
def test_no_answer_is_a_fault_of_the_gateway(label: str, target: Target) -> None:
    unsupported = _OPERATIONS[label].tags == ["not supported"]

    @settings(
        max_examples=2 if unsupported else EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=_strategy(label, target.examples))
    def ask(case: Case) -> None:
        _check(case, target.ask(case))

    ask()


_METHODS = st.sampled_from(["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"])
_BODIES = st.one_of(
    st.binary(max_size=64),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"", b"{", b"\xff\xfe", b'{"model": "\\ud800"}', b"[" * 5000, b'{"a":1e999}', b"9" * 9999]
    ),
)
_TYPES = st.sampled_from(["application/json", "application/json; charset=utf-16", "text/plain", "", "a/b;;="])
_QUERIES = st.one_of(
    st.just(""), st.binary(max_size=32).map(quote_from_bytes), st.text("&=[]%a0\u00e9+", max_size=16)
)


@settings(
    max_examples=400, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(
    label=st.sampled_from(sorted(_OPERATIONS)),
    method=_METHODS,
    body=_BODIES,
    kind=_TYPES,
    query=_QUERIES,
    tail=st.sampled_from(["", "", "", "/", "//", "/..", "/%00", "/%ff", "/%2e%2e", "/\u20ac"]),
    key=st.sampled_from(["root_key", "admin_key", "api_key"]),
)
def test_no_bytes_are_a_fault_of_the_gateway(
    target: Target, label: str, method: str, body: bytes, kind: str, query: str, tail: str, key: str
) -> None:
    """Also with a method, a body, a type or a query that no client sends."""
    path = _OPERATIONS[label].path
    for name, value in _parameters(path, target.examples).items():
        path = path.replace(f"{{{name}}}", value)
    headers = {"authorization": f"Bearer {getattr(target.gateway, key)}", "content-type": kind}
    url = f"{target.gateway.origin}{path}{tail}?{query}"
    # Not by way of requests, which would put the URL in order.
    answer = target.http.request(method, url, content=body, headers=headers)
    if answer.status_code >= 500:
        assert answer.status_code == 501
        assert method == "HEAD" or answer.json()["error"]["code"] == "not_supported"
    elif answer.status_code >= 400 and method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
