"""The rules by which rows are chosen, by name, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data.select.accuracy import above, alignment_scores, ranked, variance_scores
from data.select.limo import LIMO, limo
from data.select.near import SHINGLE, THRESHOLD, near_duplicates
from data.select.overlap import NGRAM
from data.select.pairs import pairs
from data.select.pool import Pool, Selection, Stage, accuracies, check_number, keep, selection, text
from data.select.s1 import S1, s1
from data.select.simple import at_random, diverse, longest

ALIGNED = 0.6  # LIMR's threshold


@dataclass(frozen=True)
class Options:
    """What is asked of a rule; None: its own. `tests`: sets that no row may be taken from.

    Raises ValueError for impossible numbers.
    """

    number: int | None = None
    seed: int = 0
    uniform: float = S1.uniform
    threshold: float | None = None
    words: int | None = None
    tests: Sequence[Pool] = ()

    def __post_init__(self) -> None:
        for name, value, least in (("number", self.number, 1), ("seed", self.seed, 0), ("words", self.words, 1)):
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        for name, share in (("uniform", self.uniform), ("threshold", self.threshold)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"--{name} must lie in [0, 1], got {share}")

    @property
    def gram(self) -> int:
        """Words of a run by which rows are decontaminated."""
        return NGRAM if self.words is None else self.words

    @property
    def wanted(self) -> int:
        """How many rows; ValueError where a rule needs that said."""
        if self.number is None:
            raise ValueError("this rule needs --number: how many rows to choose")
        return self.number


class Rule(NamedTuple):
    """How rows of a pool are chosen, what it is in words, and the roles of columns that it reads besides question."""

    choose: Callable[[Pool, Sequence[int], Options], Selection]
    says: str
    roles: Sequence[str] = ()


def _s1(pool: Pool, rows: Sequence[int], options: Options) -> Selection:
    return s1(pool, rows, S1(options.number or S1.number, options.uniform), options.seed)


def _limo(pool: Pool, rows: Sequence[int], options: Options) -> Selection:
    return limo(pool, rows, LIMO(options.number or LIMO.number))


def aligned(pool: Pool, rows: Sequence[int], options: Options) -> Selection:
    """Rows whose accuracies, one per epoch, follow the mean of all (LIMR); of them the first `number`, where given."""
    threshold = ALIGNED if options.threshold is None else options.threshold
    history = pool.values("accuracies", pool.in_own_order(rows), accuracies)
    fit = above(alignment_scores(history), threshold)
    left, low = keep("aligned", rows, fit, f"a score below {threshold}")
    note = f"epochs: the first {min(map(len, history.values()))} of up to {max(map(len, history.values()))}"
    if options.number is None:
        return selection(pool, left, [low], [note])
    check_number(options.number, left)
    left, rest = keep("highest scores", left, fit[: options.number], "a lower score")
    return selection(pool, left, [low, rest], [note])


def varied(pool: Pool, rows: Sequence[int], options: Options) -> Selection:
    """The rows whose accuracies moved most during training (2504.20571)."""
    check_number(options.wanted, rows)
    scores = variance_scores(pool.values("accuracies", pool.in_own_order(rows), accuracies))
    return selection(pool, ranked(scores)[: options.wanted])


def unlike(pool: Pool, rows: Sequence[int], options: Options) -> Selection:
    """Rows that are no near-duplicates of tests or of one another; of those that are alike the first in own order."""
    own = pool.in_own_order(rows)
    tests = [(each, row) for each in options.tests for row in range(len(each))]
    found = near_duplicates(
        pool.values("question", own, text),
        own,
        {number: each.value("question", row, text) for number, (each, row) in enumerate(tests)},
        THRESHOLD if options.threshold is None else options.threshold,
        SHINGLE if options.words is None else options.words,
    )
    details = {
        row: f"{most:.2f} alike {tests[other][0].line(tests[other][1]) if kind == 'test' else pool.line(other)}"
        for row, (kind, other, most) in found.items()
    }
    reasons = {row: "near a test" if kind == "test" else "near another row" for row, (kind, _, _) in found.items()}
    left = [row for row in rows if row not in found]
    return selection(pool, left, [Stage("no near-duplicate", len(rows), reasons, details)])


RULES = {
    "s1": Rule(_s1, "hard, diverse, long traces (s1K)", ("source", "domain", "small", "large", "right", "length")),
    "limo": Rule(_limo, "hard but not hopeless, the best trace of each (LIMO)", ("trace", "small", "strong")),
    "limr": Rule(aligned, "accuracies that follow the mean (LIMR)", ("accuracies",)),
    "variance": Rule(varied, "accuracies that moved most", ("accuracies",)),
    "pairs": Rule(lambda pool, rows, _: pairs(pool, rows), "short and long answers", ("response", "right", "length")),
    "random": Rule(lambda pool, rows, o: at_random(pool, rows, o.wanted, o.seed), "at random"),
    "longest": Rule(lambda pool, rows, o: longest(pool, rows, o.wanted), "the longest", ("length",)),
    "diverse": Rule(lambda pool, rows, o: diverse(pool, rows, o.wanted, o.seed), "domains alike", ("domain",)),
    "near": Rule(unlike, "no near-duplicates of tests or of one another"),
    "decontaminate": Rule(lambda pool, rows, _: selection(pool, rows), "all that --against leaves"),
}
