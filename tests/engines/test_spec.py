"""Models as they are configured, and whether their files are complete."""

import json
from pathlib import Path

import pytest

from engines.errors import InvalidModel
from engines.lifecycle.command import arguments, environment
from engines.lifecycle.engine_root import host_root
from engines.spec import EngineAddress, ModelSpec, Task, check_model, context_length


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 2048}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_complete_model_passes(folder: Path) -> None:
    spec = ModelSpec(id="m", source=folder)
    check_model(spec)
    assert context_length(spec) == 2048
    assert context_length(ModelSpec(id="m", source=folder, max_model_len=512)) == 512


def test_a_remote_model_has_nothing_to_check() -> None:
    spec = ModelSpec(id="m", url="http://127.0.0.1:1/v1", api_key="sk-secret")
    check_model(spec)
    assert context_length(spec) is None
    assert "sk-secret" not in repr(spec)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "no tokenizer in"),
        ("model.safetensors", "no weights in"),
    ],
)
def test_a_missing_file_is_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InvalidModel, match=message) as caught:
        check_model(ModelSpec(id="m", source=folder))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_config_that_is_no_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(InvalidModel, match=r"config\.json"):
        check_model(ModelSpec(id="m", source=folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(InvalidModel, match=r"names model-2\.safetensors"):
        check_model(ModelSpec(id="m", source=folder))
    index.write_text("[]")
    with pytest.raises(InvalidModel, match="not an index"):
        check_model(ModelSpec(id="m", source=folder))


def test_no_folder_and_no_source(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="is not a folder"):
        check_model(ModelSpec(id="m", source=tmp_path / "absent"))
    with pytest.raises(InvalidModel, match="neither"):
        check_model(ModelSpec(id="m"))


def test_sentence_transformers_own_limit_goes_first(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    assert context_length(ModelSpec(id="m", source=folder)) == 256


def test_an_address_is_one_thing() -> None:
    for wrong in ({}, {"uds": "/s", "url": "http://h"}):
        with pytest.raises(ValueError, match="either"):
            EngineAddress(**wrong)


def test_the_operators_arguments_come_last(folder: Path) -> None:
    words = arguments(ModelSpec(id="m", source=folder, engine_args=("--max-num-seqs", "4")), Path("/run/s"))
    assert words[-2:] == ["--max-num-seqs", "4"]
    assert words[words.index("--served-model-name") + 1] == "m"
    assert "--enforce-eager" in words
    assert "pooling" not in words
    assert "pooling" in arguments(ModelSpec(id="m", source=folder, task=Task.EMBED), Path("/run/s"))


def test_the_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "HTTPS_PROXY",
        "TORPOR_ROOT_KEY",
        "LD_PRELOAD",
        "PYTHONSTARTUP",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    created = environment(tmp_path / "run", tmp_path / "cache", host_root())
    assert "secret" not in created.values()
    assert created["CUDA_VISIBLE_DEVICES"] == "1"
    assert (created["HF_HUB_OFFLINE"], created["TRANSFORMERS_OFFLINE"], created["VLLM_NO_USAGE_STATS"]) == (
        "1",
        "1",
        "1",
    )
    assert created["HOME"] == created["TMPDIR"] == str(tmp_path / "run")
