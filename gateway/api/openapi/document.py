"""``GET /openapi.json``: the document, made once from the table of operations."""

import re
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.openapi.bodies import bodies
from gateway.api.openapi.objects import OBJECTS
from gateway.api.openapi.operations import ADMIN, PROJECT, ROOT, STRING, ApiOperation, ref
from gateway.api.openapi.table import operations
from gateway.http.errors import JSON

_KEYS = {
    PROJECT: "A project's API key, `sk-...`, or a token of a configured issuer. Also in `x-api-key`.",
    ADMIN: "An organization's admin key, `sk-admin-...`.",
    ROOT: "The root key of the host, `sk-root-...`.",
}


@cache
def openapi_document() -> dict[str, Any]:
    """The document, OpenAPI 3.1.0. Do not change what is returned."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations():
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Torpor", "version": version("torpor")},
        "paths": paths,
        "components": {
            "schemas": {**bodies(), **OBJECTS},
            "responses": {
                "Error": {
                    "description": "An error, in the one envelope that all of them have.",
                    "content": {JSON: {"schema": ref("Error")}},
                }
            },
            "securitySchemes": {
                name: {"type": "http", "scheme": "bearer", "description": text}
                for name, text in _KEYS.items()
            },
        },
    }


def _described(operation: ApiOperation) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", operation.path)
    in_path = [{"name": name, "in": "path", "required": True, "schema": STRING} for name in names]
    described: dict[str, Any] = {
        "operationId": _id(operation),
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": [{key: []} for key in operation.keys],
        "parameters": [*in_path, *operation.query],
        "responses": _answers(operation),
    }
    if operation.body is not None:
        content = {operation.body_type: {"schema": ref(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answers(operation: ApiOperation) -> dict[str, Any]:
    answers: dict[str, Any] = {"4XX": {"$ref": "#/components/responses/Error"}}
    if operation.answer is not None:
        content: dict[str, Any] = {JSON: {"schema": ref(operation.answer)}}
        if operation.streams:
            content["text/event-stream"] = {"schema": STRING}
        answers["200"] = {"description": "As asked for.", "content": content}
    if operation.unsupported:
        answers["501"] = {"$ref": "#/components/responses/Error"}
    if operation.path in ("/health", "/health/ready"):
        answers["503"] = {"description": "Not now.", "content": {JSON: {"schema": ref("Health")}}}
    elif operation.tag != "not supported":
        answers["5XX"] = {"$ref": "#/components/responses/Error"}
    return answers


def _id(operation: ApiOperation) -> str:
    words = re.findall(r"\w+", operation.path)
    return "_".join([operation.method.lower(), *words])


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(openapi_document())


async def openapi(_request: Request) -> Response:
    """``GET /openapi.json``. No key: it says nothing of this installation."""
    return Response(_encoded(), media_type=JSON)


ROUTES: list[Route] = [Route("/openapi.json", openapi, methods=["GET"])]
