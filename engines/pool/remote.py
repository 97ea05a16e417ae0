"""A model behind a ``url``, whose engine Torpor does not run."""

from coldstart.tiers import SleepTier
from engines.spec import EngineAddress, ModelSpec
from engines.status import EngineLease, EngineState, EngineStatus


class RemoteEngine:
    """Counts the leases on a server behind a ``url``, which is always hot."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.address = EngineAddress(url=spec.url, api_key=spec.api_key)
        self.leases: set[EngineLease] = set()

    def status(self) -> EngineStatus:
        """The status: ready, with the number of requests in flight."""
        return EngineStatus(
            id=self.spec.id, state=EngineState.READY, tier=SleepTier.HOT, in_flight=len(self.leases)
        )
