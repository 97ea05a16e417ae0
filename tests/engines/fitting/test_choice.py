"""KV cache, longest sequence and data type are chosen to make an engine fit, or it is refused in figures."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engines import host_memory
from engines.errors import InvalidModel
from engines.fitting.choice import ModelMisfit, fitted, require_fit
from engines.fitting.data_type import DataType, set_data_type
from engines.lifecycle.command import arguments
from engines.sizing import PROCESS_BYTES, Sizing
from engines.spec import ModelSpec, Task, context_length
from tests.engines.model_folders import llama_folder, model_folder

GIB = 1 << 30
MIB = 1 << 20
BLOCK = 24 * MIB  # of 128 tokens, in a data type of two bytes
WEIGHTS = (49152 * 2048 + 24 * (4 * 2048 * 2048 + 3 * 2048 * 8192)) * 2


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "total_bytes", lambda: 64 * GIB)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return llama_folder(tmp_path)


def choose(spec: ModelSpec, files: Any) -> DataType:
    return set_data_type(spec, files) or DataType("bfloat16", "measured", 0.9)


def prefer_float32(spec: ModelSpec, files: Any) -> DataType:
    return set_data_type(spec, files) or DataType("float32", "measured", 2.0)


def size(spec: ModelSpec, limit: int, chooser: Any = choose) -> tuple[ModelSpec, Sizing]:
    chosen = fitted(spec, limit, chooser)
    assert chosen.sizing is not None
    return chosen, chosen.sizing


def test_much_memory_gives_every_sequence_some_room(folder: Path) -> None:
    spec, sizing = size(ModelSpec(id="m", source=folder), 64 * GIB)
    assert (sizing.weights_bytes, sizing.token_bytes, sizing.block_tokens) == (WEIGHTS, 192 * 1024, 128)
    assert spec.memory_bytes == sizing.kv_cache_bytes == (64 + 1 + 31 * 8) * BLOCK
    assert spec.max_model_len == context_length(spec) == 8192
    assert sizing.total_bytes == WEIGHTS + PROCESS_BYTES + sizing.kv_cache_bytes
    assert not sizing.notes
    words = arguments(spec, Path("/s"))
    assert words[words.index("--kv-cache-memory-bytes") + 1] == str(spec.memory_bytes)
    assert words[words.index("--max-model-len") + 1] == "8192"
    assert words[words.index("--dtype") + 1] == "bfloat16"


def test_less_memory_gives_the_engine_half_of_it(folder: Path) -> None:
    spec, sizing = size(ModelSpec(id="m", source=folder), 16 * GIB)
    assert 65 * BLOCK < spec.memory_bytes < (64 + 1 + 31 * 8) * BLOCK
    assert 8 * GIB - BLOCK < sizing.total_bytes <= 8 * GIB
    assert spec.max_model_len == 8192


def test_one_longest_sequence_fits_at_least(folder: Path) -> None:
    limit = WEIGHTS + PROCESS_BYTES + 65 * BLOCK
    spec, sizing = size(ModelSpec(id="m", source=folder), limit)
    assert (spec.memory_bytes, spec.max_model_len, sizing.notes) == (65 * BLOCK, 8192, ())
    assert sizing.capacity_tokens == 65 * 128


def test_a_model_that_is_too_long_becomes_shorter_and_that_is_said(folder: Path) -> None:
    spec, sizing = size(ModelSpec(id="m", source=folder), WEIGHTS + PROCESS_BYTES + 65 * BLOCK - 1)
    assert (spec.max_model_len, spec.memory_bytes) == (63 * 128, 64 * BLOCK)
    assert sizing.model_length == 8192
    (note,) = sizing.notes
    assert "8,064 of the model's 8,192 tokens" in note
    assert "1.52 GiB" in note


def test_a_model_that_cannot_fit_is_refused_in_figures(folder: Path) -> None:
    with pytest.raises(ModelMisfit) as caught:
        size(ModelSpec(id="m", source=folder), 4 * GIB)
    text = str(caught.value)
    assert caught.value.key == "source"
    for part in (
        "3.19 GiB weights (bfloat16)",
        "512 tokens (192.0 KiB per token)",
        "1.40 GiB process",
        "4.00 GiB",
    ):
        assert part in text, text
    with pytest.raises(ModelMisfit, match="does not fit"):
        require_fit(ModelSpec(id="m", source=folder), 4 * GIB)


def test_the_machines_memory_bounds_what_may_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "total_bytes", lambda: 4 * GIB)
    with pytest.raises(ModelMisfit, match=r"may use 4\.00 GiB"):
        size(ModelSpec(id="m", source=folder), 100 * GIB)
    with pytest.raises(ModelMisfit, match=r"may use 3\.20 GiB"):
        fitted(ModelSpec(id="m", source=folder), None, choose)


def test_what_is_given_is_kept(folder: Path) -> None:
    spec, _ = size(ModelSpec(id="m", source=folder, memory_bytes=2 * GIB, max_model_len=4096), 64 * GIB)
    assert (spec.memory_bytes, spec.max_model_len) == (2 * GIB, 4096)
    shorter, sizing = size(ModelSpec(id="m", source=folder, memory_bytes=GIB), 64 * GIB)
    assert (shorter.memory_bytes, shorter.max_model_len) == (GIB, (GIB // BLOCK - 1) * 128)
    assert sizing.notes
    longer, _ = size(ModelSpec(id="m", source=folder, max_model_len=1000), 64 * GIB)
    assert (longer.memory_bytes, longer.max_model_len) == ((8 + 1 + 31 * 8) * BLOCK, 1000)


@pytest.mark.parametrize(
    ("given", "key", "message"),
    [
        ({"memory_bytes": GIB, "max_model_len": 8192}, "kv_cache_gib", "raise kv_cache_gib to 1.53 or more"),
        ({"memory_bytes": 30 * MIB}, "kv_cache_gib", "512 tokens"),
        ({"memory_bytes": 60 * GIB}, "kv_cache_gib", "the KV cache of 60.00 GiB"),
        ({"max_model_len": 9000}, "max_model_len", "at most 8,192 tokens"),
        ({"dtype": "float32", "memory_bytes": 2 * GIB, "max_model_len": 8192}, "kv_cache_gib", "384.0 KiB"),
    ],
)
def test_what_is_given_and_cannot_be_is_refused(
    folder: Path, given: dict[str, Any], key: str, message: str
) -> None:
    with pytest.raises(ModelMisfit) as caught:
        size(ModelSpec(id="m", source=folder, **given), 62 * GIB)
    assert caught.value.key == key
    assert message in str(caught.value)


def test_engine_args_win(folder: Path) -> None:
    args = ("--max-model-len=2k", "--kv_cache_memory_bytes", "1G", "--dtype", "half", "--block-size", "32")
    spec = ModelSpec(id="m", source=folder, engine_args=args, max_model_len=4096, memory_bytes=7 * GIB)
    chosen, sizing = size(spec, 64 * GIB)
    assert (chosen.max_model_len, chosen.memory_bytes, chosen.dtype) == (2000, GIB, "float16")
    assert sizing.block_tokens == 32
    halved, _ = size(ModelSpec(id="m", source=folder, engine_args=("--kv-cache-dtype", "fp8")), 64 * GIB)
    assert halved.memory_bytes == (64 + 1 + 31 * 8) * BLOCK // 2


def test_float32_doubles_weights_and_cache(folder: Path) -> None:
    _, sizing = size(ModelSpec(id="m", source=folder), 64 * GIB, prefer_float32)
    assert (sizing.dtype, sizing.weights_bytes, sizing.token_bytes) == ("float32", 2 * WEIGHTS, 384 * 1024)


@pytest.mark.parametrize("limit", [8 * GIB, 9 * GIB])
def test_float32_that_does_not_fit_gives_way_to_bfloat16(folder: Path, limit: int) -> None:
    """With 8 GiB float32 leaves no room, with 9 GiB room for shorter sequences only."""
    spec, sizing = size(ModelSpec(id="m", source=folder), limit, prefer_float32)
    assert (spec.dtype, sizing.weights_bytes, spec.max_model_len) == ("bfloat16", WEIGHTS, 8192)
    assert "measured, but" in sizing.dtype_reason
    with pytest.raises(ModelMisfit):
        size(ModelSpec(id="m", source=folder, dtype="float32"), 7 * GIB, prefer_float32)


def test_some_models_are_not_stable_in_float16(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path, model_type="gemma2", sliding_window=4096)
    with pytest.raises(ModelMisfit, match="not stable in float16") as caught:
        size(ModelSpec(id="m", source=folder, dtype="float16"), 64 * GIB)
    assert caught.value.key == "dtype"


def test_an_encoder_needs_no_cache(tmp_path: Path) -> None:
    configuration = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    folder = model_folder(tmp_path, configuration)
    spec, sizing = size(ModelSpec(id="m", task=Task.EMBED, source=folder), 8 * GIB)
    assert (sizing.token_bytes, sizing.kv_cache_bytes, spec.dtype) == (0, 0, "float32")
    assert "no KV cache" in sizing.text()
    assert 0 < spec.memory_bytes <= MIB


def test_unknown_is_said_and_the_default_taken(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path, mamba_d_state=16)
    spec, sizing = size(ModelSpec(id="m", source=folder), 64 * GIB)
    assert (sizing.token_bytes, sizing.capacity_tokens, spec.memory_bytes) == (None, None, GIB)
    assert "unknown" in sizing.text()
    assert sizing.notes
    overridden, _ = size(
        ModelSpec(id="m", source=llama_folder(tmp_path / "b"), engine_args=("--hf-overrides", "{}")), 64 * GIB
    )
    assert overridden.memory_bytes == GIB


def test_remote_models_and_damaged_files(folder: Path) -> None:
    remote = ModelSpec(id="m", url="http://127.0.0.1:1")
    assert fitted(remote, GIB, choose) is remote
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InvalidModel, match="copy the file again"):
        require_fit(ModelSpec(id="m", source=folder), 64 * GIB)


def test_what_is_chosen_does_not_change_what_a_model_is(folder: Path) -> None:
    spec, _ = size(ModelSpec(id="m", source=folder), 64 * GIB)
    assert spec == dataclasses.replace(spec, sizing=None)
    again, _ = size(spec, 64 * GIB)
    assert again == spec


@pytest.mark.parametrize(
    ("files", "total"),
    [
        ({"self/cgroup": "0::/a/b\n", "cg/a/b/memory.max": "3000\n", "cg/a/memory.max": "max\n"}, 3000),
        ({"self/cgroup": "0::/a/b\n", "cg/a/b/memory.max": "max\n", "cg/a/memory.max": "2000\n"}, 2000),
        ({"self/cgroup": "4:memory:/x\n0::/\n", "cg/memory/x/memory.limit_in_bytes": "4000"}, 4000),
        ({"self/cgroup": "4:memory:/gone\n", "cg/memory/memory.limit_in_bytes": "5000"}, 5000),
        (
            {"self/cgroup": "4:cpu,memory:/x\n", "cg/memory/x/memory.limit_in_bytes": "9223372036854771712"},
            10240,
        ),
        ({}, 10240),
    ],
)
def test_the_control_groups_limit_counts(tmp_path: Path, files: dict[str, str], total: int) -> None:
    for name, text in {"meminfo": "MemTotal: 10 kB\nMemAvailable: 5 kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _real_total(tmp_path, tmp_path / "cg") == total
    assert host_memory.available_bytes(tmp_path) == 5120


_real_total = host_memory.total_bytes
