"""Waking one engine, from a snapshot or from the weights. A failure is a result, not an exception."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from coldstart.snapshots.store import Snapshot
from engines.errors import EngineError
from engines.lifecycle.engine import Engine
from engines.lifecycle.process import EngineStartFailed
from engines.patience import Patience
from engines.policy import HostPolicy
from engines.spec import ModelSpec

_END_S = 2.0
"""How long to wait for the end of an engine whose canary has failed."""
_logger = logging.getLogger("torpor.engine")


@dataclass(frozen=True, slots=True)
class Awake:
    """An engine that answers. ``ms``: durations of its phases. ``verified``: it has no canary to wait for."""

    engine: Engine
    ms: Mapping[str, float]
    verified: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """An engine that does not answer, and must be stopped. ``failure``: why, with its last output."""

    engine: Engine
    failure: str


async def restore(engine: Engine, snapshot: Snapshot, spec: ModelSpec, policy: HostPolicy) -> Awake | Failed:
    """Restore the engine from a snapshot that has been checked."""
    canary = snapshot.manifest.canary
    limit_s = Patience.of_snapshot(spec, snapshot).restore_s(policy.restore_timeout_s)
    try:
        async with asyncio.timeout(limit_s):
            ms = dict(await engine.restore(snapshot))
            ms |= await engine.wake(canary)
    except TimeoutError:
        failure = f"it took longer than {limit_s:.0f} s"
    except EngineError as error:
        failure = str(error)
    except Exception as error:
        # The outermost boundary of a restore, as of a start.
        _logger.exception("%s: the restore failed", spec.id)
        failure = str(error)
    else:
        return Awake(engine, ms, verified=canary is None)
    _logger.warning("%s: the snapshot could not be restored, starting cold: %s", spec.id, failure)
    return Failed(engine, failure)


async def start(engine: Engine, spec: ModelSpec) -> Awake | Failed:
    """Start the engine from the weights."""
    limit_s = spec.start_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return Awake(engine, await engine.start(), verified=True)
    except EngineStartFailed as error:
        return Failed(engine, str(error))
    except TimeoutError:
        return Failed(engine, f"the engine did not answer within {limit_s:g} s\n{engine.last_words()}")
    except Exception as error:
        # The outermost boundary of a start: the state must not stay 'starting' for ever.
        _logger.exception("%s: the start failed", spec.id)
        return Failed(engine, f"the engine could not be started: {error}")


async def ending(engine: Engine) -> None:
    """Wait briefly for the end of an engine that is probably ending itself: its exit status says why."""
    with suppress(TimeoutError):
        await asyncio.wait_for(engine.ended(), _END_S)
