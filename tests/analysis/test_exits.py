"""Ways to stop, measured: what is fixed is exact, what is averaged is averaged, and the files are written."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from analysis import exits
from analysis.exits import Point, average, draw, main, points
from data.tasks import build_task
from data.tokenizers.characters import CharTokenizer
from infer.load import Loaded
from model import build

TASK = build_task("automaton", width=8, max_steps=2)
CONFIG = {
    "data": {
        "task": "automaton",
        "options": {"width": 8, "max_steps": 2},
        "path": "",
        "template": "none",
        "system": "",
        "stop": (),
    },
    "eval": {"max_new_tokens": 3},
}
SIZES = {"d_model": 16, "n_layers": 3, "n_heads": 2, "d_ff": 24, "max_length": 32, "init_std": 0.2}


def loaded(**changes: object) -> Loaded:
    """An untrained model that answers rows of eight bits."""
    tokenizer = CharTokenizer(TASK.alphabet or "")
    recurrent = {"depth": "recurrent", "recurrent": {"mean": 4}}
    model = build(SIZES | {"vocab_size": tokenizer.vocab_size} | (changes or recurrent))
    return Loaded(model, jax.jit(model.init)(jax.random.key(0)), tokenizer, CONFIG)


def test_fixed_depths_are_exact_and_exits_stop_in_between() -> None:
    found = points(loaded(), examples=6, depth=16, slots=0, criteria=["argmax"])
    fixed, argmax = found[:5], found[5:]
    assert [(p.rule, p.threshold, p.mean_depth) for p in fixed] == [("fixed", r, r) for r in (1, 2, 4, 8, 16)]
    assert [(p.rule, p.threshold) for p in argmax] == [("argmax", 2), ("argmax", 4)]
    assert 2 <= argmax[0].mean_depth < argmax[1].mean_depth < 16
    assert all(p.tokens_per_second > 0 for p in found)


def test_the_gate_stops_token_by_token_or_at_the_end_of_the_prompt() -> None:
    run = loaded(depth="recurrent", recurrent={"mean": 4, "exit_gate": True})
    found = points(run, examples=6, depth=4, slots=0, criteria=["gate", "prompt_gate"])[4:]
    assert [(p.rule, p.threshold) for p in found] == [(c, t) for c in ("gate", "prompt_gate") for t in (0.3, 0.5, 0.8)]
    depths = [p.mean_depth for p in found]
    assert depths[:3] == sorted(depths[:3]) and depths[3:] == sorted(depths[3:]) and 1 <= min(depths) < max(depths) <= 4


def test_means_over_runs_and_their_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [[Point("fixed", 1, a, 1.0, 10), Point("latent", 0.1, a / 2, 2.0 + a, 20)] for a in (0.2, 0.6)]
    first, second = average(runs)
    assert (first.accuracy, second.accuracy, second.mean_depth) == pytest.approx((0.4, 0.2, 2.4))
    with pytest.raises(ValueError, match="argument"):
        average([runs[0], runs[1][:1]])
    assert draw([first, second]).axes[0].get_legend() is not None
    monkeypatch.setattr(exits, "load_run", lambda folder: folder)
    monkeypatch.setattr(exits, "points", lambda run, *limits: runs[0] if run == "a" else runs[1])
    assert main(["a", "b", f"--output={tmp_path / 'found.png'}"]) == 0
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert np.isclose(json.loads((tmp_path / "found.json").read_text())[0]["accuracy"], 0.4)
    assert main(["b", "--before", "a", f"--output={tmp_path / 'both.png'}"]) == 0
    both = json.loads((tmp_path / "both.json").read_text())
    assert [(row["before"], row["accuracy"]) for row in both if row["rule"] == "fixed"] == [(True, 0.2), (False, 0.6)]
    drawn = draw([Point(**row) for row in both]).axes[0]
    assert [line.get_linestyle() for line in drawn.get_lines()] == ["--", "--", "-", "-"]


def test_a_plain_stack_has_nothing_to_stop() -> None:
    with pytest.raises(ValueError, match="plain stack"):
        points(loaded(depth="stack"), examples=2, depth=4, slots=0, criteria=["kl"])
