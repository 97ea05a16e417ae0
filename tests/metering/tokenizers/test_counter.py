"""Counts equal to those of the `tokenizers` library, which the engine itself uses."""

import json
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from metering.errors import InvalidTokenizer
from metering.tokenizers.byte_level import GPT2, LLAMA3, QWEN2, byte_level
from metering.tokenizers.counter import TokenCounter

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2_STAGE = {**_BYTES, "use_regex": True}


def _sequence(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(stages)}


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


STAGES = {
    "gpt2": _GPT2_STAGE,
    "digits": _sequence({"type": "Digits", "individual_digits": True}, _GPT2_STAGE),
    "llama3": _sequence(_split(LLAMA3), _BYTES),
    "qwen2": _sequence(_split(QWEN2), _BYTES),
    "gpt2 as a split": _sequence(_split(GPT2), _BYTES),
}

Pair = tuple[TokenCounter, Tokenizer]


def _description(models: Path, name: str = "smollm2-135m") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((models / name / "tokenizer.json").read_text())
    return content


def _pair(folder: Path, description: dict[str, Any]) -> Pair:
    (folder / "tokenizer.json").write_text(json.dumps(description))
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    return TokenCounter.load(folder), reference


@pytest.fixture(scope="module")
def make_pair(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """SmolLM2's tokenizer with the text split in one of several ways."""
    created: dict[str, Pair] = {}

    def make(stage: str) -> Pair:
        if stage not in created:
            description = {**_description(models), "pre_tokenizer": STAGES[stage]}
            created[stage] = _pair(tmp_path_factory.mktemp("tokenizer"), description)
        return created[stage]

    return make


@pytest.fixture(scope="module")
def real(models: Path) -> dict[str, Pair]:
    """The real models as they are."""
    pairs = {}
    for name in ("smollm2-135m", "all-minilm-l6-v2"):
        reference = Tokenizer.from_file(str(models / name / "tokenizer.json"))
        reference.no_padding()
        reference.no_truncation()
        pairs[name] = (TokenCounter.load(models / name), reference)
    return pairs


def _check(pair: Pair, text: str) -> None:
    counter, reference = pair
    for special in (False, True):
        expected = reference.encode(text, add_special_tokens=special).ids
        assert counter.encode(text, add_special_tokens=special) == expected, repr(text[:200])
        assert counter.count(text, add_special_tokens=special) == len(expected)


TEXTS = [
    "",
    " ",
    "The capital of France is Paris.",
    "I'll say: they've 12,345.67 reasons, don't they?  It'S 'SO' 'Llama'S.",
    "tabs\t\tand  spaces   \n\n\n  lines\r\n\r\n end   ",
    "1234567890 12 345   678\n9 ½ ² Ⅷ ٣ 一二三 ①",
    "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\n",
    "naïve café — “quotes” … 東京タワー Привет мир שלום العربية 👩‍👩‍👧‍👦🏳️‍🌈 \U0001f1eb\U0001f1f7",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_start|> <|im_end|>x<|endoftext|><|im_st art|><|im_start|",
    "<file_sep><repo_name>a b<jupyter_start>",
    "\x00\x01\x04\x06\x13\x7f\x80 a\x04b \U000c0000 \U00050000x",
    "'ſ 'S 's 'ſs K'K",
    "\u0085\u00a0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\ufeff x\x1c\x1d\x1e\x1f y\x0b\x0c z",
    "e\u0301\u0301\u0301 \u0301 क्षि ﷽ ﬁ",
    "[CLS] hello [SEP] [MASK] [UNK] ##ing",
]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("text", TEXTS)
def test_known_ways_to_split_are_equal(make_pair: Callable[[str], Pair], stage: str, text: str) -> None:
    pair = make_pair(stage)
    assert pair[0].library == "tiktoken"
    _check(pair, text)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("model", ["smollm2-135m", "all-minilm-l6-v2"])
def test_real_models_are_equal(real: dict[str, Pair], model: str, text: str) -> None:
    _check(real[model], text)


def test_real_models_count_with_the_expected_library(real: dict[str, Pair]) -> None:
    assert {name: pair[0].library for name, pair in real.items()} == {
        "smollm2-135m": "tiktoken",
        "all-minilm-l6-v2": "tokenizers",
    }
    assert real["all-minilm-l6-v2"][0].count("word " * 1000) == 1002


@pytest.mark.parametrize("stage", ["gpt2", "digits", "llama3", "qwen2"])
def test_every_code_point_is_equal(make_pair: Callable[[str], Pair], stage: str) -> None:
    """In the company of letters, digits, spaces, quotes and of itself.

    Code points with a byte that the vocabulary lacks go apart: they take the other way.
    """
    counter, reference = make_pair(stage)
    assert counter._fast is not None
    texts: dict[bool, list[str]] = {True: [], False: []}
    for point in range(sys.maxunicode + 1):
        if not 0xD800 <= point < 0xE000:
            item = chr(point)
            texts[counter._fast.takes(item)].append(
                f"a{item}b {item}1{item} {item}{item}  {item}'{item}!{item}\n{item}"
            )
    assert len(texts[True]) > 300_000
    for group in (texts[True], texts[False][::97]):
        batches = ["\nx".join(group[start : start + 512]) for start in range(0, len(group), 512)]
        for batch, expected in zip(
            batches, reference.encode_batch(batches, add_special_tokens=False), strict=True
        ):
            assert counter.encode(batch, add_special_tokens=False) == expected.ids


_ALPHABET = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from("  \n\t\r'sStdlvem019½a!.,<|>ſ\u0301\u200d\U0001f600"),
    st.sampled_from(["<|im_start|>", "<|im_end|>", "'ll", "    ", "\n\n", "123"]),
)


