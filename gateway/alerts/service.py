"""Watches the spend, and fires the alerts that it reaches."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.alerts.delivery import Channel, Deliveries
from gateway.alerts.loop import Loop
from gateway.alerts.mail import MailChannel
from gateway.alerts.transport import LazyTransport
from gateway.alerts.webhooks import Webhook, shown_secret, webhook_secret
from gateway.config.alerts import AlertsConfig
from tenants.alerts.outbox import Outbox
from tenants.alerts.spend_alerts import SpendAlert, SpendAlertStore
from tenants.limits.budgets import CENT, Budgets, Crossing, month_of
from tenants.storage import Storage


class SpendReader(Protocol):
    """Reads the ledger: picodollars by project and organization, of the named organizations alone.

    Of what began between two times in unix seconds.
    """

    def __call__(
        self, since: int, organization_ids: Collection[str], *, until: int
    ) -> Awaitable[Mapping[str, int]]: ...


class Alerts:
    """The alerts of all organizations, and this gateway's part in firing them.

    An alert fires when the settled spend of a month is at its threshold or above, once for each month and
    threshold. This gateway's own settlements are seen as they happen; every ``check_every_s`` the ledger is
    asked, for what other gateways have settled and for what was settled just before a crash.
    """

    def __init__(
        self,
        store: SpendAlertStore,
        outbox: Outbox,
        deliveries: Deliveries,
        config: AlertsConfig,
        pepper: bytes,
    ) -> None:
        self.store = store
        self.config = config
        self.deliveries = deliveries
        self._outbox = outbox
        self._pepper = pepper
        self._budgets = Budgets()
        self._read: SpendReader | None = None
        self._changed: set[str] = set()
        self._reached: dict[tuple[str, int], int] = {}
        self._check_at = 0.0
        self._loop = Loop(self._step)

    def watch(self, budgets: Budgets, read: SpendReader | None) -> None:
        """From now on this spend counts; ``read`` is ``None`` where nothing has a price."""
        self._budgets, self._read = budgets, read
        budgets.on_crossing = self._crossed
        self._check_at = 0.0
        self._loop.wake()

    def changed(self, subject_id: str) -> None:
        """An alert of this project or organization was made, changed or deleted."""
        self._changed.add(subject_id)
        self._loop.wake()

    def secret(self, alert_id: str) -> str:
        """The secret of the alert's webhook, ``whsec_...``."""
        return shown_secret(webhook_secret(self._pepper, alert_id))

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop.run())
            group.create_task(self.deliveries.loop.run())

    def _crossed(self, crossing: Crossing) -> None:
        month = self._budgets.month_start() if crossing.month is None else crossing.month
        self._note(crossing.subject_id, month, crossing.spent)
        self._loop.wake()

    def _note(self, subject_id: str, month: int, spent: int) -> None:
        key = subject_id, month
        self._reached[key] = max(spent, self._reached.get(key, 0))

    async def _step(self) -> float:
        if time.monotonic() >= self._check_at:
            await self._check()
            self._check_at = time.monotonic() + self.config.check_every_s
        elif self._changed:
            await self._load()
        await self._fire()
        return max(0.0, self._check_at - time.monotonic())

    async def _fire(self) -> None:
        """What cannot be written now is still noted when the step is made again."""
        written = 0
        for key, spent in tuple(self._reached.items()):
            subject_id, month = key
            written += await self._outbox.fire(subject_id, month, spent // CENT, time.time_ns() // 1_000_000)
            if self._reached.get(key) == spent:
                del self._reached[key]
        if written:
            self.deliveries.loop.wake()

    async def _load(self) -> dict[str, list[SpendAlert]]:
        """Give the thresholds to the budgets; what the changed ones have reached already is noted."""
        changed = tuple(self._changed)
        by_subject = defaultdict(list)
        for alert in await self.store.every():
            by_subject[alert.subject_id].append(alert)
        month = self._budgets.month_start()
        for subject_id in {*changed, *by_subject}:
            alerts = by_subject.get(subject_id, [])
            self._budgets.set_thresholds(subject_id, [alert.threshold_cents for alert in alerts])
        for subject_id in changed:
            self._note(subject_id, month, self._budgets.spent(subject_id))
        self._changed.difference_update(changed)
        return by_subject

    async def _check(self) -> None:
        by_subject = await self._load()
        month = self._budgets.month_start()
        organizations = await self._outbox.unfired(month) if self._read else ()
        if not organizations or self._read is None:
            return
        spent = await self._read(month, organizations, until=month_of(month)[1])
        for subject_id, alerts in by_subject.items():
            if spent.get(subject_id, 0) >= min(alert.threshold_cents for alert in alerts) * CENT:
                self._note(subject_id, month, spent[subject_id])


@asynccontextmanager
async def open_alerts(
    database: AsyncEngine,
    config: AlertsConfig,
    pepper: bytes,
    environment: Mapping[str, str],
    budgets: Budgets,
    read: SpendReader | None,
) -> AsyncIterator[Alerts]:
    """The alerts at work."""
    storage = Storage(database)
    outbox = Outbox(storage)
    password = environment.get(config.smtp_password_env) if config.smtp_password_env else None
    transport = LazyTransport(_transport)
    async with httpx.AsyncClient(trust_env=False, transport=transport, timeout=config.timeout_s) as client:
        channels: dict[str, Channel] = {
            "email": MailChannel(config, password),
            "webhook": Webhook(client, pepper, private=config.allow_private_addresses),
        }
        deliveries = Deliveries(outbox, channels, config)
        alerts = Alerts(SpendAlertStore(storage), outbox, deliveries, config, pepper)
        alerts.watch(budgets, read)
        running = asyncio.create_task(alerts.run())
        try:
            yield alerts
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def _transport() -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncHTTPTransport(verify=httpx.create_ssl_context(), limits=limits)
