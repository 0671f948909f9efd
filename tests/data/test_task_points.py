"""Countdown and GeneralPoints: the exact solver, the published counts, the golden rewards, the splits."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tasks import build_task
from data.tasks.countdown import Countdown
from data.tasks.general_points import RANKS, GeneralPoints, held_out, solvable_hands, values_of
from data.verify.arithmetic import evaluate
from data.verify.solver import reachable, solve


@given(st.lists(st.integers(1, 13), min_size=2, max_size=4), st.integers(1, 100))
def test_solutions_use_every_number_once_and_make_the_target(values: list[int], target: int) -> None:
    found = solve(tuple(values), target)
    if found is not None:
        result = evaluate(found)
        assert (result.value, sorted(result.numbers)) == (target, sorted(values))


@given(st.lists(st.integers(1, 13), min_size=2, max_size=4), st.integers(0, 2**32))
def test_what_can_be_reached_is_solved(values: list[int], pick: int) -> None:
    table = reachable(tuple(sorted(values)))
    targets = [value for value in table if value > 0 and value.denominator == 1]
    if targets:
        target = targets[pick % len(targets)]
        assert evaluate(table[target].text).value == target
        assert solve(tuple(values), int(target)) is not None


@pytest.mark.parametrize(("values", "target"), [((3, 3, 8, 8), 24), ((1, 5, 5, 5), 24), ((4, 4, 10, 10), 24)])
def test_hands_that_need_fractions_are_solved(values: tuple[int, ...], target: int) -> None:
    assert evaluate(solve(values, target) or "").value == target


def test_unsolvable_hands_have_no_solution() -> None:
    assert solve((1, 1, 1, 1), 24) is None
    assert solve((5,), 5) == "5"
    assert solve((5,), 6) is None


# Countdown


@pytest.mark.parametrize("split", Countdown.splits)
def test_countdown_is_solvable_by_construction(split: str) -> None:
    task = Countdown()
    for example in task.examples(split)[:150]:
        assert set(task.prompt(example) + task.target(example)) <= set(task.alphabet)
        assert 3 <= len(example["numbers"]) <= 4
        assert 1 <= example["target"] <= 99
        assert task.verify(example, f"<think>hm</think>{task.target(example)}").score == 1.0
        assert json.loads(json.dumps(example)) == example


def test_countdown_numbers_are_in_one_split() -> None:
    seen = {
        split: {tuple(sorted(e["numbers"])) for e in Countdown().examples(split)[:500]} for split in Countdown.splits
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["valid"]


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("2*3+7", 1.0, "correct"),
        ("2*3+7=13", 1.0, "correct"),
        ("7+3*2=0", 1.0, "correct"),
        ("2*3+7+7", 0.0, "uses"),
        ("13", 0.0, "uses"),
        ("2*3", 0.0, "uses"),
        ("2+3+7", 0.0, "not the target"),
        ("2*3.7", 0.0, "not part"),
        ("2*37", 0.0, "uses"),
        ("7/(3-3)*2", 0.0, "division by zero"),
        ("2*3+7 or 2*3+7", 0.0, "not part"),
        ("", 0.0, "empty"),
    ],
)
def test_countdown_verdicts(text: str, score: float, reason: str) -> None:
    verdict = Countdown().verify({"numbers": [3, 7, 2], "target": 13, "expression": ""}, text)
    assert verdict.score == score
    assert reason in verdict.reason


def test_countdown_options_are_checked() -> None:
    with pytest.raises(ValueError, match="min_numbers"):
        build_task("countdown", min_numbers=5)
    with pytest.raises(ValueError, match="largest"):
        build_task("countdown", largest=1)


# GeneralPoints


def test_published_counts() -> None:
    ten, ranks = set(solvable_hands(4, 24, "ten")), set(solvable_hands(4, 24, "ranks"))
    with_face = {hand for hand in ten | ranks if max(hand) >= 10}
    assert (len(ten), len(ranks)) == (1236, 1362)
    assert (len(ten & with_face), len(ranks & with_face)) == (670, 796)
    assert len(ten & ranks & with_face) == 529
    assert len({tuple(sorted(values_of(hand, "ten"))) for hand in ten}) == 566
    assert len(held_out(4, 24, "ten")) == 113


@pytest.mark.parametrize("rules", ["ten", "ranks", "both"])
def test_splits_keep_to_their_rule_and_hold_out_values(rules: str) -> None:
    task = GeneralPoints(rules=rules)
    seen = {}
    for split in task.splits:
        rows = task.examples(split)[:200]
        seen[split] = {tuple(sorted(task.values(row))) for row in rows}
        for row in rows:
            assert task.verify(row, task.target(row)).score == 1.0
            assert set(task.prompt(row) + task.target(row)) <= set(task.alphabet)
            if row.get("split", split).startswith("ood"):
                assert max(row["ranks"]) >= 10
                assert row["rule"] == ("ten" if rules == "ranks" else "ranks")
            elif rules != "both":
                assert row["rule"] == rules
    assert not seen["train"] & seen["test"]
    assert rules == "both" or seen["test"] <= held_out(4, 24, rules)


def test_hands_of_ood_both_are_solvable_under_both_rules() -> None:
    for row in GeneralPoints().examples("ood_both")[:100]:
        for rule in ("ten", "ranks"):
            assert solve(values_of(row["ranks"], rule), 24) is not None


def test_all_splits_in_turn() -> None:
    task = GeneralPoints(rules="both", test_size=5)
    rows = task.examples("all")
    assert len(rows) == 20
    for number, row in enumerate(rows):
        split = row.pop("split")
        assert split == ("train", "test", "ood", "ood_both")[number % 4]
        assert row == task.examples(split)[number // 4]


def test_three_cards_for_twelve() -> None:
    task = build_task("general_points", cards=3, target_value=12)
    row = task.examples("train")[0]
    assert len(row["ranks"]) == 3
    assert evaluate(task.target(row).split("|")[1]).value == Fraction(12)


HAND = {"ranks": [RANKS.index(card) for card in ("4", "3", "2", "K")], "rule": "ten"}


def test_prompt_and_two_part_answer() -> None:
    task = GeneralPoints()
    assert task.prompt(HAND) == "J=10;Q=10;K=10|4 3 2 K|"
    translation, formula = task.target(HAND).split("|")
    assert translation == "4:4 3:3 2:2 K:10"
    assert evaluate(formula).value == 24
    assert task.prompt({**HAND, "rule": "ranks"}) == "J=11;Q=12;K=13|4 3 2 K|"


@pytest.mark.parametrize(
    ("formula", "reward", "kinds"),
    [
        ("4*3+2+10", 5, ("correct",)),
        ("4*3+2+10=24", 5, ("correct",)),
        ("10+2+4*3", 5, ("correct",)),
        ("4*3+2-10", -1, ("wrong_value",)),
        ("4*3+2+11", -4, ("invalid_number", "missing_number")),
        ("4*3+2", -2, ("missing_number",)),
        ("4*3+2+x", -3, ("illegal",)),
        ("4*3)+2+10", -3, ("illegal",)),
    ],
)
def test_golden_rewards(formula: str, reward: float, kinds: tuple[str, ...]) -> None:
    assert GeneralPoints().reward(HAND, formula) == (reward, kinds)


def test_an_unfinished_beginning_of_the_solution_is_worth_something() -> None:
    task = GeneralPoints()
    beginning = task.solution(HAND)[:-2].rstrip("0123456789")
    assert task.reward(HAND, f"4:4|{beginning}") == (1.0, ("prefix_of_solution",))
    assert task.reward(HAND, "") == (-3.0, ("illegal",))


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("4:4 3:3 2:2 K:10|4*3+2+10", 1.0, "correct; values right"),
        ("4:4 3:3 2:2 K:13|4*3+2+10", 1.0, "correct; values wrong"),
        ("4:4 3:3 2:2 K:13|4*3+2+13", 0.0, "invalid_number, missing_number; values wrong"),
        ("4*3+2+10", 0.0, "two parts"),
        ("a|4*3+2+10|4*3+2+10", 0.0, "two parts"),
        ("|", 0.0, "illegal"),
    ],
)
def test_general_points_verdicts(text: str, score: float, reason: str) -> None:
    verdict = GeneralPoints().verify(HAND, text)
    assert verdict.score == score
    assert reason in verdict.reason
    first = text.partition("|")[0]
    found = {"translation": first == "4:4 3:3 2:2 K:10", "other_rule": first == "4:4 3:3 2:2 K:13"}
    assert GeneralPoints().parts(HAND, text) == found


def test_general_points_options_are_checked() -> None:
    with pytest.raises(ValueError, match="Did you mean 'ranks'"):
        build_task("general_points", rules="rank")
    with pytest.raises(ValueError, match="cards"):
        build_task("general_points", cards=9)
