"""Decontamination, near-duplicates, and the overlaps between published sets."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.select.near import library, near_duplicates, similarity
from data.select.overlap import contamination, decontaminate, exact, grams, letters, overlap
from data.select.pool import read_pool, text

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NINE = "how many apples are there in the red box"


def test_runs_of_words() -> None:
    assert grams("A b\n c  D", 3) == {"a b c", "b c d"}
    assert grams("A b", 3) == {"a b"} and grams(" \n", 3) == set()
    assert letters("Let $x_1 = 2$, Élan.") == {"letx12élan"} and letters("...") == set()
    assert exact(" A b\n") == {"A b"} and exact(" ") == set()


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_runs_are_those_of_plain_loops(words: list[str], size: int) -> None:
    wanted = {" ".join(words[i : i + size]) for i in range(len(words)) if i + size <= len(words)}
    assert grams(" ".join(words), size) == (wanted or ({" ".join(words)} if words else set()))


def test_eight_shared_words_are_enough() -> None:
    texts = {
        0: f"Tell me: {NINE.upper()}?",  # the last word has a mark, eight others are shared
        1: "how many apples are there in the blue box, and how many pears",
        2: "How many  apples\nare there in the red crate",
        3: "two plus two",
        4: "two plus two more",
        5: "",
        6: "How many apples (are there) in the red-box?",
    }
    left, (stage,) = decontaminate(texts, {"test": {0: NINE, 1: "Two plus  two", 2: ""}})
    assert left == [1, 4, 5]
    runs, marks = "8 words in a row are in test, too", "but for marks between letters in test, too"
    assert stage.before == 7 and stage.dropped == {0: runs, 2: runs, 3: runs, 6: marks}
    assert stage.details[0] == "'how many apples are there in the red' is in number 1 there"
    assert stage.details[3] == "'two plus two' is in number 2 there"
    assert stage.details[6] == "number 1 there"
    assert decontaminate(texts, {"test": {0: NINE}}, 9)[0] == [0, 1, 2, 3, 4, 5]


def test_stages_follow_one_another() -> None:
    left, stages = decontaminate({0: "a b", 1: "c d"}, {"one": {0: "a b"}, "two": {0: "a b", 1: "c d"}}, 2)
    assert left == [] and [(s.before, s.after) for s in stages] == [(2, 1), (1, 0)]


def test_kinds_of_contamination() -> None:
    texts = {0: "What is 1+1?", 1: "what is 1 + 1", 2: "...", 3: "", 4: "another"}
    tests = {0: "What is 1+1?", 1: "What is 1+1?", 2: "", 3: "!!!"}
    found = contamination(texts, tests, 3)
    assert {kind: (sorted(o.rows), sorted(o.tests)) for kind, o in found.items()} == {
        "exact text": ([0], [0, 1]),
        "letters and digits": ([0, 1], [0, 1]),
        "3 words": ([0], [0, 1]),
    }
    assert found["letters and digits"].rows[1] == ("whatis11", 0)


@given(st.lists(st.text("ab ", max_size=8), max_size=6), st.lists(st.text("ab ", max_size=8), max_size=6))
@settings(max_examples=40, deadline=None)
def test_overlap_is_that_of_all_pairs(left: list[str], right: list[str]) -> None:
    found = overlap(dict(enumerate(left)), dict(enumerate(right)), lambda t: grams(t, 2))
    pairs = [(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if grams(a, 2) & grams(b, 2)]
    assert set(found.rows) == {i for i, _ in pairs} and found.tests == {j for _, j in pairs}
    assert all((i, found.rows[i][1]) in pairs for i in found.rows)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(ValueError, match=r"pip install -c constraints.txt -e '\.\[select\]'"):
        library()


def made_texts() -> dict[int, str]:
    """Forty texts of forty words; each of the first ten has a copy with one word changed (of 36 runs 31 are shared)."""
    rng = np.random.default_rng(0)
    words = [[f"w{word}" for word in rng.integers(0, 500, 40)] for _ in range(40)]
    copies = [[*each[:20], "other", *each[21:]] for each in words[:10]]
    return {i: " ".join(each) for i, each in enumerate([*words, *copies])}


def test_near_duplicates_are_those_of_all_pairs() -> None:
    pytest.importorskip("datasketch", reason="pip install 'sagax[select]' to find near-duplicates")
    texts = made_texts()
    parts = {row: grams(words, 5) for row, words in texts.items()}
    alike = {(i, j) for i, j in itertools.combinations(texts, 2) if similarity(parts[i], parts[j]) >= 0.7}
    assert alike == {(i, 40 + i) for i in range(10)}
    found = near_duplicates(texts, list(texts), threshold=0.7)
    assert {(other, row) for row, (kind, other, _) in found.items() if kind == "row"} == alike
    assert {most for _, _, most in found.values()} == {31 / 41}
    assert not near_duplicates(texts, list(texts), threshold=0.8)
    turned = near_duplicates(texts, list(reversed(texts)), threshold=0.7)
    assert set(turned) == set(range(10)), "the first in the order given is kept"


def test_near_duplicates_of_tests() -> None:
    pytest.importorskip("datasketch", reason="pip install 'sagax[select]' to find near-duplicates")
    texts = made_texts()
    found = near_duplicates({0: texts[0], 1: texts[1], 2: "", 3: ""}, [0, 1, 2, 3], {7: texts[41]}, 0.7)
    assert found == {1: ("test", 7, 31 / 41)}


SUFFIX = "Let's think step by step and output the final answer within \\boxed{}."
FILES = {
    "deepscaler/train/math.json": "problem",
    "deepscaler/train/aime.json": "problem",
    "deepscaler/test/math.json": "problem",
    "deepscaler/test/amc.json": "problem",
    "deepscaler/test/olympiad_bench.json": "problem",
    "one_shot_rlvr/dsr_sub.jsonl": "prompt",
    "math_full_test/test.json": "problem",
    "rstar_math_eval/omni_test.json": "question",
    "rstar_math_eval/amc23_test.json": "question",
    "rstar_math_eval/MATH_test.json": "question",
    "gsm8k/train.jsonl": "question",
    "gsm8k/test.jsonl": "question",
    "gsm_hard/test.json": "input",
    "rllm/test/math/gsm8k.json": "problem",
}
MATH, MATH500, MATH_TRAIN = "math_full_test/test.json", "deepscaler/test/math.json", "deepscaler/train/math.json"
# (a set, another): rows of the first that are in the other, by exact text and by letters and digits
FACTS = {
    (MATH_TRAIN, MATH): (1, 9),
    (MATH_TRAIN, MATH500): (0, 0),
    ("deepscaler/train/aime.json", MATH): (18, 40),
    ("deepscaler/train/aime.json", MATH500): (1, 6),
    ("one_shot_rlvr/dsr_sub.jsonl", MATH): (1, 3),
    ("one_shot_rlvr/dsr_sub.jsonl", MATH500): (0, 0),
    ("one_shot_rlvr/dsr_sub.jsonl", MATH_TRAIN): (232, 236),
    ("rstar_math_eval/omni_test.json", MATH): (1, 11),
    ("rstar_math_eval/omni_test.json", MATH500): (0, 1),
    ("deepscaler/test/olympiad_bench.json", MATH): (0, 1),
    (MATH500, MATH): (500, 500),
    ("rstar_math_eval/MATH_test.json", MATH): (5000, 5000),
    ("gsm8k_icot/valid.txt", "gsm8k/train.jsonl"): (500, 500),
    ("gsm8k_icot/test.txt", "gsm8k/test.jsonl"): (1319, 1319),
    ("gsm_hard/test.json", "gsm8k/test.jsonl"): (329, 329),
    ("rllm/test/math/gsm8k.json", "gsm8k/test.jsonl"): (1319, 1319),
    ("rstar_math_eval/amc23_test.json", "deepscaler/test/amc.json"): (40, 40),
}


@functools.cache
def questions(path: str) -> dict[int, str]:
    """The questions of a published file, without what one of them adds to each."""
    if path.endswith(".txt"):
        return {n: line.partition("||")[0] for n, line in enumerate((SHARED / path).read_text().splitlines())}
    pool = read_pool(SHARED / path, {"question": FILES[path]})
    return {row: asked.removesuffix(SUFFIX) for row, asked in pool.values("question", range(len(pool)), text).items()}


@pytest.mark.parametrize("pair", FACTS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_what_published_sets_have_in_common(pair: tuple[str, str]) -> None:
    if missing := [path for path in pair if not (SHARED / path).is_file()]:
        pytest.skip(f"there is no {SHARED / missing[0]}")
    found = [overlap(*map(questions, pair), parts) for parts in (exact, letters)]
    assert tuple(len(each.rows) for each in found) == FACTS[pair]


@pytest.mark.skipif(not (SHARED / MATH).is_file(), reason=f"there is no {SHARED / MATH}")
def test_which_problems_of_aime_are_in_math() -> None:
    """Forty have to go before a test on MATH, six before one on MATH500; two of them share no eight words in a row."""
    aime = questions("deepscaler/train/aime.json")
    rows = json.loads((SHARED / "deepscaler/train/aime.json").read_text())
    six = overlap(aime, questions(MATH500), letters).rows
    assert sorted(rows[row]["year"] for row in six) == [1983, 1994, 2001, 2010, 2015, 2017]
    forty = overlap(aime, questions(MATH), letters).rows
    left, (stage,) = decontaminate(aime, {"MATH": questions(MATH)})
    assert set(six) < set(forty) <= set(stage.dropped) and not set(forty) & set(left)
    reasons = list(stage.dropped.values())
    assert [reasons.count(reason) for reason in sorted(set(reasons))] == [352, 2]
