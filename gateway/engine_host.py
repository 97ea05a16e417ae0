"""The host of engines that a configuration describes."""

import asyncio
import logging
from collections.abc import Sequence

from coldstart.criu import program
from coldstart.criu.program import Criu, CriuMissing
from engines.fitting.choice import fitted
from engines.fitting.data_type import DataTypes
from engines.host import EngineHost
from engines.lifecycle.isolation import examine, missing_text
from engines.policy import HostPolicy
from engines.spec import ModelSpec
from gateway.config.sections import Config
from gateway.storage.data_directory import DataDirectory

_logger = logging.getLogger("torpor.engine")


def fitted_specs(config: Config, data: DataDirectory) -> list[ModelSpec]:
    """The configured models, with what was chosen for this machine.

    Takes some seconds for a model whose data types are compared for the first time. Raises `InvalidModel`.
    """
    types = DataTypes(data.data_types_file)
    specs = [
        fitted(model.spec(data.environment), config.engines.memory_bytes, types.of) for model in config.models
    ]
    for spec in specs:
        if spec.sizing is not None:
            _logger.info("%s: %s; %s", spec.id, spec.sizing.text(), spec.sizing.dtype_reason)
            if spec.step_tokens is not None:
                _logger.info("%s: steps of %d tokens at most", spec.id, spec.step_tokens)
            for note in spec.sizing.notes:
                _logger.warning("%s: %s", spec.id, note)
    return specs


def configured_criu(config: Config, data: DataDirectory) -> Criu | None:
    """The CRIU that engines will be dumped and restored with; None without snapshots or without CRIU."""
    if not config.engines.snapshots:
        return None
    try:
        return program.find(config.engines.criu or data.criu_folder)
    except CriuMissing:
        return None


class SandboxRequired(Exception):
    """Engines cannot be isolated on this host, and the configuration requires that they are."""


def require_sandbox(config: Config, data: DataDirectory) -> None:
    """Check that nothing of the isolation of engines is missing, if ``[engines] require_sandbox`` is set.

    Raises `SandboxRequired`.
    """
    if not config.engines.require_sandbox or all(model.url is not None for model in config.models):
        return
    missing = missing_text(asyncio.run(examine(configured_criu(config, data))).isolation)
    if missing:
        raise SandboxRequired(
            f"engines would not be fully isolated on this host: {missing}; run the gateway as root with "
            "CAP_SYS_ADMIN (docs/explanation/security.md says what each part needs), or remove "
            "require_sandbox from [engines]"
        )


def engine_host(config: Config, data: DataDirectory, specs: Sequence[ModelSpec]) -> EngineHost:
    """Not entered yet."""
    engines = config.engines
    return EngineHost(
        specs,
        run_dir=data.run_folder,
        snapshot_dir=data.snapshot_folder if engines.snapshots else None,
        criu_dir=engines.criu or data.criu_folder,
        memory_bytes=engines.memory_bytes,
        policy=HostPolicy(
            spare_sandboxes=engines.spare_sandboxes, inspect_interval_s=engines.inspect_interval_s
        ),
    )
