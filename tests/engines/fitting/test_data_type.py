"""Which data type is chosen, and that it is measured once. The measurement itself is the real one."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint import ModelFiles, read_model
from engines.fitting import data_type
from engines.fitting.data_type import DataTypes, judge
from engines.spec import ModelSpec, Task
from tests.engines.model_folders import llama_folder, model_folder

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def seconds(bfloat16: float, float32: float) -> dict[str, list[float]]:
    return {"bfloat16": [bfloat16] * 4, "float32": [float32] * 4}


def test_float32_must_be_clearly_faster() -> None:
    assert judge(seconds(1.0, 1.0)).name == "bfloat16"
    assert judge(seconds(1.19, 1.0)).name == "bfloat16"
    assert judge(seconds(1.21, 1.0)).name == "float32"
    assert judge(seconds(1.0, 2.0)).name == "bfloat16"
    assert "2.0 times as fast" in judge(seconds(2.0, 1.0)).reason
    mixed = {"bfloat16": [1.0, 1.0, 4.0, 8.0], "float32": [2.0, 1.0, 2.0, 2.0]}
    assert judge(mixed).float32_speedup == pytest.approx(4**0.25)


@pytest.mark.parametrize(
    ("given", "configuration", "name"),
    [
        ({"dtype": "float16"}, {}, "float16"),
        ({"engine_args": ("--dtype", "float")}, {}, "float32"),
        ({"engine_args": ("--dtype=bfloat16",), "dtype": "float32"}, {}, "bfloat16"),
        ({"task": Task.EMBED}, {}, "float32"),
        ({"task": Task.EMBED, "dtype": "bfloat16"}, {}, "bfloat16"),
        ({}, {"quantization_config": {"quant_method": "gptq"}}, "bfloat16"),
    ],
)
def test_what_needs_no_measurement(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    configuration: dict[str, Any],
    name: str,
) -> None:
    monkeypatch.delattr(data_type, "_measure")
    spec = ModelSpec(id="m", source=model_folder(tmp_path, configuration), **given)
    assert DataTypes(None).of(spec, read_model(tmp_path, "m")).name == name


@pytest.fixture
def small(tmp_path: Path) -> tuple[ModelSpec, ModelFiles]:
    folder = llama_folder(tmp_path / "model", **SMALL)
    return ModelSpec(id="m", source=folder), read_model(folder, "m")


def test_a_real_measurement_is_kept_and_not_repeated(
    tmp_path: Path, small: tuple[ModelSpec, ModelFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "types.json"
    first = DataTypes(file).of(*small)
    assert first.float32_speedup is not None
    assert first.name in ("bfloat16", "float32")
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.delattr(data_type, "_measure")
    assert DataTypes(file).of(*small) == first


def test_it_is_repeated_for_other_shapes_threads_and_versions(
    tmp_path: Path, small: tuple[ModelSpec, ModelFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []

    def measure(request: Any) -> dict[str, list[float]]:
        requests.append(request)
        return seconds(1.0, 1.0)

    monkeypatch.setattr(data_type, "_measure", measure)
    file = tmp_path / "types.json"
    types = DataTypes(file)
    types.of(*small)
    types.of(*small)
    assert len(requests) == 1
    assert requests[0]["head"] == [1000, 256]
    assert [1024, 256, 2] in requests[0]["layers"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    types.of(*small)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    types.of(*small)
    monkeypatch.setattr(data_type, "version", lambda _: "0.0")
    types.of(*small)
    other = llama_folder(tmp_path / "other", **{**SMALL, "intermediate_size": 1024})
    types.of(small[0], read_model(other, "m"))
    assert len(requests) == 5
    assert len(json.loads(file.read_text())) == 5


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_file_that_cannot_be_read_is_replaced(
    tmp_path: Path, small: tuple[ModelSpec, ModelFiles], monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(data_type, "_measure", lambda _: seconds(3.0, 1.0))
    file = tmp_path / "types.json"
    file.write_text(content)
    assert DataTypes(file).of(*small).name == "float32"
    assert seconds(3.0, 1.0) in json.loads(file.read_text()).values()


def test_a_measurement_that_fails_decides_nothing(
    tmp_path: Path, small: tuple[ModelSpec, ModelFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    file = tmp_path / "types.json"
    chosen = DataTypes(file).of(*small)
    assert (chosen.name, chosen.float32_speedup) == ("bfloat16", None)
    assert not file.exists()


def test_no_shapes_no_measurement(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    chosen = DataTypes(None).of(ModelSpec(id="m", source=folder), read_model(folder, "m"))
    assert (chosen.name, chosen.float32_speedup) == ("bfloat16", None)
