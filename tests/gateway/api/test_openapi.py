"""The document describes every route, and nothing else."""

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from gateway.api.openapi.document import openapi_document
from gateway.app import create_app
from gateway.config.sections import Config
from gateway.storage.data_directory import DataDirectory
from tests.gateway.app_fixture import Stage


def _described() -> set[tuple[str, str]]:
    return {
        (method.upper(), path)
        for path, operations in openapi_document()["paths"].items()
        for method in operations
    }


def test_every_route_is_in_the_document_and_the_other_way_round() -> None:
    config = Config()
    app = create_app(config, DataDirectory(config.storage.data_dir, {}))
    served = {
        (method, route.path.replace(":path}", "}"))  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods  # type: ignore[attr-defined]
        if method != "HEAD"
    }
    assert served == _described()


def _values(node: Any, name: str) -> Iterator[Any]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name:
                yield value
            yield from _values(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, name)


def test_the_document_holds_together() -> None:
    document = openapi_document()
    for target in _values(document, "$ref"):
        node = document
        for part in target.removeprefix("#/").split("/"):
            node = node[part]
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    ids = list(_values(document["paths"], "operationId"))
    assert len(ids) == len(set(ids)) == len(_described())
    used = set(_values(document, "$ref"))
    assert {f"#/components/schemas/{name}" for name in document["components"]["schemas"]} <= used


async def test_anybody_may_read_it(stage: Stage) -> None:
    async with stage.client("nobody") as http:
        answer = await http.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == openapi_document()
