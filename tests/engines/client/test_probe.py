"""Whether the engine of a failed request is well."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from engines.client import probe
from tests.engines.canned_engine import canned_engine


@pytest.mark.parametrize(
    ("statuses", "well"),
    [
        ({"/health": 200, "/v1/completions": 200}, True),
        ({"/health": 200, "/v1/completions": 404}, True),  # it answers, and does not generate
        ({"/health": 200, "/v1/completions": 500}, False),
        ({"/health": 503, "/v1/completions": 200}, False),
        ({"/health": 200}, False),
        ({}, False),
    ],
)
async def test_an_engine_is_well_that_answers_and_works(
    tmp_path: Path, statuses: Mapping[str, int], well: bool
) -> None:
    async with canned_engine(tmp_path / "s", statuses) as client:
        assert await probe.is_well(client, "model", embeds=False) is well


async def test_an_engine_of_embeddings_is_asked_for_one(tmp_path: Path) -> None:
    async with canned_engine(tmp_path / "s", {"/health": 200, "/v1/embeddings": 200}) as client:
        assert await probe.is_well(client, "model", embeds=True)


async def test_a_connection_with_a_failure_is_not_used_again(tmp_path: Path) -> None:
    statuses = {"/fail": 500, "/health": 200, "/v1/completions": 200}
    async with canned_engine(tmp_path / "s", statuses) as client:
        for _ in range(3):
            assert (await client.request("GET", "/fail", timeout_s=5)).status == 500
            assert await probe.is_well(client, "model", embeds=False)
