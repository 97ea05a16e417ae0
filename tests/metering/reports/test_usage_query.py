"""Usage queries: parameters and cursors."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.errors import InvalidQuery
from metering.reports.usage import UsageKind, UsageQuery, UsageReports, parse_query

DAY = 86_400
MONDAY = 1_704_067_200
"""2024-01-01T00:00:00Z."""


@pytest.fixture
def reports(database: AsyncEngine) -> UsageReports:
    return UsageReports(database, clock=lambda: float(MONDAY + 40 * DAY))


def _query(*params: tuple[str, str], kind: UsageKind = UsageKind.COMPLETIONS) -> UsageQuery:
    return parse_query(kind, "org-1", params)


async def test_cursor_is_good_for_its_own_query_only(reports: UsageReports) -> None:
    params = [("start_time", str(MONDAY)), ("limit", "2")]
    cursor = ("page", (await reports.report(_query(*params)))["next_page"])
    assert _query(*params, cursor).page == cursor[1]
    assert _query(params[0], ("limit", "5"), cursor).limit == 5
    bad = [
        [("start_time", str(MONDAY + DAY)), cursor],
        [*params, ("group_by", "model"), cursor],
        [*params, ("models", "x"), cursor],
        [*params, ("page", "")],
        [*params, ("page", "page_ü")],
        [*params, ("page", cursor[1] + "x")],
        [*params, ("page", cursor[1][:-1] + "_")],
        [*params, ("page", "page_" + "A" * 10_000)],
    ]
    for item in bad:
        with pytest.raises(InvalidQuery) as caught:
            _query(*item)
        assert caught.value.param == "page"
    with pytest.raises(InvalidQuery):
        parse_query(UsageKind.COMPLETIONS, "org-2", [*params, cursor])


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ([], "start_time"),
        ([("start_time", "")], "start_time"),
        ([("start_time", "yesterday")], "start_time"),
        ([("start_time", "1.5")], "start_time"),
        ([("start_time", "-1")], "start_time"),
        ([("start_time", "٣")], "start_time"),
        ([("start_time", "9" * 5000)], "start_time"),
        ([("start_time", "1"), ("start_time", "2")], "start_time"),
        ([("start_time", "5"), ("end_time", "5")], "end_time"),
        ([("start_time", "5"), ("end_time", "x")], "end_time"),
        ([("start_time", "5"), ("bucket_width", "1w")], "bucket_width"),
        ([("start_time", "5"), ("limit", "ten")], "limit"),
        ([("start_time", "5"), ("group_by", "colour")], "group_by"),
        ([("start_time", "5"), ("group_by", "line_item")], "group_by"),
        ([("start_time", "5"), ("group_by", "model,batch")], "group_by"),
        ([("start_time", "5"), ("batch", "maybe")], "batch"),
        ([("start_time", "5"), ("project_id", "p")], "project_id"),
        ([("start_time", "5"), ("page", "x")], "page"),
    ],
)
def test_bad_parameter_is_named(params: list[tuple[str, str]], param: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        _query(*params)
    assert caught.value.param == param
    assert f"'{param}'" in caught.value.message


def test_embeddings_know_neither_batch_nor_service_tier() -> None:
    for params, param in (
        (("batch", "true"), "batch"),
        (("group_by", "batch"), "group_by"),
        (("group_by", "service_tier"), "group_by"),
    ):
        with pytest.raises(InvalidQuery) as caught:
            _query(("start_time", "5"), params, kind=UsageKind.EMBEDDINGS)
        assert caught.value.param == param


def test_lists_come_in_both_forms() -> None:
    plain = _query(("start_time", "5"), ("group_by", "model"), ("group_by", "batch"), ("models", "a"))
    brackets = _query(
        ("start_time", "5"), ("group_by[]", "model"), ("group_by[]", "batch"), ("models[]", "a")
    )
    twice = _query(
        *[("start_time", "5"), ("group_by", "model"), ("group_by[]", "batch")] * 1, ("models", "a")
    )
    assert plain == brackets == twice
    assert plain.group_by == ("model", "batch")
