"""In usage reports an adapter is a model of its own, from whichever table the sums are read."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.ledger.entries import Settlement, Write
from metering.ledger.sql_writer import SqlWriter
from metering.reports.usage import UsageKind, UsageReports, parse_query
from metering.types import Outcome, Usage
from tests.metering.conftest import attempt

DAY = 86_400
MONDAY = 1_704_067_200
BASE, ADAPTER, OTHER = "smollm2-135m", "ft:smollm2-135m:acme:a:1", "ft:smollm2-135m:acme:a:2"


@pytest.mark.parametrize(
    ("start", "end", "width", "details"),
    [
        (MONDAY, MONDAY + 2 * DAY, "1d", False),  # from the days
        (MONDAY, MONDAY + 2 * DAY, "1d", True),  # from the hours
        (MONDAY, MONDAY + DAY, "1h", False),  # from the hours
        (MONDAY + 9, MONDAY + DAY - 9, "1d", False),  # the edges from the entries
        (MONDAY + 3600, MONDAY + 2 * 3600, "1m", False),  # from the entries
    ],
)
async def test_an_adapter_is_a_model_of_its_own(
    database: AsyncEngine, start: int, end: int, width: str, details: bool
) -> None:
    writes = [
        Write(
            attempt(started_at=MONDAY + 3600 + number, adapter=adapter, user_id="u"),
            Usage(10**number, 0, 1),
            Settlement(Outcome.COMPLETED, (MONDAY + 3700) * 1000, None, 200),
        )
        for number, adapter in enumerate((None, ADAPTER, OTHER, ADAPTER, None))
    ]
    await SqlWriter(database).store([write.row() for write in writes])
    reports = UsageReports(database, clock=lambda: float(MONDAY + 9 * DAY))
    span = [("start_time", str(start)), ("end_time", str(end)), ("bucket_width", width)]
    if details:
        span.append(("user_ids[]", "u"))

    async def tokens(*more: tuple[str, str]) -> dict[str | None, int]:
        answer = await reports.report(parse_query(UsageKind.COMPLETIONS, "org-1", [*span, *more]))
        results = [result for bucket in answer["data"] for result in bucket["results"]]
        return {result["model"]: result["input_tokens"] for result in results}

    assert await tokens(("group_by[]", "model")) == {BASE: 10001, ADAPTER: 1010, OTHER: 100}
    assert await tokens() == {None: 11111}
    assert await tokens(("models[]", BASE)) == {None: 10001}
    assert await tokens(("models[]", ADAPTER), ("models[]", OTHER)) == {None: 1110}
