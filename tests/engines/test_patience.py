"""Limits follow the size of the model and the speeds that were measured; small models keep the floors."""

from dataclasses import replace
from pathlib import Path

import pytest

from coldstart.snapshots.manifest import Manifest
from coldstart.snapshots.store import Layout, Snapshot
from engines.patience import Patience, write_speed
from engines.spec import ModelSpec

GB = 10**9
# What was seen of SmolLM2-1.7B where bf16 is emulated: 170 ms a token, 3.4 GB of weights.
LARGE = Patience(int(3.4 * GB))
EMULATED_TOKEN_S = 0.17


def _snapshot(canary: dict[str, object] | None) -> Snapshot:
    manifest = Manifest("model", 0.0, {}, 1, 1, 0.0, canary=canary)
    return Snapshot("000001-x", Layout(Path("/nonexistent")), manifest)


def test_a_model_without_weights_has_the_floors() -> None:
    nothing = Patience()
    assert (nothing.request_s, nothing.canary_s, nothing.sleep_s) == (120, 30, 20)
    assert (nothing.dump_s(1.5, 1.0), nothing.restore_s(1.5), nothing.proof_s(1.5)) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize("weights_bytes", [0, 270_000_000, GB, int(3.4 * GB), 6 * GB, 140 * GB])
def test_no_limit_shrinks_when_the_model_grows(weights_bytes: int) -> None:
    smaller, larger = Patience(weights_bytes), Patience(weights_bytes + GB)
    for limit in ("request_s", "canary_s", "sleep_s", "trial_s"):
        assert getattr(smaller, limit) < getattr(larger, limit)
    assert smaller.dump_s(120, 1e9) < larger.dump_s(120, 1e9)
    assert smaller.restore_s(20) < larger.restore_s(20)
    assert smaller.proof_s(30) < larger.proof_s(30)


def test_a_slow_machine_has_time_for_a_large_model() -> None:
    """Eight prompts of the canary and eight others, a first batch as full as it may be, a disk of 50 MB/s."""
    assert LARGE.canary_s > 200 * EMULATED_TOKEN_S
    assert LARGE.request_s > 64 * EMULATED_TOKEN_S
    assert LARGE.proof_s(30) > 2048 * EMULATED_TOKEN_S + 3.4 * GB / 50e6
    assert LARGE.restore_s(20) > 3.4 * GB / 50e6
    assert LARGE.dump_s(120, 50e6) > 4.5 * GB / 50e6
    assert LARGE.trial_s > LARGE.restore_s(0) + LARGE.canary_s


def test_the_recorded_canary_tells_how_fast_the_machine_computes() -> None:
    spec = ModelSpec(id="model")
    canary: dict[str, object] = {"prompt": [1, 2, 3, 4], "ms": 400.0, "batch_tokens": 512}
    answer = Patience.of_snapshot(spec, _snapshot(canary))
    assert (answer.token_s, answer.batch_tokens) == (0.1, 512)
    slower = Patience.of_snapshot(spec, _snapshot(canary | {"ms": 4000.0}))
    assert slower.proof_s(0) == pytest.approx(10 * answer.proof_s(0))
    assert answer.proof_s(0) >= 512 * 0.1


@pytest.mark.parametrize("canary", [None, {}, {"number": 7}, {"prompt": [], "ms": 5.0}])
def test_a_canary_that_was_not_timed_leaves_what_is_assumed(canary: dict[str, object] | None) -> None:
    assert Patience.of_snapshot(ModelSpec(id="model"), _snapshot(canary)) == Patience()


def test_a_slow_disk_is_given_time_and_a_fast_one_is_not_believed() -> None:
    assert LARGE.dump_s(0, 10e6) == pytest.approx(10 * LARGE.dump_s(0, 100e6))
    assert LARGE.dump_s(0, 10e9) == LARGE.dump_s(0, 100e9) > 45


def test_the_weights_of_the_folder_count(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(bytes(500))
    spec = ModelSpec(id="model", source=tmp_path)
    assert Patience.of(spec) == Patience(1500)
    assert Patience.of(replace(spec, source=None)) == Patience(0)


def test_the_disk_is_measured_and_nothing_is_left_on_it(tmp_path: Path) -> None:
    assert write_speed(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []


def test_no_disk_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        write_speed(tmp_path / "nowhere")
