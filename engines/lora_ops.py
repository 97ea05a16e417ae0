"""LoRA on the CPU: right for rows without an adapter, and fast. Runs in the engine's worker.

vLLM's own CPU ops look a row's adapter up by its slot, -1 for none, which Python takes for the last one: with
every slot full, a request to the base model came out with an adapter applied (vLLM pull request 48421). They
also gather each row's weights, for every layer. Here the slots of a layer are one matrix,

    y += ((x @ A.T) * mask) @ B

with ``A`` of shape [slots * rank, in], ``B`` [slots * rank, out], and ``mask`` [rows, slots * rank], which is
1 where a rank is of the row's own adapter and is made once a step. A row without an adapter has zeros there.
Long batches of several adapters are taken adapter by adapter instead.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform
from vllm.version import __version_tuple__

MENDED = (0, 32)
"""The version of vLLM whose ops these stand for."""
# Rows times columns of the mask beyond which multiplying with zeros costs more than gathering rows.
_MOST_MASKED = 256 * 128


def install() -> None:
    """vLLM takes these ops on the CPU from now on. Raises RuntimeError for another version of vLLM."""
    if tuple(__version_tuple__[:2]) != MENDED:
        known = ".".join(map(str, MENDED))
        raise RuntimeError(f"the LoRA ops of vLLM {known} are mended; this is {__version_tuple__}")
    CpuPlatform.get_punica_wrapper = classmethod(lambda _: f"{__name__}.{MaskedPunica.__name__}")


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that are computed together: with the slots from ``first`` to ``end``.

    ``rows``: their indices, None for all; ``mask`` of shape [rows, slots * rank], None where all of it is 1.
    """

    first: int
    end: int
    rows: torch.Tensor | None
    mask: torch.Tensor | None


class Plan:
    """Which rows of a batch are computed with which slots: each row's, shape [rows], -1 for none."""

    def __init__(self, slots: torch.Tensor) -> None:
        self._slots = slots
        self._used = [slot for slot in torch.unique(slots).tolist() if slot >= 0]
        self._parts: dict[tuple[int, int, torch.dtype], list[_Part]] = {}

    @property
    def empty(self) -> bool:
        """Whether no row has an adapter."""
        return not self._used

    def parts(self, slots: int, rank: int, dtype: torch.dtype) -> list[_Part]:
        """For weights of so many slots of that rank."""
        key = (slots, rank, dtype)
        found = self._parts.get(key)
        if found is None:
            found = self._parts[key] = self._divide(rank, dtype)
        return found

    def _divide(self, rank: int, dtype: torch.dtype) -> list[_Part]:
        rows, used = self._slots, self._used
        first, end = used[0], used[-1] + 1
        if len(used) == 1 and bool((rows == first).all()):
            return [_Part(first, end, None, None)]
        width = (end - first) * rank
        if len(used) == 1 or len(rows) * width <= _MOST_MASKED:
            owners = torch.arange(first, end).repeat_interleave(rank)
            return [_Part(first, end, None, (rows.unsqueeze(1) == owners).to(dtype))]
        return [_Part(slot, slot + 1, (rows == slot).nonzero().squeeze(1), None) for slot in used]


class Weights:
    """The slots of one layer as matrices that the ops can use, in the very memory that vLLM loads into.

    ``a`` and ``b`` are vLLM's, for each slice of the output: [slots, 1, rank, in] and [slots, 1, out, rank].
    Their memory is laid out anew; the tensors stay, so that vLLM goes on writing adapters into them.
    """

    def __init__(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> None:
        self.kept = (*a, *b)
        self.slots, _, self.rank, width = a[0].shape
        with torch.inference_mode(mode=False):  # adapters are written into them outside of it
            joined = torch.stack([one.squeeze(1) for one in a], dim=1).contiguous()
            self._b = [one.squeeze(1).transpose(1, 2).contiguous() for one in b]
            # [slots, slices * rank, in]: those of one slot, and of neighbours, are next to each other.
            self._a = joined.view(self.slots, len(a) * self.rank, width)
            for number, one in enumerate(a):
                one.data = joined[:, number].unsqueeze(1)
            for turned, one in zip(self._b, b, strict=True):
                one.data = turned.transpose(1, 2).unsqueeze(1)

    def add(self, y: torch.Tensor, x: torch.Tensor, plan: Plan, widths: Sequence[int], scale: float) -> None:
        """``y``, shape [rows, out], += what the adapters make of ``x``, [rows, in]."""
        for part in plan.parts(self.slots, self.rank, x.dtype):
            if part.rows is None:
                self._add_part(y, x, part, widths, scale)
            else:
                some = y[part.rows]
                self._add_part(some, x[part.rows], part, widths, scale)
                y[part.rows] = some

    def _add_part(
        self, y: torch.Tensor, x: torch.Tensor, part: _Part, widths: Sequence[int], scale: float
    ) -> None:
        slots = part.end - part.first
        a = self._a[part.first : part.end]
        shrunk = torch.mm(x, a.flatten(0, 1).t()).view(len(x), slots, len(self._b), self.rank)
        offset = 0
        for number, (turned, width) in enumerate(zip(self._b, widths, strict=True)):
            mine = shrunk[:, :, number].reshape(len(x), slots * self.rank)
            if part.mask is not None:
                mine = mine * part.mask
            b = turned[part.first : part.end].flatten(0, 1)
            y[:, offset : offset + width].addmm_(mine, b[:, :width], alpha=scale)
            offset += width


class MaskedPunica(PunicaWrapperCPU):  # type: ignore[misc]
    """What vLLM's LoRA layers call. Rows are tokens, or samples for the logits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weights: dict[int, Weights] = {}
        self._tokens = self._samples = Plan(torch.empty(0, dtype=torch.long))

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """The batch is another one."""
        super().update_metadata(*args, **kwargs)
        self._tokens = Plan(self.token_lora_indices.clone())
        self._samples = Plan(self.sampler_indices.clone())

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
        own = (self.token_lora_indices >= 0).unsqueeze(1)
        super().add_lora_embedding(y, torch.where(own, x, 0), lora_b_stacked, add_inputs)

    def _of(self, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> Weights:
        weights = self._weights.get(id(a[0]))
        if weights is None:
            weights = self._weights[id(a[0])] = Weights(a, b)
        return weights


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(math.prod(tensor.shape[:-1]), tensor.shape[-1])
