"""What a LoRA adapter is to the engines: a folder of checked files, and how its engine was seen to answer."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of one base model, as the registry knows it.

    ``name`` is the public one (``ft:...``); ``digest`` (hexadecimal) is of the content of both files and
    names it in the engine; ``folder`` holds ``adapter_model.safetensors`` and ``adapter_config.json`` and
    never changes; ``canary`` is what `EngineHost.examine` recorded at the registration, None before.
    """

    name: str
    digest: str
    folder: Path
    rank: int
    canary: bytes | None = None
