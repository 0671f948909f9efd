"""The other rules of selection: LIMO's windows and score, pairs, accuracies, and the choices they are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.select.accuracy import alignment_scores
from data.select.limo import LIMO, limo, measures, right_tries, scores, window
from data.select.pairs import pairs
from data.select.pool import Pool
from data.select.rules import RULES, Options
from data.select.simple import at_random, diverse, longest

Row = dict[str, Any]
SINCE = "Since 2 + 2 = 4, CHECK it. Therefore four."
PERHAPS = "Perhaps seven, which might be wrong; let me verify and check."


def test_the_measures_of_golden_traces() -> None:
    assert measures(SINCE) == pytest.approx((8, 1 / 8, 0, 2 / 8))
    assert measures(PERHAPS) == pytest.approx((11, 2 / 11, 2 / 11, 0))
    assert measures("Rechecking mighty sincerely") == (3, 0, 0, 0), "parts of words do not count"
    assert measures("") == (0, 0, 0, 0)


def test_the_score_of_golden_traces() -> None:
    found = scores({5: SINCE, 9: PERHAPS})
    assert found == pytest.approx({5: 0.3 * 8 / 11 + 0.2 * (1 / 8) / (2 / 11) + 0.25, 9: 0.3 + 0.2 + 0.25})
    assert scores({1: "four"}) == pytest.approx({1: 0.3}), "what no trace has counts nothing"
    assert scores({}) == {}


@pytest.mark.parametrize(
    ("small", "strong", "kept"), [(0, 1, True), (0, 3, True), (0, 0, False), (0, 4, False), (1, 2, False)]
)
def test_the_windows_of_difficulty(small: int, strong: int, kept: bool) -> None:
    pool = Pool([{"question": "x", "trace": "y", "small": small, "strong": strong}])
    left, stages = window(pool, [0], LIMO())
    assert bool(left) == kept
    assert [stage.after for stage in stages] == [int(not small), int(kept)]


def test_tries_are_counts_or_lists() -> None:
    assert right_tries(3, 4) == 3 == right_tries([True, 1, False, True, True], 4)
    for wrong in (5, -1, True, 1.0, [1, 0], [2, 0, 0, 0], "3", None):
        with pytest.raises(ValueError, match="how many of 4 tries"):
            right_tries(wrong, 4)


def test_limo_takes_the_best_trace_of_the_best_problems() -> None:
    hard = {"small": 0, "strong": 2}
    rows = [
        hard | {"question": "a", "trace": "one two"},
        hard | {"question": "a", "trace": "perhaps check since"},
        hard | {"question": "b", "trace": "one two three"},
        hard | {"question": "c", "trace": "one"},
        {"question": "d", "trace": "perhaps check since " * 9, "small": 4, "strong": 32},
    ]
    found = limo(Pool(rows), range(5), LIMO(2))
    assert [row["trace"] for row in found.rows] == ["perhaps check since", "one two three"]
    assert [(stage.name, stage.before, stage.after) for stage in found.stages] == [
        ("unsolved in 4 tries", 5, 4),
        ("solved 1 to 3 times of 32", 4, 4),
        ("best trace", 4, 3),
        ("highest scores", 3, 2),
    ]
    with pytest.raises(ValueError, match="asked for 4 of 3 problems"):
        limo(Pool(rows), range(5), LIMO(4))


def answers(*rows: tuple[str, str, bool]) -> Pool:
    named = [dict(zip(("question", "response", "right"), row, strict=True)) for row in rows]
    return Pool(named, {"length": "response"})


def test_pairs_are_the_shortest_and_the_longest_right_answer() -> None:
    pool = answers(
        ("a", "one two three", True),
        ("a", "one", True),
        ("a", "one two", True),
        ("a", "no " * 20, False),
        ("b", "one two", True),
        ("b", "no", False),
        ("c", "one two", True),
        ("c", "two one", True),
    )
    found = pairs(pool, range(8))
    assert found.rows == [{"prompt": "a", "chosen": "one", "rejected": "one two three"}]
    told = [(stage.name, stage.before, stage.after) for stage in found.stages]
    assert told == [("right", 8, 6), ("two right", 6, 3), ("shortest and longest", 3, 2)]
    assert sorted(set(found.stages[1].dropped.values())) == [
        "all right responses are equally long",
        "the only right response to its question",
    ]
    assert found.notes == ["pairs: 1, chosen 33% as long as rejected"]


def test_lengths_of_pairs_may_be_numbers() -> None:
    rows = [{"question": "a", "response": str(n), "right": True, "length": n} for n in (30, 10, 20)]
    assert pairs(Pool(rows), range(3)).rows == [{"prompt": "a", "chosen": "10", "rejected": "30"}]


@given(st.permutations(range(8)))
@settings(max_examples=20, deadline=None)
def test_pairs_do_not_depend_on_the_order(order: list[int]) -> None:
    rows = [("ab"[i % 2], f"{'x ' * (i // 3)}{i}", i != 5) for i in range(8)]
    content = lambda found: sorted(tuple(row.values()) for row in found.rows)  # noqa: E731
    one, other = pairs(answers(*rows), range(8)), pairs(answers(*(rows[i] for i in order)), range(8))
    assert content(one) == content(other) and len(one.rows) == 2


def accuracies(*rows: list[float]) -> Pool:
    return Pool([{"question": str(i), "accuracies": row} for i, row in enumerate(rows)])


def test_limr_keeps_what_follows_the_mean() -> None:
    table = [[0.0, 0.5, 1.0], [0.1, 0.5, 0.9], [1.0, 0.5, 0.0], [0.0, 0.4, 0.8]]
    pool, of = accuracies(*table), alignment_scores(dict(enumerate(table)))
    found = RULES["limr"].choose(pool, range(4), Options())
    assert found.chosen == [row for row in range(4) if of[row] >= 0.6] == [0, 1, 3]
    assert found.notes == ["epochs: the first 3 of up to 3"]
    best = max(of, key=lambda row: of[row])
    assert RULES["limr"].choose(pool, range(4), Options(number=1)).chosen == [best]
    with pytest.raises(ValueError, match="asked for 4 of 3"):
        RULES["limr"].choose(pool, range(4), Options(number=4))
    assert RULES["limr"].choose(pool, range(4), Options(threshold=0)).chosen == [r for r in range(4) if of[r] >= 0]


def test_variance_keeps_what_moved() -> None:
    pool = accuracies([0, 0.5, 1], [0.5, 0.5, 0.5], [0, 0, 1])
    assert RULES["variance"].choose(pool, range(3), Options(number=2)).chosen == [0, 2]
    with pytest.raises(ValueError, match="needs --number"):
        RULES["variance"].choose(pool, range(3), Options())
    with pytest.raises(ValueError, match=r"line 2: 'accuracies' must be a list of accuracies from 0 to 1, found \[2\]"):
        RULES["variance"].choose(accuracies([0.5], [2]), range(2), Options(number=1))


def families(size: int) -> Pool:
    rng = np.random.default_rng(0)
    names = rng.choice(["a", "b", "c"], size, p=[0.9, 0.08, 0.02])
    return Pool([{"question": str(i), "domain": str(n), "length": int(rng.integers(99))} for i, n in enumerate(names)])


def test_more_of_a_seed_are_these_and_others() -> None:
    pool, rows = families(200), range(200)
    for rule in (at_random, diverse):
        few, more, other = rule(pool, rows, 20, 5), rule(pool, rows, 40, 5), rule(pool, rows, 20, 6)
        assert len(few.chosen) == 20 and set(few.chosen) < set(more.chosen) and few.chosen != other.chosen
    assert set(longest(pool, rows, 20).chosen) < set(longest(pool, rows, 40).chosen)


@given(st.permutations(range(30)), st.sampled_from(["random", "longest", "diverse"]))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_pool_does_not_matter(order: list[int], rule: str) -> None:
    pool = families(30)
    shuffled = Pool([pool.rows[row] for row in order])
    one, other = (RULES[rule].choose(each, range(30), Options(number=7, seed=1)) for each in (pool, shuffled))
    assert sorted(row["question"] for row in one.rows) == sorted(row["question"] for row in other.rows)


def test_diverse_draws_domains_alike_and_longest_the_longest() -> None:
    pool = families(3000)
    counts = np.unique([row["domain"] for row in diverse(pool, range(3000), 120, 0).rows], return_counts=True)[1]
    assert (np.abs(counts - 40) < 16).all()
    lengths = sorted((row["length"] for row in pool.rows), reverse=True)
    assert sorted((row["length"] for row in longest(pool, range(3000), 50).rows), reverse=True) == lengths[:50]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"number": 0}, "--number must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"words": 0}, "--words must be at least 1"),
        ({"uniform": 1.5}, r"--uniform must lie in \[0, 1\], got 1.5"),
        ({"threshold": float("nan")}, r"--threshold must lie in \[0, 1\]"),
    ],
)
def test_impossible_numbers(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Options(**wrong)
