"""Usage reports in OpenAI's shape, from the settled entries of the ledger.

What counts: an entry that is settled, in the bucket of its start, if it ``completed`` or has any tokens,
whatever its outcome. A request that was refused before any token was computed does not count; an answer whose
client did not wait for it does. Open entries count once they are settled. A request for an adapter counts for
the model of that name, and not for its base model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from metering.reports.buckets import WIDTHS, Width
from metering.reports.pages import Reader, page_of, page_start
from metering.reports.parameters import Parameters
from metering.reports.sums import SERVED_MODEL, Selection, sums
from metering.types import Operation

API_SOURCE = "unlabeled"
"""What OpenAI calls all activity but its Agents API's."""
_MEASURES = ("requests", "input_tokens", "cached_tokens", "output_tokens")


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
        return (*always, "batch", "service_tier", "api_source") if self is UsageKind.COMPLETIONS else always


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

    Raises `InvalidQuery` with the parameter's name for a bad value and for a parameter that is not known.
    """
    given = Parameters(params)
    width_name = given.choice("bucket_width", WIDTHS, "1d")
    start, end = given.span()
    query = UsageQuery(
        kind=kind,
        organization_id=organization_id,
        start_time=start,
        end_time=end,
        bucket_width=width_name,
        group_by=given.choices("group_by", kind.groupings),
        limit=given.number("limit", 1, Width.named(width_name).max_limit),
        page=given.one("page"),
        project_ids=given.many("project_ids"),
        user_ids=given.many("user_ids"),
        api_key_ids=given.many("api_key_ids"),
        models=given.many("models"),
        batch=given.boolean("batch") if kind is UsageKind.COMPLETIONS else None,
    )
    given.refuse_others()
    page_start(query)
    return query


class UsageReports(Reader):
    """Answers usage queries."""

    async def report(self, query: UsageQuery) -> dict[str, Any]:
        """OpenAI's ``page`` object. Raises `StorageUnavailable`, and `InvalidQuery` for a foreign cursor."""
        width = Width.named(query.bucket_width)
        span, end = self.span(query, width)
        results: dict[int, list[dict[str, Any]]] = {}
        if span.buckets:
            selection = Selection(
                query.organization_id,
                query.kind.operations,
                {
                    "project_id": query.project_ids,
                    "user_id": query.user_ids,
                    "api_key_id": query.api_key_ids,
                    SERVED_MODEL: query.models,
                },
                query.batch,
            )
            groups = [name for name in query.group_by if name != "api_source"]
            columns = [SERVED_MODEL if name == "model" else name for name in groups]
            async with self.connection() as connection:
                summed = await sums(
                    connection, selection, width.seconds, (span.buckets[0][0], end), columns, _MEASURES
                )
            for (bucket, *values), measures in summed.items():
                grouped = dict(zip(groups, values, strict=True))
                results.setdefault(bucket, []).append(_result(query, grouped, measures))
        return page_of(query, width, span, results)


def _result(query: UsageQuery, grouped: dict[str, Any], measures: dict[str, int]) -> dict[str, Any]:
    """One result on the wire: every field is there, null where it was not grouped by."""
    kind = query.kind
    result: dict[str, Any] = {
        "object": f"organization.usage.{kind.value}.result",
        "input_tokens": measures["input_tokens"],
        "num_model_requests": measures["requests"],
    }
    if kind is UsageKind.COMPLETIONS:
        result |= _completion_fields(measures)
    if "api_source" in query.group_by:
        grouped["api_source"] = API_SOURCE
    for name in kind.groupings:
        value = grouped.get(name)
        result[name] = None if value == "" else value
    return result


def _completion_fields(measures: dict[str, int]) -> dict[str, Any]:
    """All tokens here are text tokens, and nothing is charged for writing to the cache."""
    total, cached, output = (measures[name] for name in ("input_tokens", "cached_tokens", "output_tokens"))
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
    }
