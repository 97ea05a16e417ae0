"""The canary: a fixed prompt whose answer tells whether a restored engine still computes what it should.

Recorded before the snapshot, compared after every restore and before the first tenant's token leaves: wrong
answers are worse than a slow start. A generating model is asked for the log-probabilities of the prompt's
tokens and of the next one, an embedding model for its vector: one step of the engine either way. In bf16
these numbers vary with the batch that they are computed in, so the tolerance is measured at the recording,
alone and in a batch. Runs in the engine's API server process.
"""

import asyncio
import itertools
from typing import Any

from vllm import PoolingParams, SamplingParams

_PROMPT_TOKENS = 16
_BATCH = 8
# Times the largest deviation seen at the recording; at least, and at most.
_SLACK, _LEAST, _MOST = 4.0, 0.02, 1.0
_ids = itertools.count()


async def record(engine: Any) -> dict[str, Any]:
    """``{"prompt": [token ids], "token": id | None, "values": [...], "tolerance": float}``.

    Raises RuntimeError when the engine contradicts itself more than a sound one may.
    """
    size = engine.model_config.get_vocab_size()
    prompt = [(7919 * (place + 1)) % size for place in range(_PROMPT_TOKENS)]
    token, values = await _measure(engine, prompt)
    others = [
        [(104729 * (row + place + 2)) % size for place in range(_PROMPT_TOKENS + row)]
        for row in range(_BATCH)
    ]
    again = [_measure(engine, prompt) for _ in range(_BATCH)]
    measured = await asyncio.gather(*again, *(_measure(engine, other) for other in others))
    deviation = max(_deviation(values, seen) for _, seen in measured[:_BATCH])
    tolerance = max(_LEAST, _SLACK * deviation)
    if tolerance > _MOST:
        raise RuntimeError(f"the engine's answers to one prompt differ by {deviation:.3g}")
    return {"prompt": prompt, "token": token, "values": values, "tolerance": tolerance}


async def check(engine: Any, recorded: dict[str, Any]) -> tuple[bool, float]:
    """Whether the engine answers as it did, and by how much its numbers differ."""
    _, values = await _measure(engine, recorded["prompt"])
    deviation = _deviation(recorded["values"], values)
    return deviation <= recorded["tolerance"], deviation


async def _measure(engine: Any, prompt: list[int]) -> tuple[int | None, list[float]]:
    if engine.model_config.runner_type == "pooling":
        return None, await _embedding(engine, prompt)
    return await _logprobs(engine, prompt)


async def _logprobs(engine: Any, prompt: list[int]) -> tuple[int, list[float]]:
    wanted = SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, prompt_logprobs=0, detokenize=False)
    async for output in engine.generate({"prompt_token_ids": prompt}, wanted, _name()):
        last = output
    (token,) = last.outputs[0].token_ids
    places = [*zip(prompt[1:], last.prompt_logprobs[1:], strict=True), (token, last.outputs[0].logprobs[0])]
    return token, [float(logprobs[chosen].logprob) for chosen, logprobs in places]


async def _embedding(engine: Any, prompt: list[int]) -> list[float]:
    async for output in engine.encode({"prompt_token_ids": prompt}, PoolingParams(task="embed"), _name()):
        last = output
    return [float(value) for value in last.outputs.data.flatten().tolist()]


def _name() -> str:
    return f"torpor-canary-{next(_ids)}"


def _deviation(expected: list[float], seen: list[float]) -> float:
    """The largest difference; infinite where a number is missing or is none."""
    if len(expected) != len(seen):
        return float("inf")
    differences = [abs(one - other) for one, other in zip(expected, seen, strict=True)]
    worst = max(differences)
    return worst if all(difference == difference for difference in differences) else float("inf")
