"""`/tokenize` and `/detokenize` from the gateway's own tokenizer, where its result is the engine's.

No engine is woken, and no tenant's text keeps an engine's server busy. The engine answers what it alone can
know: conversations, which its chat template renders, and models whose tokenizer was chosen by ``engine_args``
or puts tokens around every text, which transformers may change by the tokenizer's configuration.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Send

from gateway.http.context import RequestRecord
from gateway.inference.calls import Call, DetokenizeCall, TokenizeCall
from gateway.inference.catalog import Model
from gateway.inference.exchange import Plan, RelayContext, UnmeteredExchange
from metering.tokenizers.counter import TokenCounter
from tenants.limits.admission import Admission

_CHOOSES_TOKENIZER = "--tokenizer"
_CHOOSES_LENGTH = "--max-model-len"

Compute = Callable[[], bytes | None]
"""The answer, as JSON; None if the engine must answer after all."""


def local_answer(model: Model, call: Call) -> Compute | None:
    """What computes the answer to a call; None if the engine must answer it."""
    counter, arguments = model.counter, model.spec.engine_args
    chosen = any(word.startswith((_CHOOSES_TOKENIZER, _CHOOSES_LENGTH)) for word in arguments)
    if counter is None or chosen or counter.adds_tokens or model.max_model_len is None:
        return None
    if isinstance(call, DetokenizeCall):
        return lambda: _detokenized(counter, call.tokens)
    if isinstance(call, TokenizeCall) and call.messages is None and call.prompt:
        prompt, length, strings = call.prompt, model.max_model_len, bool(call.return_token_strs)
        return lambda: _tokenized(counter, prompt, length, strings=strings)
    return None


def _tokenized(counter: TokenCounter, prompt: str, length: int, *, strings: bool) -> bytes | None:
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        return None  # lone surrogates have no UTF-8: the engine says what it makes of them
    ids = counter.encode(prompt)
    pieces = counter.strings(ids) if strings else None
    if strings and pieces is None:
        return None
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": pieces}
    return msgspec.json.encode(answer)


def _detokenized(counter: TokenCounter, ids: list[int]) -> bytes | None:
    text = counter.decode(ids)
    return None if text is None else msgspec.json.encode({"prompt": text})


class LocalExchange(UnmeteredExchange):
    """Computes the answer in a thread of the gateway, when it is the request's turn at the model.

    Asks the engine if ``compute`` returns None.
    """

    def __init__(
        self,
        context: RelayContext,
        plan: Plan,
        record: RequestRecord,
        admission: Admission,
        input_tokens: int,
        compute: Compute,
    ) -> None:
        super().__init__(context, plan, record, admission, input_tokens)
        self._compute = compute

    async def _attempt(self, send: Send) -> None:
        await self._queue()
        try:
            answer = await asyncio.to_thread(self._compute)
            if answer is None:
                await super()._attempt(send)
                return
            if self._slot is not None:
                self._slot.charge(self._input_tokens)
        finally:
            if self._slot is not None:
                self._slot.leave()
        await self._answer(answer, send)
