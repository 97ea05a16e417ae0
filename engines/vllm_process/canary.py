"""The canary: a fixed prompt whose answer tells whether a restored engine still computes what it should.

Recorded before the snapshot, compared after every restore and before the first tenant's token leaves: wrong
answers are worse than a slow start. A generating model is asked for the token that follows the prompt and for
the log-probabilities, at that place, of this token and of others all over the vocabulary; an embedding model
for its vector. Either is one step of the engine, and depends on every layer. (The log-probabilities of the
prompt's own tokens would tell no more, and each would cost another projection to the vocabulary.) In bf16 the
numbers vary with the batch that they are computed in, so the tolerance is measured at the recording, both
alone and in a batch. Runs in the engine's API server process.
"""

import asyncio
import itertools
import time
from typing import Any

from vllm import PoolingParams, SamplingParams

# Each costs the first request as much as one more token of its own prompt. Attention needs two to depend on
# its queries and keys; three tell a zeroed tensor of SmolLM2-135M about as well as sixteen do.
_PROMPT_TOKENS = 3
_PROBES = 16
_BATCH = 8
# Times the largest deviation seen at the recording; at least, and at most.
_SLACK, _MOST = 4.0, 1.0
# A log-probability in bf16 has steps of 1/16 and 1/8, a normalized vector's numbers are all below 1.
_LEAST_LOGPROB, _LEAST_VECTOR = 0.25, 0.02
_RECORDING = "torpor-recording-"
_ids = itertools.count()


async def record(engine: Any) -> dict[str, Any]:
    """``{"prompt": [token ids], "probes": [token ids], "token": id | None, "values", "tolerance", ...}``.

    ``token`` is the one that follows, and the last of ``probes``, whose log-probabilities are the ``values``.
    ``ms``: how long the prompt took alone. ``batch_tokens``: the most tokens that a step computes.
    Raises RuntimeError when the engine contradicts itself more than a sound one may.
    """
    measure = Asker(engine).measure
    size = engine.model_config.get_vocab_size()
    prompt = tokens(7919, _PROMPT_TOKENS, size)
    probes = tokens(15485863, _PROBES, size)
    token, _ = await measure(prompt, probes)
    if token is not None:
        probes = [*(probe for probe in probes if probe != token), token]
    began = time.perf_counter()
    _, values = await measure(prompt, probes)
    ms = (time.perf_counter() - began) * 1000
    others = [tokens(104729 + row, _PROMPT_TOKENS + row, size) for row in range(_BATCH)]
    again = [measure(prompt, probes) for _ in range(_BATCH)]
    measured = await asyncio.gather(*again, *(measure(other, probes) for other in others))
    deviation = max(_deviation(values, seen) for _, seen in measured[:_BATCH])
    least = _LEAST_VECTOR if token is None else _LEAST_LOGPROB
    tolerance = max(least, _SLACK * deviation)
    if tolerance > _MOST:
        raise RuntimeError(f"the engine's answers to one prompt differ by {deviation:.3g}")
    return {
        "prompt": prompt,
        "probes": probes,
        "token": token,
        "values": values,
        "tolerance": tolerance,
        "ms": ms,
        "batch_tokens": engine.vllm_config.scheduler_config.max_num_batched_tokens,
    }


async def check(engine: Any, recorded: dict[str, Any], prefix: str) -> tuple[bool, float]:
    """Whether the engine answers as it did, and by how much its numbers differ.

    ``prefix``: how the ids of its requests are to begin.

    Another token may follow where the engine finds it as probable as the recorded one, within the tolerance.
    """
    measure = Asker(engine, prefix).measure
    token, values = await measure(recorded["prompt"], recorded["probes"])
    deviation = _deviation(recorded["values"], values)
    if token is not None and token != recorded["token"]:
        _, (other,) = await measure(recorded["prompt"], [token])
        deviation = max(deviation, other - values[-1])
    return deviation <= recorded["tolerance"], deviation


def tokens(step: int, count: int, size: int) -> list[int]:
    """Ids all over a vocabulary of ``size``."""
    return [(step * (index + 1)) % size for index in range(count)]


class Asker:
    """Asks an engine for one step's answer; with ``lora``, vLLM's request for an adapter, for the adapter's.

    ``prefix``: how the ids of its requests begin.
    """

    def __init__(self, engine: Any, prefix: str = _RECORDING, lora: Any = None) -> None:
        self._engine = engine
        self._prefix = prefix
        self._lora = lora

    async def measure(self, prompt: list[int], probes: list[int]) -> tuple[int | None, list[float]]:
        """The token that follows, and the log-probabilities of the probes; or no token, and the vector."""
        if self._engine.model_config.runner_type == "pooling":
            return None, await self._embedding(prompt)
        return await self._logprobs(prompt, probes)

    async def _logprobs(self, prompt: list[int], probes: list[int]) -> tuple[int, list[float]]:
        params = SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=probes, detokenize=False)
        prompt_tokens = {"prompt_token_ids": prompt}
        async for output in self._engine.generate(
            prompt_tokens, params, self._name(), lora_request=self._lora
        ):
            last = output
        (token,) = last.outputs[0].token_ids
        seen = last.outputs[0].logprobs[0]
        return token, [float(seen[probe].logprob) for probe in probes]

    async def _embedding(self, prompt: list[int]) -> list[float]:
        params, prompt_tokens = PoolingParams(task="embed"), {"prompt_token_ids": prompt}
        async for output in self._engine.encode(prompt_tokens, params, self._name(), lora_request=self._lora):
            last = output
        return [float(value) for value in last.outputs.data.flatten().tolist()]

    def _name(self) -> str:
        return f"{self._prefix}{next(_ids)}"


def _deviation(expected: list[float], seen: list[float]) -> float:
    """The largest difference; infinite where a number is missing or is none."""
    if len(expected) != len(seen):
        return float("inf")
    differences = [abs(value - other) for value, other in zip(expected, seen, strict=True)]
    worst = max(differences)
    return worst if all(difference == difference for difference in differences) else float("inf")
