"""Depth per token and accuracy by depth, as arrays and as pictures."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from analysis.depth import Line, accuracy_by_depth, draw_accuracy, draw_depths, main, token_depths, wrapped
from analysis.pictures import save
from model import build
from model.depth import Exit

MODEL = build(
    {
        "vocab_size": 16,
        "d_model": 16,
        "n_layers": 3,
        "n_heads": 2,
        "d_ff": 24,
        "max_length": 32,
        "init_std": 0.2,
        "depth": "recurrent",
        "recurrent": {"mean": 6},
    }
)


def test_tokens_and_their_depths_are_drawn(tmp_path: Path) -> None:
    params = jax.jit(MODEL.init)(jax.random.key(0))
    [(tokens, depths)] = token_depths(MODEL, params, [[1, 2, 3]], max_new_tokens=9, exit=Exit("argmax", 2))
    assert tokens.shape == depths.shape == (9,)
    assert 1 <= depths.min() < depths.max() <= 6
    line = Line("a prompt", [str(t) for t in tokens] * 5, depths.tolist() * 5)
    assert [len(piece.texts) for piece in wrapped(line)] == [32, 13]
    save(draw_depths([line], "a title"), tmp_path / "depth.png")
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
    [(_, fixed)] = token_depths(MODEL, params, [[1, 2, 3]], max_new_tokens=4, depth=2)
    np.testing.assert_array_equal(fixed, [2, 2, 2, 2])


def written(folder: Path, *accuracies: float) -> Path:
    folder.mkdir(parents=True)
    lines = [
        {
            "step": step,
            **{f"eval/accuracy_at_depth_{r}": a * step / 20 for r, a in zip((1, 4), accuracies, strict=True)},
        }
        for step in (10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_accuracy_against_depth_by_difficulty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "a", 0.2, 0.6)
    more = {f"eval/accuracy_steps_{k}_at_depth_{r}": r / (4 * k) for k in (1, 2) for r in (1, 4)}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, **more}) + "\n")
    assert accuracy_by_depth(folder, "steps") == {"steps 1": {1: 0.25, 4: 1.0}, "steps 2": {1: 0.125, 4: 0.5}}
    assert accuracy_by_depth(folder) == {"a": {1: 0.2, 4: 0.6}}
    assert main(["--accuracy", str(folder), "--by=step"]) == 2
    assert "--config.eval.by=step" in capsys.readouterr().err
    written(tmp_path / "b" / "sft", 0.2, 0.6)
    written(tmp_path / "b" / "grpo", 0.2, 0.6)
    with pytest.raises(ValueError, match="one stage"):
        accuracy_by_depth(tmp_path / "b", "steps")


def test_accuracy_against_depth_of_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "a" / "sft", 0.2, 0.6)
    written(tmp_path / "a" / "grpo", 0.4, 1.0)
    found = accuracy_by_depth(tmp_path / "a")
    assert found == {"grpo": {1: 0.4, 4: 1.0}, "sft": {1: 0.2, 4: 0.6}}
    assert len(draw_accuracy([found]).axes[0].lines) == 2
    assert main(["--accuracy", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a" / "accuracy.png").is_file()
    assert "accuracy.png" in capsys.readouterr().out


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "give --run" in capsys.readouterr().err
    assert main(["--accuracy", str(tmp_path)]) == 2
    assert "eval.depths" in capsys.readouterr().err
    stack = build(MODEL.config.replace(depth="stack"))
    with pytest.raises(ValueError, match="plain stack"):
        token_depths(stack, jax.jit(stack.init)(jax.random.key(0)), [[1]], max_new_tokens=2)
