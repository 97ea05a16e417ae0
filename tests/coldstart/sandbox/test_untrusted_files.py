"""Links that a sandboxed process plants in its folder lead the host nowhere."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from coldstart.sandbox import untrusted_files
from coldstart.sandbox.untrusted_files import copy_regular_files, put_files, remove_folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder of the host, with a file that no engine may read."""
    folder = tmp_path / "host"
    (folder / "adapters").mkdir(parents=True)
    (folder / "pepper").write_text("secret")
    return folder


@pytest.fixture
def box(tmp_path: Path) -> Path:
    folder = tmp_path / "box"
    folder.mkdir()
    return folder


def test_a_copy_has_regular_files_and_nothing_behind_a_link(secret: Path, box: Path, tmp_path: Path) -> None:
    (box / "cache" / "deep").mkdir(parents=True)
    file = box / "cache" / "deep" / "info.json"
    file.write_text("{}")
    file.chmod(0o640)
    os.utime(file, ns=(1_000_000_000, 2_000_000_000))
    (box / "pepper").symlink_to(secret / "pepper")
    (box / "folder").symlink_to(secret)
    (box / "dangling").symlink_to(secret / "missing")
    os.mkfifo(box / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(box / "s"))
    target = tmp_path / "snapshot"
    target.mkdir()
    copy_regular_files(box, target)
    names = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert names == {"cache", "cache/deep", "cache/deep/info.json"}
    copied = (target / "cache/deep/info.json").stat()
    assert (copied.st_mode & 0o777, copied.st_mtime_ns) == (0o640, 2_000_000_000)


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_a_file_that_is_replaced_after_the_look_at_it_is_not_copied(
    secret: Path, box: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's moment: between stat and open."""
    victim = box / "info.json"
    victim.write_text("{}")
    copy: Callable[[str, int, Path, int | None], None] = untrusted_files._copy

    def replaced(name: str, folder: int, target: Path, uid: int | None) -> None:
        victim.unlink()
        if what == "link":
            victim.symlink_to(secret / "pepper")
        else:
            os.mkfifo(victim)
        copy(name, folder, target, uid)

    monkeypatch.setattr(untrusted_files, "_copy", replaced)
    target = tmp_path / "snapshot"
    target.mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP, or the error of `_copy`
        copy_regular_files(box, target)
    assert list(target.iterdir()) == []


def adapter(folder: Path) -> list[Path]:
    folder.mkdir()
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    for file in files:
        file.write_text(file.name)
    return files


def test_files_are_put_and_removed(box: Path, tmp_path: Path) -> None:
    files = adapter(tmp_path / "store")
    put_files(files, box, "adapters", "ab.1")
    put_files(files, box, "adapters", "ab.2")
    with pytest.raises(FileExistsError):
        put_files(files, box, "adapters", "ab.2")
    assert {path.read_text() for path in (box / "adapters/ab.1").iterdir()} == {file.name for file in files}
    remove_folder(box, "adapters", "ab.1")
    remove_folder(box, "adapters", "ab.1")
    assert [path.name for path in (box / "adapters").iterdir()] == ["ab.2"]
    remove_folder(box, "adapters")
    assert [str(path.relative_to(box)) for path in box.rglob("*")] == ["adapters"]
    with pytest.raises(FileNotFoundError):
        put_files([tmp_path / "missing"], box, "adapters", "ab.3")


@pytest.mark.parametrize("linked", ["box", "adapters", "name"])
def test_a_link_in_the_place_of_a_folder_gets_no_files(
    secret: Path, box: Path, tmp_path: Path, linked: str
) -> None:
    files = adapter(tmp_path / "store")
    if linked == "box":
        box.rmdir()
        box.symlink_to(secret)
    elif linked == "adapters":
        (box / "adapters").symlink_to(secret)
    else:
        (box / "adapters").mkdir()
        (box / "adapters" / "ab.1").symlink_to(secret)
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP, ENOTDIR or EEXIST
        put_files(files, box, "adapters", "ab.1")
    assert sorted(path.name for path in secret.rglob("*")) == ["adapters", "pepper"]


def test_a_link_in_the_place_of_a_folder_is_not_emptied(secret: Path, box: Path) -> None:
    (secret / "ab.1").mkdir()
    (secret / "ab.1" / "weights").write_text("of another engine")
    (box / "adapters").symlink_to(secret)
    remove_folder(box, "adapters", "ab.1")
    remove_folder(box, "adapters")
    assert (secret / "ab.1" / "weights").exists()
    assert (secret / "pepper").exists()
