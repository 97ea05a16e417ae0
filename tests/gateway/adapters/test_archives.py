"""Archives of adapters: what is unpacked, and the tricks that are refused."""

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gateway.adapters.archives import lay_out
from gateway.adapters.errors import InvalidAdapter
from gateway.adapters.validation import CONFIG, WEIGHTS

MOST = 64 * 1024**2


def _tar(*members: tuple[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def _zip(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return raw.getvalue()


def _lay_out(folder: Path, archive: bytes, config: bytes | None = None, most: int = MOST) -> Path:
    upload, position = folder / "file", folder / "adapter"
    upload.write_bytes(archive)
    position.mkdir()
    (folder / "config").write_bytes(config or b"")
    lay_out(upload, None if config is None else folder / "config", position, most)
    return position


_GOOD = ((WEIGHTS, b"weights" * 1000), (CONFIG, b"{}"))
_IN_FOLDER = tuple((f"my-adapter/{name}", data) for name, data in (*_GOOD, ("README.md", b"# mine")))


@pytest.mark.parametrize(
    "archive",
    [
        _tar(*_GOOD),
        _tar(*_GOOD, mode="w:gz"),
        _tar(*_IN_FOLDER, mode="w:gz"),
        _tar(*_IN_FOLDER, form=tarfile.USTAR_FORMAT),
        _tar(*((f"./{name}", data) for name, data in _IN_FOLDER), form=tarfile.GNU_FORMAT),
        _zip(*_GOOD),
        _zip(*_IN_FOLDER),
        _zip(*_IN_FOLDER, method=zipfile.ZIP_STORED),
        _zip(("my-adapter/", b""), *_IN_FOLDER),
    ],
)
def test_archives_of_both_files_are_unpacked(archive: bytes, tmp_path: Path) -> None:
    position = _lay_out(tmp_path, archive)
    assert {file.name: file.read_bytes() for file in position.iterdir()} == dict(_GOOD)


def test_a_large_file_comes_out_of_a_zip_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 4, 5_000_000, np.uint8).tobytes()
    position = _lay_out(tmp_path, _zip((WEIGHTS, data), (CONFIG, b"{}")))
    assert (position / WEIGHTS).read_bytes() == data


def _link(kind: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo(WEIGHTS)
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return raw.getvalue()


def _zip_link() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        info = zipfile.ZipInfo(WEIGHTS)
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return raw.getvalue()


def _pax(headers: dict[str, str]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(WEIGHTS)
        info.pax_headers = headers
        archive.addfile(info)
    return raw.getvalue()


def _long_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 7 << 30
    return info.tobuf(tarfile.USTAR_FORMAT)


def _many_entries() -> bytes:
    raw = bytearray(_zip(*_GOOD))
    raw[-14:-10] = struct.pack("<2H", 60_000, 60_000)
    return bytes(raw)


def _other_content() -> bytes:
    return _zip(*_GOOD, method=zipfile.ZIP_STORED).replace(b"{}", b"[]")


_WRONG_ARCHIVES: list[tuple[str, bytes, str]] = [
    ("upwards", _tar(*_GOOD, ("../x", b"")), "../x, which leads out of it"),
    ("within upwards", _zip(*_GOOD, ("a/../../x", b"")), "which leads out of it"),
    ("absolute", _tar(("/etc/passwd", b"x")), "/etc/passwd, which leads out of it"),
    ("backslashes", _zip(("..\\x", b"")), "which leads out of it"),
    ("a pax path upwards", _pax({"path": "../../x"}), "which leads out of it"),
    ("a symbolic link", _link(tarfile.SYMTYPE), "is a symbolic link"),
    ("a hard link", _link(tarfile.LNKTYPE), "is a hard link"),
    ("a device", _link(tarfile.CHRTYPE), "is a device"),
    ("a pipe", _link(tarfile.FIFOTYPE), "is a pipe"),
    ("a link in a zip", _zip_link(), "is a link or a device"),
    ("a pax size", _pax({"size": "5"}), "a header size"),
    ("a sparse file", _pax({"GNU.sparse.major": "1"}), "a header GNU.sparse.major"),
    ("a header of 7 GiB", _long_header(), "a header of more than 64 KiB"),
    ("two weights", _tar(*_GOOD, (f"a/{WEIGHTS}", b"")), f"more than one {WEIGHTS}"),
    ("two folders", _tar((f"a/{WEIGHTS}", b""), (f"b/{CONFIG}", b"")), "in different folders"),
    ("no configuration", _zip(_GOOD[0]), f"holds no {CONFIG}"),
    ("no weights", _tar(_GOOD[1], mode="w:gz"), f"holds no {WEIGHTS}"),
    ("a checkpoint of torch", _zip(("archive/data.pkl", b"\x80\x02")), "is a PyTorch checkpoint"),
    ("many files", _tar(*((f"f{n}", b"") for n in range(65))), "more than 64 entries"),
    ("many files in a zip", _zip(*((f"f{n}", b"") for n in range(65))), "more than 64 entries"),
    ("a directory that is said to be large", _many_entries(), "more than 64 entries"),
    ("a cut tar", _tar(*_GOOD)[:1000], "is cut short"),
    ("a cut gzip", _tar(*_GOOD, mode="w:gz")[:100], "gzip cannot unpack it"),
    ("gzip of something else", gzip.compress(b"x" * 2000), "checksum is wrong"),
    ("a cut zip", _zip(*_GOOD)[:100], "not a zip archive, or is damaged"),
    (
        "a zip with another content",
        _other_content(),
        "not what its directory says",
    ),
    ("a bomb", _tar((WEIGHTS, bytes(MOST + 1)), mode="w:gz"), f"unpacks to more than {MOST} bytes"),
    ("a bomb in a zip", _zip((WEIGHTS, bytes(MOST + 1))), f"unpacks to more than {MOST} bytes"),
    ("a bomb beside", _zip(*_GOOD, ("README.md", bytes(MOST))), f"unpacks to more than {MOST} bytes"),
]


@pytest.mark.parametrize(
    ("archive", "reason"), [r[1:] for r in _WRONG_ARCHIVES], ids=[r[0] for r in _WRONG_ARCHIVES]
)
def test_archives_with_tricks_are_refused(archive: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter) as refused:
        _lay_out(tmp_path, archive)
    assert reason in refused.value.message
    outside = {tmp_path / "file", tmp_path / "config", tmp_path / "adapter"}
    assert set(tmp_path.iterdir()) == outside
    assert {file.name for file in (tmp_path / "adapter").iterdir()} <= {WEIGHTS, CONFIG}
    assert not any(file.is_symlink() for file in (tmp_path / "adapter").iterdir())


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    """The size in the directory is small, what comes out is not."""
    raw = bytearray(_zip((WEIGHTS, bytes(MOST + 1)), (CONFIG, b"{}")))
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<L", 10)
    with pytest.raises(InvalidAdapter, match="not what its directory says"):
        _lay_out(tmp_path, bytes(raw))
    assert sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir()) == 0


def test_the_configuration_goes_with_plain_weights_alone(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match="Missing part 'config'") as missing:
        _lay_out(tmp_path, b"weights")
    assert missing.value.param == "config"
    (tmp_path / "other").mkdir()
    with pytest.raises(InvalidAdapter, match="only if 'file' is not an archive"):
        _lay_out(tmp_path / "other", _tar(*_GOOD), config=b"{}")
