"""The canary of an adapter: what tells it from the base model, from other adapters, and from a damaged copy.

Recorded on a real engine when the adapter is registered, compared after every load before a token leaves. It
asks what the canary of an engine asks (`engines.vllm_process.canary`), with the adapter and without it: of
several prompts the one is kept to which the two answer most differently. Two numbers are compared then. The
*deviation* is the root mean square of the differences from the recorded log-probabilities; bf16 rounds these
to steps of up to 1/8, and the mean over the probes is much steadier than the worst of them. The *share*
projects what was seen onto the adapter's own effect, as a matched filter does: 1 where the adapter is at
work, 0 where it is not, also where its effect on each single probe hardly exceeds the rounding. An adapter
whose effect does not stand out even so answers as the base model does, and has no share to compare.
"""

import asyncio
import math
from typing import Any

from engines.vllm_process.canary import Asker, tokens

_PROMPT_TOKENS = 4  # each costs the first request some milliseconds; the last one depends on every module
_PROBES = 16
_PROMPTS = (7919, 4409, 1299709)
_BATCH = 6
# Times the largest deviation seen at the recording; at least, and at most.
_SLACK, _LEAST, _MOST = 4.0, 0.1, 1.0
# How far the share may be from 1; and how far it may have been at the recording.
_SHARE, _STEADY = 0.5, 0.2


async def ask(engine: Any, lora: Any) -> None:
    """The usual question, whatever the answer."""
    size = engine.model_config.get_vocab_size()
    await Asker(engine, lora=lora).measure(
        tokens(_PROMPTS[0], _PROMPT_TOKENS, size), tokens(15485863, _PROBES, size)
    )


async def record(engine: Any, lora: Any) -> dict[str, Any]:
    """Ask the engine with and without the adapter. ``lora``: vLLM's request for it, which must be loaded.

    ``{"prompt", "probes", "token", "values", "base", "tolerance", "share"}``: as an engine's canary;
    ``base`` are the values without the adapter, ``share`` says whether it is to be compared. Raises
    ValueError, with words for the adapter's owner, where nothing can be recorded.
    """
    with_it, without = Asker(engine, lora=lora).measure, Asker(engine).measure
    size = engine.model_config.get_vocab_size()
    probes = tokens(15485863, _PROBES, size)
    prompts = [tokens(step, _PROMPT_TOKENS, size) for step in _PROMPTS]
    measurements = [measure(prompt, probes) for prompt in prompts for measure in (with_it, without)]
    answers = [answer for _, answer in await asyncio.gather(*measurements)]
    if not all(math.isfinite(value) for answer in answers for value in answer):
        raise ValueError("with this adapter the model's output is not finite")
    effects = [_distance(*pair) for pair in zip(answers[::2], answers[1::2], strict=True)]
    prompt = prompts[effects.index(max(effects))]
    token, _ = await with_it(prompt, probes)
    probes = [*(probe for probe in probes if probe != token), *([] if token is None else [token])]
    _, values = await with_it(prompt, probes)
    _, base = await without(prompt, probes)
    others = [tokens(104729 + row, _PROMPT_TOKENS + row, size) for row in range(_BATCH)]
    again = [with_it(prompt, probes) for _ in range(_BATCH)]
    measured = await asyncio.gather(
        *again, *((with_it, without)[row % 2](others[row], probes) for row in range(_BATCH))
    )
    answers = [answer for _, answer in measured[:_BATCH]]
    deviation = max(_distance(values, answer) for answer in answers)
    tolerance = max(_LEAST, _SLACK * deviation)
    if not tolerance <= _MOST:
        raise ValueError(f"the model answers differently each time with this adapter (by {deviation:.3g})")
    shares = [_share(values, base, answer) for answer in answers]
    steady = all(abs(share - 1) <= _STEADY for share in shares)
    return {
        "prompt": prompt,
        "probes": probes,
        "token": token,
        "values": values,
        "base": base,
        "tolerance": tolerance,
        "share": steady and _distance(values, base) > 0,
    }


async def check(
    engine: Any, recorded: dict[str, Any], lora: Any, prefix: str
) -> tuple[bool, float, float | None]:
    """Whether the adapter answers as it did; the deviation, and the share of its effect where it is compared.

    ``prefix``: how the ids of its requests are to begin.
    """
    measure = Asker(engine, prefix, lora).measure
    token, seen = await measure(recorded["prompt"], recorded["probes"])
    values = recorded["values"]
    deviation = _distance(values, seen)
    if token is not None and token != recorded["token"]:
        # Another one may follow where it is as probable as the recorded one.
        _, (other,) = await measure(recorded["prompt"], [token])
        deviation = max(deviation, other - seen[-1])
    share = _share(values, recorded["base"], seen) if recorded["share"] else None
    at_work = share is None or abs(share - 1) <= _SHARE
    return deviation <= recorded["tolerance"] and at_work, deviation, share


def _distance(expected: list[float], seen: list[float]) -> float:
    """The root mean square of the differences; infinite where a number is missing or is none."""
    if len(expected) != len(seen) or not all(map(math.isfinite, seen)):
        return math.inf
    return math.sqrt(
        sum((value - other) ** 2 for value, other in zip(expected, seen, strict=True)) / len(seen)
    )


def _share(values: list[float], base: list[float], seen: list[float]) -> float:
    """By how much of the adapter's effect (``values - base``) what was seen differs from ``base``."""
    effect = [value - without for value, without in zip(values, base, strict=True)]
    power = sum(part * part for part in effect)
    differs = sum(part * (value - without) for part, value, without in zip(effect, seen, base, strict=True))
    return differs / power if power else 1.0
