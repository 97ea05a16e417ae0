"""What an upload may hold, checked on real files: one good adapter, and it with one thing wrong at a time."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from gateway.adapters.base_shapes import UnknownShapes, read_shapes
from gateway.adapters.errors import InvalidAdapter
from gateway.adapters.validation import CONFIG, WEIGHTS, Checked, check_adapter
from loadtest.adapter_files import Tensors, adapter_config, adapter_tensors, safetensors_bytes
from tests.process import MODELS

BASE = MODELS / "smollm2-135m"
RANK = 2
MODULES = ("q_proj", "v_proj")
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


def _tensors() -> Tensors:
    return adapter_tensors(BASE, seed=1, rank=RANK, modules=MODULES)


def _config(**changes: Any) -> bytes:
    return json.dumps(adapter_config(rank=RANK, modules=MODULES, **changes)).encode()


def _check(folder: Path, weights: bytes | None = None, config: bytes | None = None) -> Checked:
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).write_bytes(safetensors_bytes(_tensors()) if weights is None else weights)
    (folder / CONFIG).write_bytes(_config() if config is None else config)
    return check_adapter(folder, read_shapes(BASE), 16)


def _refusal(folder: Path, weights: bytes | None = None, config: bytes | None = None) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as refused:
        _check(folder, weights, config)
    return refused.value


def test_a_good_adapter_is_taken_and_its_digest_is_of_both_files(tmp_path: Path) -> None:
    checked = _check(tmp_path / "a")
    assert checked.rank == RANK
    assert checked.size_bytes == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert _check(tmp_path / "b").digest == checked.digest
    other = adapter_tensors(BASE, seed=2, rank=RANK, modules=MODULES)
    assert _check(tmp_path / "c", safetensors_bytes(other)).digest != checked.digest
    assert _check(tmp_path / "d", config=_config(lora_alpha=5)).digest != checked.digest
    # What says nothing of what it computes makes no other adapter.
    assert _check(tmp_path / "e", config=_config(base_model_name_or_path="/home/me")).digest == checked.digest
    with safe_open(tmp_path / "a" / WEIGHTS, framework="np") as file:
        assert len(file.keys()) == 30 * 2 * len(MODULES)


def test_the_kept_configuration_holds_nothing_that_was_not_checked(tmp_path: Path) -> None:
    _check(tmp_path, config=_config(base_model_name_or_path="/home/me", auto_mapping={"x": "y"}))
    kept = json.loads((tmp_path / CONFIG).read_text())
    assert kept == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "use_rslora": False,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "inference_mode": True,
    }


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_taken_and_looked_through(tmp_path: Path, dtype: str) -> None:
    halves = {name: np.zeros(tensor.shape, "<u2") for name, tensor in _tensors().items()}
    assert _check(tmp_path, _raw(halves, dtype)).rank == RANK
    bad = 0x7C01 if dtype == "F16" else 0xFF80
    halves[f"{FIRST}.lora_B.weight"][-1, -1] = bad
    refused = _refusal(tmp_path, _raw(halves, dtype))
    assert f"`{FIRST}.lora_B.weight` holds values that are not finite" in refused.message
    halves[f"{FIRST}.lora_B.weight"][-1, -1] = 0x7BFF if dtype == "F16" else 0x7F7F  # the largest number
    _check(tmp_path, _raw(halves, dtype))


def _raw(tensors: dict[str, Any], dtype: str, **changes: Any) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    return _file(header | changes, data)


def _file(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def _with(name: str, tensor: Any) -> bytes:
    return safetensors_bytes({**_tensors(), name: np.asarray(tensor, np.float32)})


def _without(*names: str) -> bytes:
    return safetensors_bytes({name: item for name, item in _tensors().items() if name not in names})


_SCALAR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
_NAN = np.full((RANK, 576), np.nan, np.float32)
_WRONG_WEIGHTS: list[tuple[str, Callable[[], bytes], str]] = [
    ("nothing", lambda: b"", "not a safetensors file"),
    ("seven bytes", lambda: b"\x01" * 7, "not a safetensors file"),
    ("text", lambda: b"hello, hello, hello", "not a safetensors file"),
    ("a pickle", lambda: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.", "is a pickle"),
    ("a header beyond the end", lambda: struct.pack("<Q", 1000) + b"{}", "its header would have 1000 bytes"),
    ("an endless header", lambda: b"\xff" * 16, "its header would have 18446744073709551615 bytes"),
    ("no JSON", lambda: _file(b"{", b""), "is not valid JSON"),
    ("deep JSON", lambda: _file(b"[" * 100_000, b""), "is not valid JSON"),
    ("no UTF-8", lambda: _file(b'{"\xff": 1}', b""), "is not valid JSON"),
    ("long numbers", lambda: _file(b'{"a":' + b"9" * 5000 + b"}", b""), "is not valid JSON"),
    ("no object", lambda: _file(b"[]", b""), "not a JSON object"),
    ("no tensors", lambda: _file(b"{}", b""), "holds no tensors"),
    (
        "a name twice",
        lambda: _file(b'{"a":%b,"a":%b}' % ((json.dumps(_SCALAR).encode(),) * 2), bytes(4)),
        "names `a` twice",
    ),
    ("an unknown dtype", lambda: _file({"a": {**_SCALAR, "dtype": "F8"}}, bytes(4)), "has the dtype F8"),
    ("integers", lambda: _file({"a": {**_SCALAR, "dtype": "I32"}}, bytes(4)), "has the dtype I32"),
    ("a negative shape", lambda: _file({"a": {**_SCALAR, "shape": [-1]}}, bytes(4)), "its shape must be"),
    ("a true shape", lambda: _file({"a": {**_SCALAR, "shape": [True]}}, bytes(4)), "its shape must be"),
    ("a huge shape", lambda: _file({"a": {**_SCALAR, "shape": [2**31] * 8}}, bytes(4)), "has 4 bytes"),
    ("offsets back", lambda: _file({"a": {**_SCALAR, "data_offsets": [4, 0]}}, bytes(4)), "has -4 bytes"),
    ("offsets beyond", lambda: _file({"a": {**_SCALAR, "data_offsets": [0, 9]}}, bytes(4)), "not within"),
    ("another field", lambda: _file({"a": {**_SCALAR, "x": 1}}, bytes(4)), "and no more"),
    ("overlapping", lambda: _file({"a": _SCALAR, "b": _SCALAR}, bytes(4)), "`b` overlaps another"),
    (
        "a gap",
        lambda: _file({"a": _SCALAR, "b": {**_SCALAR, "data_offsets": [8, 12]}}, bytes(12)),
        "`b` leaves 4 bytes before it unused",
    ),
    ("bytes at the end", lambda: safetensors_bytes(_tensors()) + b"x", "1 bytes after its last tensor"),
    ("cut short", lambda: safetensors_bytes(_tensors())[:-1], "not within the file"),
    ("a strange name", lambda: _with("lm_head.weight", [1.0]), "`lm_head.weight` is none that PEFT gives"),
    ("a name with a newline", lambda: _with("a\n", [1.0]), "`a\\n` is none"),
    ("no such layer", lambda: _with(f"{FIRST.replace('0', '30')}.lora_A.weight", _NAN), "layers 0 to 29"),
    (
        "no such module",
        lambda: _with(f"{FIRST.replace('q_proj', 'qkv_proj')}.lora_A.weight", _NAN),
        "serves adapters of self_attn.q_proj",
    ),
    (
        "a module that the configuration does not name",
        lambda: _with(f"{FIRST.replace('q_proj', 'k_proj')}.lora_A.weight", _NAN),
        "does not name k_proj",
    ),
    (
        "no B",
        lambda: _without(f"{FIRST}.lora_B.weight"),
        "`model.layers.0.self_attn.q_proj` has lora_A but no",
    ),
    ("no A", lambda: _without(f"{FIRST}.lora_A.weight"), "has lora_B but no lora_A"),
    (
        "another rank",
        lambda: _with(f"{FIRST}.lora_A.weight", np.zeros((3, 576))),
        f"`{FIRST}.lora_A.weight` has the shape [3, 576]; with r = 2 and this base model it must be [2, 576]",
    ),
    (
        "another width",
        lambda: _with(f"{FIRST}.lora_B.weight", np.zeros((577, 2))),
        f"`{FIRST}.lora_B.weight` has the shape [577, 2]",
    ),
    ("not finite", lambda: _with(f"{FIRST}.lora_A.weight", _NAN), "not finite"),
    ("infinite", lambda: _with(f"{FIRST}.lora_A.weight", np.full((2, 576), -np.inf)), "not finite"),
]


@pytest.mark.parametrize(
    ("weights", "reason"), [row[1:] for row in _WRONG_WEIGHTS], ids=[r[0] for r in _WRONG_WEIGHTS]
)
def test_wrong_weights_are_refused_by_name(weights: Callable[[], bytes], reason: str, tmp_path: Path) -> None:
    refused = _refusal(tmp_path, weights())
    assert reason in refused.message
    assert refused.param == "file"


def test_a_header_of_many_names_does_not_take_long(tmp_path: Path) -> None:
    names = b",".join(b'"%d":1' % number for number in range(200_000))
    refused = _refusal(tmp_path, _file(b'{%b,"199999":1}' % names, b""))
    assert "names `199999` twice" in refused.message


_WRONG_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "'peft_type' must be LORA, not IA3"),
    ({"peft_type": None}, "'peft_type' must be LORA"),
    ({"task_type": "SEQ_CLS"}, "'task_type' must be CAUSAL_LM"),
    ({"use_dora": True}, "'use_dora' cannot be served: DoRA"),
    ({"modules_to_save": ["lm_head"]}, "'modules_to_save' cannot be served"),
    ({"bias": "all"}, "'bias' cannot be served"),
    ({"lora_bias": True}, "'lora_bias' cannot be served"),
    ({"rank_pattern": {"q_proj": 4}}, "'rank_pattern' cannot be served"),
    ({"alpha_pattern": {"q_proj": 4}}, "'alpha_pattern' cannot be served"),
    ({"fan_in_fan_out": True}, "'fan_in_fan_out' cannot be served"),
    ({"layer_replication": [[0, 2]]}, "'layer_replication' cannot be served"),
    ({"trainable_token_indices": [1]}, "'trainable_token_indices' cannot be served"),
    ({"target_parameters": ["x"]}, "'target_parameters' cannot be served"),
    ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens' cannot be served"),
    ({"use_qalora": True}, "'use_qalora' cannot be served"),
    ({"init_lora_weights": "pissa"}, "'init_lora_weights' pissa changes the base model's weights"),
    ({"init_lora_weights": "olora"}, "changes the base model's weights"),
    ({"of_next_year": {"a": 1}}, "'of_next_year' cannot be served: this gateway does not know"),
    ({"r": 0}, "'r' must be"),
    ({"r": 2.0}, "'r' must be"),
    ({"r": True}, "'r' must be"),
    ({"r": 17}, "'r' is 17; the base model takes ranks up to 16"),
    ({"lora_alpha": "16"}, "'lora_alpha' must be"),
    ({"lora_alpha": float("nan")}, "'lora_alpha' must be"),
    ({"use_rslora": "yes"}, "'use_rslora' must be"),
    ({"target_modules": []}, "'target_modules' must be a list"),
    (
        {"target_modules": ["embed_tokens"]},
        "'target_modules' names embed_tokens, which the engine cannot serve",
    ),
    ({"target_modules": ["q_proj", "lm_head"]}, "names lm_head"),
]


@pytest.mark.parametrize(("changes", "reason"), _WRONG_CONFIGS)
def test_wrong_configurations_are_refused_by_name(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    refused = _refusal(tmp_path, config=_config(**changes))
    assert reason in refused.message
    assert refused.param == "config"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_configuration_is_refused(raw: bytes, tmp_path: Path) -> None:
    assert "adapter_config.json is not" in _refusal(tmp_path, config=raw).message


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"target_modules": ".*(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        {"target_modules": ["self_attn.q_proj", "v_proj"]},
        {"layers_to_transform": [0]},
        {"exclude_modules": "lm_head"},
        {"of_next_year": None, "and_after": False},
    ],
)
def test_what_changes_nothing_here_is_taken(changes: dict[str, Any], tmp_path: Path) -> None:
    assert _check(tmp_path, config=_config(**changes)).rank == RANK


def test_the_end_of_a_module_name_is_no_target(tmp_path: Path) -> None:
    refused = _refusal(tmp_path, config=_config(target_modules=["x.q_proj", "v_proj"]))
    assert "does not name q_proj" in refused.message


@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        ({"architectures": ["BertModel"]}, "BertModel are not supported"),
        ({}, "none are not supported"),
        ({"architectures": ["LlamaForCausalLM"]}, "no hidden_size"),
    ],
)
def test_shapes_that_nobody_knows(configuration: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    with pytest.raises(UnknownShapes, match=reason):
        read_shapes(tmp_path)
