"""An engine that somebody else runs."""

from coldstart.tiers import SleepTier
from engines.spec import EngineAddress, ModelSpec
from engines.status import EngineLease, EngineState, EngineStatus


class RemoteEngine:
    """Always hot, and nothing to do for it but count."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.address = EngineAddress(url=spec.url, api_key=spec.api_key)
        self.leases: set[EngineLease] = set()

    def status(self) -> EngineStatus:
        """As far as is known."""
        return EngineStatus(
            id=self.spec.id, state=EngineState.READY, tier=SleepTier.HOT, in_flight=len(self.leases)
        )
