"""Tokens that hold punctuation and the end of a line in one, of which training splits a share (DeepSeek-V3, 2412.19437,
section 4.1): a prompt that ends at the punctuation is then no stranger to the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from data.tokenizers.base import Tokenizer
from data.tokenizers.decoding import vocabulary_texts

_FUSED = re.compile(r"([^\w\s]+)([\r\n]+)")


def fused_tokens(tokenizer: Tokenizer) -> dict[int, tuple[int, ...]]:
    """{id: the ids of its two parts} for every token that is punctuation and then line ends, if both parts are tokens.

    ValueError where a tokenizer has no such token.
    """
    texts = vocabulary_texts(tokenizer)
    known = {text: index for index, text in reversed(list(enumerate(texts)))}
    found = dict[int, tuple[int, ...]]()
    for index, text in enumerate(texts):
        parts = _FUSED.fullmatch(text)
        if parts and parts[1] in known and parts[2] in known:
            found[index] = (known[parts[1]], known[parts[2]])
    if not found:
        raise ValueError("corpus.split_fused: this tokenizer has no token of punctuation and line ends; set it to 0")
    return found


def split_fused(
    ids: Sequence[int], fused: Mapping[int, tuple[int, ...]], share: float, rng: np.random.Generator
) -> list[int]:
    """The ids, each fused one replaced by its parts with probability `share`."""
    out = list[int]()
    for index in ids:
        parts = fused.get(index)
        out += parts if parts and rng.random() < share else (index,)
    return out
