"""Which limits apply to a request: those of the project for the model, and those of project, key and user."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tenants.limits.gcra import Rate
from tenants.types import ProjectPrincipal

MOST = 2**31 - 1
"""The largest size of a limit."""
_MINUTE_NS = 60 * 10**9
_DAY_NS = 24 * 60 * _MINUTE_NS
_Asked = tuple[str | None, str, str | None, str, str | None]
"""Project, key, user, model and adapter."""


class SubjectType(StrEnum):
    """Whom a limit binds, whatever the model."""

    PROJECT = "project"
    KEY = "key"
    USER = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """Sizes of limits, each from 1 to `MOST`; ``None`` if there is none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    batch_input_tokens_per_day: int | None = None
    concurrent_requests: int | None = None

    def over(self, defaults: "RateLimit") -> "RateLimit":
        """These sizes, with the defaults for those that are not set."""
        mine = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(defaults, **mine)


NO_LIMIT = RateLimit()


@dataclass(frozen=True, slots=True)
class SubjectLimit:
    """A limit as it is administered. ``id`` is ``lim_...``; times are in unix seconds."""

    id: str
    subject_type: SubjectType
    subject_id: str
    limit: RateLimit
    created_at: int


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How many requests may run at once; ``key`` names the counter."""

    key: str
    most: int
    name: str


@dataclass(frozen=True, slots=True)
class Applicable:
    """All that applies to one principal and model. ``batch`` counts input tokens of batches only."""

    requests: tuple[Rate, ...] = ()
    tokens: tuple[Rate, ...] = ()
    batch: tuple[Rate, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    """Of the rates by their keys, as a client is shown them."""


_RATES = (
    # the size's name, what is counted, the words for it, the period
    ("requests_per_minute", "requests", "requests per minute", _MINUTE_NS),
    ("requests_per_day", "requests", "requests per day", _DAY_NS),
    ("tokens_per_minute", "tokens", "tokens per minute", _MINUTE_NS),
    ("tokens_per_day", "tokens", "tokens per day", _DAY_NS),
    ("batch_input_tokens_per_day", "batch", "batch input tokens per day", _DAY_NS),
)


@dataclass(slots=True)
class LimitBook:
    """The limits in memory. A change is entered here, and the next request is held to it.

    ``defaults`` are what each project has for each model without a limit of its own. ``max_resolved`` bounds
    the cache of limits that apply to a principal.
    """

    defaults: RateLimit = NO_LIMIT
    max_resolved: int = 100_000
    _of_models: dict[tuple[str, str], RateLimit] = field(default_factory=dict)
    _of_subjects: dict[tuple[str, SubjectType, str], RateLimit] = field(default_factory=dict)
    _resolved: dict[_Asked, Applicable] = field(default_factory=dict)

    def load(
        self,
        of_models: Mapping[tuple[str, str], RateLimit],
        of_subjects: Mapping[tuple[str, SubjectType, str], RateLimit],
    ) -> None:
        """Replace everything: by project and model, and by organization and subject."""
        self._of_models, self._of_subjects = dict(of_models), dict(of_subjects)
        self._resolved.clear()

    def of_model(self, project_id: str, model: str) -> RateLimit:
        """What holds for the project's requests to the model."""
        return self._of_models.get((project_id, model), NO_LIMIT).over(self.defaults)

    def set_model(self, project_id: str, model: str, limit: RateLimit) -> None:
        """From the next request on."""
        self._of_models[project_id, model] = limit
        self._resolved.clear()

    def set_subject(self, organization_id: str, kind: SubjectType, subject_id: str, limit: RateLimit) -> None:
        """From the next request on; `NO_LIMIT` takes the subject's limits away."""
        key = (organization_id, kind, subject_id)
        if limit == NO_LIMIT:
            self._of_subjects.pop(key, None)
        else:
            self._of_subjects[key] = limit
        self._resolved.clear()

    def adapters(self, project_id: str, prefix: str) -> list[str]:
        """The names that begin with the prefix and for which the project has limits, in order."""
        mine = (name for owner, name in self._of_models if owner == project_id)
        return sorted(name for name in mine if name.startswith(prefix))

    def applicable(self, principal: ProjectPrincipal, model: str, adapter: str | None = None) -> Applicable:
        """What applies to a request of this principal to this model, or to this adapter of it."""
        key = (principal.project_id, principal.key_id, principal.user_id, model, adapter)
        limits = self._resolved.get(key)
        if limits is None:
            if len(self._resolved) >= self.max_resolved:
                self._resolved.clear()
            limits = self._resolved[key] = self._resolve(principal, model, adapter)
        return limits

    def _resolve(self, principal: ProjectPrincipal, model: str, adapter: str | None) -> Applicable:
        organization_id, project_id = principal.organization_id, principal.project_id
        held = _Held()
        held.add(
            self.of_model(project_id, model), f"model/{project_id}/{model}", f"the project for `{model}`"
        )
        adapter_limit = None if adapter is None else self._of_models.get((project_id, adapter))
        if adapter_limit is not None:
            held.add(adapter_limit, f"model/{project_id}/{adapter}", f"the project for `{adapter}`")
        subjects = (
            (SubjectType.PROJECT, principal.project_id),
            (SubjectType.KEY, principal.key_id),
            (SubjectType.USER, principal.user_id),
        )
        for kind, subject_id in subjects:
            limit = None if subject_id is None else self._of_subjects.get((organization_id, kind, subject_id))
            if limit is not None:
                held.add(limit, f"{kind}/{organization_id}/{subject_id}", f"the {kind}")
        return held.applicable()


@dataclass(slots=True)
class _Held:
    """Limits as they are collected."""

    rates: dict[str, list[Rate]] = field(default_factory=lambda: {"requests": [], "tokens": [], "batch": []})
    names: dict[str, str] = field(default_factory=dict)
    ceilings: list[Ceiling] = field(default_factory=list)

    def add(self, limit: RateLimit, key: str, whose: str) -> None:
        for name, counted, words, period_ns in _RATES:
            size: int | None = getattr(limit, name)
            if size is not None:
                rate = Rate(f"{key}/{name}", size, period_ns)
                self.rates[counted].append(rate)
                self.names[rate.key] = f"{words} of {whose}"
        if limit.concurrent_requests is not None:
            self.ceilings.append(Ceiling(key, limit.concurrent_requests, f"concurrent requests of {whose}"))

    def applicable(self) -> Applicable:
        rates = self.rates
        return Applicable(
            tuple(rates["requests"]),
            tuple(rates["tokens"]),
            tuple(rates["batch"]),
            tuple(self.ceilings),
            self.names,
        )
