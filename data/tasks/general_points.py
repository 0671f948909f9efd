"""GeneralPoints: make the target from a hand of cards, under a rule for what the face cards count.

After "SFT Memorizes, RL Generalizes" (arXiv 2501.17161), in its language-only form, as a character-level
miniature. The rule stands in the prompt, so that a model which reads it can follow the other rule, which it
was not trained on.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations_with_replacement

from data.chat import after_thinking
from data.names import unknown_name
from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, check_split, stable_hash
from data.tasks.points_reward import REWARDS, faults
from data.verify.solver import solve

RANKS = "A23456789TJQK"
RULES: dict[str, tuple[int, ...]] = {
    "ten": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10),
    "ranks": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13),
}
HELD_OUT_SHARE = 0.2
Hand = tuple[int, ...]


@dataclass(frozen=True)
class GeneralPoints:
    """Prompt `J=10;Q=10;K=10|3 J 4 2|`, answer `3:3 J:10 4:4 2:2|expression`: values, then how they make 24.

    Ranks are drawn uniformly from A..K with replacement (A is 1, T is ten) until the hand can be solved.
    `rules`: the rule of training, `ten` (J, Q, K count 10), `ranks` (11, 12, 13) or `both`, one of them at
    random. Splits: `train`, without the held-out tuples of values (a fifth of the solvable ones: 113 of 566
    under `ten`); `test`, the held-out tuples only; `ood`, the other rule, with at least one face card;
    `ood_both`, the hands of `ood` that can be solved under both rules; `all`, these four in turn, each example
    with the name of its own under `split` (for `eval.by`). With `both`, `ood` is the rule `ranks`.
    """

    cards: int = 4
    target_value: int = 24
    rules: str = "ten"
    seed: int = 0
    train_size: int = 200_000
    test_size: int = 1000

    alphabet = "0123456789+-*/()=:;| ATJQK"
    splits = ("train", "test", "ood", "ood_both", "all")

    def __post_init__(self) -> None:
        if self.rules not in (*RULES, "both"):
            raise unknown_name("rule of 'general_points'", self.rules, (*RULES, "both"))
        if not 2 <= self.cards <= 5 or not 1 <= self.target_value <= 999:
            raise ValueError(f"2 <= cards <= 5 and 1 <= target_value <= 999, got {self.cards} and {self.target_value}")

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"ranks", "rule"}`: indices into RANKS, and the name of the rule."""
        check_split("general_points", split, self.splits)
        size = {"train": self.train_size, "all": 4 * self.test_size}.get(split, self.test_size)
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the rule and the hand."""
        faces = ";".join(f"{RANKS[i]}={RULES[example['rule']][i]}" for i in (10, 11, 12))
        return f"{faces}|{' '.join(RANKS[i] for i in example['ranks'])}|"

    def target(self, example: Example) -> str:
        """Returns the values of the cards and an expression found by the exact solver."""
        return f"{self.translation(example)}|{self.solution(example)}"

    def translation(self, example: Example) -> str:
        """Returns the first part of the demonstration, such as `3:3 J:10 4:4 2:2`."""
        return " ".join(f"{RANKS[i]}:{RULES[example['rule']][i]}" for i in example["ranks"])

    def solution(self, example: Example) -> str:
        """Returns the solver's expression for a hand, empty where there is none."""
        return solve(self.values(example), self.target_value) or ""

    def values(self, example: Example) -> tuple[int, ...]:
        """Returns what the cards count under the example's rule."""
        return values_of(example["ranks"], example["rule"])

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the second part of the answer makes the target with every value exactly once.

        The first part does not change the score; the reason says whether it was right.
        """
        answer = after_thinking(text).strip()
        _, bar, formula = answer.partition("|")
        if not bar or "|" in formula:
            return Verdict(0.0, answer[:200], "expected two parts, values|expression")
        found = faults(formula, self.values(example), self.target_value, "")
        read = "values right" if self.parts(example, text)["translation"] else "values wrong"
        right = found == ("correct",)
        return Verdict(float(right), formula[:200].strip(), f"{'correct' if right else ', '.join(found)}; {read}")

    def parts(self, example: Example, text: str) -> dict[str, bool]:
        """Returns whether the first part of an answer is right, and whether it is what the other rule would give."""
        written = after_thinking(text).partition("|")[0].strip()
        other = {**example, "rule": other_rule(example["rule"])}
        return {"translation": written == self.translation(example), "other_rule": written == self.translation(other)}

    def reward(self, example: Example, text: str) -> tuple[float, tuple[str, ...]]:
        """Returns the paper's graded reward of an expression and the names of its faults, see `REWARDS`."""
        formula = after_thinking(text).rpartition("|")[2]
        kinds = faults(formula, self.values(example), self.target_value, self.solution(example))
        return float(sum(REWARDS[kind] for kind in kinds)), kinds

    def _example(self, split: str, index: int) -> Example:
        if split == "all":
            split = self.splits[index % 4]
            return {**self._example(split, index // 4), "split": split}
        draw = random.Random(stable_hash("general_points", self.seed, split, index))
        rule = self._rule(split, draw)
        while True:
            ranks = [draw.randrange(13) for _ in range(self.cards)]
            if split.startswith("ood"):
                ranks[draw.randrange(self.cards)] = draw.randrange(10, 13)
            if self._belongs(split, tuple(sorted(ranks)), rule):
                return {"ranks": ranks, "rule": rule}

    def _rule(self, split: str, draw: random.Random) -> str:
        if self.rules == "both":
            return "ranks" if split.startswith("ood") else draw.choice(("ten", "ranks"))
        return other_rule(self.rules) if split.startswith("ood") else self.rules

    def _belongs(self, split: str, hand: Hand, rule: str) -> bool:
        values = tuple(sorted(values_of(hand, rule)))
        if not can_solve(values, self.target_value):
            return False
        if split == "ood_both":
            return can_solve(tuple(sorted(values_of(hand, other_rule(rule)))), self.target_value)
        return split == "ood" or (values in self._held_out()) == (split == "test")

    def _held_out(self) -> frozenset[Hand]:
        rules = ("ten", "ranks") if self.rules == "both" else (self.rules,)
        return frozenset().union(*(held_out(self.cards, self.target_value, rule) for rule in rules))


def other_rule(rule: str) -> str:
    """Returns the rule that is not this one."""
    return "ranks" if rule == "ten" else "ten"


def values_of(ranks: Sequence[int], rule: str) -> tuple[int, ...]:
    """Returns what ranks count under a rule."""
    return tuple(RULES[rule][rank] for rank in ranks)


@cache
def can_solve(values: Hand, target: int) -> bool:
    """Returns whether sorted values can make the target."""
    return solve(values, target) is not None


def solvable_hands(cards: int, target: int, rule: str) -> list[Hand]:
    """Returns the sorted hands of ranks that can make the target under a rule."""
    hands = combinations_with_replacement(range(13), cards)
    return [hand for hand in hands if can_solve(tuple(sorted(values_of(hand, rule))), target)]


@cache
def held_out(cards: int, target: int, rule: str) -> frozenset[Hand]:
    """Returns the sorted tuples of values kept for the test: a fifth of the solvable ones, chosen by hash."""
    solvable = {tuple(sorted(values_of(hand, rule))) for hand in solvable_hands(cards, target, rule)}
    ordered = sorted(solvable, key=lambda values: stable_hash("held out", values))
    return frozenset(ordered[: round(HELD_OUT_SHARE * len(ordered))])
