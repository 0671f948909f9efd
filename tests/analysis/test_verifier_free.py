"""Exact values of scripted policies against closed forms and sampling; verifiers that are fitted; the study's table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from analysis.studies import scripted, verifier_free
from analysis.studies.verifier_free import Rollouts, Trained, ages, chosen, fit_verifier, predicted, slope
from data.tasks.planted import BASES, Planted, Style
from data.tokenizers.characters import CharTokenizer
from infer.load import Loaded
from model import build

ARMS = [
    Trained(base, horizon, 8 * horizon, algorithm, seed, f"runs/{base}", horizon / 4 + seed)
    for base in ("low", "high")
    for horizon in (8, 16)
    for algorithm in ("sft", "grpo")
    for seed in (0, 1)
]


@pytest.mark.parametrize("start", [1.0, 0.5, 0.03])
def test_with_one_key_the_value_is_geometric(start: float) -> None:
    """E[(L - G + 1)+] of a geometric wait G is L - (1 - p)(1 - (1 - p)^L) / p."""
    table = scripted.values(Style(1.0, 0, start, 0.7), 20, keys=1)
    for written in range(1, 21):
        left = 20 - written
        wanted = left - (1 - start) * (1 - (1 - start) ** left) / start
        assert table[written, 0] == pytest.approx(wanted)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("horizon", [8, 32])
def test_heterogeneity_is_the_variance_of_the_return(base: str, horizon: int) -> None:
    styles = BASES[base]
    probabilities = scripted.returns(styles, horizon, 4)
    assert probabilities.sum() == pytest.approx(1.0)
    values = sum(style.weight * scripted.values(style, horizon, 4)[1, 0] for style in styles)
    assert scripted.mean(probabilities) == pytest.approx(values)
    variance = probabilities @ (np.arange(horizon + 1) - values) ** 2
    assert scripted.heterogeneity(styles, horizon, 4) == pytest.approx(variance, abs=1e-9)
    assert (variance < 1e-9) == (base == "point")


@pytest.mark.parametrize("base", ["low", "high"])
def test_returns_are_those_that_the_task_draws(base: str) -> None:
    task = Planted(horizon=16, base=base)
    earned = [task.earned(row, task.target(row)) for row in task.examples("train")[:4000]]
    counted = np.bincount(earned, minlength=17) / 4000
    np.testing.assert_allclose(counted, scripted.returns(BASES[base], 16, 4), atol=0.03)


def test_best_of_n_and_anti_concentration_by_hand() -> None:
    coin = np.array([0.5, 0.0, 0.5])
    assert scripted.best_of(coin, 1) == scripted.mean(coin) == 1.0
    assert scripted.best_of(coin, 3) == pytest.approx(2 * (1 - 0.5**3))
    assert scripted.of_correct(coin) == 2.0
    assert scripted.anti_concentration(coin, 1.0) == 0.5 and scripted.anti_concentration(coin, 1.1) == 0.0
    top = np.array([0.05, 0.0, 0.95])
    assert scripted.anti_concentration(top, 0.25) == 0.0 and scripted.anti_concentration(top, 0.01) == 0.95
    point = np.array([0.0, 1.0, 0.0])
    assert scripted.anti_concentration(point, 0.25) == 1.0 and scripted.best_of(point, 8) == 1.0


def drawn(base: str, horizon: int, split: str, count: int, each: int = 1) -> Rollouts:
    """Answers of the scripted mixture itself."""
    task = Planted(horizon=horizon, base=base)
    prompts = task.examples(split)[:count]
    rows = [{**row, "draw": row["draw"] + i} for row in prompts for i in range(each)]
    texts = [task.target(row) for row in rows]
    earned = np.array([task.earned(row, text) for row, text in zip(rows, texts, strict=True)])
    tokens = np.array([[int(x) if x.isdigit() else verifier_free.OTHER for x in text] for text in texts])
    digits = np.array([[int(x) for x in row["digits"]] for row in rows])
    return Rollouts(digits, tokens, (earned[:, None] > np.arange(horizon)[::-1]).astype(float))


def test_ages_count_from_the_first_occurrence() -> None:
    found = ages(np.array([[10, 3, 1, 3]]))
    assert found[0, 3] == 3 and found[0, 1] == 2 and found[0, [0, 2, 4]].tolist() == [0, 0, 0]


def test_a_fitted_verifier_chooses_nearly_as_a_perfect_one_does() -> None:
    asked = drawn("high", 16, "test", 60, each=8)
    weights = fit_verifier(drawn("high", 16, "train", 400))
    best, plain = chosen(asked.rewards.sum(1), asked, 8), asked.rewards.sum(1).mean()
    assert chosen(predicted(weights, asked), asked, 8) > plain + 0.8 * (best - plain)
    assert best == pytest.approx(scripted.best_of(scripted.returns(BASES["high"], 16, 4), 8), abs=1.0)
    assert chosen(-predicted(weights, asked), asked, 8) < plain


def test_shorter_answers_are_the_same_cut() -> None:
    whole = drawn("low", 16, "train", 50)
    cut = whole.until(8)
    short = Planted(horizon=8, base="low")
    for row, tokens, rewards in zip(short.examples("train")[:50], cut.tokens, cut.rewards, strict=True):
        text = "".join("a" if token == verifier_free.OTHER else str(token) for token in tokens)
        assert rewards.sum() == short.earned(row, text)


def test_a_slope_and_its_interval_over_runs() -> None:
    x = np.log([8.0, 16.0, 32.0])
    found = slope(x, np.stack([0.5 * x + 1, 0.7 * x]), np.random.default_rng(0))
    assert tuple(map(float, found)) == pytest.approx((0.6, 0.5, 0.7), abs=1e-6)


def known_sampled(arms: Any, prompts: int, samples: int) -> Any:
    return {
        (arm.base, arm.horizon, arm.traces, arm.seed): {"sampled": 1.0, "VB": arm.horizon / 2 + arm.seed, "best": 9.0}
        for arm in arms
    }


def test_what_was_measured_is_told_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(verifier_free, "sampled", known_sampled)
    monkeypatch.setattr(verifier_free, "trained_run", lambda name: ARMS[int(Path(name).name)])
    names = [str(tmp_path / str(number)) for number in range(len(ARMS))]
    for name in names:
        Path(name).mkdir()
        (Path(name) / "config.json").touch()
    assert verifier_free.main([*names, f"--output={tmp_path / 'x.png'}"]) == 0
    told = capsys.readouterr().out
    assert "| high | 16 | 128 |" in told and "4.50 ± 0.71" in told
    assert "exponent of the horizon in the gap, low: 1.000 [1.000, 1.000]" in told
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["gap"] for row in rows if row["horizon"] == 16] == [[4.0, 4.0]] * 2


def test_a_run_says_what_it_was(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "algorithm": "grpo",
        "seed": 2,
        "init_from": "runs/low",
        "rl": {"samples": 8},
        "data": {"task": "planted", "options": {"base": "low", "horizon": 16, "train_size": 16}},
    }
    result = {"status": "complete", "name": "x", "stages": [], "evaluation": {"score": 0.5}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert verifier_free.trained_run(str(tmp_path)) == Trained("low", 16, 128, "grpo", 2, "runs/low", 8.0)
    config["data"]["task"] = "addition"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="task 'addition'; this study takes 'planted'"):
        verifier_free.trained_run(str(tmp_path))


@pytest.mark.more
def test_rollouts_of_a_model_are_what_the_task_says_of_them() -> None:
    task = Planted(horizon=8)
    tokenizer = CharTokenizer(task.alphabet)
    sizes = {
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "d_ff": 24,
        "max_length": 16,
        "vocab_size": tokenizer.vocab_size,
    }
    model = build(sizes)
    run = Loaded(model, jax.jit(model.init)(jax.random.key(0)), tokenizer, {})
    found = verifier_free.rollouts(run, task, "test", 20, 3, jax.random.key(1))
    assert found.prompts.shape == (60, 4) and found.tokens.shape == found.rewards.shape == (60, 8)
    assert found.tokens.max() <= 10 and found.tokens.min() >= 0
    assert (found.prompts.reshape(20, 3, 4) == found.prompts.reshape(20, 3, 4)[:, :1]).all()
