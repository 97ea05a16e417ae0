"""Usage reports: against the official client's own types, and against sums made by hand."""

import itertools
import random
from typing import Any

import pytest
from openai.types.admin.organization import UsageCompletionsResponse, UsageEmbeddingsResponse
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.database import open_database
from metering.errors import InvalidQuery
from metering.ledger.entries import Settlement, Write
from metering.ledger.sql_writer import SqlWriter
from metering.reports.sums import Selection, SpanPart, pieces, statement_of
from metering.reports.usage import UsageKind, UsageQuery, UsageReports, parse_query
from metering.tables import MEASURES, ledger_entries, usage_days, usage_hours
from metering.types import Operation, Outcome, Usage
from tenants.errors import StorageUnavailable
from tests.metering.conftest import attempt

DAY = 86_400
MONDAY = 1_704_067_200
"""2024-01-01T00:00:00Z."""
NOW = float(MONDAY + 40 * DAY)


@pytest.fixture
def reports(database: AsyncEngine) -> UsageReports:
    return UsageReports(database, clock=lambda: NOW)


async def _store(database: AsyncEngine, *writes: Write) -> None:
    await SqlWriter(database).store([write.row() for write in writes])


def _entry(at: float, usage: Usage, outcome: Outcome | None = Outcome.COMPLETED, **changes: Any) -> Write:
    settlement = None if outcome is None else Settlement(outcome, int(at * 1000) + 5, None, 200)
    return Write(attempt(started_at=at, **changes), usage, settlement)


def _query(*params: tuple[str, str], kind: UsageKind = UsageKind.COMPLETIONS) -> UsageQuery:
    return parse_query(kind, "org-1", params)


async def test_answer_is_what_the_official_client_parses(
    database: AsyncEngine, reports: UsageReports
) -> None:
    await _store(
        database,
        _entry(MONDAY + 10, Usage(100, 40, 7), user_id="u", service_tier="flex"),
        _entry(MONDAY + 20, Usage(9, 0, 0), operation=Operation.EMBEDDING, model="minilm"),
    )
    span = (("start_time", str(MONDAY)), ("end_time", str(MONDAY + DAY)))
    answer = await reports.report(_query(*span, ("group_by[]", "model"), ("group_by[]", "batch")))
    UsageCompletionsResponse.model_validate(answer, strict=True)
    assert answer["data"][0]["results"] == [
        {
            "object": "organization.usage.completions.result",
            "input_tokens": 100,
            "output_tokens": 7,
            "input_cached_tokens": 40,
            "input_uncached_tokens": 60,
            "input_cache_write_tokens": 0,
            "input_cache_write_30m_tokens": 0,
            "input_cache_write_12h_tokens": 0,
            "input_text_tokens": 60,
            "input_cached_text_tokens": 40,
            "output_text_tokens": 7,
            "input_audio_tokens": 0,
            "input_cached_audio_tokens": 0,
            "output_audio_tokens": 0,
            "input_image_tokens": 0,
            "input_cached_image_tokens": 0,
            "output_image_tokens": 0,
            "num_model_requests": 1,
            "project_id": None,
            "user_id": None,
            "api_key_id": None,
            "api_source": None,
            "model": "smollm2-135m",
            "batch": False,
            "service_tier": None,
        }
    ]
    embeddings = await reports.report(_query(*span, kind=UsageKind.EMBEDDINGS))
    UsageEmbeddingsResponse.model_validate(embeddings, strict=True)
    assert embeddings["data"][0]["results"] == [
        {
            "object": "organization.usage.embeddings.result",
            "input_tokens": 9,
            "num_model_requests": 1,
            "project_id": None,
            "user_id": None,
            "api_key_id": None,
            "model": None,
        }
    ]


async def test_first_bucket_starts_at_start_time_and_the_others_are_aligned(
    database: AsyncEngine, reports: UsageReports
) -> None:
    start = MONDAY + 5 * 3600 + 17
    await _store(
        database,
        _entry(start - 0.001, Usage(1000, 0, 0)),
        _entry(start, Usage(1, 0, 0)),
        _entry(MONDAY + DAY - 0.001, Usage(2, 0, 0)),
        _entry(MONDAY + DAY, Usage(4, 0, 0)),
        _entry(MONDAY + 3 * DAY + 9.999, Usage(8, 0, 0)),
        _entry(MONDAY + 3 * DAY + 10, Usage(1000, 0, 0)),
    )
    answer = await reports.report(
        _query(("start_time", str(start)), ("end_time", str(MONDAY + 3 * DAY + 10)))
    )
    shape = [
        (bucket["start_time"], bucket["end_time"], [result["input_tokens"] for result in bucket["results"]])
        for bucket in answer["data"]
    ]
    assert shape == [
        (start, MONDAY + DAY, [3]),
        (MONDAY + DAY, MONDAY + 2 * DAY, [4]),
        (MONDAY + 2 * DAY, MONDAY + 3 * DAY, []),
        (MONDAY + 3 * DAY, MONDAY + 4 * DAY, [8]),
    ]
    assert (answer["has_more"], answer["next_page"]) == (False, None)


