"""What a model is, where its engine is reached, and whether its files are complete."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from engines.adapter import Adapter
from engines.checkpoint import WEIGHTS, read_configuration, weight_files
from engines.errors import AdapterRejected, InvalidModel
from engines.lengths import derived_length
from engines.sizing import Sizing

DEFAULT_KV_CACHE = 1 << 30
"""Bytes of KV cache if nothing was chosen."""

# A checkpoint is whole when it has one of these, as transformers and vLLM look for them.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "tekken.json", "*.tiktoken")


class Task(StrEnum):
    """What an engine is asked for."""

    GENERATE = "generate"
    EMBED = "embed"


class TokenArrays(StrEnum):
    """What is done with token ids as the input of embeddings."""

    ACCEPT = "accept"
    REFUSE = "refuse"


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that vLLM can be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """How many adapters an engine of the model holds: it computes with ``slots`` different ones at once.

    ``cpu_slots``: how many are loaded, those included. ``max_rank``: of each.
    """

    slots: int = 4
    cpu_slots: int = 16
    max_rank: int = 16

    def faults(self) -> Iterator[tuple[str, str]]:
        """The keys that are wrong, and what they must be."""
        if self.slots < 1:
            yield "slots", "must be more than 0"
        if self.cpu_slots < self.slots:
            yield "cpu_slots", f"must be at least slots ({self.slots})"
        if self.max_rank not in LORA_RANKS:
            yield "max_rank", f"must be one of {', '.join(map(str, LORA_RANKS))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model as the configuration describes it: one that this host starts, or one behind a ``url``."""

    id: str
    task: Task = Task.GENERATE
    source: Path | None = None
    """Folder of weights and tokenizer; None for a remote engine."""
    engine_args: tuple[str, ...] = ()
    """Passed to vLLM after Torpor's own arguments, which they override."""
    max_model_len: int | None = None
    """Longest sequence in tokens; None: what the model's own configuration says."""
    memory_bytes: int = 0
    """Bytes of KV cache; 0: as `engines.fitting.choice` chooses, or 1 GiB without it."""
    dtype: str = "auto"
    """``auto``, or what the engine computes in: bfloat16, float32 or float16."""
    max_step_ms: float = 500.0
    """How long one step of the engine may keep all sequences waiting, and what follows from it in tokens."""
    step_tokens: int | None = None
    start_timeout_s: float = 300.0
    """How long a cold start may take."""
    preload: bool = False
    """Start together with the gateway."""
    url: str | None = None
    """Base address (without ``/v1``) of an OpenAI-compatible server that Torpor does not run."""
    api_key: str | None = field(default=None, repr=False)
    max_running: int = 32
    """How many sequences run at once; more wait in the engine."""
    max_concurrent: int | None = None
    """How many requests are sent to each engine at once, if fewer."""
    min_hot: int = 0
    """Engines of the model that never sleep, and how many it may have."""
    max_replicas: int = 1
    idle_pause_s: float = 10.0
    """Seconds without a request after which an engine is paused, and after which it leaves memory
    (None: as the model's history of idle times suggests)."""
    idle_snapshot_s: float | None = None
    wake_timeout_s: float | None = None
    """How long a request waits for an engine; None: as the caller says."""
    snapshot: bool = True
    """Whether it may sleep in a snapshot."""
    token_arrays: TokenArrays | None = None
    """Whether its embeddings take token ids; None: if its vocabulary is OpenAI's."""
    lora: LoraSettings | None = None
    """What its engines are made for when they are to serve adapters."""
    sizing: Sizing | None = field(default=None, compare=False, repr=False)
    """The arithmetic of its memory, once it has been fitted to the machine."""
    tool_parser: str | None = None
    """vLLM's names of what reads tool calls and reasoning in the model's answers."""
    reasoning_parser: str | None = None
    chat_template: Path | None = None
    """A Jinja file in the place of the template in the model's folder."""

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of KV cache that the engine is given on the CPU."""
        return self.memory_bytes or DEFAULT_KV_CACHE

    @property
    def capacity(self) -> int:
        """Requests that one engine is to have at once; for more, there are more replicas."""
        return min(self.max_running, self.max_concurrent or self.max_running)

    def weights_bytes(self) -> int:
        """Bytes of the weights in the engine, or of their files if nothing has been computed."""
        if self.sizing is not None:
            return self.sizing.weights_bytes
        return 0 if self.source is None else sum(path.stat().st_size for path in weight_files(self.source))

    @property
    def serves_tools(self) -> bool:
        """Whether requests may have tools. Another server judges that by itself."""
        return self.remote or self.tool_parser is not None or self.has_argument("--tool-call-parser")

    def has_argument(self, name: str) -> bool:
        """Whether ``engine_args`` give the option, as ``--name value`` or ``--name=value``."""
        return any(word.partition("=")[0] == name for word in self.engine_args)

    @property
    def remote(self) -> bool:
        """Whether the model is served by the server at its ``url``."""
        return self.url is not None


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where an engine answers: the path of a Unix socket, or a base URL with an optional bearer key."""

    uds: str | None = None
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.uds is None) == (self.url is None):
            raise ValueError("an engine has either a socket or a URL")


def servable(spec: ModelSpec, adapter: Adapter) -> None:
    """Check that a model's engines can serve an adapter; raise `AdapterRejected` if not."""
    if spec.lora is None:
        raise AdapterRejected(f"model {spec.id} serves no adapters")
    if adapter.rank > spec.lora.max_rank:
        raise AdapterRejected(f"the adapter has rank {adapter.rank}; at most {spec.lora.max_rank} is served")


def check_model(spec: ModelSpec) -> None:
    """Check that the files of a local model are there: folder, config.json, tokenizer, weights.

    Raises `InvalidModel` with what is missing and where. A remote model has nothing to check.
    """
    if spec.remote:
        return
    if spec.source is None:
        raise InvalidModel(f"model {spec.id}: neither a source nor a url is given")
    folder = spec.source
    if not folder.is_dir():
        raise InvalidModel(f"model {spec.id}: {folder} is not a folder")
    read_configuration(folder, spec.id)
    for what, patterns in (("tokenizer", _TOKENIZERS), ("weights", WEIGHTS)):
        if not any(path.is_file() and path.stat().st_size for p in patterns for path in folder.glob(p)):
            raise InvalidModel(f"model {spec.id}: no {what} in {folder} (looked for {', '.join(patterns)})")
    _check_shards(spec, folder)


def _check_shards(spec: ModelSpec, folder: Path) -> None:
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidModel(f"model {spec.id}: {index} is not an index of weights") from error
        for shard in sorted(shards):
            if not (folder / shard).is_file():
                raise InvalidModel(f"model {spec.id}: {index.name} names {shard}, which {folder} lacks")


def context_length(spec: ModelSpec) -> int | None:
    """The longest sequence in tokens that the engine will serve, told from the files, before it runs.

    None where they do not tell, and for a remote model. Raises `InvalidModel`.
    """
    if spec.max_model_len is not None or spec.source is None:
        return spec.max_model_len
    configuration = read_configuration(spec.source, spec.id)
    return derived_length(spec.source, configuration, pooling=spec.task is Task.EMBED)
