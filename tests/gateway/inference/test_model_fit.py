"""What a model is found to do, from its files, and what its engine is sent."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.spec import ModelSpec, Task, TokenArrays
from gateway.http.errors import ApiError
from gateway.inference.call_checks import check_call
from gateway.inference.calls import ChatCall, EmbeddingCall
from gateway.inference.catalog import Model
from gateway.inference.model_fit import check_fit, fitted
from gateway.inference.model_traits import Traits, read_traits
from gateway.inference.service_tiers import used_tier, with_tier
from metering.tokenizers.counter import TokenCounter
from tests.process import EMBED_MODEL, MODELS

SPEC = ModelSpec(id="m", source=MODELS / EMBED_MODEL, task=Task.EMBED)


class _OpenAICounter(TokenCounter):
    """Stands for a tokenizer with the ids of cl100k_base, as Llama 3's has them: for three known texts."""

    def __init__(self) -> None:
        """Without a tokenizer's file."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return {
            "tiktoken is great!": [83, 1609, 5963, 374, 2294, 0],
            "antidisestablishmentarianism": [519, 85342, 34500, 479, 8997, 2191],
            "2 + 2 = 4": [17, 489, 220, 17, 284, 220, 19],
        }[text]


def _model(traits: Traits, **fields: Any) -> Model:
    return Model(replace(SPEC, **fields), 1, 256, None, None, traits=traits)


def _fault(body: dict[str, Any], model: Model) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_fit(check_call(body, EmbeddingCall), body, model)
    return caught.value


def _folder(path: Path, config: dict[str, Any], dense: dict[str, Any] | None = None) -> ModelSpec:
    (path / "config.json").write_text(json.dumps(config))
    if dense is not None:
        (path / "2_Dense").mkdir()
        (path / "2_Dense/config.json").write_text(json.dumps(dense))
    return replace(SPEC, source=path)


def test_the_traits_of_a_real_model() -> None:
    traits = read_traits(SPEC, TokenCounter.load(MODELS / EMBED_MODEL))
    assert traits == Traits(takes_media=False, vector_size=384, shortens=False, takes_token_arrays=False)


@pytest.mark.parametrize(
    ("config", "dense", "size", "shortens", "takes_media"),
    [
        ({"hidden_size": 8}, None, 8, False, False),
        ({"hidden_size": 8, "matryoshka_dimensions": [4, 8]}, None, 8, True, False),
        ({"hidden_size": 8}, {"out_features": 16}, 16, False, False),
        ({"text_config": {"hidden_size": 32}, "vision_config": {}}, None, 32, False, True),
        ({}, None, None, False, False),
    ],
)
def test_traits_are_read_from_the_files(
    tmp_path: Path, config: Any, dense: Any, size: int | None, shortens: bool, takes_media: bool
) -> None:
    traits = read_traits(_folder(tmp_path, config, dense), None)
    assert (traits.vector_size, traits.shortens, traits.takes_media) == (size, shortens, takes_media)


def test_token_arrays_are_for_openais_vocabulary_unless_configured() -> None:
    foreign, openais = TokenCounter.load(MODELS / EMBED_MODEL), _OpenAICounter()
    assert not read_traits(SPEC, foreign).takes_token_arrays
    assert read_traits(SPEC, openais).takes_token_arrays
    assert read_traits(replace(SPEC, token_arrays=TokenArrays.ACCEPT), foreign).takes_token_arrays
    assert not read_traits(replace(SPEC, token_arrays=TokenArrays.REFUSE), openais).takes_token_arrays
    remote = ModelSpec(id="m", url="http://127.0.0.1:9", task=Task.EMBED)
    assert read_traits(remote, None).takes_token_arrays
    assert not read_traits(replace(remote, token_arrays=TokenArrays.REFUSE), None).takes_token_arrays


@pytest.mark.parametrize("tokens", [[1, 2], [[1], [2, 3]]])
def test_the_refusal_of_token_arrays_says_what_to_do(tokens: Any) -> None:
    model = _model(Traits(takes_token_arrays=False))
    error = _fault({"model": "m", "input": tokens}, model)
    assert (error.status, error.param, error.code) == (400, "input", "token_arrays_not_supported")
    assert "check_embedding_ctx_length=False" in error.message
    for text in ("a", ["a", "b"]):
        check_fit(check_call({"model": "m", "input": text}, EmbeddingCall), {}, model)


def test_dimensions_are_the_models_own_unless_it_shortens() -> None:
    fixed, shortens = Traits(vector_size=384, shortens=False), Traits(vector_size=384, shortens=True)
    body = {"model": "m", "input": "a", "dimensions": 384}
    check_fit(check_call(body, EmbeddingCall), body, _model(fixed))
    assert fitted(dict(body), _model(fixed)) == {"model": "m", "input": "a"}
    shorter = {**body, "dimensions": 128}
    assert "exactly 384" in _fault(shorter, _model(fixed)).message
    check_fit(check_call(shorter, EmbeddingCall), shorter, _model(shortens))
    assert fitted(dict(shorter), _model(shortens))["dimensions"] == 128
    assert "at most 384" in _fault({**body, "dimensions": 999}, _model(shortens)).message


def test_a_template_of_the_clients_own_is_refused_unless_trusted() -> None:
    messages = [{"role": "user", "content": "a"}]
    for fields, param in (
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages"),
    ):
        body = {"model": "m", "messages": messages, **fields}
        with pytest.raises(ApiError) as caught:
            check_fit(check_call(body, ChatCall), body, _model(Traits()))
        assert caught.value.param == param
        trusting = _model(Traits(), engine_args=("--trust-request-chat-template",))
        check_fit(check_call(body, ChatCall), body, trusting)


def test_what_changes_nothing_but_is_refused_by_vllm_is_not_sent() -> None:
    model = _model(Traits())
    assert fitted({"suffix": "", "top_p": 0}, model)["top_p"] > 0
    assert "suffix" not in fitted({"suffix": ""}, model)


@pytest.mark.parametrize(
    ("requested", "used"),
    [(None, None), ("auto", "default"), ("default", "default"), ("scale", "default"), ("flex", "flex"),
     ("priority", "priority"), ("fast", "priority")],
)  # fmt: skip
def test_the_tier_that_is_used(requested: str | None, used: str | None) -> None:
    assert used_tier(requested) == used


def test_the_tier_is_put_into_each_object_and_never_into_text() -> None:
    chunk = b'data: {"id":"a","object":"chat.completion.chunk","choices":[{"delta":{"content":"%s"}}]}\n\n'
    text = rb"\"service_tier\":null,\"object\":\"chat.completion.chunk\""
    events = with_tier(chunk % text * 2, "flex")
    decoded = [json.loads(event[6:]) for event in events.decode().split("\n\n")[:-1]]
    assert [event["service_tier"] for event in decoded] == ["flex", "flex"]
    assert all("service_tier" in event["choices"][0]["delta"]["content"] for event in decoded)
    assert with_tier(b'{"service_tier":null}', "default") == b'{"service_tier":"default"}'
    assert with_tier(chunk, None) is chunk
