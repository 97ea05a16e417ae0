"""How much KV cache models need, by their configurations. Sizes in bytes, of numbers of two bytes."""

from typing import Any

import pytest

from engines.fitting.kv_layout import KvLayout, kv_layout

LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def layout_of(configuration: dict[str, Any], *, pooling: bool = False) -> KvLayout | None:
    return kv_layout(configuration, pooling=pooling, block_tokens=None, batch_tokens=None)


@pytest.mark.parametrize(
    ("name", "configuration", "token_bytes"),
    [
        ("all heads", LLAMA, 24 * 2 * 32 * 64 * 2),
        ("grouped heads", {**LLAMA, "num_key_value_heads": 8}, 24 * 2 * 8 * 64 * 2),
        ("one head", {**LLAMA, "num_key_value_heads": 1}, 24 * 2 * 64 * 2),
        ("head_dim is given", {**LLAMA, "head_dim": 128}, 24 * 2 * 32 * 128 * 2),
        ("head_dim is null", {**LLAMA, "head_dim": None}, 24 * 2 * 32 * 64 * 2),
        (
            "kv heads are not given",
            {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
            24 * 2 * 32 * 64 * 2,
        ),
        ("nested", {"model_type": "llava", "text_config": LLAMA, "vision_config": {}}, 24 * 2 * 32 * 64 * 2),
        ("GPT-2", {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768}, 12 * 2 * 768 * 2),
        (
            "Falcon's one head",
            {
                "model_type": "falcon",
                "num_hidden_layers": 32,
                "num_attention_heads": 71,
                "hidden_size": 4544,
                "multi_query": True,
            },
            32 * 2 * 64 * 2,
        ),
        (
            "MPT's own names",
            {
                "model_type": "mpt",
                "n_layers": 4,
                "n_heads": 8,
                "d_model": 512,
                "attn_config": {"kv_n_heads": 2},
            },
            4 * 2 * 2 * 64 * 2,
        ),
        (
            "multi-head latent attention",
            {
                **LLAMA,
                "model_type": "deepseek_v2",
                "kv_lora_rank": 512,
                "qk_rope_head_dim": 64,
                "num_hidden_layers": 27,
            },
            27 * (512 + 64) * 2,
        ),
    ],
)
def test_the_bytes_of_a_token(name: str, configuration: dict[str, Any], token_bytes: int) -> None:
    layout = layout_of(configuration)
    assert layout is not None, name
    assert layout.token_bytes(2) == token_bytes
    assert layout.token_bytes(4) == 2 * token_bytes


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("encoder and decoder", {"is_encoder_decoder": True}),
        ("layers of Mamba", {"layers_block_type": ["mamba", "attention"]}),
        ("state space", {"mamba_d_state": 16}),
        ("linear attention", {"layer_types": ["linear_attention"] * 18 + ["full_attention"] * 6}),
        ("chunked attention", {"attention_chunk_size": 8192}),
        ("layers that share a cache", {"num_kv_shared_layers": 10}),
        ("sparse attention", {"index_topk": 2048}),
        ("kv heads by the class", {"model_type": "gemma", "num_key_value_heads": None}),
        ("no layers", {"num_hidden_layers": None}),
        ("no heads", {"num_attention_heads": None}),
        ("text for a number", {"num_hidden_layers": "24"}),
    ],
)
def test_what_the_configuration_does_not_tell_is_unknown(name: str, changes: dict[str, Any]) -> None:
    assert layout_of({**LLAMA, **changes}) is None, name


@pytest.mark.parametrize(
    ("configuration", "needed"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 6}, False),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}, False),
        ({**LLAMA, "is_causal": False}, False),
        (LLAMA, True),
    ],
)
def test_an_encoder_keeps_nothing(configuration: dict[str, Any], needed: bool) -> None:
    layout = layout_of(configuration, pooling=True)
    assert layout is not None
    assert layout.needed is needed
    if not needed:
        assert (layout.token_bytes(4), layout.sequence_bytes(512, 4), layout.longest(0, 4, 512)) == (
            0,
            0,
            512,
        )


def test_a_sequence_takes_whole_blocks_and_one_more_is_never_used() -> None:
    layout = layout_of(LLAMA)
    assert layout is not None
    block = 24 * 2 * 32 * 64 * 2 * 128
    assert layout.block_bytes(2) == block
    assert layout.sequence_bytes(1, 2) == layout.sequence_bytes(128, 2) == 2 * block
    assert layout.sequence_bytes(8192, 2) == 65 * block
    assert layout.longest(65 * block, 2, 8192) == 8192
    assert layout.longest(65 * block - 1, 2, 8192) == 63 * 128
    assert layout.longest(block, 2, 8192) == 0
    assert layout.capacity(65 * block + 1, 2, 8192) == 65 * 128


GEMMA3 = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 512,
}


@pytest.mark.parametrize(
    ("name", "configuration", "full", "sliding", "window"),
    [
        ("no window", LLAMA, 24, 0, 0),
        ("a window that is null", {**LLAMA, "sliding_window": None}, 24, 0, 0),
        ("a window of none", {**LLAMA, "sliding_window": 0}, 24, 0, 0),
        ("in every layer", {**LLAMA, "model_type": "phi3", "sliding_window": 2047}, 0, 24, 2047),
        ("Mistral's, if it is not given", {**LLAMA, "model_type": "mistral"}, 0, 24, 4096),
        ("switched off", {**LLAMA, "model_type": "qwen2", "sliding_window": 4096}, 24, 0, 0),
        (
            "switched off by name",
            {**LLAMA, "model_type": "qwen3", "use_sliding_window": False, "sliding_window": 4096},
            24,
            0,
            0,
        ),
        ("all but every sixth", GEMMA3, 4, 22, 512),
        (
            "layer by layer",
            {
                **LLAMA,
                "sliding_window": 128,
                "layer_types": ["sliding_attention", "full_attention"] * 12,
            },
            12,
            12,
            128,
        ),
    ],
)
def test_sliding_windows(
    name: str, configuration: dict[str, Any], full: int, sliding: int, window: int
) -> None:
    layout = layout_of(configuration)
    assert layout is not None, name
    assert (layout.full, layout.sliding, layout.window) == (full, sliding, window)


def test_layers_of_both_kinds_share_blocks_in_groups() -> None:
    layout = layout_of(GEMMA3)
    assert layout is not None
    # Groups of 4: one of full layers, and 6 of sliding ones, the last of which is padded.
    assert layout.block_bytes(2) == 4 * 2 * 256 * 2 * 128
    in_window = -(-(512 - 1 + 2048) // 128) + 1
    assert layout.sequence_blocks(32768) == 256 + 6 * in_window
    even = layout_of({**GEMMA3, "layer_types": ["sliding_attention", "full_attention"] * 13})
    assert even is not None
    assert even.block_bytes(2) == 13 * 2 * 256 * 2 * 128
    assert even.sequence_blocks(32768) == 256 + in_window
