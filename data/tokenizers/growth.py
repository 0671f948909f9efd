"""How much longer a `tokenizer.json` may make a text: what its normalizer, pre-tokenizer and decoder can do at most.

A few replacements in a row can turn one letter into terabytes. The library has no bound for that, so the parts of
the file that write text are weighed before they run.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MOST_TEXT = 1 << 26  # characters that a text may become on its way; the library keeps some tens of bytes for each
Part = Mapping[str, Any]
SEQUENCES = ("normalizers", "pretokenizers", "decoders")

# Most characters that one becomes: in NFKD U+FDFA becomes 18, in UTF-8 a character is at most 4 bytes.
FIXED = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 3,
    "BertNormalizer": 12,
    "ByteLevel": 4,
    "Metaspace": 2,
    "WordPiece": 2,
    "BPEDecoder": 2,
    "CTC": 2,
}


class Growth(NamedTuple):
    """A text of n characters becomes one of at most `times` n + `more`."""

    times: int
    more: int = 0

    def of(self, length: int) -> int:
        """The most characters that so many become."""
        return self.times * length + self.more


def stages_of(part: Any) -> list[Part]:
    """Returns the steps of a normalizer, pre-tokenizer or decoder, in order, sequences taken apart."""
    if not isinstance(part, Mapping):
        return []
    inner = [each for name in SEQUENCES if isinstance(part.get(name), list) for each in part[name]]
    return [stage for each in inner for stage in stages_of(each)] if inner else [part]


def growth_of(stage: Part) -> Growth:
    """Returns how much one step may add, by what it holds: the library also takes steps without their `type`."""
    if "content" in stage:
        return _replacing(stage.get("pattern"), len(str(stage["content"])))
    if "prepend" in stage:
        # Before the text, and after every added token in it.
        return _replacing(None, len(str(stage["prepend"])))
    if "precompiled_charsmap" in stage:
        return Growth(_longest_mapping(str(stage["precompiled_charsmap"])))
    return Growth(FIXED.get(str(stage["type"]), 1) if "type" in stage else max(FIXED.values()))


def most_characters(length: int, stages: Sequence[Part]) -> int:
    """Returns the most characters that a text of `length` can have on its way through all steps."""
    most = length
    for stage in stages:
        length = growth_of(stage).of(length)
        most = max(most, length)
    return most


def check_growth(length: int, stages: Sequence[Part], what: str) -> None:
    """Raises ValueError where a text of `length` could have more than MOST_TEXT characters on its way."""
    most = most_characters(length, stages)
    if most > MOST_TEXT:
        raise ValueError(
            f"{what} may turn {length} characters into {most}, more than the {MOST_TEXT} allowed: give shorter texts,"
            " or another tokenizer.json if this one was not expected to make texts longer"
        )


def _replacing(pattern: Any, length: int) -> Growth:
    literal = pattern.get("String") if isinstance(pattern, Mapping) else pattern
    if isinstance(literal, str) and literal:
        return Growth(max(1, -(-length // len(literal))))
    # A regular expression, like an empty text, may match before every character and at the end.
    return Growth(1 + length, length)


def _longest_mapping(charsmap: str) -> int:
    """The most characters that a map of sentencepiece puts in the place of one: its texts end in zero bytes."""
    try:
        content = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 1  # the library refuses it, too
    size = int.from_bytes(content[:4], "little")
    return max(1, *(len(text) for text in content[4 + size :].split(b"\0")))
