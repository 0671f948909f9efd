"""ProntoQA-like questions (2210.01240, in the form of 2412.06769): deduction over made-up kinds, True or False."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from data.sources.examples import Example, Generated
from data.tasks.base import Verdict, chain_of_thought, check_split, hashed_split, judge_marked, stable_hash
from data.tasks.prosqa import KINDS, NAMES

SHARES = {"test": 10, "valid": 5}
_PROPERTIES = (
    "angry bitter blue bright brown cold dull earthy fast feisty floral happy hot kind large loud luminous mean"
    " metallic moderate nervous opaque orange rainy red shy slow small sour sweet transparent windy wooden"
)
PROPERTIES = tuple(_PROPERTIES.split())
FORMS = 3


@dataclass(frozen=True)
class ProntoQA:
    """Prompt `Max is a wumpus. Each wumpus is a lempus. ... True or false: Max is not cold.`, answer `True` or `False`.

    A fact says of which kind Max is, and `hops` rules lead from there over ever wider kinds to a property, or to its
    absence. So do as many rules for somebody else, to the contrary: the words of facts and question without their
    connections tell nothing, and each answer is right half of the time. Each chain also has `distractors` rules that
    lead aside, to other kinds or properties. Sentences stand in random order; rules take three forms (every, each,
    plural). A step is a fact or a conclusion and the rule it goes on with, `Max is a wumpus. Each wumpus is a lempus.`,
    the last one the conclusion alone: hops + 1 steps. Facts belong to one split whatever the seed, their order and the
    question.
    `train_size`, `valid_size`, `test_size`: lengths of the splits (the defaults are those of 2412.06769).
    """

    hops: int = 5
    distractors: int = 4
    seed: int = 0
    train_size: int = 9000
    valid_size: int = 200
    test_size: int = 800

    alphabet = "".join(
        sorted(
            {*"".join(NAMES + KINDS + PROPERTIES), *"".join(KINDS).upper(), *"Every Each not True false: False .#\n"}
        )
    )
    splits = ("train", "valid", "test")

    def __post_init__(self) -> None:
        if self.hops < 1 or self.distractors < 0:
            raise ValueError(
                f"hops must be at least 1 and distractors at least 0, got {self.hops} and {self.distractors}"
            )
        if self.hops + self.distractors > len(KINDS) // 2 or 2 * self.distractors >= len(PROPERTIES):
            raise ValueError(
                f"hops + distractors must be at most {len(KINDS) // 2} and distractors at most "
                f"{(len(PROPERTIES) - 1) // 2}, for want of words, got {self.hops} and {self.distractors}"
            )

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"facts", "name", "chain", "property", "negated", "asked_negated"}`, made on demand.

        `facts`: [subject, predicate, negated, form] in the prompt's order; `chain`: the kinds of `name`, narrowest
        first; `negated`: whether the property is absent in truth; `asked_negated`: whether the question says so.
        """
        check_split("prontoqa", split, self.splits)
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the facts, the question and a newline."""
        facts = " ".join(sentence(*fact) for fact in example["facts"])
        asked = sentence(example["name"], example["property"], example["asked_negated"])
        return f"{facts} True or false: {asked}\n"

    def target(self, example: Example) -> str:
        """Returns the steps and the marked answer."""
        return chain_of_thought(self.steps(example), self.answer(example))

    def steps(self, example: Example) -> list[str]:
        """Returns pairs of sentences, what is known and the rule that leads on, then the conclusion."""
        rules = {(fact[0], fact[1]): sentence(*fact) for fact in example["facts"]}
        sentences = []
        for kind, wider in pairwise([*example["chain"], example["property"]]):
            sentences += [sentence(example["name"], kind), rules[kind, wider]]
        sentences.append(sentence(example["name"], example["property"], example["negated"]))
        return [" ".join(sentences[i : i + 2]) for i in range(0, len(sentences), 2)]

    def answer(self, example: Example) -> str:
        """Returns `True` or `False`."""
        return str(example["negated"] == example["asked_negated"])

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text after the last `#` is exactly the answer."""
        return judge_marked(self.answer(example), text)

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("prontoqa", self.seed, split, index))
        while True:
            example = self._draw(draw)
            if hashed_split(f"prontoqa {sorted(fact[:3] for fact in example['facts'])}", SHARES) == split:
                return example

    def _draw(self, draw: random.Random) -> Example:
        names, kinds = draw.sample(NAMES, 2), draw.sample(KINDS, 2 * (self.hops + self.distractors))
        properties = draw.sample(PROPERTIES, 1 + 2 * self.distractors)
        common, negated = properties.pop(), draw.random() < 0.5
        chains = [[kinds.pop() for _ in range(self.hops)] for _ in names]
        facts: list[list[str | bool | int]] = []
        for name, chain, absent in zip(names, chains, (negated, not negated), strict=True):
            facts.append([name, chain[0], False, 0])
            facts += [[kind, wider, False, draw.randrange(FORMS)] for kind, wider in pairwise(chain)]
            facts.append([chain[-1], common, absent, draw.randrange(FORMS)])
            facts += [_aside(draw, chain, kinds.pop(), properties.pop()) for _ in range(self.distractors)]
        draw.shuffle(facts)
        return {
            "facts": facts,
            "name": names[0],
            "chain": chains[0],
            "property": common,
            "negated": negated,
            "asked_negated": draw.random() < 0.5,
        }


def sentence(subject: str, predicate: str, negated: bool = False, form: int = 0) -> str:
    """Returns a fact in words; `form`, 0 to 2: `Every wumpus is`, `Each wumpus is`, `Wumpuses are` (names have one)."""
    plural = subject in KINDS and form == 2
    word = ("Every ", "Each ")[form % 2] if subject in KINDS else ""
    head = f"{subject.capitalize()}es are" if plural else f"{word}{subject} is"
    return f"{head} {'not ' if negated else ''}{_complement(predicate, plural)}."


def _complement(predicate: str, plural: bool) -> str:
    if predicate not in KINDS:
        return predicate
    return f"{predicate}es" if plural else f"{'an' if predicate[0] in 'aeiou' else 'a'} {predicate}"


def _aside(draw: random.Random, chain: Sequence[str], kind: str, quality: str) -> list[str | bool | int]:
    """A rule that leads from the chain to a kind or a property which leads nowhere."""
    start, form = draw.choice(chain), draw.randrange(FORMS)
    if draw.random() < 0.5:
        return [start, kind, False, form]
    return [start, quality, draw.random() < 0.5, form]
