"""The host of engines that a configuration describes."""

from collections.abc import Sequence

from engines.host import EngineHost
from engines.policy import HostPolicy
from engines.spec import ModelSpec
from gateway.config import Config
from gateway.datadir import DataDirectory

_GIB = 1024**3


def engine_host(config: Config, data: DataDirectory, specs: Sequence[ModelSpec]) -> EngineHost:
    """Not entered yet."""
    engines = config.engines
    return EngineHost(
        specs,
        run_dir=data.run_folder,
        snapshot_dir=data.snapshot_folder if engines.snapshots else None,
        criu_dir=engines.criu or data.criu_folder,
        memory_bytes=int(engines.memory_gib * _GIB) if engines.memory_gib else None,
        policy=HostPolicy(spare_rooms=engines.spare_sandboxes),
    )
