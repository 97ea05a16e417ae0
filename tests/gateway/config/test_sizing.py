"""What the configuration refuses of models that cannot fit, and what `torpor doctor` shows of others."""

from pathlib import Path
from typing import Any

import pytest

from coldstart.tiers import SleepTier
from engines import host_memory
from engines.status import EngineState, EngineStatus
from gateway.api.engines import engine_object
from gateway.cli.common import Installation
from gateway.cli.doctor import _sizes
from gateway.config.sections import ConfigError, load_config
from gateway.engine_host import fitted_specs
from gateway.storage.data_directory import DataDirectory
from tests.engines.model_folders import llama_folder

GIB = 1 << 30


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "total_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 60 * GIB)


def configure(folder: Path, *, engines: str = "", **keys: Any) -> Path:
    llama_folder(folder / "model")
    lines = "".join(f"{key} = {value!r}\n" for key, value in keys.items())
    file = folder / "torpor.toml"
    file.write_text(f"[engines]\n{engines}\n[[models]]\nid = 'm'\nsource = 'model'\n{lines}")
    return file


@pytest.mark.parametrize(
    ("engines", "keys", "message"),
    [
        ("memory_gib = 4.0", {}, r"\[\[models\]\] source: model m does not fit: 3\.19 GiB weights"),
        ("memory_gib = 4.0", {}, r"raise memory_gib, or take a smaller or quantized model"),
        ("memory_gib = 4.65", {}, r"raise memory_gib, lower kv_cache_gib or max_model_len, or take"),
        ("", {"kv_cache_gib": 1.0, "max_model_len": 8192}, r"kv_cache_gib: .* raise kv_cache_gib to 1\.53"),
        ("memory_gib = 6.0", {"max_model_len": 8192}, r"max_model_len: model m does not fit"),
        ("", {"max_model_len": 9000}, r"max_model_len: .* at most 8,192 tokens"),
        ("", {"dtype": "int8"}, r"dtype: must be one of auto, bfloat16, float16, float32"),
        ("", {"kv_cache_gib": 0}, r"kv_cache_gib: must be more than 0"),
        ("", {"kv_cache_gib": 1e-12}, r"kv_cache_gib: .* 512 tokens"),
    ],
)
def test_what_cannot_fit_is_refused_where_it_is_written(
    tmp_path: Path, engines: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(configure(tmp_path, engines=engines, **keys), {})
    assert "torpor.toml:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_doctor_shows_the_arithmetic_that_the_gateway_uses(tmp_path: Path) -> None:
    file = configure(tmp_path, engines="memory_gib = 6.0", dtype="bfloat16")
    installation = Installation.load(file)
    (finding,) = _sizes(installation)
    assert finding.subject == "model m"
    assert "192.0 KiB" in finding.what
    assert finding.what.endswith("; bfloat16 (set in the configuration)")
    assert "of the model's 8,192 tokens" in finding.advice
    data = DataDirectory(tmp_path / "data", {})
    (spec,) = fitted_specs(load_config(file, {}), data)
    assert spec.sizing is not None
    assert spec.sizing.text() in finding.what
    assert spec.max_model_len == spec.sizing.max_model_len


def test_too_little_memory_now_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "available_bytes", lambda: GIB)
    (finding,) = _sizes(Installation.load(configure(tmp_path, dtype="bfloat16")))
    assert (finding.level, finding.advice) == ("lacks", "only 1.0 GiB are available now")


def test_the_sizing_is_for_the_operator(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data", {})
    (spec,) = fitted_specs(load_config(configure(tmp_path, dtype="bfloat16"), {}), data)
    status = EngineStatus(id="m", state=EngineState.COLD, tier=SleepTier.COLD)
    sizing = engine_object(status, spec.sizing, for_operator=True)["sizing"]
    assert (sizing["dtype"], sizing["kv_bytes_per_token"], sizing["kv_block_tokens"]) == (
        "bfloat16",
        196608,
        128,
    )
    assert "sizing" not in engine_object(status, spec.sizing, for_operator=False)
    assert engine_object(status, None, for_operator=True)["sizing"] is None
