"""Encoding word by word, each word remembered: several times as fast as the library `tokenizers`, with the same ids.

Only where that is sure: the pre-tokenizer's steps are ones that ASCII text can be cut by with `re`, and a text of
hostile combinations comes apart as the library takes it apart. What is not ASCII goes to the library, in pieces that
end where every such tokenizer ends a word.
"""

import random
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

import numpy as np

Cut = Callable[[str], list[str]]

MOST_WORDS = 1 << 18  # remembered; then it starts anew
LONGEST = 32  # characters of a word that is worth it
# Between a letter and a space with a letter behind it: no word goes on there, and no normal form joins the two.
BORDER = re.compile("(?<=[A-Za-z])(?= [A-Za-z])")
SAME_IN_ASCII = ("NFC", "NFD", "NFKC", "NFKD")

SPACE = r"\t\n\v\f\r "
# What of a class is ASCII; U+0100, which is not, stands for nothing.
CLASSES = {
    r"\s": SPACE,
    r"\p{L}": "A-Za-z",
    r"\p{Lu}": "A-Z",
    r"\p{Ll}": "a-z",
    r"\p{Lt}": "\u0100",
    r"\p{Lm}": "\u0100",
    r"\p{Lo}": "\u0100",
    r"\p{M}": "\u0100",
    r"\p{N}": "0-9",
    r"\p{P}": r"!\"#%&'()*,\-./:;?@\[\\\]_{}",
    r"\p{S}": r"$+<=>\^`|~",
}
TOKEN = re.compile(r"\\p\{\w+\}|\\.|\[\^?|&&|.", re.S)
BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What the library and these cuts could see differently, one beside the other.
PARTS = [*"asSZ1 \n\r\t'\"(_-$^`~.\x00\x1c\x1f\x7f", *(" a", "a b", "  ", "'ll", "'RE", "123", "1234", "\r\n", "\n\n")]
FOREIGN = [*"éſ中あ“\u0301\u00a0\u0085\u2028²٣Ⅷ🙂", " é", "é a", " a\u0301"]


class Words:
    """The ids of texts by their words; `library` encodes many texts at once."""

    def __init__(self, cuts: Sequence[Cut], apart: re.Pattern[str] | None, library: Callable[[list[str]], Any]) -> None:
        """The steps that take ASCII apart, one after the other, and the tokens that are found before."""
        self._cuts, self._apart, self._library = cuts, apart, library
        self._known = dict[str, bytes]()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of every text, uint32."""
        found = [list(self.pieces(text)) for text in texts]
        known = self._known
        new = [piece for piece in set(chain.from_iterable(found)) if piece not in known]
        known.update(zip(new, map(as_bytes, self._library(new)), strict=True))
        made = [np.frombuffer(b"".join([known[piece] for piece in pieces]), np.uint32) for pieces in found]
        if len(known) > MOST_WORDS:
            known.clear()
        for piece in new:
            if len(piece) > LONGEST:
                known.pop(piece, None)
        return made

    def pieces(self, text: str) -> Iterator[str]:
        """A text's words; with a token that is found before them the whole text is one piece."""
        return iter((text,)) if self._apart is not None and self._apart.search(text) else self.parts(text)

    def parts(self, text: str) -> Iterator[str]:
        """The words of a text without such tokens; a longer piece where only the library knows what its words are."""
        if text.isascii():
            return self._words(text)
        parts = groupby(BORDER.split(text), str.isascii)
        joined = ((plain, "".join(part)) for plain, part in parts)
        return chain.from_iterable(self._words(part) if plain else (part,) for plain, part in joined)

    def _words(self, text: str) -> Iterator[str]:
        found: Iterator[str] = iter((text,))
        for cut in self._cuts:
            found = chain.from_iterable(map(cut, found))
        return found


def as_bytes(encoding: Any) -> bytes:
    """The ids of an Encoding as the bytes of uint32."""
    return array("I", encoding.ids).tobytes()


