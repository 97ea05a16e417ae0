"""Who is at fault when an engine says that it failed: a well engine's request, or the engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.client.engine_client import EngineClient
from engines.errors import EngineBroken
from engines.spec import EngineAddress
from gateway.http.errors import ApiError
from gateway.http.translation import translate
from gateway.inference.engine_errors import EngineFault, engine_error
from gateway.inference.exchange import Exchange, Plan
from tests.engines.canned_engine import canned_engine

WELL = {"/health": 200, "/v1/completions": 200, "/v1/embeddings": 200}


def _exchange(path: str = "/v1/chat/completions", constraint: str | None = None) -> Exchange:
    """Without what it needs to find an engine: only its judgement is asked for."""
    plan = Plan(model_id="model", path=path, body=b"{}", wake_timeout_s=1, constraint=constraint)
    nothing: Any = None
    return Exchange(nothing, plan, nothing)


async def _work(error: Exception) -> None:
    raise error


async def _judged(
    exchange: Exchange, folder: Path, statuses: Mapping[str, int], error: Exception
) -> Exception:
    async with canned_engine(folder / "s", statuses) as client:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - any of several, which the tests look at
            await exchange._judged(client, _work(error))
        return caught.value


def _fault() -> ApiError:
    return engine_error({"message": "Internal server error", "code": 500})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/tokenize"])
async def test_a_request_that_a_well_engine_fails_is_not_to_be_sent_again(tmp_path: Path, path: str) -> None:
    error = translate(await _judged(_exchange(path), tmp_path, WELL, _fault()))
    assert (error.status, error.code) == (500, "request_failed")
    assert error.headers == {"x-should-retry": "false"}


async def test_a_constraint_that_a_well_engine_fails_is_named(tmp_path: Path) -> None:
    exchange = _exchange(constraint="response_format")
    error = translate(await _judged(exchange, tmp_path, WELL, _fault()))
    assert (error.status, error.param, error.code) == (400, "response_format", "invalid_value")


@pytest.mark.parametrize("statuses", [{}, {"/health": 503}, {**WELL, "/v1/completions": 500}])
async def test_an_engine_that_is_not_well_is_at_fault(tmp_path: Path, statuses: Mapping[str, int]) -> None:
    error = await _judged(_exchange(constraint="tools"), tmp_path, statuses, _fault())
    assert isinstance(error, EngineFault)
    assert translate(error).code == "engine_failed"


async def test_a_connection_that_breaks_off_is_the_engines_fault(tmp_path: Path) -> None:
    broken = EngineBroken("it closed the connection")
    assert await _judged(_exchange(), tmp_path, WELL, broken) is broken


async def test_the_engine_of_another_server_is_not_asked() -> None:
    async with EngineClient(EngineAddress(url="http://127.0.0.1:9")) as client:
        with pytest.raises(EngineFault):
            await _exchange()._judged(client, _work(_fault()))


async def test_a_refused_grammar_names_the_field(tmp_path: Path) -> None:
    said = engine_error({"message": "Grammar error: Unknown format: wizard", "code": 400})
    error = translate(await _judged(_exchange(constraint="response_format"), tmp_path, WELL, said))
    assert (error.status, error.param) == (400, "response_format")
