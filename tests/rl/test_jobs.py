"""What becomes of a model's samples: filters, which are kept, pairs, a judge in both orders, scores in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.verify.verdict import Verdict
from infer.load import load_run
from rl.jobs.filters import Sampled, agreement, chosen, reasons
from rl.jobs.judge import judge_of_pairs
from rl.jobs.pairs import Candidate, by_judge, pairs_of
from rl.reward_functions import Sample
from rl.rewards import build_reward
from settings.stages import PairsConfig, SampleConfig
from tests.tiny_config import get_config
from train.algorithms import check_without_data
from train.loop import run
from train.setup import prepare

TEXTS = ["short", "a longer one", "x\n\ny z w v u", "```code```", "cut", "wrong"]


def sampled(**measures: Any) -> Sampled:
    """Six samples of two prompts; the last one is wrong."""
    samples = [
        Sample({}, "p", text, Verdict(float(text != "wrong"), text[:1], ""), len(text), text != "cut", 40)
        for text in TEXTS
    ]
    named = {"accuracy": np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])} | measures
    return Sampled(samples, np.array([0, 0, 0, 1, 1, 1]), named, -np.arange(6.0), np.array([0, 0, 1, 0, -1, 0]))


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({}, ["", "", "", "", "cut", "accuracy"]),
        ({"finished": False}, ["", "", "", "", "", "accuracy"]),
        ({"min_tokens": 6}, ["short", "", "", "", "cut", "short"]),
        ({"max_tokens": 10}, ["", "long", "long", "", "cut", "accuracy"]),
        ({"code": False}, ["", "", "", "code", "cut", "accuracy"]),
        ({"paragraph": 4}, ["", "", "paragraph", "", "cut", "accuracy"]),
        ({"agreement": 0.5}, ["", "", "agreement", "", "cut", "accuracy"]),
    ],
)
def test_the_first_filter_that_a_sample_does_not_pass(rules: dict[str, Any], wanted: list[str]) -> None:
    assert reasons(sampled(), SampleConfig(**rules)) == wanted


def test_what_cannot_be_computed_is_below_every_bound() -> None:
    found = sampled(language=np.array([1.0, 0.94, 0.95, np.nan, 1.0, 1.0]))
    rules = SampleConfig(least={"accuracy": 1.0, "language": {"least": 0.95, "target": "en"}})
    assert reasons(found, rules) == ["", "language", "", "language", "cut", "accuracy"]


def test_agreement_is_a_share_of_the_prompts_samples() -> None:
    np.testing.assert_allclose(agreement(sampled()), [2 / 3, 2 / 3, 1 / 3, 2 / 3, 0, 2 / 3])


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"most": 1}, [0, 3]),
        ({"keep": "shortest", "most": 1}, [0, 4]),
        ({"keep": "longest", "most": 2}, [1, 2, 3, 4]),
        ({"keep": "best", "most": 1}, [0, 3]),
        ({"keep": "best", "most": 1, "rank": "language"}, [2, 4]),
    ],
)
def test_which_samples_are_kept(rules: dict[str, Any], wanted: list[int]) -> None:
    found = sampled(language=np.arange(6.0))
    rules = {"least": {"accuracy": 1.0, "language": -1.0}} | rules
    passed = np.array([True] * 5 + [False])
    assert chosen(found, passed, SampleConfig(**rules), np.random.default_rng(0)).tolist() == wanted


def test_random_ones_are_the_same_each_time() -> None:
    rules, passed = SampleConfig(keep="random", most=1), np.ones(6, bool)
    draws = [chosen(sampled(), passed, rules, np.random.default_rng(seed)).tolist() for seed in (1, 1, *range(20))]
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws}) > 3


def candidates() -> list[Candidate]:
    return [
        Candidate("r", True, 2, {"reward": 0.3}),
        Candidate("right", True, 6, {"reward": 0.9}),
        Candidate("w", False, 2, {"reward": 0.1}),
        Candidate("wrong", False, 6, {"reward": 0.2}),
    ]


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({"most": 0}, [("r", "w"), ("right", "wrong"), ("r", "wrong"), ("right", "w")]),
        ({"most": 2}, [("r", "w"), ("right", "wrong")]),
        ({"by": "length"}, [("r", "right")]),
        ({"by": "score", "most": 0}, [("right", "w"), ("r", "wrong")]),
        ({"by": "score", "most": 0, "margin": 0.2}, [("right", "w")]),
    ],
)
def test_pairs(rules: dict[str, Any], wanted: list[tuple[str, str]]) -> None:
    found = pairs_of({"n": 1}, candidates(), PairsConfig(**rules))
    assert [(pair.chosen.text, pair.rejected.text) for pair in found] == wanted
    if rules.get("by") == "score":
        assert found[0].margin == pytest.approx(0.8)


def test_prompts_without_a_pair_have_none() -> None:
    right = [c for c in candidates() if c.right]
    assert pairs_of({}, right, PairsConfig()) == []
    assert pairs_of({}, right[:1], PairsConfig(by="length")) == []
    with pytest.raises(ValueError, match="is no score of the texts, which have reward"):
        pairs_of({}, right, PairsConfig(by="score", score="other"))


def test_a_judge_is_asked_in_both_orders() -> None:
    """One that only prefers what it sees first says nothing; one that prefers length is heard."""
    prompts = [({"n": n}, candidates()) for n in range(6)]
    rules = PairsConfig(by="judge", judge="x", most=0, tie=0.05)

    def biased(pairs: Any) -> Any:
        first = np.full(len(pairs), 0.9)
        return first, 1 - first  # the one is better seen first, the other is when the one is seen second

    made, told = by_judge(prompts, rules, biased, 0)
    assert made == [] and told["judge/ties"] == 1 and told["judge/consistent"] == 0

    def longer(pairs: Any) -> Any:
        better = np.array([0.9 if len(a) > len(b) else 0.1 if len(a) < len(b) else 0.5 for _, a, b in pairs])
        return better, better

    made, told = by_judge(prompts, rules, longer, 0)
    assert made and all(len(pair.chosen.text) > len(pair.rejected.text) for pair in made)
    assert told["judge/consistent"] == 1 and made[0].margin == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PairsConfig(by="judge"), "a judge needs a folder"),
        (lambda: PairsConfig(by="judge", judge="x", template="{first}"), "lacks {second}"),
        (lambda: PairsConfig(options=("1", "1")), "two different texts"),
        (lambda: SampleConfig(min_tokens=5, max_tokens=3), "none is left"),
        (lambda: SampleConfig(rank="language"), "name it in sample.least"),
        (lambda: SampleConfig(strategy="majority", strategy_options={"x": 1}), "sample.strategy_options"),
    ],
)
def test_wrong_settings(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    run(get_config("sft"), tmp_path / "sft")
    return tmp_path / "sft"


def test_a_judge_model_sees_both_answers(trained: Path, tmp_path: Path) -> None:
    config = get_config("sft")
    config.algorithm, config.init_from = "pairs", str(trained)
    config.pairs.update(by="judge", judge=str(trained), template="{prompt}{first},{second}=", options=("1", "2"))
    setup = prepare(config, tmp_path, print)
    opinions = judge_of_pairs(setup)
    example = setup.task.examples("train")[0]
    first, second = opinions([(example, "3", "44"), (example, "44", "3")])
    assert first.shape == (2,) and ((first > 0) & (first < 1)).all()
    # Of the same two texts the other way round the judge sees the same two prompts.
    np.testing.assert_allclose(first, 1 - second[::-1], atol=1e-6)


def test_scores_of_a_file_and_pairs_of_scores(trained: Path, tmp_path: Path) -> None:
    rows = [{"a": 1, "b": n, "think": False, "completion": text} for n in range(3) for text in (str(1 + n), "9", "77")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = get_config("sft")
    config.algorithm, config.init_from, config.data.split = "score", str(trained), str(tmp_path / "rows.jsonl")
    config.score.rewards.repetition = 0.5
    result = run(config, tmp_path / "score")
    scored = [json.loads(line) for line in (tmp_path / "score" / "scored.jsonl").read_text().splitlines()]
    assert [row["scores"]["accuracy"] for row in scored] == [1, 0, 0] * 3
    assert result["evaluation"]["score/accuracy"] == pytest.approx(1 / 3)
    config.algorithm, config.data.split = "pairs", str(tmp_path / "score" / "scored.jsonl")
    config.pairs.update(by="score", most=1)
    run(config, tmp_path / "pairs")
    pairs = [json.loads(line) for line in (tmp_path / "pairs" / "pairs.jsonl").read_text().splitlines()]
    assert [(pair["chosen"], pair["margin"]) for pair in pairs] == [(str(1 + n), 1.0) for n in range(3)]


def test_a_kept_sample_is_a_demonstration(trained: Path, tmp_path: Path) -> None:
    """What a row brings is learnt, not what the task would have written."""
    rows = [{"a": a, "b": 1, "think": False, "completion": "7"} for a in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = get_config("sft")
    config.steps, config.optimizer.lr, config.data.split = 40, 1e-2, str(tmp_path / "rows.jsonl")
    result = run(config, tmp_path / "run")
    assert result["status"] == "complete"
    texts = [json.loads(line)["completion"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert set(texts[-4:]) == {"7"}
    assert load_run(tmp_path / "run").config["data"]["split"].endswith("rows.jsonl")


def test_nothing_kept_is_said(trained: Path, tmp_path: Path) -> None:
    config = get_config("sft")
    config.algorithm, config.init_from = "sample", str(trained)
    config.sample.update(n=2, examples=4, max_new_tokens=6, min_tokens=5, max_tokens=5)
    config.sample.least.repetition = 0.5
    with pytest.raises(RuntimeError, match="kept none of 8 samples"):
        run(config, tmp_path / "run")
    assert (tmp_path / "run" / "samples.jsonl").is_file()


def test_the_share_of_an_alphabet() -> None:
    reward = build_reward("script", target="0123456789", foreign="abcdefghij")
    texts = ["<think>1+a=b</think>9", "<think>1+2=3</think>a", "<think>+</think>1", "ab1", "<think>j"]
    samples = [Sample({}, "p", text, Verdict(0.0, None, ""), 1, True, 9) for text in texts]
    np.testing.assert_allclose(reward(samples, np.zeros(5)), [1 / 3, 1, 0, 1 / 3, 0])
    opened = Sample({}, "p<think>", "1a</think>22", Verdict(0.0, None, ""), 1, True, 9)
    assert reward([opened], np.zeros(1))[0] == 0.5
    with pytest.raises(ValueError, match="without a common character"):
        build_reward("script", target="01", foreign="1a")


def test_samples_that_leave_no_room_for_a_prompt_are_refused_before_anything_runs(tmp_path: Path) -> None:
    """Also where the model is yet to be trained by a stage before."""
    config = get_config("sft")
    config.algorithm = "sample"
    config.sample.max_new_tokens = room = config.model.max_length
    with pytest.raises(ValueError, match=f"sample.max_new_tokens={room} leaves no room for a prompt"):
        check_without_data(prepare(config, tmp_path / "run", print))
    config.sample.max_new_tokens = room - 1
    check_without_data(prepare(config, tmp_path / "run", print))
