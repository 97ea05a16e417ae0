"""The CPU's LoRA ops against the formula in float32, for every mixture of rows."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.sample.sampler import Sampler

from engines.vllm_process import logprobs, lora_ops
from engines.vllm_process.lora_ops import MaskedPunica

SLOTS, RANK, WIDTH = 4, 8, 48
SLICES = (32, 16, 16)

ROWS = [
    [-1, -1, -1],
    [0],
    [3, 3, 3, 3],
    [-1, 2, 2, -1],
    [0, 1, 2, 3],
    [0, 1, 2, 3, -1, -1, 0, 3],
    [3, -1, 0],
    [-1] * 40 + [1] * 300 + [0] + [-1],
    [slot for slot in (2, -1, 0, 3, 1) for _ in range(600)],
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(7)


class Layer:
    """One layer's weights as vLLM makes them, and the formula."""

    def __init__(self, slices: tuple[int, ...], dtype: torch.dtype) -> None:
        self.slices = slices
        self.a = tuple(torch.zeros(SLOTS, 1, RANK, WIDTH, dtype=dtype) for _ in slices)
        self.b = tuple(torch.zeros(SLOTS, 1, width, RANK, dtype=dtype) for width in slices)
        for slot in range(SLOTS):
            self.load(slot)

    def load(self, slot: int, rank: int = RANK) -> None:
        """As vLLM's layers do: zeros, then the adapter's own rank."""
        for a, b in zip(self.a, self.b, strict=True):
            a[slot], b[slot] = 0, 0
            a[slot, 0, :rank].copy_(torch.randn(rank, WIDTH) / 7)
            b[slot, 0, :, :rank].copy_(torch.randn(b.shape[2], rank) / 3)

    def formula(self, x: torch.Tensor, y: torch.Tensor, rows: list[int]) -> torch.Tensor:
        expected = y.float().clone()
        for number, slot in enumerate(rows):
            if slot >= 0:
                added = [
                    b[slot, 0].float() @ (a[slot, 0].float() @ x[number].float())
                    for a, b in zip(self.a, self.b, strict=True)
                ]
                expected[number] += torch.cat(added)
        return expected


def punica(kind: type[PunicaWrapperCPU], rows: list[int], ranks: dict[int, int] | None = None) -> Any:
    created = kind(4096, 256, "cpu")
    if ranks is not None:
        created.ranks.update(ranks)
    ids = tuple(slot + 1 for slot in rows)
    mapping = LoRAMapping(ids, ids, is_prefill=True)
    created.update_metadata(mapping, list(range(1, SLOTS + 1)), SLOTS, 1000)
    return created


