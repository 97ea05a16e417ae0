"""A byte-level BPE tokenizer of Hugging Face's as an encoding of tiktoken's, where the two are the same.

The two libraries describe the algorithm (Sennrich et al. 2016, on bytes as in GPT-2) differently: Hugging
Face's gives each pair of tokens a rank, tiktoken gives each token one. Where every token has one pair that
makes it, the rank of the pair is the rank of the token. What this module cannot show to be equal it leaves
to the `tokenizers` library: normalizers, patterns that it does not know, tokens with several pairs, tokens
that no pair makes, added tokens that take the space around them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import tiktoken

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+"
GPT2 = rf"{_WORDS}| ?\p{{N}}+|{_OTHERS}|\s+(?!\S)|\s+"
_NUMERIC = r"\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}"
"""What the Digits stage splits at: `char::is_numeric` of a Rust with Unicode 17, which the patterns' library
does not have yet. The test on every code point tells when it has."""
GPT2_DIGITS = rf"{_WORDS}|[{_NUMERIC}]| ?[^\s\p{{L}}{_NUMERIC}]+|\s+(?![^\s{_NUMERIC}])|\s+"
"""Each digit by itself, and the text between digits as in GPT-2: a digit ends the text before it, so
white space before a digit is at an end."""
_SUFFIXES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3 = rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}|{_SUFFIXES}"
QWEN2 = rf"{_CONTRACTIONS}|\p{{N}}|{_SUFFIXES}"
_KNOWN = frozenset({GPT2, LLAMA3, QWEN2})
"""Patterns that leave no text unmatched, which the libraries treat differently."""

_WHITE_SPACE_WINDOW = 32_768
"""The backtracking of tiktoken's patterns fails on a run of a million white spaces; a run of two windows
is always noticed, a shorter one than one window never."""


@dataclass(frozen=True, slots=True)
class ByteLevelEncoding:
    """An encoding whose ranks are those of the pairs, and the ids that they stand for.

    ``missing`` are the bytes that the vocabulary lacks: tiktoken fails on them.
    """

    encoding: tiktoken.Encoding
    ids: Mapping[int, int]
    missing: bytes
    special: frozenset[str]

    def takes(self, text: str) -> bool:
        """Whether tiktoken can encode the text at all. Takes time linear in its length."""
        for start in range(0, len(text), _WHITE_SPACE_WINDOW):
            window = text[start : start + _WHITE_SPACE_WINDOW]
            if len(window) == _WHITE_SPACE_WINDOW and window.isspace():
                return False
        if not self.missing:
            return True
        data = text.encode()
        return len(data.translate(None, self.missing)) == len(data)

    def ranks(self, text: str) -> list[int]:
        """The ranks of the text's tokens; their number is the number of tokens."""
        return self.encoding.encode(text, allowed_special=self.special, disallowed_special=())


def byte_level(description: Mapping[str, Any]) -> ByteLevelEncoding | None:
    """The encoding for the content of a ``tokenizer.json``; ``None`` where it may not be the same."""
    model, added = description["model"], description.get("added_tokens") or []
    pattern = _pattern(description.get("pre_tokenizer"))
    if pattern is None or description.get("normalizer") is not None or not _plain_bpe(model):
        return None
    special = {token["content"]: token["id"] for token in added}
    if not all(_plain_added(token) for token in added) or _overlapping(list(special)):
        return None
    ranks = _ranks(model, special)
    if ranks is None:
        return None
    mergeable, ids = ranks
    first_free = len(mergeable)
    special_ranks = {token: first_free + number for number, token in enumerate(special)}
    ids |= {special_ranks[token]: token_id for token, token_id in special.items()}
    encoding = tiktoken.Encoding(
        "model", pat_str=pattern, mergeable_ranks=mergeable, special_tokens=special_ranks
    )
    missing = bytes(byte for byte in range(256) if bytes([byte]) not in mergeable)
    if missing and model.get("unk_token") is not None:
        return None
    return ByteLevelEncoding(encoding, ids, missing, frozenset(special))


def _pattern(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        }:
            return GPT2_DIGITS
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if regex in _KNOWN:
            return regex
    return None


def _plain_bpe(model: Mapping[str, Any]) -> bool:
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    return model.get("type") == "BPE" and not any(model.get(name) for name in odd)


def _plain_added(token: Mapping[str, Any]) -> bool:
    return bool(token["content"]) and not any(token.get(name) for name in ("single_word", "lstrip", "rstrip"))


def _overlapping(tokens: list[str]) -> bool:
    """Whether a token begins with another one: which of them is found then differs."""
    ordered = sorted(tokens)
    return any(longer.startswith(shorter) for shorter, longer in pairwise(ordered))


def _ranks(
    model: Mapping[str, Any], special: Mapping[str, int]
) -> tuple[dict[bytes, int], dict[int, int]] | None:
    """The rank of each token's bytes, and the id of each rank."""
    vocabulary: Mapping[str, int] = model["vocab"]
    alphabet = _alphabet()
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merged = [left + right for left, right in pairs]
    if len(set(merged)) != len(merged) or set("".join(merged)) - set(alphabet):
        return None
    single = [character for character in alphabet if character in vocabulary]
    if set(vocabulary) - set(special) != set(single) | set(merged):
        return None
    as_bytes = {ord(character): chr(byte) for character, byte in alphabet.items()}
    tokens = [*single, *merged]
    ranks = {token.translate(as_bytes).encode("latin-1"): rank for rank, token in enumerate(tokens)}
    return ranks, {rank: vocabulary[token] for rank, token in enumerate(tokens)}


def _alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte: `bytes_to_unicode` of its encoder.py, turned around."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }
