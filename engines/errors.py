"""What engines/ raises.

::

    EngineError
    ├── UnknownModel
    ├── InvalidModel
    │   └── ModelMisfit         it cannot fit the machine (engines.fitting.choice)
    ├── UnsupportedTier
    ├── AdapterRejected
    │   └── AdapterGone
    ├── EngineBroken
    │   └── AdapterUnfit
    ├── EngineStartFailed       a cold start ended early (engines.lifecycle.process)
    ├── DumpFailed              CRIU could not dump an engine (engines.lifecycle.process)
    ├── RunFoldersInUse         another host has the folder (engines.lifecycle.run_folders)
    ├── SnapshotFailed
    ├── InsufficientMemory
    └── EngineUnavailable
        └── HostClosing
"""


class EngineError(Exception):
    """Root of what engines/ raises."""


class UnknownModel(EngineError):
    """The host has no model of this name."""

    def __init__(self, model_id: str) -> None:
        super().__init__(f"there is no model {model_id[:80]!r}")
        self.model_id = model_id


class InvalidModel(EngineError):
    """A model's files are missing or cannot be read. For the operator: the message names the path."""


class UnsupportedTier(EngineError):
    """This host cannot put an engine to sleep in that tier."""


class EngineBroken(EngineError):
    """The connection to an engine failed: refused, reset, silent for too long, or ended in mid answer."""


class AdapterRejected(EngineError):
    """The engine cannot serve the adapter. The message says why, and is safe to show its owner."""


class AdapterGone(AdapterRejected):
    """The adapter was deleted while a request waited for it."""

    def __init__(self, name: str) -> None:
        super().__init__("the adapter was deleted")
        self.name = name


class AdapterUnfit(EngineBroken):
    """An adapter did not answer as it was seen to at its registration: nothing of the answer was sent."""


class SnapshotFailed(EngineError):
    """No snapshot could be made. The engine that it was to be made of is as it was. For the operator."""


class InsufficientMemory(EngineError):
    """An engine would never fit beside those that are always to be hot. Sizes in bytes. For the operator."""

    def __init__(self, size: int, limit: int, kept: int) -> None:
        super().__init__(
            f"an engine of {size >> 20} MiB does not fit into {limit >> 20} MiB beside the {kept >> 20} MiB"
            " of engines that never sleep (min_hot)"
        )


class EngineUnavailable(EngineError):
    """No engine could be woken in time, or its starts keep failing. The message is safe to show a client.

    ``retry_after_s``: seconds after which another attempt may succeed.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class HostClosing(EngineUnavailable):
    """The host is not open, or is closing."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", 5.0)
