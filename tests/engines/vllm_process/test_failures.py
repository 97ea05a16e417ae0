"""The real engine fails in known ways, and the first line of what is told names the innermost cause."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import EngineUnavailable
from engines.host import EngineHost
from engines.spec import ModelSpec
from tests.engines.support import QUICK
from tests.engines.vllm_process.test_server import MODELS

pytestmark = pytest.mark.timeout(300)

SOURCE = MODELS / "smollm2-135m"


def damaged(folder: Path, name: str, content: bytes) -> Path:
    """The default model's folder with another content of one file."""
    folder.mkdir()
    for file in SOURCE.iterdir():
        if file.name != name:
            (folder / file.name).symlink_to(file)
    (folder / name).write_bytes(content)
    return folder


def configuration(**changes: object) -> bytes:
    return json.dumps({**json.loads((SOURCE / "config.json").read_bytes()), **changes}).encode()


def weights() -> bytes:
    with (SOURCE / "model.safetensors").open("rb") as file:
        return file.read(1 << 20)


@pytest.mark.parametrize(
    ("name", "file", "content", "memory_bytes", "cause"),
    [
        ("kv", None, bytes, 50_000_000, "larger than the available KV cache memory"),
        (
            "arch",
            "config.json",
            lambda: configuration(architectures=["Foo"]),
            0,
            "['Foo'] are not supported",
        ),
        ("type", "config.json", lambda: configuration(model_type="foo"), 0, "has model type `foo`"),
        (
            "layers",
            "config.json",
            lambda: configuration(num_hidden_layers=31),
            0,
            "weights were not initialized",
        ),
        ("cut", "model.safetensors", weights, 0, "file not fully covered"),
        ("tokenizer", "tokenizer.json", lambda: b"{}", 0, "check the tokenizer's files"),
    ],
)
async def test_the_cause_is_the_first_line(
    tmp_path: Path, name: str, file: str | None, content: Callable[[], bytes], memory_bytes: int, cause: str
) -> None:
    folder = SOURCE if file is None else damaged(tmp_path / name, file, content())
    spec = ModelSpec(id=name, source=folder, memory_bytes=memory_bytes, snapshot=False)
    async with EngineHost([spec], run_dir=tmp_path / "run", policy=QUICK) as host:
        with pytest.raises(EngineUnavailable) as caught:
            await host.wake(name)
        failure = host.status()[0].failure or ""
    first = failure.partition("\n")[0]
    assert first.startswith("the engine ended with exit status 1: ")
    assert cause in first
    assert "See root cause above" not in first
    assert str(folder) not in str(caught.value)
    assert cause not in str(caught.value)
