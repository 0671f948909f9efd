"""Rewards on form and length: each a pure function of a whole batch of samples; every one takes linear time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.chat import THINK_CLOSE, THINK_OPEN
from data.sources.examples import Example
from data.tasks.base import Verdict

ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
LONGEST_WORD = 32  # what is longer without a space is taken letter by letter
UNITS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Sample:
    """One completion as a reward sees it.

    `prompt`: the text that the model continued, template included; `text`: what it wrote; `length`: in tokens, the end
    token included; `finished`: it ended by itself; `limit`: the tokens it was allowed.
    """

    example: Example
    prompt: str
    text: str
    verdict: Verdict
    length: int
    finished: bool
    limit: int


# (N samples, group_of [N]: which prompt's each is) -> [N] float32
Reward = Callable[[Sequence[Sample], np.ndarray], np.ndarray]


def each(score: Callable[[Sample], float]) -> Reward:
    """The reward [N] that scores every sample for itself."""

    def reward(samples: Sequence[Sample], group_of: np.ndarray) -> np.ndarray:
        del group_of
        return np.array([score(sample) for sample in samples], np.float32)

    return reward


def is_right(sample: Sample) -> bool:
    """Whether the verdict gives the full score; a partly right answer is not right."""
    return sample.verdict.score >= 1


def accuracy(permuted: bool = False) -> Reward:
    """The verdict's score, in [0, 1]; a code task's is the share its verifier gave. A score outside raises ValueError.

    An answer that could not be compared has the verdict 0 here and in the length rewards: nothing is assumed right.
    `permuted`: each answer has the score of the next one to its prompt, which says nothing of it; a control.
    Source: DeepSeek-R1 (2501.12948), section 2.2.2.
    """

    def score(sample: Sample) -> float:
        if not 0 <= sample.verdict.score <= 1:
            raise ValueError(f"a verdict's score lies in [0, 1], found {sample.verdict.score}")
        return sample.verdict.score

    def of_the_next(samples: Sequence[Sample], group_of: np.ndarray) -> np.ndarray:
        scores = each(score)(samples, group_of)
        for group in np.unique(group_of):
            rows = np.flatnonzero(group_of == group)
            scores[rows] = scores[np.roll(rows, -1)]
        return scores

    return of_the_next if permuted else each(score)


@dataclass(frozen=True)
class Tags:
    """What encloses thought and answer. No think tags: the thought is all before `answer_open`. No answer tags: the
    answer is all after the thought. `answer_open` alone (such as `### `): the answer is the rest of its line.
    """

    think_open: str = THINK_OPEN
    think_close: str = THINK_CLOSE
    answer_open: str = ANSWER_OPEN
    answer_close: str = ANSWER_CLOSE

    def __post_init__(self) -> None:
        used = self.used()
        if bool(self.think_open) != bool(self.think_close) or (self.answer_close and not self.answer_open):
            raise ValueError(f"tags come in pairs, but answer_open may stand alone; found {self}")
        if not used or any(a in b for n, a in enumerate(used) for m, b in enumerate(used) if n != m):
            raise ValueError(f"there must be tags, and none may be a part of another; found {used}")

    def used(self) -> tuple[str, ...]:
        """The tags that are not empty, in the order in which they must stand."""
        return tuple(tag for tag in (self.think_open, self.think_close, self.answer_open, self.answer_close) if tag)


def opened(sample: Sample, tags: Tags) -> bool:
    """Whether the prompt ends in an opened thought."""
    return bool(tags.think_open) and sample.prompt.rstrip().endswith(tags.think_open)


def whole_text(sample: Sample, tags: Tags) -> str:
    """The completion, with the think tag in front where the prompt has opened it already."""
    return (tags.think_open if opened(sample, tags) else "") + sample.text


def blocks(text: str, tags: Tags) -> tuple[str, str] | None:
    """Thought and answer of a text that holds every tag once, in order, and nothing outside them; else None."""
    used = tags.used()
    if any(text.count(tag) != 1 for tag in used):
        return None
    places = [text.index(tag) for tag in used]
    if places != sorted(places):
        return None
    pieces = list(split_at(text, places, used))
    before = pieces.pop(0) if tags.think_open else ""
    thought = pieces.pop(0)
    between = pieces.pop(0) if tags.think_open and tags.answer_open else ""
    rest = pieces.pop(0)
    answer, after = (rest, pieces.pop(0)) if tags.answer_close else one_line(rest) if tags.answer_open else (rest, "")
    return None if before.strip() or between.strip() or after.strip() else (thought, answer)


def split_at(text: str, places: Sequence[int], tags: Sequence[str]) -> Iterator[str]:
    """What stands before, between and after the tags at the given places."""
    start = 0
    for place, tag in zip(places, tags, strict=True):
        yield text[start:place]
        start = place + len(tag)
    yield text[start:]


def one_line(text: str) -> tuple[str, str]:
    """The first line of a text and the rest."""
    line, _, rest = text.partition("\n")
    return line, rest


def letters(text: str) -> int:
    """The number of letters and digits: dots, spaces and invisible characters are no thought."""
    return sum(map(str.isalnum, text))


def visible(text: str) -> bool:
    """Whether a text holds a character that can be seen."""
    return any(char.isprintable() and not char.isspace() for char in text)


def format_reward(
    *,
    think_open: str = THINK_OPEN,
    think_close: str = THINK_CLOSE,
    answer_open: str = ANSWER_OPEN,
    answer_close: str = ANSWER_CLOSE,
    min_thought: int = 1,
) -> Reward:
    """1 for a thought, then exactly one answer, then the end; else 0.

    Every tag stands once and in order, only white space stands outside them, the thought has at least `min_thought`
    letters or digits, the answer can be seen, and the sample ended by itself. A prompt that ends in `think_open` has
    opened the thought. A stop string is cut from the text, so that a closing tag must not be one. Empty strings switch
    tags off (see `Tags`). Raises ValueError for tags that cannot be told apart. Source: 2501.12948, section 2.2.2.
    """
    tags = Tags(think_open, think_close, answer_open, answer_close)

    def score(sample: Sample) -> float:
        found = blocks(whole_text(sample, tags), tags) if sample.finished else None
        return float(found is not None and letters(found[0]) >= min_thought and visible(found[1]))

    return each(score)


def tag_count(
    *,
    think_open: str = THINK_OPEN,
    think_close: str = THINK_CLOSE,
    answer_open: str = ANSWER_OPEN,
    answer_close: str = ANSWER_CLOSE,
) -> Reward:
    """The share of the tags that stand once and where they belong, in [0, 1].

    A tag belongs after those before it; a closing tag counts only where its block is not empty, the last one only where
    nothing follows. A tag that the prompt wrote earns nothing, and costs its share when written again. Raises
    ValueError as `format_reward` does. Source: the tag count reward of open-r1, without its holes.
    """
    tags = Tags(think_open, think_close, answer_open, answer_close)

    def score(sample: Sample) -> float:
        text = whole_text(sample, tags)
        places = [text.find(tag) if text.count(tag) == 1 else -1 for tag in tags.used()]
        earned = list(counted(text, tags, places))
        own = earned[1:] if opened(sample, tags) and earned[0] else earned
        return sum(own) / len(own)

    return each(score)


def counted(text: str, tags: Tags, places: Sequence[int]) -> Iterator[bool]:
    """Whether each used tag earns its share; `places` as found, -1 for a tag that does not stand exactly once."""
    cursor = 0
    for tag, place in zip(tags.used(), places, strict=True):
        closing = tag in (tags.think_close, tags.answer_close)
        fits = place >= cursor and (not closing or visible(text[cursor:place]))
        if tag == tags.answer_close:
            fits = fits and not text[place + len(tag) :].strip()
        yield fits
        cursor = place + len(tag) if fits else cursor


def kimi_length() -> Reward:
    """0.5 for the shortest of a group to -0.5 for the longest, in tokens; an answer that is not right gets at most 0.

    Groups of one length, hence groups of one sample, get 0. In [-0.5, 0.5]. Source: Kimi k1.5 (2501.12599), section
    2.3.3, length penalty.
    """

    def reward(samples: Sequence[Sample], group_of: np.ndarray) -> np.ndarray:
        lengths = np.array([sample.length for sample in samples], np.float64)
        groups, member = np.unique(group_of, return_inverse=True)
        least, most = np.full(len(groups), np.inf), np.zeros(len(groups))
        np.minimum.at(least, member, lengths)
        np.maximum.at(most, member, lengths)
        least, most = least[member], most[member]
        spread = np.where(most > least, most - least, 1)
        value = np.where(most > least, 0.5 - (lengths - least) / spread, 0)
        right = np.array([is_right(sample) for sample in samples])
        return np.where(right, value, np.minimum(value, 0)).astype(np.float32)

    return reward


def cosine_length(
    *,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
    exceed: float = -1.0,
    limit: int = 0,
) -> Reward:
    """Half a cosine in tokens, from the `_short` value at length 0 to the `_long` value at `limit`; `exceed` if cut.

    `limit`: tokens, 0 for the sampling limit; beyond it the curve stays where it ended. A sample that did not end by
    itself gets `exceed`, right or not. Between the smallest and the largest of the five values. Raises ValueError for
    values that are not finite or rank a right answer of some length below a wrong or a cut one. Source: 2502.03373,
    section 4.2 (there 2, 1, -10, 0 and -10); the defaults are open-r1's.
    """
    values = (right_short, right_long, wrong_short, wrong_long, exceed)
    if not all(map(math.isfinite, values)) or min(values[:2]) < max(values[2:]):
        raise ValueError(f"a right answer must be worth no less than a wrong or a cut one, all finite; found {values}")
    if limit < 0:
        raise ValueError(f"limit is a number of tokens or 0 for the sampling limit, found {limit}")

    def score(sample: Sample) -> float:
        if not sample.finished:
            return exceed
        share = min(sample.length / (limit or sample.limit), 1.0)
        short, long = (right_short, right_long) if is_right(sample) else (wrong_short, wrong_long)
        return long + 0.5 * (short - long) * (1 + math.cos(share * math.pi))

    return each(score)


def overlong(*, buffer: int, limit: int = 0) -> Reward:
    """0 up to `buffer` tokens before the limit, then linearly down to -1 at the limit and beyond; in [-1, 0].

    `limit`: tokens, 0 for the sampling limit. Raises ValueError for a buffer outside 1..limit, when built if the limit
    is given. Source: DAPO (2503.14476), section 3.4 (there a limit of 20480 with a buffer of 4096).
    """
    if buffer < 1 or limit < 0 or (limit and buffer > limit):
        raise ValueError(f"buffer lies in 1..limit (in tokens), found buffer={buffer}, limit={limit}")

    def score(sample: Sample) -> float:
        most = limit or sample.limit
        if buffer > most:
            raise ValueError(f"the buffer of {buffer} tokens is longer than the limit of {most}")
        return min(0.0, max(-1.0, (most - buffer - sample.length) / buffer))

    return each(score)


def repetition(*, ngram: int = 3, max_penalty: float = -1.0) -> Reward:
    """`max_penalty` times the share of n-grams that stood before in the same text, in [max_penalty, 0].

    Units are words and single symbols, without case; a run of more than 32 letters counts letter by letter, so that
    neither `!!!!` nor a text without spaces escapes. Fewer than `ngram` units: 0. Raises ValueError for ngram < 1 or a
    positive penalty. Source: 2502.03373, appendix C.2, in the form per text of TRL and open-r1.
    """
    if ngram < 1 or not -math.inf < max_penalty <= 0:
        raise ValueError(f"ngram is at least 1 and max_penalty at most 0, found {ngram} and {max_penalty}")

    def score(sample: Sample) -> float:
        return max_penalty * repeated_share(units_of(sample.text), ngram) + 0.0  # never -0.0

    return each(score)


def script(
    *,
    target: str,
    foreign: str,
    think_open: str = THINK_OPEN,
    think_close: str = THINK_CLOSE,
) -> Reward:
    """The share of a thought's characters of two alphabets that are of the `target` one, in [0, 1]; 0 without any.

    Characters of neither do not count; without an opened thought the whole text does. Language consistency (2501.12948,
    section 2.3.2) where languages are alphabets; `language` is that of words. Raises ValueError for alphabets that
    overlap or are empty.
    """
    ours, theirs = frozenset(target), frozenset(foreign)
    if not ours or not theirs or ours & theirs:
        raise ValueError(
            f"target and foreign are two alphabets without a common character, found {target!r}, {foreign!r}"
        )
    tags = Tags(think_open, think_close, "", "")

    def score(sample: Sample) -> float:
        text = whole_text(sample, tags)
        _, opening, rest = text.partition(think_open)
        thought = rest.partition(think_close)[0] if opening else text
        own, other = (sum(thought.count(character) for character in letters) for letters in (ours, theirs))
        return own / (own + other) if own + other else 0.0

    return each(score)


def units_of(text: str) -> list[str]:
    """The words and symbols of a text, lower case; over-long words letter by letter."""
    found = UNITS.findall(text.lower())
    return [unit for word in found for unit in ([word] if len(word) <= LONGEST_WORD else word)]


def repeated_share(units: Sequence[str], ngram: int) -> float:
    """1 - distinct / all n-grams, 0 for fewer than `ngram` units."""
    if len(units) < ngram:
        return 0.0
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(unit, len(numbers)) for unit in units], np.int64)
    grams = ids[: len(ids) - ngram + 1]
    for shift in range(1, ngram):
        # Renumbered after every unit: exact, and small enough for 64 bits at any n.
        grams = np.unique(grams * len(numbers) + ids[shift : shift + len(grams)], return_inverse=True)[1]
    return 1 - len(np.unique(grams)) / len(grams)
