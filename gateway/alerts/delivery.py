"""Delivers the notifications of the outbox: at least once, retried with exponential backoff and jitter."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from gateway.alerts.loop import Loop
from gateway.alerts.messages import DeliveryFailed
from gateway.config.alerts import AlertsConfig
from tenants.alerts.outbox import Notification, Outbox
from tenants.errors import StorageUnavailable

_logger = logging.getLogger("torpor.alerts")

_AT_ONCE = 8
_LOOK_EVERY_S = 30.0
"""For what another gateway has left behind."""
_FACTOR = 3
_LONGEST_S = 6 * 3600.0
_GRACE_S = 5.0


class Channel(Protocol):
    """A way to deliver a notification."""

    async def deliver(self, notification: Notification) -> None:
        """Deliver a notification. Raises `DeliveryFailed`."""


class Deliveries:
    """The outbox's notifications through ``channels``, by type. ``spread`` is uniform in [0, 1)."""

    def __init__(
        self,
        outbox: Outbox,
        channels: Mapping[str, Channel],
        config: AlertsConfig,
        *,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._channels = channels
        self._config = config
        self._spread = spread
        self._attempts: Counter[tuple[str, str]] = Counter()
        self.loop = Loop(self._step)

    def metrics(self) -> Iterator[Metric]:
        """How attempts have ended, as `gateway.telemetry.metrics.MetricSource` has it."""
        help_text = "Attempts to tell of a spend alert: delivered, failed or given_up."
        family = CounterMetricFamily("torpor_alert_attempts", help_text, labels=("channel", "outcome"))
        for labels, count in self._attempts.items():
            family.add_metric(labels, count)
        yield family

    def delay_s(self, attempts: int) -> float:
        """Seconds after so many failed attempts: between half and all of a time that grows threefold."""
        longest = min(_LONGEST_S, self._config.retry_base_s * float(_FACTOR) ** min(attempts - 1, 64))
        return longest * (0.5 + 0.5 * self._spread())

    async def _step(self) -> float:
        """Attempts what is due, and says when something may be due again."""
        lease_ms = int((self._config.timeout_s + _GRACE_S) * 1000)
        now_ms = _now_ms()
        taken = await self._outbox.take(now_ms, now_ms + lease_ms, _AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for notification in taken:
                group.create_task(self._attempt(notification))
        if len(taken) == _AT_ONCE:
            return 0.0
        next_ms = await self._outbox.next_attempt_ms()
        wait_s = _LOOK_EVERY_S if next_ms is None else (next_ms - _now_ms()) / 1000
        return min(max(wait_s, 0.0), _LOOK_EVERY_S)

    async def _attempt(self, notification: Notification) -> None:
        failure = await self._failure(notification)
        now_ms, again_ms = _now_ms(), None
        name, attempts = notification.id, notification.attempts
        outcome = "delivered"
        if failure is None:
            _logger.info("spend alert %s: delivered at attempt %d", name, attempts)
        elif failure.final or attempts >= self._config.max_attempts:
            outcome = "given_up"
            _logger.error("spend alert %s: given up after attempt %d: %s", name, attempts, failure)
        else:
            outcome = "failed"
            again_ms = now_ms + max(1, round(self.delay_s(attempts) * 1000))
            _logger.warning("spend alert %s: attempt %d failed: %s", name, attempts, failure)
        self._attempts[str(notification.alert.channel.get("type")), outcome] += 1
        error = None if failure is None else str(failure)
        try:
            await self._outbox.settle(name, now_ms, error, again_ms)
        except StorageUnavailable:
            _logger.error("spend alert %s: the attempt could not be recorded, so there will be another", name)

    async def _failure(self, notification: Notification) -> DeliveryFailed | None:
        channel = self._channels.get(str(notification.alert.channel.get("type")))
        if channel is None:
            return DeliveryFailed("the alert has no channel", final=True)
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await channel.deliver(notification)
        except DeliveryFailed as failure:
            return failure
        except TimeoutError:
            return DeliveryFailed(f"no answer within {self._config.timeout_s:g} s")
        except Exception as error:
            # One notification that cannot be delivered must not keep the others from it.
            _logger.exception("spend alert %s: the channel failed", notification.id)
            return DeliveryFailed(type(error).__name__)
        return None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
