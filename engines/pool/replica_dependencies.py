"""What the replicas of one model share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from coldstart.snapshots.store import Snapshot
from engines.lifecycle.engine import Engine
from engines.policy import HostPolicy
from engines.pool.memory_budget import MemoryBudget
from engines.pool.memory_claim import Footprint
from engines.spec import ModelSpec

if TYPE_CHECKING:
    from engines.pool.adapter_failures import AdapterDesk
    from engines.pool.replica import Replica


Finder = Callable[[], Awaitable[Snapshot | None]]
"""Looks for the snapshot that may be restored now."""


class Listener(Protocol):
    """What a replica tells its actor."""

    desk: "AdapterDesk"

    def on_ready(self, replica: "Replica") -> None: ...
    def on_rested(self, replica: "Replica") -> None: ...
    def on_wake_failed(self, replica: "Replica", failure: str) -> None: ...
    def on_broken(self, replica: "Replica", failure: str) -> None: ...
    def on_proven(self, replica: "Replica") -> None: ...
    def on_not_restored(self, replica: "Replica", failure: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What replicas of one model are made with. ``post`` puts work into the actor's inbox."""

    spec: ModelSpec
    make: Callable[[], Engine]
    policy: HostPolicy
    budget: MemoryBudget
    post: Callable[[Callable[[], None]], None]
    listener: Listener
    footprint: Footprint
