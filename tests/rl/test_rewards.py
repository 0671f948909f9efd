"""Rewards: the holes of other implementations, golden values, composition, faults, hostile text in linear time."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chat import PLAIN_TEMPLATES
from data.tasks import build_task
from data.tasks.base import Verdict
from rl.reward_functions import Tags, blocks, repeated_share, units_of
from rl.rewards import REWARDS, Reward, Sample, build_reward, build_rewards, compose, reward_metrics

RIGHT, WRONG = Verdict(1.0, "5", "correct"), Verdict(0.0, "6", "wrong number")
PARTLY, NO_GOLD = Verdict(0.5, None, "2 of 4 tests"), Verdict(0.0, None, "the reference answer cannot be read")
GOOD = "<think>Two and three are five.</think>\n<answer>5</answer>"
NEEDED: dict[str, dict[str, Any]] = {"overlong": {"buffer": 4}, "script": {"target": "abc", "foreign": "xyz"}}
RANGES = {
    "accuracy": (0, 1),
    "format": (0, 1),
    "tag_count": (0, 1),
    "language": (0, 1),
    "kimi_length": (-0.5, 0.5),
    "cosine_length": (-1, 1),
    "overlong": (-1, 0),
    "repetition": (-1, 0),
    "script": (0, 1),
}
OF_TEXT = [name for name in REWARDS if name != "model"]  # which asks a trained one: tests/infer/test_reward_model.py


def sample(text: str = GOOD, **changes: Any) -> Sample:
    return replace(Sample({"n": 1}, "What is 2+3?\n", text, RIGHT, length=10, finished=True, limit=20), **changes)


def one(reward: str, text: str = GOOD, *, prompt: str = "What is 2+3?\n", **options: Any) -> float:
    """The value of one completion that ended by itself, alone in its group."""
    return float(build_reward(reward, **NEEDED.get(reward, {}), **options)([sample(text, prompt=prompt)], 1)[0])


# --- what may not be rewarded -----------------------------------------------------------------------------------------

MALFORMED = {
    "empty thought": "<think></think><answer>5</answer>",
    "blank thought on lines": "<think>\n \n</think>\n<answer>\n5\n</answer>",
    "dots for a thought": "<think>...</think><answer>5</answer>",
    "invisible thought": "<think>\u200b\u2060</think><answer>5</answer>",
    "empty answer": "<think>So five.</think><answer></answer>",
    "invisible answer": "<think>So five.</think><answer>\u200b</answer>",
    "text after the answer": GOOD + "\nor is it 6?",
    "text after a newline": "<think>\nSo.\n</think>\n<answer>\n5\n</answer>\nHello\n",
    "second answer": GOOD + "\n<answer>6</answer>",
    "second answer in the thought": "<think>Is it <answer>6</answer>?</think><answer>5</answer>",
    "second thought": "<think>a</think>" + GOOD,
    "answer first": "<answer>5</answer><think>So five.</think>",
    "text before": "Sure! " + GOOD,
    "text between": "<think>So five.</think> therefore <answer>5</answer>",
    "no thought": "<answer>5</answer>",
    "no answer": "<think>So five.</think> 5",
    "thought not closed": "<think>So five. <answer>5</answer>",
    "answer not closed": "<think>So five.</think><answer>5",
    "answer closed in the thought": "<think>So</answer></think><answer>5",
    "answer inside the thought": "<think>So <answer>5</answer></think>",
    "answer opened in the thought": "<think>So<answer>6</think>5</answer>",
    "other case": GOOD.upper(),
    "nothing": "",
    "tags alone": "<think></think><answer></answer>",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed_text_has_no_format(text: str) -> None:
    assert one("format", text) == 0


@pytest.mark.parametrize("text", [GOOD, f"\n {GOOD} \n", "<think>x</think><answer>∅</answer>"])
def test_well_formed_text(text: str) -> None:
    assert one("format", text) == 1
    assert one("tag_count", text) == 1


def test_a_cut_sample_has_no_format() -> None:
    assert build_reward("format")([sample(finished=False)], 1) == [0]


def test_a_prompt_may_open_the_thought() -> None:
    opened = {"prompt": "User: 2+3?\nAssistant: <think>"}
    rest = GOOD.removeprefix("<think>")
    assert one("format", rest, **opened) == 1 and one("tag_count", rest, **opened) == 1
    assert one("format", rest) == 0 and one("tag_count", rest) == 0.75
    assert one("format", GOOD, **opened) == 0 and one("tag_count", GOOD, **opened) == 0.75
    assert one("tag_count", "nothing", **opened) == 0


def test_the_prompt_of_r1_zero_opens_the_thought() -> None:
    prompt = PLAIN_TEMPLATES["r1"]("What is 2+3?", None)
    plain = {"answer_open": "", "answer_close": ""}
    assert one("format", "Two and three are five.</think> 5", prompt=prompt, **plain) == 1
    assert one("format", "</think> 5", prompt=prompt, **plain) == 0
    assert one("format", "Five.</think> ", prompt=prompt, **plain) == 0


def test_a_thought_may_have_a_least_length() -> None:
    assert one("format", "<think>a b 7.</think><answer>5</answer>", min_thought=3) == 1
    assert one("format", "<think>a b...</think><answer>5</answer>", min_thought=3) == 0


def test_tags_are_configurable() -> None:
    line = {"think_open": "", "think_close": "", "answer_open": "### ", "answer_close": ""}
    assert one("format", "2+3=5\n### 5", **line) == 1
    assert [one("format", text, **line) for text in ("### 5", "2+3=5\n### 5\nand 6", "a\n### 5\n### 5", "so 5")] == [
        0
    ] * 4
    plain = {"answer_open": "", "answer_close": ""}
    assert one("format", "<think>So.</think> It is 5.", **plain) == 1
    assert one("format", "<think>So.</think> ", **plain) == 0
    square = dict(think_open="[a]", think_close="[b]", answer_open="[c]", answer_close="[d]")
    assert one("format", "[a]So[b][c]5[d]", **square) == 1 == one("tag_count", "[a]So[b][c]5[d]", **square)


@pytest.mark.parametrize(
    "options",
    [
        {"think_close": ""},
        {"answer_open": ""},
        {"think_open": "", "think_close": "", "answer_open": "", "answer_close": ""},
        {"think_open": "think"},
        {"answer_open": "</think>"},
    ],
)
def test_tags_that_cannot_be_told_apart(options: dict[str, str]) -> None:
    for reward in ("format", "tag_count"):
        with pytest.raises(ValueError, match="tags"):
            build_reward(reward, **options)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("<think>So", 0.25),
        ("<think>So</think>", 0.5),
        ("<think></think><answer></answer>", 0.5),
        (GOOD + " and more", 0.75),
        (GOOD + "<answer>6</answer>", 0.5),
        ("</answer><answer></think><think>", 0.25),
        ("<think>" * 4, 0.0),
    ],
)
def test_tags_count_once_and_in_their_place(text: str, share: float) -> None:
    assert one("tag_count", text) == share


def test_stuffed_keywords_earn_nothing() -> None:
    stuffed = "First, Second, Next, Finally, Step 1: Step 2: Step 3: \n- \n* \n1. "
    for reward in ("format", "tag_count", "repetition", "overlong"):
        assert one(reward, stuffed) <= 0
    with pytest.raises(ValueError, match="unknown reward 'reasoning_steps'"):
        build_reward("reasoning_steps")


def test_an_answer_without_readable_gold_is_never_right() -> None:
    unread = [sample(verdict=NO_GOLD, length=5), sample(verdict=WRONG, length=15)]
    assert build_reward("accuracy")(unread, 2).tolist() == [0, 0]
    assert build_reward("cosine_length")(unread, 2).max() < 0
    assert build_reward("kimi_length")(unread, np.zeros(2)).max() <= 0


def test_the_score_of_a_code_task_is_its_verdict_alone() -> None:
    # Output that is only a beginning of the expected lines is the verifier's to refuse; no reward looks at it again.
    printed = [sample("1", verdict=Verdict(0.0, "1", "1 of 2 lines"), length=3), sample("1\n2", length=5)]
    assert build_reward("accuracy")(printed, 2).tolist() == [0, 1]
    partly = [sample(verdict=PARTLY, length=3), sample(verdict=RIGHT, length=5)]
    assert build_reward("accuracy")(partly, 2).tolist() == [0.5, 1]
    assert build_reward("kimi_length")(partly, np.zeros(2)).tolist() == [0, -0.5]
    assert build_reward("cosine_length")(partly, 2)[0] < 0


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_lengths_are_tokens_not_characters() -> None:
    longer_text = [sample("word " * 500, length=5), sample("x", length=15)]
    shorter_text = [sample("x", length=5), sample("word " * 500, length=15)]
    for name in ("kimi_length", "cosine_length", "overlong"):
        reward = build_reward(name, **NEEDED.get(name, {}))
        one = np.zeros(2, int)
        np.testing.assert_array_equal(reward(longer_text, one), reward(shorter_text, one))
        assert reward(longer_text, one)[0] >= reward(longer_text, one)[1]


def test_kimi_length_by_hand() -> None:
    lengths, verdicts = [10, 20, 30, 50, 7, 7, 7, 7], [RIGHT, WRONG, RIGHT, WRONG] * 2
    group = [sample(length=n, verdict=v) for n, v in zip(lengths, verdicts, strict=True)]
    reward = build_reward("kimi_length")
    # 0.5 - (len - 10) / 40; the wrong one of 20 tokens would have had 0.25.
    fours = np.arange(8) // 4
    np.testing.assert_allclose(reward(group, fours), [0.5, 0, 0, -0.5, 0, 0, 0, 0])
    assert reward(group[:1], fours[:1]).tolist() == [0]
    # Another group's lengths change nothing, nor does its size or where its samples stand.
    np.testing.assert_array_equal(reward(group[4:] + group[:4], fours)[4:], reward(group, fours)[:4])
    mixed = np.array([4, 0, 1, 5, 2, 3])
    found = reward([group[n] for n in mixed], fours[mixed])
    np.testing.assert_array_equal(found[[1, 2, 4, 5]], reward(group, fours)[:4])


def test_cosine_length_by_hand() -> None:
    group = [sample(length=n, verdict=v) for v in (RIGHT, WRONG) for n in (0, 5, 10, 20, 40)]
    values = build_reward("cosine_length")(group, 5)
    slope = math.cos(math.pi / 4) / 4
    np.testing.assert_allclose(values[:5], [1, 0.75 + slope, 0.75, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(values[5:], [-1, -0.75 - slope, -0.75, -0.5, -0.5], rtol=1e-6)
    paper = {"right_short": 2, "right_long": 1, "wrong_short": -10, "wrong_long": 0, "exceed": -10, "limit": 10}
    cut = [sample(length=20, finished=False), sample(length=10, finished=True), sample(length=0, verdict=WRONG)]
    assert build_reward("cosine_length", **paper)(cut, 3).tolist() == [-10, 1, -10]


def test_the_cosine_does_not_rise_again_beyond_its_limit() -> None:
    reward = build_reward("cosine_length", limit=10)
    values = reward([sample(length=n) for n in range(0, 30)], 30)
    assert (np.diff(values) <= 0).all() and values[20] == values[10] == 0.5


GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "rl_objectives.npz"


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"the golden values are not in {GOLDEN}")
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_golden_overlong(case: str) -> None:
    golden = {key: value for key, value in np.load(GOLDEN).items() if key.startswith(f"overlong/{case}/")}
    lengths, limit, buffer, value = (
        golden[f"overlong/{case}/{k}"] for k in ("lengths", "max_length", "buffer", "value")
    )
    samples = [sample(length=int(n), limit=int(limit)) for n in lengths]
    np.testing.assert_allclose(build_reward("overlong", buffer=int(buffer))(samples, 1), value, rtol=1e-6, atol=1e-7)
    fixed = build_reward("overlong", buffer=int(buffer), limit=int(limit))
    np.testing.assert_array_equal(fixed([replace(s, limit=1) for s in samples], 1), np.asarray(value, np.float32))


def test_overlong_by_hand() -> None:
    reward = build_reward("overlong", buffer=4, limit=10)
    values = reward([sample(length=n) for n in (0, 6, 7, 8, 10, 99)], 6)
    np.testing.assert_allclose(values, [0, 0, -0.25, -0.5, -1, -1])


# --- repetition -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("one two", 0),
        ("one two three four", 0),
        ("one two three one two three", 1 / 4),
        ("One two THREE one two three", 1 / 4),
        ("!!!!!!!!!!", 7 / 8),
        ("a" * 33, 30 / 31),
        ("a" * 32, 0),
        ("我觉得" * 12, 31 / 34),
    ],
)
def test_repeated_words_symbols_and_letters(text: str, share: float) -> None:
    assert one("repetition", text) == pytest.approx(-share, abs=1e-6)


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_repetition_counts_exactly(units: list[str], ngram: int) -> None:
    grams = [tuple(units[n : n + ngram]) for n in range(len(units) - ngram + 1)]
    expected = 1 - len(set(grams)) / len(grams) if grams else 0.0
    assert repeated_share(units, ngram) == pytest.approx(expected)


def test_long_ngrams_of_many_words_do_not_overflow() -> None:
    words = [str(n) for n in range(3000)]
    assert repeated_share(words, 40) == 0
    assert repeated_share(words * 2, 40) == pytest.approx(1 - 3000 / (6000 - 39))
    assert units_of("x" * 40) == ["x"] * 40


# --- language ---------------------------------------------------------------------------------------------------------

ENGLISH = "First we add the two numbers, and then we check that the result is right."
GERMAN = "Zuerst addieren wir die beiden Zahlen, und dann prüfen wir, ob das Ergebnis stimmt."
CHINESE = "首先我们把两个数相加,然后检查结果。"


@pytest.mark.parametrize(
    ("text", "target", "share"),
    [
        (ENGLISH, "en", 1.0),
        (GERMAN, "de", 1.0),
        (CHINESE, "zh", 1.0),
        ("Сначала сложим два числа.", "ru", 1.0),
        ("먼저 두 수를 더한다.", "ko", 1.0),
        ("まず二つの数を足す。", "ja", 1.0),
        ("पहले दो संख्याएँ जोड़ें।", "hi", 1.0),
        ("D'abord il faut ajouter les deux nombres.", "fr", 1.0),
        ("Primero hay que sumar los dos números.", "es", 1.0),
        (CHINESE, "en", 0.0),
        (ENGLISH, "zh", 0.0),
        (ENGLISH, "ru", 0.0),
        ("", "en", 0.0),
        ("12 + 3 = 15", "en", 0.0),
        ("x y z", "en", 0.0),
        ("Schrödinger Euler Noether", "en", 1.0),
        ("the end 我们", "en", 0.5),
        ("pаypаl", "en", 1 / 3),  # both а are Cyrillic, and p and l stand alone
    ],
)
def test_language_by_script(text: str, target: str, share: float) -> None:
    assert one("language", text, target=target) == pytest.approx(share)


def test_language_by_word_list() -> None:
    assert one("language", GERMAN, target="en") < 0.1
    assert one("language", ENGLISH, target="de") < 0.1
    assert one("language", GERMAN, target="en", word_lists=False) == 1
    mixed = one("language", f"{ENGLISH} {GERMAN}", target="en")
    assert 0.5 < mixed < 0.6
    assert one("language", "We add the und numbers.") == pytest.approx(4 / 5)
    # Words of two languages' lists decide nothing: la, que and de are foreign, Euler is not.
    assert one("language", "an so la que de Euler") == 3 / 6
    # Terms of the task may look foreign.
    assert one("language", "wie und dann", target="en", words=["Wie", "und", "dann"]) == 1


@pytest.mark.parametrize(
    "hidden",
    [
        "```python\nfür und das\n```",
        "`für und das`",
        r"$\text{für und das}$",
        r"$$für und das$$",
        r"\(für und das\)",
        r"\[für und das\]",
        r"\begin{align}für und das\end{align}",
    ],
)
def test_code_and_mathematics_are_no_words(hidden: str) -> None:
    assert one("language", f"We add the numbers {hidden} and that is all.") == 1
    assert one("language", hidden) == 0


def test_what_is_opened_and_not_closed_is_prose() -> None:
    for opening in ("```", "`", "$", "$$", r"\(", r"\[", r"\begin{"):
        assert one("language", f"The sum: {opening} 我们把两个数相加") < 0.3
    assert one("language", "It costs $5 and 我 $6.") == 3 / 4
    assert one("language", "It costs $5,我,$6.") == pytest.approx(2 / 3)


def test_language_reads_the_thought() -> None:
    text = f"<think>{ENGLISH}</think><answer>{CHINESE}</answer>"
    assert one("language", text) == 1
    assert 0 < one("language", text, part="all") < 1
    assert one("language", f"<think></think>{ENGLISH}") == 0
    assert one("language", f"{ENGLISH}</think>{CHINESE}", prompt="2+3? <think>") == 1
    assert one("language", f"<think>{ENGLISH}") == 1
    assert one("language", ENGLISH, think_open="", think_close="") == 1


# --- building and composing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("acuracy", {}, "Did you mean 'accuracy'"),
        ("format", {"think_opn": "x"}, "Did you mean 'think_open'"),
        ("accuracy", {"weight": 1}, "unknown option of reward 'accuracy'"),
        ("overlong", {}, "'overlong' needs buffer"),
        ("overlong", {"buffer": 0}, "buffer lies in"),
        ("overlong", {"buffer": "64"}, "'overlong' cannot take {'buffer': '64'}"),
        ("format", {"name": "x"}, "unknown option of reward 'format' 'name'"),
        ("overlong", {"buffer": 5, "limit": 4}, "buffer=5, limit=4"),
        ("cosine_length", {"right_long": -2}, "worth no less"),
        ("cosine_length", {"exceed": 2}, "worth no less"),
        ("cosine_length", {"exceed": float("nan")}, "finite"),
        ("cosine_length", {"limit": -1}, "limit"),
        ("repetition", {"ngram": 0}, "at least 1"),
        ("repetition", {"max_penalty": 0.5}, "at most 0"),
        ("repetition", {"max_penalty": float("nan")}, "at most 0"),
        ("language", {"target": "eng"}, "unknown language 'eng'"),
        ("language", {"part": "though"}, "Did you mean 'thought'"),
        ("language", {"target": "zh", "words": ["a"]}, "there is none for 'zh'"),
    ],
)
def test_wrong_names_and_options(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_reward(name, **options)


@pytest.mark.parametrize(
    ("table", "arguments", "says"),
    [
        ({}, {}, "no rewards"),
        ({"format": 1.0}, {"how": "gated"}, "gate 'accuracy'; known: format"),
        ({"accuracy": 1.0}, {"how": "gate"}, "Did you mean 'gated'"),
        ({"accuracy": float("nan")}, {}, "finite number, found nan"),
        ({"accuracy": "1"}, {}, "finite number, found '1'"),
        ({"accuracy": {"wieght": 1}}, {}, "unknown option of reward 'accuracy' 'wieght'"),
        ({"short": {"weight": 1}}, {}, "unknown reward 'short'"),
    ],
)
def test_wrong_compositions(table: dict[str, Any], arguments: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_rewards(table, **arguments)


def test_a_weight_without_a_reward() -> None:
    with pytest.raises(ValueError, match="Did you mean 'accuracy'"):
        compose({"accuracy": build_reward("accuracy")}, {"acuracy": 1.0})


BATCH = [
    sample(GOOD, verdict=RIGHT, length=20),
    sample("<think></think>5", verdict=RIGHT, length=10),
    sample(GOOD, verdict=WRONG, length=20),
    sample("6", verdict=PARTLY, length=20),
]
TABLE: dict[str, Any] = {"accuracy": 1.0, "format": 0.5, "long": {"kind": "overlong", "weight": 0.25, "buffer": 4}}


@pytest.mark.parametrize(
    ("arguments", "total"),
    [
        ({}, [1.25, 1, 0.25, 0.25]),
        ({"how": "gated"}, [1.25, 1, 0, 0.5]),
        ({"how": "gated", "gate": "format"}, [1.25, 0, 0.25, 0]),
    ],
)
def test_sum_and_gates(arguments: dict[str, str], total: list[float]) -> None:
    scores = build_rewards(TABLE, **arguments)(BATCH, 2)
    np.testing.assert_allclose(scores.total, total)
    assert scores.total.dtype == np.float32
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "accuracy": [1, 1, 0, 0.5],
        "format": [1, 0, 1, 0],
        "long": [-1, 0, -1, -1],
    }
    assert scores.complaints == () and set(scores.errors.values()) == {0}


def test_permuted_accuracy_is_that_of_the_prompts_next_answer() -> None:
    """Groups need not lie together; every score is given once within its group."""
    scores, groups = [0.0, 1.0, 0.25, 0.5, 0.75], np.array([0, 1, 0, 1, 0])
    answers = [sample(verdict=Verdict(score, "", "")) for score in scores]
    found = build_reward("accuracy", permuted=True)(answers, groups)
    assert found.tolist() == [0.25, 0.5, 0.75, 1.0, 0.0]


def test_accuracy_alone_is_the_verdict() -> None:
    scores = build_rewards({"accuracy": 1.0})(BATCH, 4)
    assert scores.total.tolist() == [1, 1, 0, 0.5]
    metrics = {"rewards/accuracy/mean": 0.625, "rewards/accuracy/errors": 0}
    assert reward_metrics(scores) == pytest.approx(metrics | {"rewards/accuracy/std": np.std([1, 1, 0, 0.5])})


@pytest.mark.parametrize(("n", "group"), [(0, 1), (3, 2), (2, 0), (2, 4)])
def test_rewards_take_whole_groups(n: int, group: int) -> None:
    with pytest.raises(ValueError, match=f"found {n} samples in groups of {group}"):
        build_rewards({"accuracy": 1.0})([sample()] * n, group)


def test_groups_are_named_by_index() -> None:
    scorer = build_rewards({"accuracy": 1.0, "kimi_length": 1.0})
    samples = [sample(length=n) for n in (3, 9, 5, 4, 7)]
    scores = scorer(samples, np.array([2, 0, 2, 0, 2]))
    np.testing.assert_allclose(scores.parts["kimi_length"], [0.5, -0.5, 0, 0.5, -0.5])
    with pytest.raises(ValueError, match=r"group_of of shape \(2,\) must name the group of each of 5 samples"):
        scorer(samples, np.array([0, 1]))


# --- rewards that fail ------------------------------------------------------------------------------------------------


def shortest(samples: Sequence[Sample], group_of: np.ndarray) -> np.ndarray:
    """A group reward of the kind that users write: it raises where a sample has no text."""
    lengths = np.array([len(sample.text) + 0 * ord(sample.text[0]) for sample in samples])
    return np.array([lengths[n] == lengths[group_of == group_of[n]].min() for n in range(len(samples))], np.float32)


def test_a_reward_that_raises_names_the_sample_and_goes_on() -> None:
    texts = ["aa", "a", "", "aaa", "aaaa", "aa", "", "aaaaa"]
    scores = compose({"mine": shortest})([sample(text, prompt=f"Question {n}") for n, text in enumerate(texts)], 4)
    assert scores.total.tolist() == [0, 1, 0, 0, 0, 1, 0, 0]
    assert scores.errors == {"mine": 2}
    (sentence,) = scores.complaints
    assert sentence == (
        "reward 'mine' could not be computed for 2 of 8 samples, which score 0 in it; the first is sample 2, to the"
        " prompt ending in 'Question 2': IndexError: string index out of range"
    )
    assert reward_metrics(scores)["rewards/mine/errors"] == 2


def bad(values: Any) -> Reward:
    return lambda samples, group_of: values


def boom(samples: Sequence[Sample], group_of: np.ndarray) -> np.ndarray:
    if len({sample.text for sample in samples}) > 1:
        raise RuntimeError("only together")
    return np.ones(len(samples))


@pytest.mark.parametrize(
    ("reward", "total", "errors", "says"),
    [
        (bad(np.array([1, np.nan, np.inf, 1])), [1, 0, 0, 1], 2, "first is sample 1.*it returned nan"),
        (bad([1, None, 1, 1]), [1, 0, 1, 1], 1, "sample 1.*nan"),
        (bad(np.ones(3)), [0, 0, 0, 0], 4, r"sample 0.*shape \(3,\) for"),
        (bad(np.ones((4, 1))), [0, 0, 0, 0], 4, r"shape \(4, 1\)"),
        (bad("right"), [0, 0, 0, 0], 4, "sample 0.*ValueError"),
        (bad(1.0), [0, 0, 0, 0], 4, r"shape \(\)"),
        (boom, [1, 1, 0, 0], 2, "sample 2.*only together"),
    ],
)
def test_faulty_values_are_counted(reward: Reward, total: list[float], errors: int, says: str) -> None:
    samples = [sample("a"), sample("a"), sample("a"), sample("b")]
    scores = compose({"mine": reward, "accuracy": build_reward("accuracy")}, {"accuracy": 0.0})(samples, 2)
    assert scores.total.tolist() == total
    assert scores.errors == {"mine": errors, "accuracy": 0}
    (sentence,) = scores.complaints
    assert re.search(says, sentence), sentence


def test_a_failed_gate_is_closed() -> None:
    scores = compose({"gate": bad([np.nan, 1]), "format": build_reward("format")}, how="gated", gate="gate")
    assert scores([sample(), sample()], 2).total.tolist() == [0, 2]


@pytest.mark.parametrize("score", [float("nan"), 5.0, -1.0])
def test_a_verdict_outside_its_range_is_no_accuracy(score: float) -> None:
    scores = build_rewards({"accuracy": 1.0})([sample(verdict=Verdict(score, None, "")), sample()], 2)
    assert scores.total.tolist() == [0, 1]
    assert scores.errors == {"accuracy": 1} and "lies in [0, 1]" in scores.complaints[0]


def test_a_buffer_longer_than_the_sampling_limit_is_told() -> None:
    scores = build_rewards({"overlong": {"buffer": 30}})([sample(), sample()], 2)
    assert scores.errors == {"overlong": 2} and "buffer of 30 tokens" in scores.complaints[0]


# --- hostile text -----------------------------------------------------------------------------------------------------

MEGA, LESS = 1_000_000, 300_000
HOSTILE = {
    "opened": "<think>" * (MEGA // 7),
    "tags": "<think></think><answer>" * (MEGA // 23),
    "answers": "<think>a</think>" + "<answer>5</answer>" * (MEGA // 18),
    "ticks": "`a\n" * (MEGA // 3),
    "dollars": "$a " * (LESS // 3),
    "brackets": r"\(" * (LESS // 2),
    "begins": r"\begin{" * (LESS // 7),
    "ends": r"\end{" * (LESS // 5),
    "apostrophes": "a'" * (LESS // 2),
    "exclamations": "!" * LESS,
    "letters": "a" * LESS,
    "marks": "a." * (LESS // 2),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_long_text_takes_linear_time(text: str) -> None:
    table = {name: NEEDED.get(name, {}) for name in OF_TEXT}
    started = time.process_time()
    scores = build_rewards(table)([sample(text, verdict=WRONG)], 1)
    assert time.process_time() - started < 10  # one or two seconds; a quadratic search would take many minutes
    assert scores.complaints == ()


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "```",
        "$",
        "`",
        r"\(",
        r"\)",
        "\\",
        "\n",
        " ",
        "the ",
        "und ",
        "我",
    ]
)
TEXT = st.one_of(st.text(max_size=60), st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=25).map("".join))
SAMPLES = st.builds(
    Sample,
    example=st.just({}),
    prompt=st.sampled_from(["", "Q <think>", "Q <think>\n"]),
    text=TEXT,
    verdict=st.builds(Verdict, st.sampled_from([0.0, 0.5, 1.0]), st.none(), st.just("")),
    length=st.integers(0, 30),
    finished=st.booleans(),
    limit=st.just(20),
)


def test_every_reward_has_a_range() -> None:
    assert set(RANGES) == set(OF_TEXT)


@given(st.lists(SAMPLES, min_size=4, max_size=4), st.sampled_from(["en", "zh", "hi"]))
@settings(max_examples=150, deadline=None)
def test_no_reward_raises_or_leaves_its_range(samples: list[Sample], target: str) -> None:
    table = {name: NEEDED.get(name, {}) for name in OF_TEXT} | {"language": {"target": target}}
    scores = build_rewards(table)(samples, 2)
    assert scores.complaints == ()
    for name, (low, high) in RANGES.items():
        part = scores.parts[name]
        assert part.shape == (4,) and part.dtype == np.float32
        assert ((part >= low) & (part <= high)).all(), (name, part)


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_a_full_format_has_all_its_tags(text: str) -> None:
    if one("format", text) == 1:
        assert one("tag_count", text) == 1
        assert blocks(text, Tags()) is not None


@pytest.mark.parametrize("name", ["addition", "countdown", "parity"])
def test_rewards_of_a_task(name: str) -> None:
    task = build_task(name)
    example = task.examples("train")[0]
    texts = [task.target(example), "nonsense"]
    samples = [sample(text, example=example, verdict=task.verify(example, text)) for text in texts]
    assert build_rewards({"accuracy": 1.0, "repetition": 0.1}, how="gated")(samples, 2).total[1] == 0
    assert build_reward("accuracy")(samples, 2).tolist() == [1, 0]
