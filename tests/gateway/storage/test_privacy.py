"""The data directory is for its owner alone, whatever the umask, its earlier mode, and who has been there."""

import errno
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.storage.data_directory import DataDirectory
from gateway.storage.privacy import DataDirectoryError, NotPrivate, make_private, open_private
from gateway.telemetry.logs import LogFile
from tests.process import REPOSITORY, Gateway, free_port

NOBODY = 65534


def _open_to_others(folder: Path) -> list[str]:
    return [
        str(path)
        for path in (folder, *folder.rglob("*"))
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    ]


def _planted(folder: Path, mode: int = 0o755) -> Path:
    """A data directory as an earlier version, or a careless hand, has left it."""
    for name in ("ledger/0", "adapters/content/ab", "snapshots/near/1", "run/cache"):
        (folder / name).mkdir(parents=True)
    for name in (
        "torpor.db",
        "torpor.db-wal",
        "torpor.db-shm",
        "credentials.env",
        "pepper",
        "gateway.log.1",
        "ledger/0/00000001.journal",
        "adapters/content/ab/abcd",
        "snapshots/near/1/pages-1.img",
        "run/cache/habits",
    ):
        (folder / name).write_text("secret")
    for path in folder.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o644)
    os.mkfifo(folder / "run/pipe")
    folder.chmod(mode)
    return folder


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o750, 0o1777, 0o2775])
def test_what_was_open_is_closed_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    folder = _planted(tmp_path / "data", mode)
    make_private(folder)
    assert _open_to_others(folder) == []
    assert (folder / "torpor.db").read_text() == "secret"
    (said,) = caplog.messages
    assert said.startswith(f"the data directory {folder} was open to other users (mode {mode:04o})")
    caplog.clear()
    make_private(folder)
    assert caplog.messages == []


def test_open_files_in_a_private_directory_are_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _planted(tmp_path / "data", 0o700)
    make_private(folder)
    assert _open_to_others(folder) == []
    assert len(caplog.messages) == 1


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (elsewhere / "file").write_text("of another user")
    (elsewhere / "file").chmod(0o644)
    folder = _planted(tmp_path / "data")
    (folder / "file").symlink_to(elsewhere / "file")
    (folder / "folder").symlink_to(elsewhere)
    make_private(folder)
    assert stat.S_IMODE((elsewhere / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755


def test_a_directory_behind_a_link_of_ones_own_is_closed(tmp_path: Path) -> None:
    _planted(tmp_path / "disk")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    make_private(tmp_path / "data")
    assert _open_to_others(tmp_path / "disk") == []


def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    with (
        pytest.raises(NotPrivate, match="belongs to nobody, and Torpor runs as root"),
        DataDirectory(folder).held(),
    ):
        pass
    assert list(folder.iterdir()) == []
    os.close(open_private(folder))  # root may talk to the gateway of another user


def test_a_link_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "data").symlink_to(tmp_path / "own")
    os.chown(tmp_path / "data", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(NotPrivate, match="belongs to nobody"):
        make_private(tmp_path / "data")


def test_what_somebody_put_into_an_open_directory_is_refused(tmp_path: Path) -> None:
    folder = _planted(tmp_path / "data", 0o777)
    os.chown(folder / "pepper", NOBODY, NOBODY)
    with pytest.raises(NotPrivate, match=f"{folder}/pepper belongs to nobody"):
        make_private(folder)
    os.chown(folder / "pepper", 0, 0)
    make_private(folder)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o777, 0o1777])
