"""What an engine sees of its model's files, whichever user they belong to."""

import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from coldstart.sandbox.mounts import OwnerMaps
from coldstart.sandbox.namespaces import Isolation, uid_of
from coldstart.sandbox.spares import create_warm_sandbox
from engines.errors import EngineError
from engines.lifecycle.engine_root import MODEL, ModelView, model_view, sandbox_root, unreadable
from engines.spec import ModelSpec

UID = uid_of("model")


def folder_of(path: Path) -> Path:
    """A model's folder, which its owner alone may read."""
    (path / "tokenizer").mkdir(parents=True)
    (path / "config.json").write_text("configuration")
    (path / "tokenizer" / "vocabulary.txt").write_text("words")
    for part in (path, *path.rglob("*")):
        part.chmod(0o700 if part.is_dir() else 0o600)
    return path


def hub_folder(path: Path) -> Path:
    """A hub's cache: the files are links to others beside the folder."""
    blobs, snapshot = path / "blobs", path / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_text("configuration")
    (blobs / "other").write_text("another model's")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    return snapshot


Ask = Callable[[ModelView, str], Awaitable[str]]


@pytest.fixture
def run(tmp_path: Path) -> Ask:
    """What a shell command prints in a sandbox with a model's files, as the engine's user."""

    async def run(view: ModelView, command: str) -> str:
        owners = OwnerMaps()
        warm = await create_warm_sandbox(Isolation(namespaces=True), sandbox_root(None).layout, tmp_path)
        try:
            await warm.sandbox.mount_engine(view.mounts, owners, uid=UID)
            await warm.sandbox.run(
                ["/bin/sh", "-c", command], env={"PATH": os.defpath}, cwd=Path("/"), uid=UID
            )
            await warm.sandbox.wait()
            return warm.output.read().decode()
        finally:
            await warm.close()
            owners.close()

    return run


async def test_a_private_folder_is_read_and_not_written(tmp_path: Path, run: Ask) -> None:
    view = model_view(ModelSpec(id="model", source=folder_of(tmp_path / "model")))
    assert view.spec.source == MODEL
    assert unreadable(view) == tmp_path / "model"
    assert await run(view, f"cat {MODEL}/config.json {MODEL}/tokenizer/*") == "configurationwords"
    assert "Read-only file system" in await run(view, f"echo x > {MODEL}/config.json")
    assert (tmp_path / "model" / "config.json").read_text() == "configuration"


async def test_a_folder_of_another_user_is_read(tmp_path: Path, run: Ask) -> None:
    folder = folder_of(tmp_path / "model")
    subprocess.run(["chown", "-R", "12345:12345", folder], check=True)
    view = model_view(ModelSpec(id="model", source=folder))
    assert await run(view, f"cat {MODEL}/config.json") == "configuration"


async def test_of_a_hubs_cache_only_the_models_own_files_are_there(tmp_path: Path, run: Ask) -> None:
    view = model_view(ModelSpec(id="model", source=hub_folder(tmp_path / "models--a--b")))
    assert [str(mount.target) for mount in view.mounts] == [f"{MODEL}/config.json"]
    assert await run(view, f"cat {MODEL}/config.json; ls /run/torpor") == "configurationmodel\n"
    assert "another" not in await run(view, f"grep -rs another {MODEL} /run/torpor")


async def test_files_that_arguments_name_are_there(tmp_path: Path, run: Ask) -> None:
    plugin, template = tmp_path / "plugin.py", tmp_path / "chat.jinja"
    plugin.write_text("plugin")
    template.write_text("template")
    spec = ModelSpec(
        id="model",
        source=folder_of(tmp_path / "model"),
        chat_template=template,
        engine_args=(
            "--tool-parser-plugin",
            str(plugin),
            f"--other={plugin}",
            "--max-num-seqs=4",
            "/no/file",
        ),
    )
    view = model_view(spec)
    option, first, second, number, missing = view.spec.engine_args
    assert (option, number, missing) == ("--tool-parser-plugin", "--max-num-seqs=4", "/no/file")
    paths = [first, second.removeprefix("--other="), str(view.spec.chat_template)]
    assert not any(path.startswith(str(tmp_path)) for path in paths)
    assert await run(view, f"cat {' '.join(paths)}") == "pluginplugintemplate"


def test_a_folder_with_too_many_links_is_refused_in_words(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub")
    for number in range(250):
        (folder / str(number)).touch()
    with pytest.raises(EngineError, match=r"251 files.* the most is 200"):
        model_view(ModelSpec(id="model", source=folder))


def test_a_model_that_everybody_may_read_has_nothing_unreadable(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    for part in (folder, *folder.rglob("*")):
        part.chmod(0o755 if part.is_dir() else 0o644)
    assert unreadable(model_view(ModelSpec(id="model", source=folder))) is None


def test_paths_inside_name_nothing_of_this_machine() -> None:
    root = sandbox_root(Path("/somewhere/criu"))
    system = {"bin", "dev", "etc", "lib", "lib64", "lib32", "libx32", "opt", "sbin", "sys", "usr"}
    inside = {*root.layout.binds, *root.layout.links, *root.layout.files, root.interpreter, root.source}
    assert {path.parts[1] for path in inside} <= system
    assert not any(str(Path.home()) in str(path) for path in inside)
    assert (
        root.layout.outside(root.source / "engines" / "wire.py")
        == Path(__file__).parents[3].resolve() / "engines" / "wire.py"
    )
    assert root.layout.outside(Path("/run/torpor/box/x")) is None
