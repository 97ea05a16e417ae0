"""LoRA on the CPU: right for rows without an adapter, and fast. Runs in the engine's worker.

vLLM's own CPU ops look a row's adapter up by its slot, -1 for none, which Python takes for the last one: with
every slot full, a request to the base model came out with an adapter applied (vLLM pull request 48421). They
also gather each row's weights, for every layer. Here the slots of a layer are one matrix,

    y += ((x @ A.T) * mask) @ B

with ``A`` of shape [rank * slots, in], ``B`` [rank * slots, out], and ``mask`` [rows, rank * slots], which is
1 where a column is of the row's own adapter, and is made once a step. A row without an adapter has zeros.
The ranks are the outer dimension; ranks beyond the largest adapter of a batch are left out. Long
batches are taken adapter by adapter instead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform
from vllm.version import __version_tuple__

MENDED = (0, 32)
"""The version of vLLM whose ops these stand for."""
# So few rows are computed by one thread: to meet another takes longer, and much longer on a busy machine.
_ALONE = 64
# vLLM replaces ``torch.set_num_threads``, since a thread made there would not be bound to a core. None is
# made here.
_set_threads = torch._C.set_num_threads  # noqa: SLF001 - the public name is taken away
_UNKNOWN = 1 << 30
# Rows times slots times ranks beyond which multiplying with zeros costs more than gathering.
_MOST_MASKED = 64 * 128


def install() -> None:
    """vLLM takes these ops on the CPU from now on. Raises RuntimeError for another version of vLLM."""
    if tuple(__version_tuple__[:2]) != MENDED:
        versions = ".".join(map(str, MENDED))
        raise RuntimeError(f"the LoRA ops of vLLM {versions} are mended; this is {__version_tuple__}")
    LoRAModelManager.activate_adapter = _noting_rank(LoRAModelManager.activate_adapter)
    CpuPlatform.get_punica_wrapper = classmethod(lambda _: f"{__name__}.{MaskedPunica.__name__}")


def _noting_rank(activate: Callable[[Any, int], bool]) -> Callable[[Any, int], bool]:
    """The ops are told the true rank of what comes into a slot."""

    def noting(self: Any, lora_id: int) -> bool:
        activated = activate(self, lora_id)
        if activated:
            weights = self._registered_adapters[lora_id].loras.values()
            rank = max((weight.rank for weight in weights), default=1)
            for punica in self.punica_wrapper_mapping.values():
                punica.ranks[self.lora_index_to_id.index(lora_id)] = rank
        return activated

    return noting


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that are computed together: all with all slots where there is a ``mask``, [rows, rank * slots].

    Otherwise those of one ``slot``, whose indices are ``rows``; None for all.
    """

    mask: torch.Tensor | None = None
    slot: int = -1
    rows: torch.Tensor | None = None


class BatchPlan:
    """Which rows of a batch are computed with which slots. ``rows``: each one's slot, -1 for none.

    ``ranks``: the largest of the adapter in each slot, where it is known.
    """

    def __init__(self, rows: torch.Tensor, ranks: Mapping[int, int]) -> None:
        self._rows = rows
        self._used = [slot for slot in torch.unique(rows).tolist() if slot >= 0]
        self._rank = max((ranks.get(slot, _UNKNOWN) for slot in self._used), default=0)
        self._parts: dict[tuple[int, int, torch.dtype], list[_Part]] = {}

    @property
    def empty(self) -> bool:
        """Whether no row has an adapter."""
        return not self._used

    def rank(self, most: int) -> int:
        """How many ranks there are to compute, of weights that have room for so many."""
        return min(self._rank, most)

    def parts(self, slots: int, most: int, dtype: torch.dtype) -> list[_Part]:
        """For weights of so many slots and ranks."""
        key = (slots, most, dtype)
        parts = self._parts.get(key)
        if parts is None:
            parts = self._parts[key] = self._divide(slots, self.rank(most), dtype)
        return parts

    def _divide(self, slots: int, rank: int, dtype: torch.dtype) -> list[_Part]:
        rows, used = self._rows, self._used
        if len(rows) * slots * rank <= _MOST_MASKED:
            owns = rows.unsqueeze(1) == torch.arange(slots)
            return [_Part(mask=owns.to(dtype).repeat(1, rank))]
        if len(used) == 1 and bool((rows == used[0]).all()):
            return [_Part(slot=used[0])]
        return [_Part(slot=slot, rows=(rows == slot).nonzero().squeeze(1)) for slot in used]


