"""Nothing that runs in a sandbox outlives the process that started it."""

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from coldstart.sandbox import process_tree
from coldstart.sandbox.namespaces import Isolation, Sandbox, launch, probe, uid_of
from engines.lifecycle.engine_root import host_root, sandbox_root
from tests.process_table import processes_with

ROOT = Path(__file__).resolve().parents[3]
MODES = [True, False]
ROOTS = {True: sandbox_root(None), False: host_root()}
UID = uid_of("test")

# A command with a family: a child in a session of its own that ignores SIGTERM, whose own child outlives it.
FAMILY = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        if os.fork() == 0:
            print("family complete", flush=True)
            time.sleep(1000)
        os._exit(0)
    time.sleep(1000)
time.sleep(1000)
"""

# A process that starts a family in a sandbox, as the gateway starts an engine.
KEEPER = """
import asyncio, os, sys
from pathlib import Path
from coldstart.sandbox.namespaces import Isolation, launch
from engines.lifecycle.engine_root import host_root, sandbox_root

async def main(namespaces: bool, mark: str) -> None:
    root = sandbox_root(None) if namespaces else host_root()
    sandbox = await launch(Isolation(namespaces=namespaces), root.layout, cwd=Path("/"), output=1)
    command = [str(root.interpreter), "-S", "-c", sys.argv[3], mark]
    await sandbox.run(command, env={"PATH": os.defpath, **root.variables}, cwd=Path("/"))
    await sandbox.wait()

asyncio.run(main(sys.argv[1] == "True", sys.argv[2]))
"""


async def gone(mark: str, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not processes_with(mark):
            return True
        await asyncio.sleep(0.02)
    return False


Start = Callable[..., Awaitable[tuple[Sandbox, asyncio.StreamReader]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a command in a sandbox, and give it together with what it prints."""
    transports: list[asyncio.ReadTransport] = []

    async def started(
        command: list[str], tmp_path: Path, *, namespaces: bool = True, call_filter: bool = True
    ) -> tuple[Sandbox, asyncio.StreamReader]:
        reading, writing = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
        )
        transports.append(transport)
        root = ROOTS[namespaces]
        isolation = Isolation(namespaces, call_filter)
        sandbox = await launch(isolation, root.layout, cwd=Path("/"), output=writing)
        os.close(writing)
        if command[0] == PYTHON:
            command = [str(root.interpreter), *command[1:]]
        env = {"PATH": os.defpath, "GREETING": "hello", **root.variables}
        folder, uid = (Path("/tmp"), UID) if namespaces else (tmp_path, None)
        await sandbox.run(command, env=env, cwd=folder, uid=uid)
        return sandbox, reader

    yield started
    for transport in transports:
        transport.close()
    await asyncio.sleep(0)  # a transport lets go of its pipe in the turn after


PYTHON = "python"


def python(code: str, *arguments: str) -> list[str]:
    return [PYTHON, "-S", "-c", textwrap.dedent(code), *arguments]


async def test_namespaces_are_to_be_had_here() -> None:
    assert await probe(ROOTS[True].layout) == Isolation(namespaces=True)


@pytest.mark.parametrize("namespaces", MODES)
async def test_the_exit_status_and_output_are_the_commands_own(
    start: Start, tmp_path: Path, namespaces: bool
) -> None:
    code = "import os; print(os.environ['GREETING'], os.getcwd()); raise SystemExit(3)"
    sandbox, output = await start(python(code), tmp_path, namespaces=namespaces)
    assert await sandbox.wait() == 3
    folder = "/tmp" if namespaces else str(tmp_path)
    assert (await output.read()).split() == [b"hello", folder.encode()]
    assert sandbox.pids() == []


async def test_a_command_that_does_not_exist_says_so(start: Start, tmp_path: Path) -> None:
    sandbox, output = await start(["/nonexistent/engine"], tmp_path)
    assert await sandbox.wait() == 127
    assert b"cannot run /nonexistent/engine" in await output.read()


@pytest.mark.parametrize("namespaces", MODES)
async def test_a_death_by_signal_is_128_and_the_signal(
    start: Start, tmp_path: Path, namespaces: bool
) -> None:
    sandbox, _ = await start(python("import os; os.kill(os.getpid(), 9)"), tmp_path, namespaces=namespaces)
    assert await sandbox.wait() == 128 + 9


async def test_inside_there_is_one_family_loopback_and_a_private_shm(start: Start, tmp_path: Path) -> None:
    code = """
    import os, socket
    print(os.getpid(), sorted(int(p) for p in os.listdir("/proc") if p.isdigit()))
    print(os.listdir("/dev/shm"), [name for _, name in socket.if_nameindex()])
    server = socket.create_server(("127.0.0.1", 0))
    socket.create_connection(server.getsockname()).close()
    try:
        socket.create_connection(("192.0.2.1", 80), 1)
    except OSError as error:
        print(error)
    """
    sandbox, output = await start(python(code), tmp_path)
    assert await sandbox.wait() == 0
    assert (await output.read()).decode().splitlines() == [
        "100 [100]",
        "[] ['lo']",
        "[Errno 101] Network is unreachable",
    ]