@pytest.mark.parametrize("stage", STAGES)
def test_random_text_is_equal(make_pair: Callable[[str], Pair], stage: str) -> None:
    pair = make_pair(stage)

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.lists(_ALPHABET, max_size=60).map("".join))
    def check(text: str) -> None:
        _check(pair, text)

    check()


def test_random_letters_are_equal(real: dict[str, Pair]) -> None:
    """The letters need merges far from any real word."""
    chance = random.Random(1)
    for letters in ("ab", "aeiou", "the ", "0123456789", "{}[]()<>=", "ｱ東éß"):
        _check(real["smollm2-135m"], "".join(chance.choices(letters, k=5_000)))


def test_lone_surrogates_count_as_replacement_characters(real: dict[str, Pair]) -> None:
    for counter, _ in real.values():
        assert counter.encode("a\ud800b\udfff") == counter.encode("a\ufffdb\ufffd")


def _normalized(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = {"type": "NFC"}


def _prefixed(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = {**_BYTES, "use_regex": True, "add_prefix_space": True}


def _greedy_added(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"][1]["lstrip"] = True


def _unknown_pattern(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = _sequence(_split(r"\p{L}+|\s+"), _BYTES)


def _second_way_to_a_token(tokenizer: dict[str, Any]) -> None:
    merges = tokenizer["model"]["merges"]
    existing = set(tokenizer["model"]["vocab"])
    left, right = next(pair for pair in merges if len(pair[0]) > 1 and pair[0][1:] + pair[1] in existing)
    merges.append([left[0], left[1:] + right])


def _unmade_token(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"].pop()


@pytest.mark.parametrize(
    "change",
    [_normalized, _prefixed, _greedy_added, _unknown_pattern, _second_way_to_a_token, _unmade_token],
)
def test_what_cannot_be_shown_equal_is_left_to_the_other_library(
    models: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    description = _description(models)
    change(description)
    pair = _pair(tmp_path, description)
    assert pair[0].library == "tokenizers"
    for text in TEXTS:
        _check(pair, text)


def test_merges_of_the_older_format_are_read(models: Path) -> None:
    description = _description(models)
    model = description["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    assert byte_level(description) is not None


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\x00"])
def test_broken_tokenizer_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InvalidTokenizer, match=r"tokenizer\.json"):
        TokenCounter.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        " " * 1_000_000,
        " " * 1_000_001 + "x",
        "x" + "\n" * 1_200_000,
        (" " * 60_000 + "x") * 17,
        "ab" * 500_000,
        "!" * 1_000_000,
        "7" * 1_000_000,
        "é" * 500_000,
        "<|im_start|>" * 80_000,
    ],
    ids=lambda text: f"{text[:3]!r}x{len(text)}",
)
def test_a_megabyte_of_anything_takes_seconds_at_most(real: dict[str, Pair], text: str) -> None:
    counter, reference = real["smollm2-135m"]
    started = time.perf_counter()
    counted = counter.count(text)
    assert time.perf_counter() - started < 5
    assert counted == len(reference.encode(text).ids)


def test_long_prompt_is_counted_in_milliseconds(real: dict[str, Pair]) -> None:
    counter = real["smollm2-135m"][0]
    text = ("The quick brown fox jumps over the lazy dog, and 12 others didn't. " * 450)[:30_000]
    counter.count(text)
    took = []
    for _ in range(5):
        started = time.perf_counter()
        counter.count(text)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.02


@pytest.mark.parametrize("text", ["a" * 3_000_000, " " * 2_000_000], ids=["tiktoken", "tokenizers"])
def test_counting_lets_other_threads_run(real: dict[str, Pair], text: str) -> None:
    counting = threading.Thread(target=real["smollm2-135m"][0].count, args=(text,))
    longest, last = 0.0, time.perf_counter()
    counting.start()
    while counting.is_alive():
        time.sleep(0.001)
        longest = max(longest, time.perf_counter() - last)
        last = time.perf_counter()
    counting.join()
    assert longest < 0.15


def test_folder_alone_is_enough(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "smollm2-135m" / "tokenizer.json", tmp_path)
    assert TokenCounter.load(tmp_path).count("Hello world") == 2