class StackedWeights:
    """The slots of one layer as matrices that the ops can use, in the very memory that vLLM loads into.

    ``a`` and ``b`` are vLLM's, for each slice of the output: [slots, 1, rank, in] and [slots, 1, out, rank].
    Their memory gets another layout; the tensors stay, so vLLM goes on writing adapters into them.
    """

    def __init__(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> None:
        self.kept = (*a, *b)
        self.slots, _, self.rank, _ = a[0].shape
        with torch.inference_mode(mode=False):  # adapters are written into them outside of it
            # [rank, slots, slices, in]
            self._a = torch.stack([matrix.squeeze(1).transpose(0, 1) for matrix in a], dim=2).contiguous()
            for number, matrix in enumerate(a):
                matrix.data = self._a[:, :, number].transpose(0, 1).unsqueeze(1)
            # Each [rank, slots, out]
            self._b = [matrix.squeeze(1).permute(2, 0, 1).contiguous() for matrix in b]
            for turned, matrix in zip(self._b, b, strict=True):
                matrix.data = turned.permute(1, 2, 0).unsqueeze(1)

    def add(
        self, y: torch.Tensor, x: torch.Tensor, plan: BatchPlan, widths: Sequence[int], scale: float
    ) -> None:
        """``y``, shape [rows, out], += what the adapters make of ``x``, [rows, in]."""
        threads = torch.get_num_threads()
        if len(x) <= _ALONE and threads > 1:
            _set_threads(1)
            self._add_parts(y, x, plan, widths, scale)
            _set_threads(threads)
        else:
            self._add_parts(y, x, plan, widths, scale)

    def _add_parts(
        self, y: torch.Tensor, x: torch.Tensor, plan: BatchPlan, widths: Sequence[int], scale: float
    ) -> None:
        rank = plan.rank(self.rank)
        for part in plan.parts(self.slots, self.rank, x.dtype):
            if part.mask is not None:
                self._add_masked(y, x, part.mask, rank, widths, scale)
            elif part.rows is None:
                self._add_slot(y, x, part.slot, rank, widths, scale)
            else:
                some = y[part.rows]
                self._add_slot(some, x[part.rows], part.slot, rank, widths, scale)
                y[part.rows] = some

    def _add_masked(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        mask: torch.Tensor,
        rank: int,
        widths: Sequence[int],
        scale: float,
    ) -> None:
        a = self._a[:rank].flatten(0, 2)
        shrunk = torch.mm(x, a.t()).view(len(x), rank * self.slots, len(self._b))
        offset = 0
        for number, (turned, width) in enumerate(zip(self._b, widths, strict=True)):
            b = turned[:rank].flatten(0, 1)
            y[:, offset : offset + width].addmm_(shrunk[:, :, number] * mask, b[:, :width], alpha=scale)
            offset += width

    def _add_slot(
        self, y: torch.Tensor, x: torch.Tensor, slot: int, rank: int, widths: Sequence[int], scale: float
    ) -> None:
        offset = 0
        for number, (turned, width) in enumerate(zip(self._b, widths, strict=True)):
            shrunk = torch.mm(x, self._a[:rank, slot, number].t())
            y[:, offset : offset + width].addmm_(shrunk, turned[:rank, slot, :width], alpha=scale)
            offset += width


class MaskedPunica(PunicaWrapperCPU):  # type: ignore[misc]
    """What vLLM's LoRA layers call. Rows are tokens, or samples for the logits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weights: dict[int, StackedWeights] = {}
        self._tokens = self._samples = BatchPlan(torch.empty(0, dtype=torch.long), {})
        self.ranks: dict[int, int] = {}

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """The batch is another one."""
        super().update_metadata(*args, **kwargs)
        self._tokens = BatchPlan(self.token_lora_indices.clone(), self.ranks)
        self._samples = BatchPlan(self.sampler_indices.clone(), self.ranks)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """``y`` += x A B for each slice of ``y``, in place."""
        weights = self._of(lora_a_stacked, lora_b_stacked)
        if not self._tokens.empty:
            weights.add(_flat(y), _flat(x), self._tokens, output_slices, scale)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """The same for the projection to the vocabulary, which may be narrower than ``y``."""
        weights = self._of((lora_a_stacked,), (lora_b_stacked,))
        if not self._samples.empty:
            width = min(y.shape[-1], lora_b_stacked.shape[-2])
            weights.add(_flat(y), _flat(x), self._samples, (width,), scale)

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **_: Any,
    ) -> None:
        """``y`` += x B, where x is the adapter's own embedding of each token; without an adapter, nothing."""
        has_adapter = (self.token_lora_indices >= 0).unsqueeze(1)
        super().add_lora_embedding(y, torch.where(has_adapter, x, 0), lora_b_stacked, add_inputs)

    def _of(self, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> StackedWeights:
        weights = self._weights.get(id(a[0]))
        if weights is None:
            weights = self._weights[id(a[0])] = StackedWeights(a, b)
        return weights


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(math.prod(tensor.shape[:-1]), tensor.shape[-1])
