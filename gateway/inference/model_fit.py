"""Whether a model can do what a call asks for, and the form in which its engine takes it."""

from collections.abc import Mapping
from typing import Any

from gateway.http.errors import invalid_request
from gateway.inference.calls import Call, EmbeddingCall
from gateway.inference.catalog import Model
from gateway.inference.openai_fields import check_supported

_TRUST_TEMPLATES = "--trust-request-chat-template"
_RESERVED = ("chat_template", "messages", "tools")
_LEAST_TOP_P = 1e-6
"""Keeps the likeliest token alone, as OpenAI's ``top_p`` of 0 does, which vLLM refuses."""


def check_fit(call: Call, body: Mapping[str, Any], model: Model) -> None:
    """Check that the model can do what a call asks; raise 400 if not. A `url` server checks for itself."""
    if isinstance(call, EmbeddingCall) and not model.traits.takes_token_arrays:
        _check_texts(call, model)
    if model.spec.url is not None:
        return
    check_supported(call, body, takes_media=model.traits.takes_media)
    if _TRUST_TEMPLATES not in model.spec.engine_args:
        _check_template(body)
    if isinstance(call, EmbeddingCall):
        _check_dimensions(call, model)


def _check_template(body: Mapping[str, Any]) -> None:
    variables = body.get("chat_template_kwargs") or {}
    unsupported = [f"chat_template_kwargs.{name}" for name in _RESERVED if name in variables]
    if "chat_template" in body:
        unsupported.insert(0, "chat_template")
    if unsupported:
        raise invalid_request(
            f"Unsupported parameter: '{unsupported[0]}'. The model's own template is used, on the body.",
            unsupported[0],
            "unsupported_parameter",
        )


def _check_texts(call: EmbeddingCall, model: Model) -> None:
    if isinstance(call.input, list) and not isinstance(call.input[0], str):
        raise invalid_request(
            f"The model `{model.name}` has a vocabulary of its own, so token ids of another tokenizer would "
            "give a wrong embedding. Send the text itself as 'input' (with LangChain: "
            "OpenAIEmbeddings(check_embedding_ctx_length=False)).",
            "input",
            "token_arrays_not_supported",
        )


def _check_dimensions(call: EmbeddingCall, model: Model) -> None:
    dimensions, size, shortens = call.dimensions, model.traits.vector_size, model.traits.shortens
    if dimensions is None or size is None or dimensions == size:
        return
    if not shortens or dimensions > size:
        limit = f"{'at most' if shortens else 'exactly'} {size}"
        raise invalid_request(
            f"'dimensions' must be {limit} for the model `{model.name}`, not {dimensions}.",
            "dimensions",
            "invalid_value",
        )


def fitted(sent: dict[str, Any], model: Model) -> dict[str, Any]:
    """The fields for vLLM, without those that it refuses though they change nothing."""
    if sent.get("dimensions") == model.traits.vector_size:
        sent.pop("dimensions", None)
    if sent.get("suffix") == "":
        del sent["suffix"]
    if sent.get("top_p") == 0:
        sent["top_p"] = _LEAST_TOP_P
    return sent
