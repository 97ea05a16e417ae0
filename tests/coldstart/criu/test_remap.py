"""Images are rewritten without loss, and no allocator in use is betrayed by mapped memory."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstart.criu import images, program
from coldstart.criu.images import InvalidImage, ProtobufMessage
from coldstart.criu.memory_file import PAGE
from coldstart.criu.remap import MEMORY, remap
from coldstart.sandbox.mounts import Mount, OwnerMaps
from coldstart.sandbox.namespaces import Isolation
from coldstart.sandbox.spares import create_warm_sandbox
from engines.lifecycle.engine_root import sandbox_root
from engines.lifecycle.process import ON_DUMP, SHM

CRIU_DIR = Path(__file__).resolve().parents[3] / ".criu"
MAGIC = b"\x19CVT (IW"
fields = st.lists(
    st.tuples(st.integers(1, 200), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300))), max_size=20
)


@given(fields)
def test_messages_survive_decoding_and_encoding(values: list[tuple[int, int | bytes]]) -> None:
    message = ProtobufMessage([(number, 0 if isinstance(v, int) else 2, v) for number, v in values])
    assert ProtobufMessage.parse(message.encode()).encode() == message.encode()


@given(st.binary(max_size=200))
def test_anything_else_is_refused_or_read(data: bytes) -> None:
    try:
        ProtobufMessage.parse(data)
    except InvalidImage:
        return


def test_an_image_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    images.write(path, MAGIC, [ProtobufMessage().with_values({1: 7, 2: b"name"})])
    magic, (entry,) = images.read(path)
    assert (magic, entry.get(1), entry.blob(2)) == (MAGIC, 7, b"name")
    for length in range(9, path.stat().st_size):
        os.truncate(path, length)
        with pytest.raises(InvalidImage):
            images.read(path)
        images.write(path, MAGIC, [entry])


ANON, FILE, HEAP = 1 | 1 << 9, 1 | 1 << 6, 1 | 1 << 9 | 1 << 5
START = 0x10000000


def vma(start: int, pages: int, status: int = ANON, prot: int = 3, flags: int = 0x22, **more: int) -> bytes:
    values = {1: start, 2: start + pages * PAGE, 3: more.get("pgoff", 0), 4: more.get("file", 0)}
    return ProtobufMessage().with_values({**values, 5: prot, 6: flags, 7: status, 8: 2**64 - 1}).encode()


def write_images(folder: Path, vmas: list[bytes], runs: list[tuple[int, int]], library: Path) -> None:
    """CRIU's images of one process: ``runs`` are (address, pages), each page filled with its number."""
    folder.mkdir()
    regular = ProtobufMessage().with_values(
        {1: 1, 2: 0, 3: 0, 5: b"", 6: os.fsencode(library), 8: library.stat().st_size}
    )
    entry = ProtobufMessage().with_values({1: 1, 2: 1, 3: regular.encode()})
    images.write(folder / "files.img", MAGIC, [entry])
    images.write(folder / "mm-7.img", MAGIC, [ProtobufMessage().with_values({1: 5}).with_repeated(14, vmas)])
    head = ProtobufMessage().with_values({1: 3})
    entries = [ProtobufMessage().with_values({1: address, 2: 0, 4: 4, 5: count}) for address, count in runs]
    images.write(folder / "pagemap-7.img", MAGIC, [head, *entries])
    pages = sum(count for _, count in runs)
    (folder / "pages-3.img").write_bytes(
        b"".join(bytes([number % 251 + 1]) * PAGE for number in range(pages))
    )


def mapped(folder: Path) -> list[tuple[int, int, int, int]]:
    """Start, end, file and offset of each mapping."""
    mm = images.read(folder / "mm-7.img")[1][0]
    result = [ProtobufMessage.parse(blob) for blob in mm.blobs(14)]
    return [(item.get(1), item.get(2), item.get(4), item.get(3)) for item in result]