def test_an_open_directory_of_another_purpose_is_refused_and_left_alone(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib/file").write_text("")
    before = {path: path.stat().st_mode for path in folder.rglob("*")}
    folder.chmod(mode)
    with pytest.raises(NotPrivate, match="holds files that are not Torpor's, such as 'lib': set"):
        make_private(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert {path: path.stat().st_mode for path in folder.rglob("*")} == before


def test_an_open_directory_in_which_somebody_else_works_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in ("lock", "mail"):
        (folder / name).write_text("")
    os.chown(folder / "mail", NOBODY, NOBODY)
    folder.chmod(0o1777)
    with pytest.raises(NotPrivate, match="mail belongs to nobody"):
        make_private(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_file_system_for_the_data_alone_may_be_the_data_directory(tmp_path: Path, mode: int) -> None:
    (tmp_path / "lost+found").mkdir(mode=0o700)
    os.chown(tmp_path / "lost+found", NOBODY, NOBODY)
    tmp_path.chmod(mode)
    make_private(tmp_path)
    assert _open_to_others(tmp_path) == []


COMMANDS = [
    ["serve"],
    ["setup"],
    ["start"],
    ["stop"],
    ["wait"],
    ["usage"],
    ["engines"],
    ["chat", "far", "hi"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
@pytest.mark.parametrize("kind", ["file", "loop"])
def test_a_command_says_in_one_line_that_the_data_directory_cannot_be_used(
    tmp_path: Path, command: list[str], kind: str
) -> None:
    data = tmp_path / ".torpor"
    if kind == "file":
        data.write_text("")
    else:
        data.symlink_to(data)
    (tmp_path / "torpor.toml").write_text(
        "[engines]\nsnapshots = false\n[[models]]\nid = 'far'\nurl = 'http://127.0.0.1:9'\n"
    )
    done = Gateway(tmp_path, 9, {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}).torpor(
        *command, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("torpor: ")
    assert f"{data}" in line
    assert "cannot be used: " in line


def test_a_command_says_in_one_line_that_the_database_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "torpor.toml").write_text(
        "[storage]\ndatabase = 'sqlite+aiosqlite:///missing/torpor.db'\n[engines]\nsnapshots = false\n"
    )
    done = Gateway(tmp_path, 9, {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}).torpor(
        "setup", check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "torpor: the database cannot be used: unable to open database file; "
        "check [storage] database and the space on its disk"
    ]


class FullDisk:
    """Stands for the system calls of a file on a disk that is full."""

    def __call__(self, descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_half_of_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataDirectory(tmp_path / "data")
    data.create()
    data.announce(1, "http://before")
    before = data.pid_file.read_text()
    monkeypatch.setattr(os, "fsync", FullDisk())
    for write in (data.pepper, lambda: data.announce(2, "http://after")):
        with pytest.raises(OSError, match="No space left on device") as caught:
            write()
        assert str(data.path) in str(caught.value.filename)
    assert [path.name for path in data.path.iterdir()] == ["gateway.pid"]
    assert data.pid_file.read_text() == before
    monkeypatch.undo()
    assert len(data.pepper()) == 32


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_what_is_not_a_directory_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data"
    if kind == "file":
        path.write_text("")
    else:
        path.symlink_to(tmp_path / "gone")
    with pytest.raises(DataDirectoryError, match=f"{path} cannot be used: File exists"):
        make_private(path)


@pytest.mark.parametrize(("mode", "warns"), [(0o1777, False), (0o755, False), (0o777, True)])
def test_a_parent_in_which_everybody_may_rename_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: bool
) -> None:
    parent = tmp_path / "shared"
    parent.mkdir()
    parent.chmod(mode)
    with caplog.at_level(logging.WARNING):
        make_private(parent / "data")
    assert [f"chmod o-w {parent}" in message for message in caplog.messages] == [True] * warns


@pytest.mark.parametrize("existing", [False, True])
def test_every_file_of_a_gateway_is_private(tmp_path: Path, standin: str, existing: bool) -> None:
    """With a umask that hides nothing, while it runs and after it has ended."""
    port = free_port()
    models = f"[[models]]\nid = 'far'\nurl = '{standin}'\n"
    (tmp_path / "torpor.toml").write_text(f"[server]\nport = {port}\n{models}")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "TORPOR_METRICS__ENABLED": "false"}
    gateway = Gateway(tmp_path, port, environment)
    folder = tmp_path / ".torpor"
    if existing:
        folder.mkdir()
        folder.chmod(0o755)

    def torpor(*arguments: str) -> "subprocess.CompletedProcess[str]":
        script = 'umask 0; exec "$0" -m gateway.cli "$@"'
        return subprocess.run(
            ["bash", "-c", script, sys.executable, *arguments],
            cwd=tmp_path,
            env=gateway.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )

    answer = torpor("setup").stderr
    assert ("was open to other users" in answer) == existing
    try:
        assert "open" not in torpor("start").stderr
        torpor("chat", "far", "hello")
        torpor("usage")
        present = {path.name for path in folder.rglob("*")}
        assert {"torpor.db", "torpor.db-wal", "torpor.db-shm", "gateway.sock", "gateway.log"} <= present
        assert _open_to_others(folder) == []
    finally:
        torpor("stop")
    assert _open_to_others(folder) == []
    assert "open" not in torpor("setup").stderr


def test_a_log_keeps_the_mode_that_its_operator_gave_it(tmp_path: Path) -> None:
    """A log may be outside the data directory, for other users to read."""
    file = LogFile(tmp_path / "torpor.log", 2000, 2)
    file.path.write_text("of the run before\n")
    file.path.chmod(0o640)
    script = (
        "import logging, os, sys\nfrom pathlib import Path\n"
        "from gateway.telemetry.logs import LogFile, configure_logging\n"
        "os.umask(0o077); file = LogFile(Path(sys.argv[1]), 2000, 2); file.begin()\n"
        "configure_logging('info', 'text', file)\n"
        "for number in range(100): logging.info('line %d of a log that is rotated', number)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script, str(file.path)], env=environment, check=True, timeout=60)
    logs = sorted(tmp_path.glob("torpor.log*"))
    assert [path.name for path in logs] == ["torpor.log", "torpor.log.1", "torpor.log.2"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in logs} == {0o640}
