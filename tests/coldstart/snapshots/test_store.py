"""What is on disk is used only where it is whole: manifests, the names of snapshots, and their removal."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstart.snapshots.manifest import FileIdentity, Manifest, StaleSnapshot, identities
from coldstart.snapshots.store import Snapshot, SnapshotStore, in_use

TAKEN_ON = {"kernel": "6.1", "vllm": "0.32.0", "arguments": "[]"}
MANIFEST = Manifest(
    model_id="model",
    created_at=1_700_000_000.0,
    taken_on=TAKEN_ON,
    main_pid=7,
    pipe=9,
    monotonic_s=0.0,
    files={"memory": FileIdentity("00", 1, 2, 3, 4)},
    canary={"prompt": [1, 2], "values": [0.5]},
    ms={"dump": 12.5},
)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    store = SnapshotStore(tmp_path / "snapshots")
    store.open()
    return store


def published(store: SnapshotStore, **changes: object) -> Snapshot:
    layout = store.draft("model")
    layout.memory.write_bytes(b"memory")
    files = identities(layout.folder)
    return store.publish(layout, replace(MANIFEST, files=files, **changes))  # type: ignore[arg-type]


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == MANIFEST
    assert (tmp_path / "manifest.json").stat().st_mode & 0o777 == 0o600


def test_no_byte_of_a_manifest_can_change_unseen(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    MANIFEST.write(path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for byte in (whole[position] ^ 1, ord("7")):
            changed = whole[:position] + bytes([byte]) + whole[position + 1 :]
            if changed != whole:
                path.write_bytes(changed)
                with pytest.raises(StaleSnapshot):
                    Manifest.read(path)
        path.write_bytes(whole[:position])
        with pytest.raises(StaleSnapshot):
            Manifest.read(path)


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v))
)
def test_whatever_else_is_there_is_a_stale_snapshot(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.json"
    path.write_bytes(msgspec.json.encode(value))
    with pytest.raises(StaleSnapshot):
        Manifest.read(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vllm": "0.33.0"}, "vllm has changed: 0.32.0 then, 0.33.0 now"),
        ({"kernel": "6.2"}, "kernel has changed"),
        ({"arguments": '["--x"]'}, "arguments has changed"),
        ({"criu": "4.2"}, "criu has changed: nothing then"),
    ],
)
def test_another_version_kernel_or_argument_is_seen(
    store: SnapshotStore, change: dict[str, str], reason: str
) -> None:
    snapshot = published(store)
    store.require(snapshot, TAKEN_ON)
    with pytest.raises(StaleSnapshot, match=reason):
        store.require(snapshot, {**TAKEN_ON, **change})


def _swap_target(source: Path) -> None:
    (source / "blobs" / "weights").write_bytes(b"two")


def _add(source: Path) -> None:
    (source / "snapshot" / "added.json").write_bytes(b"{}")


def _take_away(source: Path) -> None:
    (source / "snapshot" / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_swap_target, "the content of weights.safetensors has changed"),
        (_add, "added.json has come or gone"),
        (_take_away, "config.json has come or gone"),
    ],
)
def test_weights_behind_links_are_watched_and_so_is_the_set_of_files(
    store: SnapshotStore, tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    """The layout of a model hub's cache: links into a folder of blobs."""
    source = tmp_path / "hub"
    (source / "blobs").mkdir(parents=True)
    (source / "snapshot").mkdir()
    (source / "blobs" / "weights").write_bytes(b"one")
    (source / "snapshot" / "weights.safetensors").symlink_to("../blobs/weights")
    (source / "snapshot" / "config.json").write_bytes(b"{}")
    weights = source / "snapshot"
    snapshot = published(store, source=str(weights), sources=identities(weights))
    store.require(snapshot, TAKEN_ON)
    change(source)
    with pytest.raises(StaleSnapshot, match=reason):
        store.require(snapshot, TAKEN_ON)


def test_the_newest_is_the_one_that_was_published_last_whatever_the_clock_does(store: SnapshotStore) -> None:
    first = published(store, created_at=2e9)
    second = published(store, created_at=1e9)
    assert [item.id for item in store.list("model")] == [second.id, first.id]
    assert store.collect("model", second.id) == (first.id,)
    assert store.current("model") == second
    assert published(store).id > second.id


def test_one_that_cannot_be_read_is_removed_with_the_others(store: SnapshotStore) -> None:
    snapshot = published(store)
    (snapshot.layout.folder / "manifest.json").write_bytes(b"{}")
    assert store.list("model") == []
    assert store.collect("model") == (snapshot.id,)
    assert not snapshot.layout.folder.exists()


def test_a_restore_that_is_under_way_is_waited_for(store: SnapshotStore) -> None:
    snapshot = published(store)
    collecting = threading.Thread(target=store.collect, args=("model",))
    with in_use(snapshot.layout):
        collecting.start()
        time.sleep(0.2)
        assert snapshot.layout.memory.read_bytes() == b"memory"
    collecting.join(10)
    assert not snapshot.layout.folder.exists()
