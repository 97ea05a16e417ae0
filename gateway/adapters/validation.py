"""Whether two files are an adapter that an engine of the base model can serve. Nothing in them is run."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.adapters.base_shapes import BaseShapes
from gateway.adapters.errors import InvalidAdapter, shown
from gateway.adapters.peft import MAX_CONFIG_BYTES, PeftConfig, canonical, read_config
from gateway.adapters.tensors import Tensor, check_values, read_header

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(0|[1-9][0-9]{0,4})\."
    r"([A-Za-z0-9_]+\.[A-Za-z0-9_]+)\.lora_([AB])\.weight"
)
_DIGEST_OF = b"torpor adapter 1\0"


@dataclass(frozen=True, slots=True)
class Checked:
    """An adapter that was found good. ``digest`` (hexadecimal SHA-256) is of both files as they are kept."""

    digest: str
    rank: int
    size_bytes: int


def check_adapter(folder: Path, shapes: BaseShapes, max_rank: int) -> Checked:
    """Check both files of the folder, and put the configuration into its canonical form.

    Blocks for as long as it takes to read the files once. Raises `InvalidAdapter`.
    """
    weights, config_file = folder / WEIGHTS, folder / CONFIG
    if config_file.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"adapter_config.json has more than {MAX_CONFIG_BYTES} bytes.", "config")
    config = read_config(config_file.read_bytes())
    if config.rank > max_rank:
        raise InvalidAdapter(f"'r' is {config.rank}; the base model takes ranks up to {max_rank}.", "config")
    _check_targets(config, shapes)
    tensors = read_header(weights)
    modules = _check_shapes(tensors, config, shapes)
    kept = canonical(config, modules)
    config_file.write_bytes(kept)
    digest = hashlib.sha256(_DIGEST_OF + check_values(weights, tensors) + hashlib.sha256(kept).digest())
    return Checked(digest.hexdigest(), config.rank, weights.stat().st_size + len(kept))


def _check_targets(config: PeftConfig, shapes: BaseShapes) -> None:
    for target in sorted(config.targets or ()):
        if target.rpartition(".")[2] not in shapes.names:
            raise InvalidAdapter(
                f"'target_modules' names {shown(target, 64)}, which the engine cannot serve for this base "
                f"model. It serves {', '.join(shapes.names)}.",
                "config",
            )


def _check_shapes(tensors: Sequence[Tensor], config: PeftConfig, shapes: BaseShapes) -> set[str]:
    """The names of the modules that the adapter changes."""
    halves: dict[str, set[str]] = {}
    names: set[str] = set()
    for tensor in tensors:
        module, half = _check_tensor(tensor, config, shapes)
        halves.setdefault(module, set()).add(half)
        names.add(module.rpartition(".")[2])
    if not halves:
        raise InvalidAdapter("The safetensors file holds no tensors.")
    for module, found_halves in halves.items():
        if len(found_halves) < 2:
            has, lacks = ("A", "B") if "A" in found_halves else ("B", "A")
            raise InvalidAdapter(f"`{module}` has lora_{has} but no lora_{lacks}.")
    return names


def _check_tensor(tensor: Tensor, config: PeftConfig, shapes: BaseShapes) -> tuple[str, str]:
    """The module, with its layer, and which half of the pair it is."""
    which = f"Tensor `{shown(tensor.name)}`"
    match = _NAME.fullmatch(tensor.name)
    if match is None:
        raise InvalidAdapter(
            f"{which} is none that PEFT gives a LoRA adapter of this base model, such as "
            "`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`."
        )
    layer, module, half = match.groups()
    if int(layer) >= shapes.layers:
        raise InvalidAdapter(f"{which}: the base model has layers 0 to {shapes.layers - 1}.")
    if module not in shapes.modules:
        raise InvalidAdapter(
            f"{which}: the engine serves adapters of {', '.join(shapes.modules)} for this base model."
        )
    name = module.rpartition(".")[2]
    if config.targets is not None and not any(_ends(module, layer, target) for target in config.targets):
        raise InvalidAdapter(f"{which}: 'target_modules' of adapter_config.json does not name {name}.")
    inputs, outputs = shapes.modules[module]
    expected = (config.rank, inputs) if half == "A" else (outputs, config.rank)
    if tensor.shape != expected:
        raise InvalidAdapter(
            f"{which} has the shape {list(tensor.shape)}; with r = {config.rank} and this base model it "
            f"must be {list(expected)}."
        )
    return f"model.layers.{layer}.{module}", half


def _ends(module: str, layer: str, target: str) -> bool:
    """As PEFT matches a target: it is the module's whole name, or the end of it after a dot."""
    return f".model.layers.{layer}.{module}".endswith(f".{target}")