@pytest.mark.parametrize(
    ("width", "seconds", "default", "most"),
    [("1m", 60, 60, 1440), ("1h", 3600, 24, 168), ("1d", DAY, 7, 31)],
)
async def test_number_of_buckets(
    reports: UsageReports, width: str, seconds: int, default: int, most: int
) -> None:
    start = ("start_time", str(MONDAY))
    answer = await reports.report(_query(start, ("bucket_width", width)))
    assert len(answer["data"]) == default
    assert answer["data"][-1]["end_time"] == MONDAY + default * seconds
    assert answer["has_more"] is True
    answer = await reports.report(_query(start, ("bucket_width", width), ("limit", str(most))))
    assert len(answer["data"]) == most
    for limit in (0, most + 1, -1):
        with pytest.raises(InvalidQuery) as caught:
            _query(start, ("bucket_width", width), ("limit", str(limit)))
        assert caught.value.param == "limit"


async def test_without_an_end_the_last_bucket_is_the_one_of_now(reports: UsageReports) -> None:
    answer = await reports.report(_query(("start_time", str(int(NOW) - DAY))))
    assert [bucket["start_time"] for bucket in answer["data"]] == [int(NOW) - DAY, int(NOW)]
    later = await reports.report(_query(("start_time", str(int(NOW) + 10))))
    assert (later["data"], later["has_more"]) == ([], False)


async def test_pages_cover_all_buckets_once(database: AsyncEngine, reports: UsageReports) -> None:
    await _store(database, *[_entry(MONDAY + day * DAY + 3, Usage(day + 1, 0, 1)) for day in range(10)])
    start = MONDAY + 100
    params = [("start_time", str(start)), ("end_time", str(MONDAY + 10 * DAY)), ("limit", "3")]
    whole = await reports.report(_query(*params[:2], ("limit", "31")))
    buckets: list[Any] = []
    page: list[tuple[str, str]] = []
    sizes = []
    while True:
        answer = await reports.report(_query(*params, *page))
        buckets += answer["data"]
        sizes.append(len(answer["data"]))
        if not answer["has_more"]:
            break
        page = [("page", answer["next_page"])]
    assert sizes == [3, 3, 3, 1]
    assert buckets == whole["data"]


_FIELDS = {
    "project_id": ("proj_1", "proj_2"),
    "user_id": ("alice", "bob", None),
    "api_key_id": ("key_1", "key_2", "key_3"),
    "model": ("smollm2-135m", "other"),
    "batch": (False, True),
    "service_tier": (None, "flex"),
    "api_source": ("unlabeled",),
}
_FILTERS = {
    "project_ids": "project_id",
    "user_ids": "user_id",
    "api_key_ids": "api_key_id",
    "models": "model",
}


def _random_entries(count: int) -> list[Write]:
    chance = random.Random(7)
    return [
        _entry(
            MONDAY + chance.randrange(0, 3 * DAY) + chance.random(),
            Usage(chance.randrange(0, 3), 0, chance.randrange(0, 3)),
            chance.choice([None, *Outcome]),
            operation=chance.choice(list(Operation)),
            organization_id=chance.choice(["org-1", "org-1", "org-2"]),
            **{name: chance.choice(values) for name, values in _FIELDS.items() if name != "api_source"},
        )
        for _ in range(count)
    ]


def _by_hand(entries: list[Write], query: UsageQuery) -> dict[Any, tuple[int, int, int]]:
    sums: dict[Any, tuple[int, int, int]] = {}
    for write in entries:
        item, usage = write.attempt, write.usage
        tokens = usage.input_tokens + usage.output_tokens
        if (
            write.settlement is None
            or (write.settlement.outcome is not Outcome.COMPLETED and tokens == 0)
            or item.organization_id != query.organization_id
            or item.operation.value not in query.kind.operations
            or any(
                getattr(query, plural) and getattr(item, field) not in getattr(query, plural)
                for plural, field in _FILTERS.items()
            )
            or (query.batch is not None and item.batch is not query.batch)
        ):
            continue
        key = (
            int(item.started_at) // DAY * DAY,
            *(getattr(item, name, "unlabeled") for name in query.group_by),
        )
        requests, read, written = sums.get(key, (0, 0, 0))
        sums[key] = (requests + 1, read + usage.input_tokens, written + usage.output_tokens)
    return sums


