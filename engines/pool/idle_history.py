"""The idle times of each model, kept from one run of the host to the next."""

import json
import logging
from pathlib import Path

from coldstart.keepalive import HistogramSettings, HybridHistogram

_logger = logging.getLogger("torpor.engine")


class IdleHistoryStore:
    """Keep-alive policies of models, kept in a folder. ``keep_alive_s`` is used while too little is known."""

    def __init__(self, folder: Path, keep_alive_s: float) -> None:
        self._folder = folder
        self._settings = HistogramSettings(standard_keep_alive_s=keep_alive_s)
        self._policies: dict[str, HybridHistogram] = {}

    def policy(self, model_id: str) -> HybridHistogram:
        """The model's policy, with the idle times of earlier runs."""
        try:
            state = json.loads((self._folder / f"{model_id}.json").read_bytes())
            policy = HybridHistogram.from_state(state, self._settings)
        except FileNotFoundError:
            policy = HybridHistogram(self._settings)
        except (OSError, ValueError) as error:
            _logger.warning("%s: its earlier idle times are not used: %s", model_id, error)
            policy = HybridHistogram(self._settings)
        self._policies[model_id] = policy
        return policy

    def keep(self) -> None:
        """Write the idle times to the folder."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for model_id, policy in self._policies.items():
                new = self._folder / f".{model_id}.new"
                new.write_text(json.dumps(policy.to_state()))
                new.replace(self._folder / f"{model_id}.json")
        except OSError as error:
            _logger.warning("the idle times of models could not be kept: %s", error)
