"""Waking one engine: from a snapshot, or from nothing. What goes wrong is an outcome, not an exception."""

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

# How long the end of an unfit engine is waited for.
_END_S = 2.0
_logger = logging.getLogger("torpor.engine")


@dataclass(frozen=True, slots=True)
class Awake:
    """It answers. ``ms``: how long each phase took. ``proven``: there is no canary to wait for."""

    engine: Engine
    ms: Mapping[str, float]
    proven: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """It does not, and must be stopped. ``failure``: why, with its last words."""

    engine: Engine
    failure: str


async def restore(engine: Engine, snapshot: Snapshot, spec: ModelSpec, policy: HostPolicy) -> Awake | Failed:
    """From a snapshot that has been found good."""
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
        return Awake(engine, ms, proven=canary is None)
    _logger.warning("%s: the snapshot could not be restored, starting cold: %s", spec.id, failure)
    return Failed(engine, failure)


async def start(engine: Engine, spec: ModelSpec) -> Awake | Failed:
    """From nothing."""
    limit_s = spec.start_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            return Awake(engine, await engine.start(), proven=True)
    except EngineStartFailed as error:
        return Failed(engine, str(error))
    except TimeoutError:
        return Failed(engine, f"the engine did not answer within {limit_s:g} s\n{engine.last_words()}")
    except Exception as error:
        # The outermost boundary of a start: the state must not stay 'starting' for ever.
        _logger.exception("%s: the start failed", spec.id)
        return Failed(engine, f"the engine could not be started: {error}")


async def ending(engine: Engine) -> None:
    """Wait a moment for the end of an engine that has probably ended itself: how it did tells why."""
    with suppress(TimeoutError):
        await asyncio.wait_for(engine.ended(), _END_S)