async def test_every_grouping_and_filter_equals_the_sums_made_by_hand(
    database: AsyncEngine, reports: UsageReports
) -> None:
    entries = _random_entries(800)
    await _store(database, *entries)
    groupings = [
        group for size in range(8) for group in itertools.combinations(UsageKind.COMPLETIONS.groupings, size)
    ]
    filters: list[list[tuple[str, str]]] = [
        [],
        [("project_ids", "proj_2")],
        [("user_ids", "alice"), ("user_ids", "bob")],
        [("api_key_ids[]", "key_3"), ("models[]", "other"), ("batch", "true")],
        [("batch", "false")],
        [("models", "nobody's")],
    ]
    for group, chosen in itertools.product(groupings, filters):
        grouped = [("group_by[]", name) for name in group]
        query = _query(("start_time", str(MONDAY)), ("limit", "3"), *grouped, *chosen)
        answer = await reports.report(query)
        matches = {
            (bucket["start_time"], *(result[name] for name in group)): (
                result["num_model_requests"],
                result["input_tokens"],
                result["output_tokens"],
            )
            for bucket in answer["data"]
            for result in bucket["results"]
        }
        assert matches == _by_hand(entries, query)


async def test_open_and_fruitless_entries_do_not_count(database: AsyncEngine, reports: UsageReports) -> None:
    await _store(
        database,
        _entry(MONDAY, Usage(5, 0, 5), None),
        _entry(MONDAY, Usage(), Outcome.FAILED),
        _entry(MONDAY, Usage(), Outcome.ABORTED),
        _entry(MONDAY, Usage(), Outcome.COMPLETED),
        _entry(MONDAY, Usage(1, 0, 0), Outcome.FAILED),
        _entry(MONDAY, Usage(1, 0, 2), Outcome.INTERRUPTED),
    )
    answer = await reports.report(_query(("start_time", str(MONDAY)), ("limit", "1")))
    (result,) = answer["data"][0]["results"]
    assert (result["num_model_requests"], result["input_tokens"], result["output_tokens"]) == (3, 2, 2)


@pytest.mark.parametrize("table", [ledger_entries, usage_hours])
def test_statement_is_portable(table: Table) -> None:
    statement = statement_of(
        SpanPart(table, 0, DAY),
        Selection("org-1", ("chat",), batch=True),
        DAY,
        ["model", "user_id"],
        MEASURES,
    )
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    text = str(statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True}))
    bucket, user = "ledger_entries.started_ms / 86400000", "coalesce(ledger_entries.user_id, '')"
    if table is usage_hours:
        bucket, user = "usage_hours.hour / 24", "usage_hours.user_id"
    assert f"{bucket} AS bucket" in text
    assert f"GROUP BY {bucket}, {table.name}.model, {user}" in text


async def test_database_that_is_away_is_told(tmp_path: Any) -> None:
    database = open_database(f"sqlite+aiosqlite:///{tmp_path / 'no' / 'where.db'}")
    try:
        with pytest.raises(StorageUnavailable):
            await UsageReports(database).report(_query(("start_time", "5")))
    finally:
        await database.dispose()


@pytest.mark.parametrize("details", [False, True])
def test_span_is_cut_without_gap_or_overlap(details: bool) -> None:
    chance = random.Random(3)
    for _ in range(500):
        start = MONDAY + chance.randrange(0, 3 * DAY)
        end = start + chance.choice([1, 59, 3600, chance.randrange(1, 5 * DAY)])
        for width in (60, 3600, DAY):
            cut = pieces(start, end, width, details=details)
            assert [cut[0].start, cut[-1].end] == [start, end]
            assert all(left.end == right.start for left, right in itertools.pairwise(cut))
            for piece in cut:
                size = {usage_days: DAY, usage_hours: 3600, ledger_entries: 1}[piece.table]
                assert piece.start % size == piece.end % size == 0
                assert size == 1 or size <= width
                assert not (details and piece.table is usage_days)


@pytest.mark.parametrize("width", ["1m", "1h", "1d"])
async def test_any_span_and_width_has_the_same_sums(
    database: AsyncEngine, reports: UsageReports, width: str
) -> None:
    entries = _random_entries(400)
    await _store(database, *entries)
    chance = random.Random(5)
    for _ in range(12):
        start = MONDAY + chance.randrange(0, 2 * DAY)
        end = start + chance.randrange(1, DAY)
        expected = sum(
            1
            for write in entries
            if start <= int(write.attempt.started_at * 1000) / 1000 < end
            and _by_hand([write], _query(("start_time", "1")))
        )
        for group in ((), ("project_id", "model"), ("api_key_id",)):
            params = [("start_time", str(start)), ("end_time", str(end)), ("bucket_width", width)]
            limit = {"1m": "1440", "1h": "168", "1d": "31"}[width]
            answer = await reports.report(
                _query(*params, ("limit", limit), *[("group_by", name) for name in group])
            )
            assert not answer["has_more"]
            counted = [item["num_model_requests"] for bucket in answer["data"] for item in bucket["results"]]
            assert sum(counted) == expected
