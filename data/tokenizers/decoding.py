"""Text where it goes on: what ids add to the text before them, and the ids that add a text.

Decoders treat the beginning of a text as special: many drop its first space, which the tokenizer had put there. What
follows a prompt is no beginning, so it is decoded together with the end of the prompt.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

UNLIMITED = 2**30
TAIL = 32  # tokens of a prompt that are decoded again with what follows it
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST = 4  # bytes of a character in UTF-8


class Decoder(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text."""
        ...


class Coder(Decoder, Protocol):
    """A decoder that encodes, too."""

    def encode(self, text: str) -> list[int]:
        """Text -> token ids."""
        ...


def text_of(ids: Sequence[int], tokenizer: Decoder, prompt: Sequence[int] = ()) -> str:
    """Returns the text that `ids` add to that of `prompt`, both token ids.

    A character whose bytes lie on both sides belongs to what `ids` add. An id beyond the tokenizer (a padded
    vocabulary) reads as U+FFFD and is never an answer.
    """
    size = getattr(tokenizer, "vocab_size", UNLIMITED)
    before, texts = tail_of(prompt, tokenizer), []
    for known, run in itertools.groupby(ids, lambda index: index < size):
        part = list(run)
        texts.append(_added(before, part, tokenizer) if known else REPLACEMENT * len(part))
        before = [*before, *part] if known else before
    return "".join(texts)


def token_texts(ids: Sequence[int], tokenizer: Decoder, prompt: Sequence[int] = ()) -> list[str]:
    """Returns the text that each id adds to those before it; joined they are `text_of(ids, tokenizer, prompt)`.

    A character of several tokens stands with the last of them, the others add "".
    """
    before, texts, done = tail_of(prompt, tokenizer), list[str](), 0
    whole = text_of(ids, tokenizer, before)
    for count in range(1, len(ids) + 1):
        text = text_of(ids[:count], tokenizer, before)
        # What is not how the whole begins is a part of a character, or of bytes that later ones spoil.
        ready = max(done, len(text)) if whole.startswith(text) else done
        texts.append(whole[done:ready])
        done = ready
    return texts


def vocabulary_texts(tokenizer: Decoder) -> tuple[str, ...]:
    """Returns what every token of a vocabulary adds to a text, "" for a part of a character."""
    return _vocabulary_texts(cast(Any, tokenizer))


def some_visible(tokenizer: Decoder) -> tuple[int, ...]:
    """Returns one token with a visible text: those after it are decoded as they are inside a text."""
    return _some_visible(cast(Any, tokenizer))


@functools.lru_cache(maxsize=8)
def _vocabulary_texts(tokenizer: Any) -> tuple[str, ...]:
    before = some_visible(tokenizer)
    return tuple(text_of([index], tokenizer, before) for index in range(tokenizer.vocab_size))


@functools.lru_cache(maxsize=8)
def _some_visible(tokenizer: Any) -> tuple[int, ...]:
    return next((index,) for index in range(tokenizer.vocab_size) if tokenizer.decode([index]).strip())


def tail_of(prompt: Iterable[int], tokenizer: Decoder) -> list[int]:
    """Returns as many of a prompt's last ids as decide how those that follow are decoded.

    They have a text, and it does not begin inside a character, so that more of the prompt would change nothing.
    """
    size = getattr(tokenizer, "vocab_size", UNLIMITED)
    known, count = [int(index) for index in prompt if index < size], TAIL
    while count < len(known):
        text = tokenizer.decode(known[-count:])
        if text.strip() and not text.lstrip().startswith(REPLACEMENT):
            break
        count *= 2
    return known[-count:]


def encode_after(text: str, tokenizer: Coder, prompt: Sequence[int]) -> list[int]:
    """Returns the ids of a text that goes on after `prompt`: those whose text there is `text`.

    A tokenizer that puts a space in front of every text puts none there. Where the tokenizer changes texts (one
    that lowers case), so that no ids have this very text, they are those of the text alone.
    """
    before, alone = tail_of(prompt, tokenizer), tokenizer.encode(text)
    if not before or _added(before, alone, tokenizer) == text:
        return alone
    front, both = tokenizer.encode("\n"), tokenizer.encode("\n" + text)
    rest = both[len(front) :]
    return rest if both[: len(front)] == front and _added(before, rest, tokenizer) == text else alone


def _added(before: Sequence[int], ids: Sequence[int], tokenizer: Decoder) -> str:
    """What ids add, all of them known; `before` is a tail."""
    if not before:
        return tokenizer.decode([*ids])
    start, whole = tokenizer.decode([*before]), tokenizer.decode([*before, *ids])
    if whole.startswith(start):
        return whole[len(start) :]
    if start.endswith(REPLACEMENT):
        return whole[_complete(before, start, whole, tokenizer) :]
    # Bytes that make no character spoil the bytes beside them, also the prompt's: ids are decoded after what stands
    # before those.
    for count in _shorter(len(before)):
        start, whole = tokenizer.decode([*before[:count]]), tokenizer.decode([*before[:count], *ids])
        if whole.startswith(start):
            return whole[len(start) :]
    return tokenizer.decode([*ids])


def _complete(before: Sequence[int], start: str, whole: str, tokenizer: Decoder) -> int:
    """How many characters of `whole` are the prompt's, whose last one was incomplete."""
    parts = [tokenizer.decode([*before[:-count]]) for count in range(1, min(LONGEST, len(before) + 1))]
    return max([_common(start, whole), *(len(part) for part in parts if whole.startswith(part))])


def _common(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _shorter(length: int) -> Iterable[int]:
    """Fewer and fewer of a number: one by one at first, then by half."""
    yield from range(length - 1, max(length - LONGEST, 0), -1)
    count = length - LONGEST
    while count > 0:
        yield count
        count //= 2