def words_of(
    normalizer: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]],
    added: Sequence[Any],
    splits: Callable[[str], list[str]],
    library: Callable[[list[str]], Any],
) -> Words | None:
    """The words of a tokenizer, or None where they are not sure to be those of the library.

    `added`: its AddedTokens; `splits`: what its pre-tokenizer makes of a text.
    """
    # DeepSeek-V3's is a sequence of nothing.
    normalizer = [stage for stage in normalizer if stage.get("normalizers") != []]
    if any(stage.get("type") not in SAME_IN_ASCII for stage in normalizer):
        return None
    # A token may be in a text only once that is normalized, where nobody looks here.
    if normalizer and any(token.normalized for token in added):
        return None
    cuts = [cut_of(stage) for stage in before if not is_whole(stage)]
    apart = sorted((re.escape(token.content) for token in added if token.content), key=len, reverse=True)
    known = [cut for cut in cuts if cut is not None]
    if not known or len(known) < len(cuts):
        return None
    words = Words(known, re.compile("|".join(apart)) if apart else None, library)
    return words if all(agree(words, text, splits) for text in probes()) else None


def agree(words: Words, text: str, splits: Callable[[str], list[str]]) -> bool:
    """Whether a text comes apart as the library takes it apart, and each word of it stays one when it is alone."""
    found = [piece for piece in words.parts(text) if piece]
    inside = list(chain.from_iterable([piece] if piece.isascii() else splits(piece) for piece in found))
    return inside == splits(text) and all(splits(piece) == [piece] for piece in set(inside) if piece.isascii())


def probes() -> list[str]:
    """ASCII in which nearly every four of PARTS stand side by side, and a text with other characters among them."""
    draw = random.Random(0)
    mixed = [*PARTS, *FOREIGN]
    return ["".join(draw.choices(PARTS, k=1 << 15)), "".join(draw.choices(mixed, k=1 << 14))]


def is_whole(stage: Mapping[str, Any]) -> bool:
    """Whether a step only writes bytes as characters."""
    return stage.get("type") == "ByteLevel" and stage.get("use_regex") is False and not stage.get("add_prefix_space")


def cut_of(stage: Mapping[str, Any]) -> Cut | None:
    """What a step of a pre-tokenizer does to ASCII text, or None where that is not known."""
    match stage:
        case {"type": "Digits", "individual_digits": each}:
            return re.compile("[0-9]|[^0-9]+" if each else "[0-9]+|[^0-9]+").findall
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return compiled(BYTE_LEVEL)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return compiled(pattern)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return compiled(pattern)
    return None


def compiled(pattern: str) -> Cut | None:
    """What a pattern finds in ASCII text and what lies between, in order, maybe with empty texts."""
    plain = translated(pattern)
    try:
        found = re.compile(plain) if plain is not None else None
        if found is None or found.groups:
            return None
        sample = probes()[0]
        # Most patterns leave nothing out; then there is nothing to look for between.
        return found.findall if "".join(found.findall(sample)) == sample else re.compile(f"({plain})").split
    except re.error:
        return None


def translated(pattern: str) -> str | None:
    """A pattern of the library's regular expressions as Python's for ASCII text, or None where they may differ."""
    if re.search(r"\d\}[+?]", pattern):
        return None
    found, inside = [], False
    for part in TOKEN.findall(pattern):
        if part in CLASSES:
            part = CLASSES[part] if inside else f"[{CLASSES[part]}]"
        elif part == r"\S" and not inside:
            part = f"[^{SPACE}]"
        elif part[0] == "\\" and part[1].isalnum() and part[1] not in "nrt":
            return None
        elif inside:
            if part[0] == "[" or part == "&&":
                return None
            inside = part != "]"
        elif part in (".", "^", "$"):
            return None
        else:
            inside = part[0] == "["
        found.append(part)
    return "".join(found)
