"""What model folders say of their weights and their length."""

import json
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint import quantization, read_model, weight_files
from engines.engine_arguments import number, option
from engines.errors import InvalidModel
from engines.lengths import derived_length
from tests.engines.model_folders import LLAMA, llama_tensors, model_folder, write_safetensors


def test_weights_are_counted_in_the_engines_data_type(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": ("BF16", (100, 8)),
        "lm_head.weight": ("BF16", (100, 8)),
        "norm.weight": ("F32", (8,)),
        "packed.qweight": ("I32", (4, 4)),
        "scale": ("F8_E4M3", (3,)),
    }
    weights = read_model(model_folder(tmp_path, {}, tensors), "m").weights
    assert (weights.floats, weights.fixed_bytes, weights.exact) == (1608, 64 + 3, True)
    assert weights.size("bfloat16") == 1608 * 2 + 67
    assert weights.size("float32") == 1608 * 4 + 67
    tied = read_model(model_folder(tmp_path, {"tie_word_embeddings": True}, tensors), "m").weights
    assert tied.floats == 808


def test_projections_that_are_computed_together_are_one_matrix(tmp_path: Path) -> None:
    weights = read_model(model_folder(tmp_path, LLAMA, llama_tensors(LLAMA)), "m").weights
    assert weights.matrices == {
        (49152, 2048): 1,
        (6144, 2048): 24,
        (2048, 2048): 24,
        (16384, 2048): 24,
        (2048, 8192): 24,
    }


def test_only_what_vllm_loads_counts(tmp_path: Path) -> None:
    model_folder(tmp_path, {})
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (tmp_path / "consolidated.safetensors").write_bytes(b"damaged")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    for name in ("model-1.safetensors", "model-2.safetensors"):
        write_safetensors(tmp_path / name, {name: ("F32", (2, 2))})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_model(tmp_path, "m").weights.floats == 8


@pytest.mark.parametrize(
    ("configuration", "bfloat16", "float32"),
    [({"dtype": "float16"}, 1000, 2000), ({"torch_dtype": "float32"}, 500, 1000), ({}, 500, 1000)],
)
def test_of_other_files_only_the_size_is_known(
    tmp_path: Path, configuration: dict[str, Any], bfloat16: int, float32: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)
    weights = read_model(tmp_path, "m").weights
    assert (weights.exact, weights.size("bfloat16"), weights.size("float32")) == (False, bfloat16, float32)


def test_quantized_files_keep_their_size(tmp_path: Path) -> None:
    configuration = {"quantization_config": {"quant_method": "awq"}}
    assert quantization(configuration) == "awq"
    assert quantization({"text_config": configuration}) == "awq"
    assert quantization({"quantization_config": {}}) == "unknown"
    assert quantization({}) is None
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)
    assert read_model(tmp_path, "m").weights.size("float32") == 1000


def _good(tmp_path: Path) -> bytes:
    return (model_folder(tmp_path, {}) / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("cut in the data", lambda raw: raw[:-1], "cut short"),
        ("cut in the header", lambda raw: raw[:40], "header cannot be"),
        ("cut in the length", lambda raw: raw[:4], "header cannot be"),
        ("empty length", lambda raw: b"\0" * 8 + raw[8:], "header cannot be"),
        ("too much", lambda raw: raw + b"x", "cut short or damaged"),
        ("no JSON", lambda raw: raw[:8] + b"x" * (len(raw) - 8), "header"),
        ("no object", lambda raw: (2).to_bytes(8, "little") + b"[]", "not valid"),
        ("no shape", lambda raw: (8).to_bytes(8, "little") + b'{"a":{}}', "not valid"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(damage(_good(tmp_path)))
    with pytest.raises(InvalidModel, match=message) as caught:
        read_model(tmp_path, "m")
    assert "model.safetensors" in str(caught.value), name
    assert "copy the file again" in str(caught.value)


@pytest.mark.parametrize(
    ("configuration", "length"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 9}, 512),
        ({"max_position_embeddings": 2048, "seq_length": 1024}, 1024),
        ({"max_position_embeddings": 2048, "model_max_length": 4096}, 4096),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 4096),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 2048),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            4096,
        ),
        ({"max_position_embeddings": "2048"}, None),
        ({"max_position_embeddings": True}, None),
        ({}, None),
    ],
)
def test_the_longest_sequence(tmp_path: Path, configuration: dict[str, Any], length: int | None) -> None:
    assert derived_length(tmp_path, configuration, pooling=False) == length


def test_an_embedding_models_tokenizer_may_be_shorter(tmp_path: Path) -> None:
    configuration = {"max_position_embeddings": 514, "position_embedding_type": "absolute"}
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert derived_length(tmp_path, configuration, pooling=True) == 512
    assert derived_length(tmp_path, configuration, pooling=False) == 514


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("--max-model-len", "4096"), 4096),
        (("--max-model-len=4k",), 4000),
        (("--max_model_len=4K",), 4096),
        (("--max-model-len", "1.5k"), 1500),
        (("--max-model-len", "1", "--max-model-len", "2"), 2),
        (("--max-model-len", "auto"), None),
        (("--max-model-len", "-1"), None),
        (("--max-model-len",), None),
        ((), None),
    ],
)
def test_numbers_in_engine_args(words: tuple[str, ...], value: int | None) -> None:
    assert number(words, "--max-model-len") == value


def test_options_in_engine_args() -> None:
    words = ("--enforce-eager", "--dtype", "half", "max-model-len=3")
    assert option(words, "--dtype") == "half"
    assert option(words, "--enforce-eager") == ""
    assert option(words, "--max-model-len") is None
