"""The size of a step: from the measured speed, the attention at the longest sequence, and the limit."""

from pathlib import Path

import pytest

from engines.checkpoint import ModelFiles, read_model
from engines.fitting.choice import fitted
from engines.fitting.data_type import DataType
from engines.fitting.step_size import LEAST_TOKENS, step_tokens
from engines.lifecycle.command import arguments
from engines.sizing import GIB
from engines.spec import ModelSpec
from tests.engines.model_folders import llama_folder

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
MILLISECOND = 0.001


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return read_model(llama_folder(tmp_path, **SHAPE), "m")


def test_a_step_is_as_long_as_it_may_be(files: ModelFiles) -> None:
    assert step_tokens(files, MILLISECOND, None, 500, 32) == 256
    assert step_tokens(files, MILLISECOND, None, 512, 32) == 512
    assert step_tokens(files, MILLISECOND / 100, None, 500, 32) is None, "vLLM's own is short enough"


def test_the_attention_of_long_sequences_shortens_it(files: ModelFiles) -> None:
    # 2 x 4,096 x 2 layers x 256 multiplications for each token, by 2 x (4 x 256^2 + 3 x 256 x 512).
    share = 2 * 4096 * 2 * 256 / (2 * (4 * 256**2 + 3 * 256 * 512))
    assert step_tokens(files, MILLISECOND, 4096, 256 * (1 + share), 32) == 256
    assert step_tokens(files, MILLISECOND, 4096, 255 * (1 + share), 32) == 128


def test_it_is_never_too_small_for_the_engine(files: ModelFiles) -> None:
    assert step_tokens(files, 1.0, None, 500, 32) == LEAST_TOKENS
    assert step_tokens(files, 1.0, None, 500, 100) == 128, "one token for each sequence"


def test_the_engine_is_told(tmp_path: Path) -> None:
    spec = ModelSpec(id="m", source=llama_folder(tmp_path, **SHAPE))
    slow = DataType("bfloat16", "", prefill_s={"bfloat16": MILLISECOND})
    words = arguments(fitted(spec, 8 * GIB, lambda *_: slow), Path("/s"))
    size = int(words[words.index("--max-num-batched-tokens") + 1])
    assert LEAST_TOKENS <= size <= 256
    assert words[words.index("--long-prefill-token-threshold") + 1] == str(size // 4)
    unmeasured = arguments(fitted(spec, 8 * GIB, lambda *_: DataType("bfloat16", "")), Path("/s"))
    assert "--max-num-batched-tokens" not in unmeasured


def test_what_is_set_by_hand_stays(tmp_path: Path) -> None:
    arguments_set = ("--max-num-batched-tokens", "4096")
    spec = ModelSpec(id="m", source=llama_folder(tmp_path, **SHAPE), engine_args=arguments_set)
    slow = DataType("bfloat16", "", prefill_s={"bfloat16": MILLISECOND})
    assert fitted(spec, 8 * GIB, lambda *_: slow).step_tokens is None
