"""Usage reports in OpenAI's shape, from the settled entries of the ledger.

What counts: an entry that is settled, in the bucket of its start, if it ``completed`` or has any tokens,
whatever its outcome. So a request that was refused before any token was computed is no request made to a
model, and an answer that its client did not wait for is one. Open entries count once they are settled.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, func, literal, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.buckets import WIDTHS, Span, Width, decode_cursor, encode_cursor, page_of_buckets
from metering.errors import InvalidQuery, StorageUnavailable
from metering.tables import ledger_entries
from metering.types import Operation, Outcome

_LAST_SECOND = 253_402_300_799
"""Of the year 9999."""
_BOOLEANS = {"true": True, "false": False}


class UsageKind(StrEnum):
    """Which of OpenAI's usage endpoints."""

    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that count under it."""
        if self is UsageKind.COMPLETIONS:
            return (Operation.CHAT.value, Operation.COMPLETION.value)
        return (Operation.EMBEDDING.value,)

    @property
    def groupings(self) -> tuple[str, ...]:
        """What its results can be grouped by, in the order of the wire."""
        always = ("project_id", "user_id", "api_key_id", "model")
        return (*always, "batch", "service_tier") if self is UsageKind.COMPLETIONS else always


@dataclass(frozen=True)
class UsageQuery:
    """A usage query; times in unix seconds. An empty filter lets everything through.

    ``limit`` is ``None`` for the width's default, ``end_time`` for now, ``page`` for the first page.
    """

    kind: UsageKind
    organization_id: str
    start_time: int
    end_time: int | None = None
    bucket_width: str = "1d"
    limit: int | None = None
    page: str | None = None
    group_by: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    user_ids: tuple[str, ...] = ()
    api_key_ids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    batch: bool | None = None

    def identity(self) -> str:
        """All that the pages of one query have in common; their size may differ."""
        return repr(replace(self, page=None, limit=None))


def parse_query(kind: UsageKind, organization_id: str, params: Sequence[tuple[str, str]]) -> UsageQuery:
    """A query from the parameters of a URL, decoded and in order.

    Lists come as ``name[]=a&name[]=b`` or ``name=a&name=b``. Raises `InvalidQuery` with the parameter's
    name for a bad value and for a parameter that is not known: ignoring a mistyped filter would answer
    with more than was asked for.
    """
    given = _Parameters(params)
    width_name = given.one("bucket_width") or "1d"
    if width_name not in WIDTHS:
        raise InvalidQuery("bucket_width", f"'bucket_width' must be one of {_listed(WIDTHS)}.")
    width = Width.named(width_name)
    start = given.number("start_time", 0, _LAST_SECOND)
    if start is None:
        raise InvalidQuery("start_time", "'start_time' is required, in unix seconds.")
    end = given.number("end_time", 0, _LAST_SECOND)
    if end is not None and end <= start:
        raise InvalidQuery("end_time", "'end_time' must be after 'start_time'.")
    group_by = tuple(dict.fromkeys(given.many("group_by")))
    if not set(group_by) <= set(kind.groupings):
        raise InvalidQuery("group_by", f"'group_by' must be any of {_listed(kind.groupings)}.")
    query = UsageQuery(
        kind=kind,
        organization_id=organization_id,
        start_time=start,
        end_time=end,
        bucket_width=width_name,
        limit=given.number("limit", 1, width.max_limit),
        page=given.one("page"),
        group_by=group_by,
        project_ids=given.many("project_ids"),
        user_ids=given.many("user_ids"),
        api_key_ids=given.many("api_key_ids"),
        models=given.many("models"),
        batch=given.boolean("batch") if kind is UsageKind.COMPLETIONS else None,
    )
    given.refuse_others()
    _page_start(query)
    return query


class _Parameters:
    """Takes the parameters of a URL by name; what nobody took is unknown."""

    def __init__(self, params: Sequence[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in params:
            self._values.setdefault(name.removesuffix("[]"), []).append(value)

    def many(self, name: str) -> tuple[str, ...]:
        return tuple(self._values.pop(name, ()))

    def one(self, name: str) -> str | None:
        values = self.many(name)
        if len(values) > 1:
            raise InvalidQuery(name, f"'{name}' is given more than once.")
        return values[0] if values else None

    def number(self, name: str, least: int, most: int) -> int | None:
        text = self.one(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()) or len(text) > 15 or not least <= int(text) <= most:
            raise InvalidQuery(name, f"'{name}' must be a whole number from {least} to {most}.")
        return int(text)

    def boolean(self, name: str) -> bool | None:
        text = self.one(name)
        if text is not None and text.lower() not in _BOOLEANS:
            raise InvalidQuery(name, f"'{name}' must be true or false.")
        return None if text is None else _BOOLEANS[text.lower()]

    def refuse_others(self) -> None:
        for name in self._values:
            shown = name[:64]
            raise InvalidQuery(shown, f"There is no parameter {shown!r}.")


class UsageReports:
    """Answers usage queries from a database that the caller owns."""

    def __init__(
        self,
        database: AsyncEngine,
        *,
        fresh: Callable[[], Awaitable[object]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``fresh`` is awaited before each report, for the database to have what is durable elsewhere."""
        self._database = database
        self._fresh = fresh
        self._clock = clock

    async def report(self, query: UsageQuery) -> dict[str, Any]:
        """OpenAI's ``page`` object. Raises `StorageUnavailable`, and `InvalidQuery` for a foreign cursor."""
        if self._fresh is not None:
            await self._fresh()
        width = Width.named(query.bucket_width)
        end = query.end_time if query.end_time is not None else int(self._clock()) + 1
        span = page_of_buckets(width, _page_start(query), end, query.limit or width.default_limit)
        found: dict[int, list[dict[str, Any]]] = {}
        for row in await self._sums(query, width, span, end):
            found.setdefault(row["bucket"], []).append(_result(query, row))
        data = [
            {
                "object": "bucket",
                "start_time": start,
                "end_time": until,
                "results": found.get(width.index(start), []),
            }
            for start, until in span.buckets
        ]
        following = span.next_start
        return {
            "object": "page",
            "data": data,
            "has_more": following is not None,
            "next_page": None if following is None else encode_cursor(following, query.identity()),
        }

    async def _sums(self, query: UsageQuery, width: Width, span: Span, end: int) -> Sequence[RowMapping]:
        if not span.buckets:
            return []
        statement = _statement(query, width, span.buckets[0][0], min(end, span.buckets[-1][1]))
        try:
            async with self._database.connect() as connection:
                rows: Sequence[RowMapping] = (await connection.execute(statement)).mappings().all()
        except (DBAPIError, PoolTimeoutError, OSError) as error:
            raise StorageUnavailable("the ledger cannot be read") from error
        return rows


