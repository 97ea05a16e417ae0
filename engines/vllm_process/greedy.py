"""Several equal choices of one greedy answer. Runs in the engine's API server process.

OpenAI's API takes ``n`` above 1 with a temperature of 0; vLLM refuses it, as every choice would be the same.
Here the answer is generated once and handed out ``n`` times: the choices are equal, whatever else is in the
batch. Usage counts the tokens of every choice, vLLM's own and that of `engines.vllm_process.token_counter`.
"""

import functools
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.engine.async_llm import AsyncLLM

_COPIES = "torpor_copies"
Generate = Callable[..., AsyncGenerator[Any, None]]


def install() -> None:
    """From now on this process's engine client takes such requests."""
    SamplingParams._verify_greedy_sampling = _nothing  # noqa: SLF001 - vLLM has no switch for it
    AsyncLLM.generate = repeating(AsyncLLM.generate)


def copies_of(params: Any) -> int:
    """How many choices a sequence with these parameters stands for."""
    return int((getattr(params, "extra_args", None) or {}).get(_COPIES, 1))


def repeating(generate: Generate) -> Generate:
    """``generate`` of vLLM's engine client, where greedy choices are copies of one sequence."""

    @functools.wraps(generate)
    def generating(
        engine: Any, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        copies = getattr(sampling_params, "n", 1)
        if copies == 1 or sampling_params.sampling_type is not SamplingType.GREEDY:
            return generate(engine, prompt, sampling_params, *args, **kwargs)
        single = sampling_params.clone()
        single.n = 1
        single.extra_args = {**(single.extra_args or {}), _COPIES: copies}
        return _repeated(generate(engine, prompt, single, *args, **kwargs), copies)

    return generating


async def _repeated(outputs: AsyncGenerator[Any, None], copies: int) -> AsyncGenerator[Any, None]:
    try:
        async for output in outputs:
            (choice,) = output.outputs
            output.outputs = [replace(choice, index=index) for index in range(copies)]
            yield output
    finally:
        await outputs.aclose()


def _nothing(_params: Any) -> None:
    """In the place of the check that ``n`` is 1 without sampling."""