def close(seen: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 1e-4 if seen.dtype == torch.float32 else 3e-2
    return bool(torch.allclose(seen.float(), expected, rtol=tolerance, atol=tolerance))


def test_the_ops_are_told_the_rank_of_what_comes_into_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def activate(self: Any, lora_id: int) -> bool:
        self.lora_index_to_id[2] = lora_id
        return True

    monkeypatch.setattr(LoRAModelManager, "activate_adapter", activate)
    monkeypatch.setattr(CpuPlatform, "get_punica_wrapper", CpuPlatform.get_punica_wrapper)
    lora_ops.install()
    ops = punica(MaskedPunica, [2], {2: 1})
    layers = {"q": SimpleNamespace(rank=4), "k": SimpleNamespace(rank=6)}
    manager = SimpleNamespace(
        lora_index_to_id=[None, None, None],
        _registered_adapters={9: SimpleNamespace(loras=layers)},
        punica_wrapper_mapping={"language": ops},
    )
    assert LoRAModelManager.activate_adapter(manager, 9)
    assert ops.ranks == {2: 6}
    assert resolve_obj_by_qualname(CpuPlatform.get_punica_wrapper()) is MaskedPunica


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slices", [SLICES, (32,)])
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{len(rows)}-{len(set(rows))}")
def test_each_row_gets_its_own_adapter_and_no_other(
    rows: list[int], slices: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer = Layer(slices, dtype)
    for existing in (RANK, 3):
        ops = punica(MaskedPunica, rows, dict.fromkeys(range(SLOTS), existing))
        x, y = torch.randn(len(rows), WIDTH).to(dtype), torch.randn(len(rows), sum(slices)).to(dtype)
        seen = y.clone()
        ops.add_lora_linear(seen, x, layer.a, layer.b, 1.0, slices)
        assert close(seen, layer.formula(x, y, rows))
        without = torch.tensor(rows) < 0
        assert torch.equal(seen[without], y[without])
        for slot in range(SLOTS):
            layer.load(slot, rank=3)  # others come into the slots, with smaller ranks


def test_the_logits_go_by_sample() -> None:
    rows = [3, -1, 0]
    layer, ops = Layer((64,), torch.float32), punica(MaskedPunica, rows)
    x, y = torch.randn(3, WIDTH), torch.randn(3, 80)
    seen = y.clone()
    ops.add_lora_logits(seen, x, layer.a[0], layer.b[0], 1.0)
    expected = torch.cat([layer.formula(x, y[:, :64], rows), y[:, 64:]], dim=1)
    assert close(seen, expected)


def test_an_embedding_of_no_adapter_is_the_bases() -> None:
    rows = [3, -1, 0]
    layer, ops = Layer((64,), torch.float32), punica(MaskedPunica, rows)
    gathered, y = torch.randn(3, RANK), torch.randn(3, 64)
    seen = y.clone()
    ops.add_lora_embedding(seen, gathered, layer.b[0])
    expected = y.clone()
    for number, slot in enumerate(rows):
        if slot >= 0:
            expected[number] += layer.b[0][slot, 0] @ gathered[number]
    assert close(seen, expected)


def test_vllms_own_ops_still_need_mending() -> None:
    """When this fails, the pinned vLLM has the fix, and `lora_ops` is there for speed alone."""
    rows = [0, 1, 2, 3, -1]
    layer, ops = Layer((32,), torch.float32), punica(PunicaWrapperCPU, rows)
    x, y = torch.randn(5, WIDTH), torch.randn(5, 32)
    seen = y.clone()
    ops.add_lora_linear(seen, x, layer.a, layer.b, 1.0, (32,))
    assert not torch.equal(seen[4], y[4])


def test_another_version_of_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = SimpleNamespace(get_punica_wrapper=CpuPlatform.get_punica_wrapper)
    monkeypatch.setattr(lora_ops, "CpuPlatform", platform)
    monkeypatch.setattr(lora_ops, "__version_tuple__", (0, 33, 0))
    with pytest.raises(RuntimeError, match=r"0\.32"):
        lora_ops.install()
    assert platform.get_punica_wrapper == CpuPlatform.get_punica_wrapper


def _batch(indices: dict[int, list[int]] | None, likeliest: int | None) -> Any:
    class Likely(Sampler):  # type: ignore[misc]
        def apply_logits_processors(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
            return logits

        def sample(self, logits: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None]:
            return logits.argmax(dim=-1), None

    metadata = SimpleNamespace(max_num_logprobs=likeliest, logprob_token_ids=indices)
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    return Likely()(logits, metadata).logprobs_tensors


def test_naming_tokens_takes_no_likeliest_ones_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _batch({1: [5, 2, 4]}, 2)
    assert before.logprobs[0].isinf().any(), "vLLM has mended it: `engines.vllm_process.logprobs` may go"
    for name in ("forward", "gather_specific_token_logprobs"):
        monkeypatch.setattr(Sampler, name, getattr(Sampler, name))
    logprobs.install()
    alone = _batch(None, 2)
    for named in ([5, 2, 4], [5]):
        both = _batch({1: named}, 2)
        assert both.logprob_token_ids[0, :3].tolist() == alone.logprob_token_ids[0].tolist() == [5, 5, 4]
        assert torch.equal(both.logprobs[0, :3], alone.logprobs[0])
        assert both.logprob_token_ids[1, : len(named) + 1].tolist() == [0, *named]
        assert torch.equal(both.logprobs[1, 1 : len(named) + 1], _logs()[named])
        assert not both.logprobs.isinf().any() or len(named) < 2
    only = _batch({1: [5, 2, 4]}, None)
    assert only.logprob_token_ids[1].tolist() == [0, 5, 2, 4]


def _logs() -> torch.Tensor:
    return torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]).log_softmax(dim=-1)