def _statement(query: UsageQuery, width: Width, start: int, end: int) -> Select[Any]:
    """Sums by bucket and group over ``[start, end)``, in whole-number arithmetic.

    The width is part of the text: PostgreSQL takes two parameters of equal value for two expressions.
    """
    entry = ledger_entries.c
    width_ms = literal(width.seconds * 1000, BigInteger, literal_execute=True)
    bucket = (entry.started_ms // width_ms).label("bucket")
    groups = [entry[name] for name in query.group_by]
    counts = or_(
        entry.outcome == Outcome.COMPLETED.value,
        entry.outcome.is_not(None) & ((entry.input_tokens > 0) | (entry.output_tokens > 0)),
    )
    return (
        select(
            bucket,
            *groups,
            func.sum(entry.input_tokens).label("input"),
            func.sum(entry.cached_tokens).label("cached"),
            func.sum(entry.output_tokens).label("output"),
            func.count().label("requests"),
        )
        .where(
            entry.organization_id == query.organization_id,
            entry.started_ms >= start * 1000,
            entry.started_ms < end * 1000,
            entry.operation.in_(query.kind.operations),
            counts,
            *_filters(query),
        )
        .group_by(bucket, *groups)
        .order_by(bucket, *groups)
    )


def _filters(query: UsageQuery) -> list[ColumnElement[bool]]:
    entry = ledger_entries.c
    lists = (
        (entry.project_id, query.project_ids),
        (entry.user_id, query.user_ids),
        (entry.api_key_id, query.api_key_ids),
        (entry.model, query.models),
    )
    filters: list[ColumnElement[bool]] = [column.in_(values) for column, values in lists if values]
    if query.batch is not None:
        filters.append(entry.batch == query.batch)
    return filters


def _result(query: UsageQuery, row: RowMapping) -> dict[str, Any]:
    """One result on the wire: every field is there, null where it was not grouped by."""
    kind = query.kind
    result: dict[str, Any] = {
        "object": f"organization.usage.{kind.value}.result",
        "input_tokens": int(row["input"]),
        "num_model_requests": row["requests"],
    }
    if kind is UsageKind.COMPLETIONS:
        result |= _completion_fields(row)
    return result | {name: row[name] if name in query.group_by else None for name in kind.groupings}


def _completion_fields(row: RowMapping) -> dict[str, Any]:
    """All tokens here are text tokens, and nothing is charged for writing to the cache."""
    total, cached, output = int(row["input"]), int(row["cached"]), int(row["output"])
    return {
        "output_tokens": output,
        "input_cached_tokens": cached,
        "input_uncached_tokens": total - cached,
        "input_cache_write_tokens": 0,
        "input_cache_write_30m_tokens": 0,
        "input_cache_write_12h_tokens": 0,
        "input_text_tokens": total - cached,
        "input_cached_text_tokens": cached,
        "output_text_tokens": output,
        "input_audio_tokens": 0,
        "input_cached_audio_tokens": 0,
        "output_audio_tokens": 0,
        "input_image_tokens": 0,
        "input_cached_image_tokens": 0,
        "output_image_tokens": 0,
        "api_source": None,
    }


def _page_start(query: UsageQuery) -> int:
    """Where the page begins; raises `InvalidQuery` for a cursor of another query."""
    if query.page is None:
        return query.start_time
    start = decode_cursor(query.page, query.identity())
    if start is None:
        raise InvalidQuery("page", "'page' is no cursor of this query.")
    return start


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
