"""The data directory: its lock, its secrets, and the files that other commands look for."""

import fcntl
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.storage.privacy import DataDirectoryError, make_private, private_umask

_PEPPER_BYTES = 32


class DataDirectoryInUse(DataDirectoryError):
    """Another process holds the data directory."""


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """The process that announced itself, and when it was started, in clock ticks since boot.

    No later process under the same id shares the start time. ``origin`` is where clients on this host reach
    it, such as ``http://127.0.0.1:8080``.
    """

    pid: int
    started: int
    port: int
    origin: str

    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return _start_time(self.pid) == self.started

    def terminate(self) -> None:
        """Asks the gateway to end; it may be gone already."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)


class DataDirectory:
    """A folder, mode 0700, that one gateway (or one writing command) holds at a time.

    Whatever is in it is for its owner alone.
    """

    def __init__(self, path: Path, environment: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.environment = os.environ if environment is None else environment

    @property
    def run_folder(self) -> Path:
        """Where engines keep their sockets."""
        return self.path / "run"

    @property
    def snapshot_folder(self) -> Path:
        """Where engines sleep."""
        return self.path / "snapshots"

    @property
    def criu_folder(self) -> Path:
        """A CRIU of Torpor's own, where the system's is too old."""
        return self.path / "criu"

    @property
    def data_types_file(self) -> Path:
        """How fast this machine computes in which data type."""
        return self.path / "data-types.json"

    @property
    def credentials_file(self) -> Path:
        """``export KEY=value`` lines of the demo organization, mode 0600."""
        return self.path / "credentials.env"

    @property
    def changes_file(self) -> Path:
        """Through which the processes of this installation tell each other of revocations."""
        return self.path / "changes"

    @property
    def ledger_folder(self) -> Path:
        """The journals of the ledger."""
        return self.path / "ledger"

    @property
    def adapter_folder(self) -> Path:
        """The content of adapters."""
        return self.path / "adapters"

    @property
    def pid_file(self) -> Path:
        """The running gateway's process id, start time, port and address."""
        return self.path / "gateway.pid"

    @property
    def socket(self) -> Path:
        """The Unix socket through which commands reach the running gateway."""
        return self.path / "gateway.sock"

    def create(self) -> None:
        """Make the folder if it is missing, and close it to others. Raises `DataDirectoryError`."""
        make_private(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; raises `DataDirectoryInUse` if another process does, else `DataDirectoryError`.

        The kernel releases the lock however the process ends. Files that are made until then are private.
        """
        self.create()
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirectoryError(f"{self.path} cannot be written: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirectoryInUse(
                    f"{self.path} is in use by another gateway; stop it first (`torpor stop`)"
                ) from None
            with private_umask():
                yield
        finally:
            os.close(descriptor)

    def pepper(self) -> bytes:
        """The secret under which keys are hashed: made once, 32 random bytes, mode 0600."""
        file = self.path / "pepper"
        if not file.exists():
            self.create()
            beside = self.path / f".pepper.{os.getpid()}"
            try:
                _write_new(beside, secrets.token_hex(_PEPPER_BYTES))
                with suppress(FileExistsError):
                    os.link(beside, file)
            finally:
                beside.unlink(missing_ok=True)
        return bytes.fromhex(file.read_text())

    def announce(self, port: int, origin: str) -> None:
        """Write the pid file of this process."""
        replace_private(self.pid_file, f"{os.getpid()} {_start_time(os.getpid())} {port} {origin}\n")

    def withdraw(self) -> None:
        """Remove the pid file and the socket."""
        self.pid_file.unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)

    def changed_since_start(self, file: Path) -> bool:
        """Whether ``file`` was written after the running gateway had read it; False if none runs."""
        try:
            return file.stat().st_mtime > self.pid_file.stat().st_mtime and self.running() is not None
        except OSError:
            return False

    def running(self) -> RunningGateway | None:
        """The gateway that announced itself here; ``None`` where a killed one left its file."""
        try:
            pid, started, port, *origin = self.pid_file.read_text().split()
            address = origin[0] if origin else f"http://127.0.0.1:{port}"
            gateway = RunningGateway(int(pid), int(started), int(port), address)
        except (FileNotFoundError, ValueError):
            return None
        return gateway if gateway.alive() else None


def _start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (field 22 of proc(5)'s stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(rest[18])


def _write_new(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # for the message of a command; the disk may be full
        raise


def replace_private(path: Path, text: str) -> None:
    """Write the file whole, mode 0600, by rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    try:
        _write_new(beside, text)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