ATTEMPTS = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def refused(name, result):
    print(name, "done" if result == 0 else errno.errorcode[ctypes.get_errno()])

refused("mount", libc.mount(b"none", b"/mnt", b"tmpfs", 0, None))
refused("umount", libc.umount2(b"/proc", 2))
refused("chroot", libc.chroot(b"/"))
refused("unshare", libc.unshare(0x00020000))
refused("mknod", libc.mknod(sys.argv[1].encode() + b"/mem", 0o020600, os.makedev(1, 1)))
refused("chown", libc.chown(sys.argv[1].encode(), 1, 1))
refused("sethostname", libc.sethostname(b"x", 1))
refused("setuid", libc.setuid(1))
# Not by the exec of a program as root either.
status = os.popen("cat /proc/self/status").read().split()
print(*(f"{name} {status[status.index(name) + 1]}" for name in
    ("CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:")), sep="\\n")
"""


@pytest.mark.parametrize("namespaces", MODES)
async def test_a_command_may_not_do_what_takes_a_capability(
    start: Start, tmp_path: Path, namespaces: bool
) -> None:
    sandbox, output = await start(python(ATTEMPTS, str(tmp_path)), tmp_path, namespaces=namespaces)
    assert await sandbox.wait() == 0
    lines = (await output.read()).decode().splitlines()
    assert lines[:8] == [
        f"{name} ENOSYS"
        for name in ("mount", "umount", "chroot", "unshare", "mknod", "chown", "sethostname", "setuid")
    ]
    assert lines[8:] == [
        *(f"Cap{name}: 0000000000000000" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
        "NoNewPrivs: 1",
        "Seccomp: 2",
    ]


@pytest.mark.parametrize("namespaces", MODES)
async def test_without_the_filter_a_command_has_no_authority_either(
    start: Start, tmp_path: Path, namespaces: bool
) -> None:
    sandbox, output = await start(
        python(ATTEMPTS, str(tmp_path)), tmp_path, namespaces=namespaces, call_filter=False
    )
    assert await sandbox.wait() == 0
    lines = (await output.read()).decode().splitlines()
    assert {line.partition(" ")[2] for line in lines[:8]} <= {"EPERM", "EACCES", "ENOENT"}
    assert lines[-1] == "Seccomp: 0"


@pytest.mark.parametrize("namespaces", MODES)
async def test_terminate_reaches_the_command_and_takes_its_family(
    start: Start, tmp_path: Path, namespaces: bool
) -> None:
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    sandbox, output = await start(python(FAMILY, mark), tmp_path, namespaces=namespaces)
    assert await output.readline() == b"family complete\n"
    assert len(sandbox.pids()) >= 4
    assert process_tree.memory_bytes(sandbox.pids()) > 1_000_000
    sandbox.terminate()
    assert await sandbox.wait() == 128 + signal.SIGTERM
    assert await gone(mark)


@pytest.mark.parametrize("namespaces", MODES)
async def test_kill_ends_a_family_that_ignores_sigterm(
    start: Start, tmp_path: Path, namespaces: bool
) -> None:
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    sandbox, output = await start(python(FAMILY, mark), tmp_path, namespaces=namespaces)
    await output.readline()
    started = time.monotonic()
    await sandbox.kill()
    assert time.monotonic() - started < 2
    assert await gone(mark)


@pytest.mark.parametrize("namespaces", MODES)
async def test_the_family_goes_with_its_supervisor(start: Start, tmp_path: Path, namespaces: bool) -> None:
    """In plain mode the subreaper's death takes the command; its grandchildren end with `Sandbox.kill`."""
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    code = FAMILY if namespaces else "import time; print('ready', flush=True); time.sleep(1000)"
    sandbox, output = await start(python(code, mark), tmp_path, namespaces=namespaces)
    await output.readline()
    os.kill(sandbox.pid, signal.SIGKILL)
    assert await sandbox.wait() == 128 + signal.SIGKILL
    assert await gone(mark)


@pytest.mark.parametrize("namespaces", MODES)
@pytest.mark.parametrize("after_ms", [0, 20, 60, 100, 130, 160, 190, 220, 260, 400, None])
async def test_nothing_outlives_a_keeper_killed_at_any_moment(
    tmp_path: Path, namespaces: bool, after_ms: int | None
) -> None:
    """``None``: once the whole family is there. The other moments cover the start from exec to family."""
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    keeper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KEEPER, str(namespaces), mark, FAMILY),
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    assert keeper.stdout is not None
    if after_ms is None:
        assert await keeper.stdout.readline() == b"family complete\n"
        assert len(processes_with(mark)) >= 4
    else:
        await asyncio.sleep(after_ms / 1000)
    keeper.kill()
    await keeper.wait()
    assert await gone(mark)
    await asyncio.sleep(0.1)
    assert not processes_with(mark)
    await keeper.stdout.read()  # the end of file: no process holds the pipe
    keeper._transport.close()  # type: ignore[attr-defined]
