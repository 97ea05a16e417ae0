"""Counts a prompt, and refuses one that the context cannot hold, before any engine is woken for it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from gateway.http.errors import ApiError, invalid_request
from gateway.inference.calls import ChatCall, CompletionCall, Generation
from gateway.inference.catalog import Model
from gateway.inference.prompt_size import check_prompt_size
from gateway.inference.sequences import prompts_of
from metering.errors import TemplateError

_TEMPLATE_MARGIN = 512
"""More tokens than a chat template adds around a message; only decides whether counting can be saved."""
IN_THREAD_BYTES = 16 * 1024
"""Bodies above this size are counted in a thread."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Tokens of the longest prompt of a request, and of all of them; 0 where only the engine can tell."""

    longest: int
    total: int


async def check_prompt_length(
    model: Model, call: Any, body: dict[str, Any], body_bytes: int, *, count: bool = False
) -> PromptTokens | None:
    """Check that the prompt and the requested answer fit the context; raise 400 ``context_length_exceeded``
    if not.

    A token stands for at least one byte of the body, so a short body is not counted, unless the caller asks
    for it with ``count``. Returns the count if there was one, and if the gateway can count for this model.
    """
    check_prompt_size(model, call, body, body_bytes)
    limit = model.max_model_len
    if model.counter is None or body.get("truncate_prompt_tokens") is not None:
        return None
    answer = _answer_tokens(call)
    messages = len(call.messages) if isinstance(call, ChatCall) else 1
    fits = limit is None or body_bytes + _TEMPLATE_MARGIN + 16 * messages + answer <= limit
    if fits and not count:
        return None
    if body_bytes > IN_THREAD_BYTES:
        prompts = await asyncio.to_thread(count_prompts, model, call, body)
    else:
        prompts = count_prompts(model, call, body)
    if limit is not None:
        least = max(answer, 1 if isinstance(call, Generation) else 0)
        if prompts.longest + least > limit:
            raise _exceeded(limit, prompts.longest, answer, call)
    return prompts


def _exceeded(limit: int, prompt: int, answer: int, call: Any) -> ApiError:
    param, remedy = _input_of(call)
    for_answer = ""
    if answer:
        field = "max_tokens" if call.max_tokens == answer else "max_completion_tokens"
        for_answer = f" and {answer} for the answer"
        remedy = f"{remedy} or '{field}'"
        param = field if prompt < limit else param
    return invalid_request(
        f"This model's maximum context length is {limit} tokens. However, your request asks for {prompt} "
        f"tokens of input{for_answer}. Please reduce {remedy}.",
        param,
        "context_length_exceeded",
    )


def _input_of(call: Any) -> tuple[str, str]:
    """The field of the input, and what to reduce of it."""
    if isinstance(call, ChatCall):
        return "messages", "the length of the messages"
    if isinstance(call, CompletionCall):
        return "prompt", "the length of 'prompt'"
    return "input", "the length of 'input'"


def _answer_tokens(call: Any) -> int:
    return (call.answer_limit or 0) if isinstance(call, Generation) else 0


def count_prompts(model: Model, call: Any, body: dict[str, Any]) -> PromptTokens:
    """With the model's own tokenizer; 0 where the engine alone can tell."""
    if isinstance(call, ChatCall):
        tokens = _chat_tokens(model, body)
        return PromptTokens(tokens, tokens)
    prompts = call.prompt if isinstance(call, CompletionCall) else call.input
    counts = [_prompt_tokens(model, prompt) for prompt in prompts_of(prompts)]
    return PromptTokens(max(counts, default=0), sum(counts))


def _prompt_tokens(model: Model, prompt: str | list[int]) -> int:
    if isinstance(prompt, list):
        return len(prompt)
    return model.counter.count(prompt) if model.counter is not None else 0


def _chat_tokens(model: Model, body: dict[str, Any]) -> int:
    if model.template is None or model.counter is None:
        return 0
    try:
        text = model.template.render(
            body["messages"],
            tools=_rendered_tools(model, body),
            add_generation_prompt=body.get("add_generation_prompt", True),
            chat_template_kwargs=body.get("chat_template_kwargs"),
        )
    except TemplateError:
        return 0
    return model.counter.count(text, add_special_tokens=bool(body.get("add_special_tokens")))


def _rendered_tools(model: Model, body: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Engines with a parser of Torpor's choice leave tools out that must not be called."""
    tools: list[dict[str, Any]] | None = body.get("tools")
    return None if body.get("tool_choice") == "none" and model.spec.tool_parser is not None else tools
