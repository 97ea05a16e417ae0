"""Reacts to adapters that cannot be loaded, or whose canary differs: replaces engines, refuses adapters."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from engines.adapter import Adapter
from engines.errors import AdapterGone, AdapterRejected, AdapterUnfit, EngineError
from engines.status import AdapterCounts

_MAX_ENGINES = 2
"""After this many replaced engines an adapter is refused, for a period that doubles each time."""
_REFUSED_S = 60.0
_MAX_REFUSED_S = 3600.0
_logger = logging.getLogger("torpor.engine")


class CanaryFailures:
    """By adapter digest: how many engines were replaced because of it, and until when it is refused."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._refused_until: dict[str, float] = {}

    def add(self, digest: str) -> None:
        """Count an engine that was replaced because of the adapter."""
        count = self._counts[digest] = self._counts.get(digest, 0) + 1
        if count >= _MAX_ENGINES:
            refused_s = min(_MAX_REFUSED_S, _REFUSED_S * 2.0 ** min(count - _MAX_ENGINES, 30))
            self._refused_until[digest] = time.monotonic() + refused_s

    def clear(self, digest: str) -> None:
        """Forget the adapter's failures: its canary has passed, or it was examined again."""
        self._counts.pop(digest, None)
        self._refused_until.pop(digest, None)

    def refused(self, digest: str) -> bool:
        """Whether no engine is to be risked for the adapter now."""
        return time.monotonic() < self._refused_until.get(digest, 0.0)


class AdapterHolder(Protocol):
    """What the policy makes the actor do."""

    def fail_adapter_waiters(self, digest: str, error: Callable[[str], EngineError]) -> None:
        """Fail the requests that wait for the adapter; ``error`` is given the name that a request uses."""

    def settle(self) -> None:
        """Serve who can be served now."""


class AdapterFailurePolicy:
    """Reacts to the adapter events of a model's replicas (`AdapterEvents`), and counts them."""

    def __init__(self, actor: AdapterHolder) -> None:
        self._actor = actor
        self._failures = CanaryFailures()
        self.counts = AdapterCounts()

    def refusal(self, adapter: Adapter | None) -> AdapterUnfit | None:
        """Why a request for the adapter is refused, if it is: the adapter has cost too many engines."""
        if adapter is None or not self._failures.refused(adapter.digest):
            return None
        return _unfit(adapter.name)

    def on_loaded(self) -> None:
        """Count a load."""
        self.counts = replace(self.counts, loads=self.counts.loads + 1)
        self._actor.settle()

    def on_mismatch(self) -> None:
        """Count a canary that differed; the adapter is unloaded."""
        self.counts = replace(self.counts, misfits=self.counts.misfits + 1)

    def on_changed(self) -> None:
        """Serve waiters: an adapter was unloaded."""
        self._actor.settle()

    def on_verified(self, adapter: Adapter) -> None:
        """Forget the adapter's failures: its canary has passed."""
        self._failures.clear(adapter.digest)
        self._actor.settle()

    def on_rejected(self, adapter: Adapter, refusal: AdapterRejected) -> None:
        """Fail the waiters: an engine refuses the adapter, as any other would, or its files are gone."""

        def error(name: str) -> AdapterRejected:
            return AdapterGone(name) if isinstance(refusal, AdapterGone) else refusal

        self._actor.fail_adapter_waiters(adapter.digest, error)
        self._actor.settle()

    def on_not_loaded(self, adapter: Adapter) -> None:
        """Count an engine that failed while it loaded the adapter."""
        self._count_engine(adapter)
        self._actor.settle()

    def on_engine_distrusted(self, adapter: Adapter) -> None:
        """Count an engine that is replaced: the adapter's canary differed, and again after another load."""
        self.counts = replace(self.counts, engines_given_up=self.counts.engines_given_up + 1)
        if self._count_engine(adapter):
            _logger.error("adapter %s is refused: its canary differs in every engine", adapter.digest[:16])

    def clear(self, digest: str) -> None:
        """Forget the failures of an adapter that was examined again, or deleted."""
        self._failures.clear(digest)

    def _count_engine(self, adapter: Adapter) -> bool:
        """Count a replaced engine; returns whether the adapter is refused now."""
        self._failures.add(adapter.digest)
        refused = self._failures.refused(adapter.digest)
        if refused:
            self._actor.fail_adapter_waiters(adapter.digest, _unfit)
        return refused


def _unfit(name: str) -> AdapterUnfit:
    return AdapterUnfit(f"the adapter {name} does not answer as it did when it was uploaded")
