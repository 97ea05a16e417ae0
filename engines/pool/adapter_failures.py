"""What an actor does about the adapters of its replicas."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.errors import AdapterGone, AdapterRejected, AdapterUnfit, EngineError
from engines.pool.canary_failures import Misfits
from engines.pool.replica import Replica
from engines.pool.waiting import Waiter, fail
from engines.status import AdapterCounts

_logger = logging.getLogger("torpor.engine")


class AdapterDesk:
    """``waiters`` and ``replicas`` are the actor's own; ``settle`` sees what is to be done after a change.

    Its methods but `pardon` and `forget` are called from the actor's task alone.
    """

    def __init__(
        self,
        waiters: Mapping[Waiter, None],
        replicas: Sequence[Replica],
        post: Callable[[Callable[[], None]], None],
        settle: Callable[[], None],
    ) -> None:
        self._waiters = waiters
        self._replicas = replicas
        self._post = post
        self._settle = settle
        self._misfits = Misfits()
        self.counts = AdapterCounts()

    def refuses(self, waiter: Waiter) -> bool:
        """Fails who asks for an adapter that has cost too many engines."""
        if waiter.adapter is None or not self._misfits.refused(waiter.adapter.digest):
            return False
        fail(waiter.result, _unfit(waiter.adapter.name))
        return True

    def on_loaded(self) -> None:
        """An adapter was loaded."""
        self.counts = replace(self.counts, loads=self.counts.loads + 1)
        self._settle()

    def on_misfit(self) -> None:
        """The canary of an adapter differed; it is unloaded."""
        self.counts = replace(self.counts, misfits=self.counts.misfits + 1)

    def on_changed(self) -> None:
        """An adapter was unloaded, or could not be loaded."""
        self._settle()

    def on_proven(self, adapter: Adapter) -> None:
        """The adapter's canary has passed."""
        self._misfits.clear(adapter.digest)
        self._settle()

    def on_rejected(self, adapter: Adapter, refusal: AdapterRejected) -> None:
        """An engine refuses the adapter, as any other would; or it is gone."""
        self._fail(adapter, lambda asked: AdapterGone(asked) if isinstance(refusal, AdapterGone) else refusal)
        self._settle()

    def on_not_loaded(self, adapter: Adapter) -> None:
        """An engine failed while it loaded the adapter. That may not go on for ever."""
        self._misfits.add(adapter.digest)
        if self._misfits.refused(adapter.digest):
            self._fail(adapter, _unfit)
        self._settle()

    def on_unfit(self, replica: Replica, adapter: Adapter) -> None:
        """The adapter's canary differed, and once more after it was loaded anew: the engine is not trusted.

        Requests that run on it may end. Nobody is given it any more: who waits for the adapter gets another.
        """
        _logger.error("engine %d is given up: an adapter does not answer as it did", replica.number)
        self.counts = replace(self.counts, engines_given_up=self.counts.engines_given_up + 1)
        self._misfits.add(adapter.digest)
        if self._misfits.refused(adapter.digest):
            _logger.error(
                "adapter %s is refused: %s", adapter.digest[:16], "its canary differs in every engine"
            )
            self._fail(adapter, _unfit)
        replica.condemned = True
        replica.rest(SleepTier.COLD)
        self._settle()

    def pardon(self, digest: str) -> None:
        """The adapter has been examined anew. For everybody."""
        self._post(lambda: self._misfits.clear(digest))

    def forget(self, digest: str) -> None:
        """The adapter is not wanted any more: it is unloaded where nobody uses it. For everybody."""
        self._post(lambda: self._on_forgotten(digest))

    def _on_forgotten(self, digest: str) -> None:
        self._misfits.clear(digest)
        for replica in self._replicas:
            replica.adapters.forget(digest)

    def _fail(self, adapter: Adapter, error: Callable[[str], EngineError]) -> None:
        """``error`` is given the adapter's name, which is not the same for everybody who has its content."""
        for waiter in self._waiters:
            if waiter.adapter is not None and waiter.adapter.digest == adapter.digest:
                fail(waiter.result, error(waiter.adapter.name))


def _unfit(name: str) -> AdapterUnfit:
    return AdapterUnfit(f"the adapter {name} does not answer as it did")
