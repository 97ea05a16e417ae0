"""The models that come with Torpor: whole, recognised when they are not, and what they should be."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engines.prepare import RECIPES, Recipe, damage
from tests.process import MODELS

SMOLLM2, MINILM = RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_models_are_whole(recipe: Recipe) -> None:
    assert damage(recipe, MODELS / recipe.name) is None


def _copy_of(recipe: Recipe, folder: Path) -> Path:
    """A model whose large files are links."""
    source, target = MODELS / recipe.name, folder / recipe.name
    for file in source.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return target


def test_damage_is_recognised(tmp_path: Path) -> None:
    target = _copy_of(MINILM, tmp_path)
    assert damage(MINILM, target) is None
    config = target / "config.json"
    text = config.read_text()
    config.unlink()
    assert damage(MINILM, target) == "config.json is missing"
    config.write_text(text + " ")
    assert damage(MINILM, target) == "config.json has changed"
    manifest = target / ".torpor-model.json"
    content = json.loads(manifest.read_text())
    manifest.unlink()
    assert damage(MINILM, target) == "there is no manifest"
    manifest.write_text(json.dumps({**content, "made_from": "elsewhere"}))
    assert damage(MINILM, target) == "it was made from elsewhere"


def test_smollm2_is_the_instruct_model() -> None:
    folder = MODELS / SMOLLM2.name
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.id_to_token(config["eos_token_id"]) == "<|im_end|>"
    assert "You are a helpful AI assistant named SmolLM" in (folder / "chat_template.jinja").read_text()
    assert tokenizer.encode("in 2026").tokens == ["in", "Ġ", "2", "0", "2", "6"]
