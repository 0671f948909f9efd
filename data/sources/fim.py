"""Documents rearranged so that a model of the next token learns to fill in the middle (2207.14255).

A document is cut at two random characters into prefix, middle and suffix. PSM shows prefix, suffix, middle, SPM the
suffix before the prefix and the middle (variant 2 of the paper, section 3). Each part is tokenised by itself, and all
tokens are learnt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data.tokenizers.base import Tokenizer

# What stands before the prefix, the suffix and the middle, as families call it.
NAMES = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
TRIES = 32
OWN = NAMES[1]  # those that tokenizers of characters and bytes are given
Encode = Callable[[str], Sequence[int]]


class Sentinels(NamedTuple):
    """The ids before the prefix, the suffix and the middle."""

    prefix: int
    suffix: int
    middle: int


def sentinels_of(tokenizer: Tokenizer) -> Sentinels:
    """The ids of the first of NAMES that are single tokens; ValueError where none are."""
    for names in NAMES:
        ids = [_single(tokenizer, name) for name in names]
        if None not in ids:
            return Sentinels(*ids)  # type: ignore[arg-type]
    wanted = "; ".join(" ".join(names) for names in NAMES)
    raise ValueError(f"corpus.fim needs a tokenizer that has, as single tokens, one of: {wanted}; set corpus.fim=0")


def _single(tokenizer: Tokenizer, text: str) -> int | None:
    try:
        ids = tokenizer.encode(text)
    except ValueError:  # a tokenizer of characters that lacks one of these
        return None
    return ids[0] if len(ids) == 1 else None


def cut(text: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """Prefix, middle and suffix: two places of the text, drawn evenly, both ends included."""
    first, second = sorted(rng.integers(0, len(text) + 1, 2).tolist())
    return text[:first], text[first:second], text[second:]


def rearranged(parts: tuple[str, str, str], encode: Encode, sentinels: Sentinels, spm: bool) -> list[int]:
    """The ids of prefix, middle and suffix in the order of PSM or SPM."""
    prefix, middle, suffix = (list(encode(part)) for part in parts)
    if spm:
        return [sentinels.prefix, sentinels.suffix, *suffix, sentinels.middle, *prefix, *middle]
    return [sentinels.prefix, *prefix, sentinels.suffix, *suffix, sentinels.middle, *middle]


class Fim(NamedTuple):
    """A share `rate` of texts is rearranged, and of these a share `spm` in the order of SPM."""

    rate: float
    spm: float
    sentinels: Sentinels

    def tokens(self, text: str, encode: Encode, rng: np.random.Generator) -> list[int]:
        """The ids of a text, rearranged or not.

        A place inside a special token, of whose characters a tokenizer may know none by themselves, is drawn again.
        """
        if rng.random() >= self.rate:
            return list(encode(text))
        spm = bool(rng.random() < self.spm)
        for _ in range(TRIES):
            with contextlib.suppress(ValueError):
                return rearranged(cut(text, rng), encode, self.sentinels, spm)
        return list(encode(text))

    def of_tokens(self, ids: Sequence[int], tokenizer: Tokenizer, rng: np.random.Generator) -> list[int]:
        """The like for a piece of a row; one that does not begin or end with a whole character stays as it is."""
        if rng.random() >= self.rate:
            return list(ids)
        text = tokenizer.decode(ids)
        spm = bool(rng.random() < self.spm)
        parts = cut(text, rng)
        if list(tokenizer.encode(text)) != list(ids):
            return list(ids)
        return rearranged(parts, tokenizer.encode, self.sentinels, spm)
