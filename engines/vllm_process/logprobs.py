"""Log-probabilities for each request of a batch as it asked for them. Runs in the engine's worker.

In vLLM 0.32 one request that names the tokens whose log-probabilities it wants (``logprob_token_ids``, as a
canary does) takes those of the likeliest tokens from every other request of its batch. Here each has its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler


def install() -> None:
    """vLLM's sampler does so from now on."""
    Sampler.forward = _noting_how_many(Sampler.forward)
    Sampler.gather_specific_token_logprobs = _with_the_likeliest(Sampler.gather_specific_token_logprobs)


def _noting_how_many(forward: Callable[..., Any]) -> Callable[..., Any]:
    def noting(self: Any, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        self.likeliest = sampling_metadata.max_num_logprobs
        return forward(self, logits, sampling_metadata, *args, **kwargs)

    return noting


def _with_the_likeliest(gather: Callable[..., Any]) -> Callable[..., Any]:
    def gathering(
        self: Any, logprobs: torch.Tensor, logprob_token_ids: dict[int, list[int]], sampled: torch.Tensor
    ) -> Any:
        named = gather(self, logprobs, logprob_token_ids, sampled)
        if named is None or self.likeliest is None or self.likeliest < 0:
            return named
        likeliest = self.gather_logprobs(logprobs, self.likeliest, token_ids=sampled)
        return merged(named, likeliest, list(logprob_token_ids))

    return gathering


def merged(named: LogprobsTensors, likeliest: LogprobsTensors, rows: list[int]) -> LogprobsTensors:
    """``likeliest``, but for the ``rows`` that named tokens. Each is [requests, columns]."""
    width = max(named.logprobs.shape[1], likeliest.logprobs.shape[1])
    tokens, chances = (
        _widened(columns, width) for columns in (likeliest.logprob_token_ids, likeliest.logprobs)
    )
    tokens[rows] = _widened(named.logprob_token_ids, width)[rows]
    chances[rows] = _widened(named.logprobs, width)[rows]
    return LogprobsTensors(tokens, chances, likeliest.selected_token_ranks)


def _widened(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Add columns that repeat the first: only those that were requested are read."""
    more = tensor[:, :1].expand(-1, width - tensor.shape[1])
    return torch.cat([tensor, more], dim=1)
