"""Tokenizers that need no training: one id per character of a fixed alphabet, or one id per byte.

Control tokens (pad, eos) have no text form, so that no text can ever encode to them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data.tokenizers.base import write_description

# Printable ASCII and the newline: enough for English, arithmetic and code.
DEFAULT_ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
DEFAULT_SPECIALS = ("<think>", "</think>")
CONTROL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>"}


@dataclass(frozen=True)
class CharTokenizer:
    """One id per character: 0 is pad, 1 is eos, then the special tokens, then the alphabet.

    `alphabet`: the characters, each once. `specials`: strings that become one id each, matched longest first. `pair`:
    a character that joins its two neighbours to one id, from `vocab_size` on, for models with `pairs`; "" for none.
    """

    alphabet: str = DEFAULT_ALPHABET
    specials: tuple[str, ...] = DEFAULT_SPECIALS
    pair: str = ""

    pad_id = 0
    eos_id = 1
    bos_id = None
    eos_ids = (1,)
    chat_template = None
    special_tokens = CONTROL_TOKENS

    def __post_init__(self) -> None:
        repeated = sorted({char for char in self.alphabet if self.alphabet.count(char) > 1})
        if not self.alphabet or repeated:
            raise ValueError(f"an alphabet holds each character once and at least one; repeated: {repeated}")
        if len(self.pair) > 1 or (self.pair and self.pair in self.alphabet):
            raise ValueError(f"pair is one character outside the alphabet, got {self.pair!r}")
        check_specials(self.specials)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "CharTokenizer":
        """Returns the tokenizer of a spec with optional `alphabet`, `specials` and `pair`."""
        return cls(spec.get("alphabet", DEFAULT_ALPHABET), _specials_of(spec), spec.get("pair", ""))

    @cached_property
    def _texts(self) -> list[str]:
        return ["", "", *self.specials, *self.alphabet]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {text: index for index, text in enumerate(self._texts) if text}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return special_pattern(self.specials)

    @property
    def vocab_size(self) -> int:
        """Two control tokens, the specials and the alphabet; pairs have ids behind them."""
        return len(self._texts)

    def encode(self, text: str) -> list[int]:
        """Returns one id per character or special token; ValueError for an unknown character."""
        parts = split_specials(self._pattern, text) if self.specials else text
        try:
            return [self._id(piece) for part in parts for piece in self._pieces(part)]
        except KeyError as error:
            raise ValueError(self._unknown(error.args[0], text)) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids without pad and eos; ValueError for an id outside the vocabulary."""
        return "".join(self._text(index) for index in ids)

    def save(self, folder: str | Path) -> None:
        """Writes alphabet, specials and the joining character as JSON."""
        spec = {"kind": "char", "alphabet": self.alphabet, "specials": list(self.specials)}
        write_description(folder, spec | ({"pair": self.pair} if self.pair else {}))

    def _text(self, index: int) -> str:
        size = self.vocab_size
        if not (self.pair and size <= index < size + size * size):
            return self._texts[check_id(index, size)]
        return self.pair.join(self._texts[each] for each in divmod(index - size, size))

    def _pieces(self, part: str) -> Sequence[str]:
        if part in self.specials:
            return (part,)
        return re.findall(f"(?s).{re.escape(self.pair)}.|.", part) if self.pair else part

    def _id(self, piece: str) -> int:
        if self.pair and len(piece) == 3 and piece[1] == self.pair:
            return self.vocab_size * (1 + self._ids[piece[0]]) + self._ids[piece[2]]
        return self._ids[piece]

    def _unknown(self, char: str, text: str) -> str:
        where = text.index(char)
        return (
            f"character {char!r} (U+{ord(char):04X}) at position {where} of {text[:60]!r} is not in the "
            f"alphabet {self.alphabet!r}; add it to the tokenizer's alphabet or use the byte tokenizer"
        )


@dataclass(frozen=True)
class ByteTokenizer:
    """One id per byte of the UTF-8 text: 0-255 are bytes, 256 is pad, 257 is eos, then the special tokens."""

    specials: tuple[str, ...] = DEFAULT_SPECIALS

    pad_id = 256
    eos_id = 257
    bos_id = None
    eos_ids = (257,)
    chat_template = None
    special_tokens = CONTROL_TOKENS

    def __post_init__(self) -> None:
        check_specials(self.specials)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "ByteTokenizer":
        """Returns the tokenizer of a spec with optional `specials`."""
        return cls(_specials_of(spec))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {text: 258 + index for index, text in enumerate(self.specials)}

    @cached_property
    def _pieces(self) -> list[bytes]:
        return [bytes([value]) for value in range(256)] + [b"", b""] + [text.encode() for text in self.specials]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return special_pattern(self.specials)

    @property
    def vocab_size(self) -> int:
        """256 bytes, two control tokens and the specials."""
        return 258 + len(self.specials)

    def encode(self, text: str) -> list[int]:
        """Returns one id per byte or special token; ValueError for lone surrogates."""
        parts = split_specials(self._pattern, text) if self.specials else [text]
        return [index for part in parts for index in self._part(part)]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids without pad and eos; broken UTF-8 becomes U+FFFD."""
        pieces = [self._pieces[check_id(index, self.vocab_size)] for index in ids]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def save(self, folder: str | Path) -> None:
        """Writes the specials as JSON."""
        write_description(folder, {"kind": "byte", "specials": list(self.specials)})

    def _part(self, part: str) -> Iterable[int]:
        return (self._ids[part],) if part in self._ids else part.encode("utf-8")


def special_pattern(specials: Sequence[str]) -> re.Pattern[str]:
    """Returns the pattern that splits a text at special tokens and keeps them, longest first."""
    longest_first = sorted(specials, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def split_specials(pattern: re.Pattern[str], text: str) -> list[str]:
    """Returns the text cut at special tokens, with the tokens as parts of their own."""
    return [part for part in pattern.split(text) if part]


def check_specials(specials: Sequence[str]) -> None:
    """Raises ValueError unless every special token is a distinct string of two or more characters."""
    if isinstance(specials, str):
        raise ValueError(f"specials is a list of strings, got the string {specials!r}; write [{specials!r}]")
    wrong = [text for text in specials if len(text) < 2]
    if wrong or len(set(specials)) != len(specials):
        raise ValueError(f"special tokens are distinct strings of two or more characters, got {list(specials)}")


def _specials_of(spec: Mapping[str, Any]) -> tuple[str, ...]:
    specials = spec.get("specials", DEFAULT_SPECIALS)
    check_specials(specials)
    return tuple(specials)


def check_id(index: int, size: int) -> int:
    """Returns the id, or raises ValueError when it lies outside the vocabulary."""
    if 0 <= index < size:
        return int(index)
    raise ValueError(f"id {index} is outside the tokenizer's vocabulary of {size}; is the model's vocabulary larger?")
