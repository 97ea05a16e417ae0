"""The fields that engines are sent are those of the pinned vLLM's own request classes, no more and no fewer.

A new pin that adds a field, or takes one away, fails here. Decide whether a tenant may set it: give it a type
and limits in ``gateway/inference/calls.py``, or add it to the gateway's own.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from gateway.inference.calls import (
    ENGINE_FIELDS,
    OWN_FIELDS,
    Call,
    ChatCall,
    CompletionCall,
    DetokenizeCall,
    EmbeddingCall,
    StructuredOutputs,
    TokenizeCall,
)

_ASK_VLLM = """
import dataclasses, json
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest, TokenizeChatRequest, TokenizeCompletionRequest
)
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

def fields(*kinds):
    return sorted({name for kind in kinds for name in kind.model_fields})

print(json.dumps({
    "chat": fields(ChatCompletionRequest),
    "completion": fields(CompletionRequest),
    "embedding": fields(EmbeddingCompletionRequest),
    "tokenize": fields(TokenizeCompletionRequest, TokenizeChatRequest),
    "detokenize": fields(DetokenizeRequest),
    "structured_outputs": sorted(
        field.name for field in dataclasses.fields(StructuredOutputsParams) if not field.name.startswith("_")
    ),
}))
"""


@pytest.fixture(scope="module")
def vllm_fields() -> dict[str, list[str]]:
    """Read in another process: vLLM changes the logging and the signals of the process that imports it."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK_VLLM], capture_output=True, text=True, timeout=240, check=True
    )
    answer: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize(
    ("name", "kind", "not_vllms"),
    [
        ("chat", ChatCall, frozenset()),
        ("completion", CompletionCall, frozenset()),
        ("embedding", EmbeddingCall, frozenset()),
        # vLLM ignores the user of every call; OpenAI's clients may send it.
        ("tokenize", TokenizeCall, {"user"}),
        ("detokenize", DetokenizeCall, {"user"}),
    ],
)
def test_the_fields_of_a_call_are_vllms(
    vllm_fields: dict[str, list[str]], name: str, kind: type[Call], not_vllms: set[str]
) -> None:
    assert ENGINE_FIELDS[kind] - not_vllms == set(vllm_fields[name]) - OWN_FIELDS


def test_the_constraints_are_vllms(vllm_fields: dict[str, list[str]]) -> None:
    assert set(StructuredOutputs.__struct_fields__) == set(vllm_fields["structured_outputs"])


def test_no_field_is_both_the_gateways_and_an_engines() -> None:
    fields: Any = frozenset().union(*ENGINE_FIELDS.values())
    assert not fields & OWN_FIELDS
