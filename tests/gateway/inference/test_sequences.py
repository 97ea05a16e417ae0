"""How many sequences a call asks for, and the refusal of too many."""

from typing import Any

import pytest

from gateway.http.errors import ApiError
from gateway.inference.call_checks import check_call
from gateway.inference.calls import Call, ChatCall, CompletionCall, EmbeddingCall
from gateway.inference.sequences import check_sequences, sequences_of


def _call(kind: type[Call], **fields: Any) -> Call:
    if kind is ChatCall:
        fields["messages"] = [{"role": "user", "content": "Hello"}]
    return check_call({"model": "m", **fields}, kind)


@pytest.mark.parametrize(
    ("kind", "fields", "sequences"),
    [
        (ChatCall, {}, 1),
        (ChatCall, {"n": 5}, 5),
        (CompletionCall, {"prompt": "a"}, 1),
        (CompletionCall, {"prompt": ["a", "b"], "n": 3}, 6),
        (CompletionCall, {"prompt": [1, 2, 3]}, 1),
        (CompletionCall, {"prompt": [[1], [2, 3]], "n": 2, "best_of": 2}, 4),
        (CompletionCall, {"prompt": ["a"] * 4, "n": 2, "use_beam_search": True}, 8),
        (EmbeddingCall, {"input": ["a"] * 2048}, 2048),
        (EmbeddingCall, {"input": [1, 2]}, 1),
    ],
)
def test_sequences_are_prompts_times_choices(
    kind: type[Call], fields: dict[str, Any], sequences: int
) -> None:
    assert sequences_of(_call(kind, **fields)) == sequences


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (CompletionCall, {"prompt": ["a"] * 64, "n": 64}, "prompt"),
        (CompletionCall, {"prompt": ["a"] * 129}, "prompt"),
        (CompletionCall, {"prompt": [[1]] * 65, "n": 2}, "prompt"),
    ],
)
def test_too_many_sequences_are_refused_by_name(kind: type[Call], fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_sequences(_call(kind, **fields), 128)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "too_many_sequences", param)
    assert "128" in caught.value.message


def test_a_lower_limit_names_n() -> None:
    with pytest.raises(ApiError) as caught:
        check_sequences(_call(ChatCall, n=5), 4)
    assert (caught.value.code, caught.value.param) == ("too_many_sequences", "n")


def test_as_many_as_the_limit_and_all_inputs_of_embeddings_are_taken() -> None:
    check_sequences(_call(CompletionCall, prompt=["a"] * 64, n=2), 128)
    check_sequences(_call(EmbeddingCall, input=["a"] * 2048), 128)
