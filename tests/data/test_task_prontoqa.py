"""ProntoQA-like questions: sentences, proofs that are checked from the text alone, balance, splits and verdicts."""

import json
import re
import time
from collections import Counter
from typing import Any

import pytest

from data.sources.examples import Example
from data.tasks import build_task
from data.tasks.base import ReasoningTask
from data.tasks.prontoqa import PROPERTIES, ProntoQA, sentence
from data.tasks.prosqa import KINDS, NAMES
from data.tokenizers.characters import CharTokenizer

HAND: Example = {
    "facts": [
        ["lempus", "cold", True, 2],
        ["Eva", "impus", False, 0],
        ["wumpus", "lempus", False, 1],
        ["impus", "cold", False, 0],
        ["Max", "wumpus", False, 0],
    ],
    "name": "Max",
    "chain": ["wumpus", "lempus"],
    "property": "cold",
    "negated": True,
    "asked_negated": False,
}
RULE = re.compile(r"(?:Every |Each )?(\w+) (?:is|are) (not )?(?:an? )?(\w+)")


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    return ProntoQA().examples("train")[:2000]


def singular(word: str) -> str:
    """A kind or name as it is written alone: wumpus for Wumpuses."""
    return next((kind for kind in KINDS if word.lower() in (kind, f"{kind}es")), word)


def proved(prompt: str) -> str:
    """The answer found from the text alone, by forward chaining."""
    theory, _, asked = prompt.partition(" True or false: ")
    rules: dict[str, list[tuple[str, bool]]] = {}
    for fact in theory.rstrip(".").split(". "):
        subject, absent, predicate = RULE.fullmatch(fact).groups()  # type: ignore[union-attr]
        rules.setdefault(singular(subject), []).append((singular(predicate), bool(absent)))
    name, absent, quality = RULE.fullmatch(asked.rstrip(".\n")).groups()  # type: ignore[union-attr]
    known, found = [name], {}
    for kind in known:
        for predicate, negated in rules.get(kind, []):
            found[predicate] = negated
            known += [predicate] if predicate in KINDS else []
    return str(found[quality] == bool(absent))


def test_sentences() -> None:
    assert [sentence("impus", "lempus", False, form) for form in (0, 1, 2)] == [
        "Every impus is a lempus.",
        "Each impus is a lempus.",
        "Impuses are lempuses.",
    ]
    assert sentence("lempus", "impus") == "Every lempus is an impus."
    assert [sentence("impus", "cold", True, form) for form in (1, 2)] == [
        "Each impus is not cold.",
        "Impuses are not cold.",
    ]
    assert sentence("Max", "impus") == "Max is an impus."
    assert sentence("Max", "cold", True) == "Max is not cold."


def test_prompt_steps_and_answer() -> None:
    task = ProntoQA(hops=2)
    facts = "Lempuses are not cold. Eva is an impus. Each wumpus is a lempus. Every impus is cold. Max is a wumpus."
    assert task.prompt(HAND) == f"{facts} True or false: Max is cold.\n"
    assert task.steps(HAND) == [
        "Max is a wumpus. Each wumpus is a lempus.",
        "Max is a lempus. Lempuses are not cold.",
        "Max is not cold.",
    ]
    assert task.target(HAND).endswith("\nMax is not cold.\n### False")
    assert task.answer({**HAND, "asked_negated": True}) == "True"


@pytest.mark.parametrize(("hops", "distractors"), [(5, 4), (1, 0), (3, 16), (19, 0), (8, 2)])
def test_every_proof_is_right_and_has_its_length(hops: int, distractors: int) -> None:
    task: ReasoningTask = ProntoQA(hops=hops, distractors=distractors)
    assert task.alphabet is not None
    CharTokenizer(task.alphabet)
    for split in task.splits:
        for row in task.examples(split)[:60]:
            prompt, steps = task.prompt(row), task.steps(row)
            assert proved(prompt) == task.answer(row)
            assert len(steps) == hops + 1
            rules = [step.split(". ")[1].rstrip(".") for step in steps[:-1]]
            assert all(f"{rule}." in prompt for rule in rules)
            assert steps[0].split(". ")[0] + "." in prompt
            assert prompt.count(". ") == 2 * (hops + 1 + distractors)
            assert set(prompt + task.target(row)) <= set(task.alphabet)
            assert task.verify(row, task.target(row)).score == 1.0
            assert json.loads(json.dumps(row)) == row


