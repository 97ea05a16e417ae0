"""OpenAI's ``page`` of buckets: which of them, and the cursor that goes on."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from metering.errors import InvalidQuery
from metering.reports.buckets import Span, Width, decode_cursor, encode_cursor, page_of_buckets
from tenants.errors import StorageUnavailable


class PagedQuery(Protocol):
    """What a query of any kind has."""

    @property
    def start_time(self) -> int:
        """Inclusive, in unix seconds."""

    @property
    def end_time(self) -> int | None:
        """Exclusive, ``None`` for now."""

    @property
    def limit(self) -> int | None:
        """Buckets on a page, ``None`` for the width's default."""

    @property
    def page(self) -> str | None:
        """The cursor, ``None`` for the first page."""

    def identity(self) -> str:
        """All that the pages of one query have in common; their size may differ."""


def page_start(query: PagedQuery) -> int:
    """Where the page begins; raises `InvalidQuery` for a cursor of another query."""
    if query.page is None:
        return query.start_time
    start = decode_cursor(query.page, query.identity())
    if start is None:
        raise InvalidQuery("page", "'page' is not a valid cursor for this query.")
    return start


class Reader:
    """Reads reports from a database that the caller owns.

    ``fresh`` is awaited before each, for the database to have what is durable elsewhere.
    """

    def __init__(
        self,
        database: AsyncEngine,
        *,
        fresh: Callable[[], Awaitable[object]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._fresh = fresh
        self._clock = clock

    def span(self, query: PagedQuery, width: Width) -> tuple[Span, int]:
        """The buckets of the page, and the second at which the last one's entries end.

        Nothing begins after now: where the query ends later, its last bucket is counted whole.
        """
        now = int(self._clock()) + 1
        end = query.end_time if query.end_time is not None else now
        span = page_of_buckets(width, page_start(query), end, query.limit or width.default_limit)
        last = span.buckets[-1][1] if span.buckets else end
        return span, last if end >= now else min(end, last)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """To read with. Raises `StorageUnavailable`."""
        if self._fresh is not None:
            await self._fresh()
        try:
            async with self._database.connect() as connection:
                yield connection
        except (DBAPIError, PoolTimeoutError, OSError) as error:
            raise StorageUnavailable("the ledger cannot be read") from error


def page_of(
    query: PagedQuery, width: Width, span: Span, results: Mapping[int, Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    """OpenAI's ``page`` object, of results by the number of their bucket."""
    data = [
        {
            "object": "bucket",
            "start_time": start,
            "end_time": until,
            "results": list(results.get(width.index(start), ())),
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
