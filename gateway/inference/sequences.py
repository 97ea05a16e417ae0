"""How many sequences a call generates at an engine: its prompts times ``n``, and the limit on them."""

from typing import Any

from gateway.http.errors import invalid_request
from gateway.inference.calls import Call, CompletionCall, EmbeddingCall, Generation


def prompts_of(prompts: str | list[Any]) -> list[Any]:
    """The prompts of a request, each a text or a list of tokens."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]
    return prompts


def number_of_prompts(call: Call) -> int:
    """How many prompts or inputs a call has; a chat is one."""
    if isinstance(call, CompletionCall):
        return len(prompts_of(call.prompt))
    return len(prompts_of(call.input)) if isinstance(call, EmbeddingCall) else 1


def sequences_of(call: Call) -> int:
    """How many sequences the engine computes for a call."""
    choices = call.n or 1 if isinstance(call, Generation) else 1
    return number_of_prompts(call) * choices


def check_sequences(call: Call, limit: int) -> None:
    """Check that a generation has at most ``limit`` sequences; raise 400 if not. Embeddings have no limit."""
    sequences = sequences_of(call)
    if not isinstance(call, Generation) or sequences <= limit:
        return
    choices, prompts = call.n or 1, number_of_prompts(call)
    param = "n" if choices > limit or prompts == 1 else "prompt"
    raise invalid_request(
        f"This request asks for {sequences:,} sequences ({prompts:,} prompts with 'n' of {choices}), more "
        f"than the {limit} that one request may have. Send fewer prompts in one request, or reduce 'n'.",
        param,
        "too_many_sequences",
    )
