"""Counts tokens with a model's own tokenizer, without the engine. Nothing is ever fetched."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec
from tokenizers import Tokenizer

from metering.errors import InvalidTokenizer
from metering.tokenizers.byte_level import ByteLevelEncoding, byte_level

Around = tuple[list[int], list[int]]
"""The ids that are put before and after every text."""


class TokenCounter:
    """A model's tokenizer: tiktoken's algorithm where it is known to be equal, `tokenizers` elsewhere.

    Both take time linear in the text, about a millisecond for 10 kB and up to half a second for 1 MB; both
    release the interpreter's lock, so a long text is best counted in a thread. The library
    that is not needed yet is not loaded yet.
    """

    def __init__(self, description: bytes, fast: ByteLevelEncoding | None, around: Around | None) -> None:
        self._description = description
        self._fast = fast
        if fast is None or around is None:
            around = _surroundings(self._tokenizer)
        self._before, self._after = around

    @classmethod
    def load(cls, folder: Path) -> Self:
        """From ``tokenizer.json`` of the model's folder; raises `InvalidTokenizer`."""
        file = folder / "tokenizer.json"
        try:
            description = file.read_bytes()
            tokenizer = msgspec.json.decode(description)
        except (OSError, ValueError) as error:
            raise InvalidTokenizer(f"{file} cannot be read: {error}") from error
        try:
            return cls(description, byte_level(tokenizer), _described(tokenizer.get("post_processor")))
        except Exception as error:
            raise InvalidTokenizer(f"{file} is not a valid tokenizer: {error}") from error

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self._description.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def library(self) -> str:
        """Which library counts: ``tiktoken`` or ``tokenizers``."""
        return "tokenizers" if self._fast is None else "tiktoken"

    def count(self, text: str, *, add_special_tokens: bool = True) -> int:
        """The number of tokens of the text; special tokens that are in it count as such.

        ``add_special_tokens`` adds those that the model puts around every text.
        """
        text = _encodable(text)
        around = len(self._before) + len(self._after) if add_special_tokens else 0
        if self._fast is not None and self._fast.takes(text):
            return len(self._fast.ranks(text)) + around
        return len(self._by_library(text)) + around

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of the text's tokens."""
        text = _encodable(text)
        ids: list[int]
        if self._fast is not None and self._fast.takes(text):
            ids = [self._fast.ids[rank] for rank in self._fast.ranks(text)]
        else:
            ids = self._by_library(text)
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    @property
    def adds_tokens(self) -> bool:
        """Whether the model puts tokens around every text."""
        return bool(self._before or self._after)

    def strings(self, ids: Sequence[int]) -> list[str] | None:
        """The tokens with these ids as the vocabulary writes them; None if one is not in it."""
        strings: list[str] = []
        for number in ids:
            string = self._tokenizer.id_to_token(number)
            if string is None:
                return None
            strings.append(string)
        return strings

    def decode(self, ids: Sequence[int]) -> str | None:
        """The text of these tokens, special ones included; None if one is not in the vocabulary."""
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if any(not 0 <= number < size for number in ids):
            return None
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _by_library(self, text: str) -> list[int]:
        """A batch of one: only for batches does the library let go of the interpreter's lock."""
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids


def _described(post_processor: Mapping[str, Any] | None) -> Around | None:
    """The tokens around every text where a post-processor of the simple kinds tells them."""
    match post_processor:
        case (
            None
            | {"type": "ByteLevel"}
            | {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}
        ):
            return [], []
    return None


def _surroundings(tokenizer: Tokenizer) -> Around:
    """The tokens that are put before and after every text."""
    probe = "a"
    bare: list[int] = tokenizer.encode(probe, add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode(probe, add_special_tokens=True).ids
    starts = range(len(whole) - len(bare) + 1)
    at = next((start for start in starts if whole[start : start + len(bare)] == bare), None)
    if at is None:
        raise InvalidTokenizer("the tokenizer changes a text that it adds special tokens to")
    return whole[:at], whole[at + len(bare) :]


def _encodable(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which have no UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
