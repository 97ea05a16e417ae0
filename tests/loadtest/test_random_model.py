"""Models of random weights: complete checkpoints that transformers reads, the same for the same seed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.spec import ModelSpec, check_model, context_length
from loadtest.random_model import ROOT, SHAPES, TOKENIZER, Shape, write_model

TINY = SHAPES["tiny"]


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        write_model(TINY, tmp_path / name, seed=seed)
    item = _content(tmp_path / "one")
    assert item == _content(tmp_path / "same")
    assert item["model.safetensors"] != _content(tmp_path / "other")["model.safetensors"]


def test_transformers_reads_every_tensor_of_a_sharded_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(TINY, folder, shard_bytes=4_000_000)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 2
    check_model(ModelSpec(id="model", source=folder))
    assert context_length(ModelSpec(id="model", source=folder)) == TINY.positions
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    assert set(index["weight_map"]) == {name for name, _ in TINY.tensors()}
    assert index["metadata"]["total_size"] == TINY.parameters() * 2
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert sum(tensor.numel() for tensor in model.parameters()) == TINY.parameters()
    weights = model.state_dict()
    assert weights["model.embed_tokens.weight"].float().std().item() == pytest.approx(0.02, rel=0.02)
    assert weights["model.norm.weight"].eq(1).all()


def test_pages_of_the_weights_differ(tmp_path: Path) -> None:
    """A snapshot stores equal pages once, which no real model's weights would let it do."""
    write_model(TINY, tmp_path / "model")
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    pages = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    assert len(set(pages)) == len(pages)


@pytest.mark.parametrize(
    ("size", "billions"), [("0.5b", 0.5), ("1.7b", 1.7), ("3b", 3.0)], ids=lambda value: str(value)
)
def test_sizes_are_what_their_names_say(size: str, billions: float) -> None:
    assert SHAPES[size].parameters() / 1e9 == pytest.approx(billions, rel=0.02)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(FileExistsError):
        write_model(TINY, tmp_path)
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere has no tokenizer\.json"):
        write_model(TINY, tmp_path / "model", tokenizer=tmp_path / "nowhere")


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    command = [sys.executable, "-m", "loadtest.random_model", "tiny", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}: {TINY.parameters() / 1e9:.2f} B parameters\n"
    assert (folder / "tokenizer.json").read_bytes() == (TOKENIZER / "tokenizer.json").read_bytes()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_a_shape_counts_its_parameters() -> None:
    shape = Shape(hidden=4, intermediate=8, layers=1, heads=2, kv_heads=1, vocabulary=10)
    attention, mlp, norms = 2 * 4 * 4 + 2 * 2 * 4, 3 * 4 * 8, 2 * 4
    assert shape.parameters() == 10 * 4 + attention + mlp + norms + 4