def test_answers_are_balanced_and_no_word_tells_them(rows: list[Example]) -> None:
    """Whatever is counted without following the chain agrees with the answer half of the time."""
    task, hits = ProntoQA(), Counter[str]()
    for row in rows:
        facts = [(fact[0], fact[2]) for fact in row["facts"] if fact[1] == row["property"]]
        order = [fact[0] for fact in row["facts"] if fact[0] in NAMES]
        right = task.answer(row) == "True"
        assert sorted(negated for _, negated in facts) == [False, True]
        hits.update(
            {
                "true": right,
                "question negated": right == row["asked_negated"],
                "first fact about the property": right == (facts[0][1] == row["asked_negated"]),
                "first name": right == (order[0] == row["name"]),
                "more negations": right == (sum(fact[2] for fact in row["facts"]) > 3),
                "kind of the property": right == (facts[0][0] < facts[1][0]),
            }
        )
        assert Counter(fact[0] in row["chain"] for fact in row["facts"] if fact[0] in KINDS) == {True: 9, False: 9}
    shares = {name: hits[name] / len(rows) for name in hits}
    assert len(shares) == 6
    assert shares == pytest.approx(dict.fromkeys(shares, 0.5), abs=0.035)


def test_words_are_used_evenly_and_once(rows: list[Example]) -> None:
    words = Counter(fact[1] for row in rows for fact in row["facts"])
    assert set(words) == set(KINDS + PROPERTIES)
    for row in rows[:100]:
        predicates = Counter(fact[1] for fact in row["facts"])
        assert predicates.pop(row["property"]) == 2
        assert set(predicates.values()) == {1}


def test_rows_depend_on_seed_split_and_index_alone(rows: list[Example]) -> None:
    assert [ProntoQA().examples("train")[i] for i in (3, 1)] == [rows[3], rows[1]]
    assert ProntoQA(seed=1).examples("train")[:5] != rows[:5]
    assert [len(ProntoQA().examples(split)) for split in ProntoQA.splits] == [9000, 200, 800]


def test_no_facts_are_in_two_splits_whatever_the_seed() -> None:
    facts = {}
    for split in ProntoQA.splits:
        tasks = [ProntoQA(hops=1, distractors=0, seed=seed) for seed in (0, 1)]
        drawn = [row["facts"] for task in tasks for row in task.examples(split)[: 200 if split == "valid" else 800]]
        facts[split] = {str(sorted(fact[:3] for fact in of)) for of in drawn}
    assert len(set.union(*facts.values())) == sum(map(len, facts.values()))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("### False", 1.0),
        ("False", 1.0),
        ("### True # False\n", 1.0),
        ("### True", 0.0),
        ("### false", 0.0),
        ("### True False", 0.0),
        ("### False.", 0.0),
        ("### False ###", 0.0),
        ("Max is not cold. False", 0.0),
        ("", 0.0),
        ("### 0", 0.0),
        ("### not True", 0.0),
        ("### Ｆalse", 0.0),
        ("False" * 1_000_000, 0.0),
        ("#" * 1_000_000, 0.0),
        ("### __import__('os').abort()", 0.0),
        ("\ud800", 0.0),
    ],
)
def test_verdicts(text: str, score: float) -> None:
    start = time.perf_counter()
    verdict = ProntoQA().verify(HAND, text)
    assert time.perf_counter() - start < 2
    assert verdict.score == score and verdict.reason
    assert verdict.parsed is None or len(verdict.parsed) <= 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hops": 0}, "hops must be at least 1"),
        ({"distractors": -1}, "distractors at least 0, got 5 and -1"),
        ({"hops": 19, "distractors": 1}, r"hops \+ distractors must be at most 19"),
        ({"hops": 1, "distractors": 17}, "distractors at most 16, for want of words, got 1 and 17"),
        ({"hop": 5}, "Did you mean 'hops'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_task("prontoqa", **options)


def test_a_wrong_split_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        ProntoQA().examples("trian")