def test_runs_become_mappings_of_one_file_and_what_must_stay_stays(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(b"L" * (4 * PAGE))
    far = START + 1000 * PAGE
    vmas = [
        vma(START, 300),  # two runs with a small gap, then a long one
        vma(far, 4, FILE, flags=2, file=1),  # relocated data: its second page was changed
        vma(far + 100 * PAGE, 4, prot=5),  # executable
        vma(far + 200 * PAGE, 4, flags=0x122),  # a stack that grows
        vma(far + 300 * PAGE, 4),  # no page of it is present
    ]
    runs = [
        (START + 2 * PAGE, 3),
        (START + 10 * PAGE, 2),
        (START + 200 * PAGE, 1),
        (far + PAGE, 1),
        (far + 100 * PAGE, 2),
        (far + 203 * PAGE, 1),
    ]
    folder, memory = tmp_path / "images", tmp_path / MEMORY
    write_images(folder, vmas, runs, library)
    done = remap(folder, memory, Path("/seen/memory"))
    data = memory.read_bytes()
    assert memory.stat().st_mode & 0o777 == 0o400

    new = {start: (end, file, offset) for start, end, file, offset in mapped(folder)}
    memory_id = max(file for _, file, _ in new.values())
    end, file, offset = new[START + 2 * PAGE]
    assert (end, file) == (START + 12 * PAGE, memory_id)
    first = data[offset : offset + 10 * PAGE]
    assert first == b"".join(bytes([n]) * PAGE for n in (1, 2, 3, 0, 0, 0, 0, 0, 4, 5))
    end, file, offset = new[START + 200 * PAGE]
    assert (end, data[offset : offset + PAGE]) == (START + 201 * PAGE, b"\x06" * PAGE)
    assert [new[s][1] for s in (START, START + 12 * PAGE, START + 201 * PAGE)] == [0, 0, 0]  # anonymous still
    end, file, offset = new[far]
    assert (end, file) == (far + 4 * PAGE, memory_id)
    assert data[offset : offset + 4 * PAGE] == b"L" * PAGE + b"\x07" * PAGE + b"L" * (2 * PAGE)

    kept = [(e.get(1), e.get(5)) for e in images.read(folder / "pagemap-7.img")[1][1:]]
    assert kept == [(far + 100 * PAGE, 2), (far + 203 * PAGE, 1)]
    assert (folder / "pages-3.img").read_bytes() == b"\x08" * PAGE + b"\x09" * PAGE + b"\x0a" * PAGE
    assert done.copied_bytes == 3 * PAGE
    entry = images.read(folder / "files.img")[1][-1]
    regular = ProtobufMessage.parse(entry.blob(3) or b"")
    assert (regular.blob(6), regular.get(8)) == (b"/seen/memory", memory.stat().st_size)


def test_damaged_images_are_refused(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(b"")
    write_images(tmp_path / "outside", [vma(START, 4)], [(START + 8 * PAGE, 1)], library)
    with pytest.raises(InvalidImage, match="no mapping"):
        remap(tmp_path / "outside", tmp_path / "one", Path("/m"))
    write_images(tmp_path / "short", [vma(START, 4)], [(START, 2)], library)
    os.truncate(tmp_path / "short/pages-3.img", PAGE)
    with pytest.raises(InvalidImage, match="cut short"):
        remap(tmp_path / "short", tmp_path / "two", Path("/m"))


# Memory that was full of 0xAA when it was dumped is freed and trimmed after the restore: MADV_DONTNEED brings
# the file's bytes back there, not zeros. Who promises zeros must write them, or have taken fresh memory.
ALLOCATORS = """
import ctypes, hashlib, os, sys, threading, time
import numpy, torch
libc = ctypes.CDLL(None)
for name in ("malloc", "calloc"):
    getattr(libc, name).restype = ctypes.c_void_p
SIZES = [48, 500, 5_000, 40_000, 120_000, 1_000_000, 9_000_000]
COUNT = {size: max(2, min(4000, 20_000_000 // size)) for size in SIZES}

def fill():
    blocks = []
    for size in SIZES:
        for _ in range(COUNT[size]):
            block = libc.malloc(ctypes.c_size_t(size))
            ctypes.memset(block, 0xAA, size)
            blocks.append(block)
    return blocks, [bytearray(b"\\xAA") * size for size in SIZES for _ in range(COUNT[size] // 2)]

def check(blocks, arrays):
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
    arrays.clear()
    libc.malloc_trim(0)
    for size in SIZES:
        for _ in range(COUNT[size]):
            block = libc.calloc(ctypes.c_size_t(1), ctypes.c_size_t(size))
            assert ctypes.string_at(block, size).count(0) == size, f"calloc({size})"
        for _ in range(COUNT[size] // 2):
            assert bytes(size).count(0) == size, f"bytes({size})"
            assert not numpy.zeros(size, numpy.uint8).any(), f"numpy.zeros({size})"
            assert not torch.zeros(size, dtype=torch.uint8).any(), f"torch.zeros({size})"

def work(ready, go, failures):
    held = fill()
    ready.set()
    go.wait()
    try:
        check(*held)
    except BaseException as error:
        failures.append(error)

# What both processes hold alike is in the file once, also where a page moved or was changed by one of them.
common = bytearray(os.urandom(16_000_000))
child = os.fork()
mine, theirs = slice(1_000_000, 3_000_000), slice(2_000_000, 6_000_000)
common[theirs if child == 0 else mine] = b"\\x5C" * (4_000_000 if child == 0 else 2_000_000)
copy = common[4096:9_000_000]
digests = [hashlib.sha256(one).digest() for one in (common, copy)]

def unchanged():
    return [hashlib.sha256(one).digest() for one in (common, copy)] == digests

if child == 0:
    held = fill()
    open(sys.argv[1] + "/child", "w").close()
    while not os.path.exists(sys.argv[1] + "/go"):
        time.sleep(0.05)
    check(*held)
    os._exit(0 if unchanged() else 2)

go, failures, threads = threading.Event(), [], []
for _ in range(2):  # arenas of their own
    ready = threading.Event()
    threads.append(threading.Thread(target=work, args=(ready, go, failures)))
    threads[-1].start()
    ready.wait()
held = fill()
open(sys.argv[1] + "/ready", "w").close()
while not os.path.exists(sys.argv[1] + "/go"):
    time.sleep(0.05)
go.set()
check(*held)
for thread in threads:
    thread.join()
failures += [] if unchanged() and os.waitpid(child, 0)[1] == 0 else ["the child or what both held"]
sys.exit(1 if failures else 0)
"""


@pytest.mark.timeout(180)
async def test_no_allocator_in_use_relies_on_zeros_in_mapped_memory(tmp_path: Path) -> None:
    result = program.find(CRIU_DIR).moved(sandbox_root(CRIU_DIR).layout.inside)
    box, folder = tmp_path / "box", tmp_path / "snapshot"
    for position in (box, folder, folder / "images", folder / "shm"):
        position.mkdir()
    inside, seen = Path("/run/torpor/box"), Path("/run/torpor/snapshot")
    root = sandbox_root(CRIU_DIR)
    env = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", **root.variables}
    isolation = Isolation(namespaces=True, call_filter=False)
    mounts = [Mount(box, inside, writable=True), Mount(folder, seen, writable=True)]
    room = await create_warm_sandbox(isolation, root.layout, tmp_path)
    try:
        await room.sandbox.mount_engine(mounts, OwnerMaps())
        command = [str(root.interpreter), "-c", ALLOCATORS, str(inside)]
        pid = await room.sandbox.run(command, env=env, cwd=inside)
        while not ((box / "ready").exists() and (box / "child").exists()):
            assert room.sandbox.alive, room.output.read()
            await asyncio.sleep(0.05)
        command = result.dump_command(pid, seen / "images", inside, root.source / ON_DUMP)
        assert await room.sandbox.help(command, env=env, cwd=inside, log=inside / "out") == 0
    finally:
        await room.close()
    done = remap(folder / "images", folder / MEMORY, seen / MEMORY, root.layout.outside)
    assert done.mapped_bytes > 100 * done.copied_bytes
    assert (folder / MEMORY).stat().st_size < done.mapped_bytes - 10_000_000  # what both hold is there once

    (box / "go").touch()
    again = await create_warm_sandbox(isolation, root.layout, tmp_path)
    try:
        await again.sandbox.mount_engine(mounts, OwnerMaps(), copies={SHM: seen / "shm"})
        command = result.restore_command(seen / "images", inside, room.pipe)
        code = await again.sandbox.help(command, env=env, cwd=inside, log=inside / "out", main=pid)
        assert code == 0, (box / program.RESTORE_LOG).read_text()
        assert await again.sandbox.wait() == 0, again.output.read().decode()
    finally:
        await again.close()
