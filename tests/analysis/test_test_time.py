"""The studies of compute at test time: what they count, on planted samples and planted results."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.studies import budget_forcing, equal_compute
from data.tasks.addition import Addition
from infer.asking import Candidates, TaskSpec
from tests.trunk import TOKENIZER


def candidates(texts: list[str], n: int, **changes: Any) -> Candidates:
    zero, of = np.zeros(len(texts), int), np.repeat(np.arange(len(texts) // n), n)
    made = {"thought": zero, "written": np.array(list(map(len, texts))), "forced": zero} | changes
    return Candidates(tuple(texts), of, zero.astype(float), finished=np.ones(len(texts), bool), **made)


def test_curves_are_of_one_set_of_samples() -> None:
    examples = [{"example": {"a": 1, "b": 2, "think": False}}, {"example": {"a": 4, "b": 4, "think": False}}]
    texts = ["3", "3", "4", "x", "9", "9", "8", "9"]
    samples = equal_compute.Samples(candidates(texts, 4), 4, each=10.0, prompt=5.0)
    found = list(equal_compute.curves("answers", TaskSpec(Addition(), TOKENIZER), examples, samples))
    voted = {r["budget"]: r for r in found if r["strategy"] == "answers, majority"}
    best = {r["budget"]: r["accuracy"] for r in found if r["strategy"] == "answers, best by the verifier"}
    assert list(voted) == [1, 2, 4] and [voted[k]["flops"] for k in voted] == [15, 25, 45]
    assert voted[1]["accuracy"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert voted[4]["accuracy"] == pytest.approx(0.5)
    assert best == {
        1: 0.375,
        2: pytest.approx((5 / 6 + 1 / 2) / 2),
        4: 1,
    }


def test_thinking_tokens_are_those_between_the_delimiters() -> None:
    plain = SimpleNamespace(candidates=candidates(["<t>a33b14</t>4", "<t>a33"], 1), chosen=np.arange(2))
    assert budget_forcing.thinking(plain).tolist() == [6, 3]  # type: ignore[arg-type]
    counted = SimpleNamespace(candidates=candidates(["ab", "c"], 1, thought=np.array([7, 9])), chosen=np.array([1]))
    assert budget_forcing.thinking(counted).tolist() == [9]  # type: ignore[arg-type]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs with slips and one without, measured already."""
    for name, slip, gain in (("a", 0.3, 0.1), ("b", 0.3, 0.2), ("c", 0.0, 0.0)):
        folder = tmp_path / name
        folder.mkdir()
        data = {"task": "running_sums", "options": {"slip": slip}}
        (folder / "config.json").write_text(json.dumps({"name": name, "data": data}))
        rows = [("wait", waits, 10.0 * waits + 10, 0.7 + gain * (waits > 0)) for waits in budget_forcing.WAITS]
        rows += [("maximum", 8, 7.5, 0.5), ("maximum", 16, 16.5, 0.6)]
        lines = [dict(zip(("strategy", "budget", "tokens", "accuracy"), row, strict=True)) for row in rows]
        (folder / "strategies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_gains_of_waiting_by_slips(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = budget_forcing.by_slip(budget_forcing.folders([str(runs / "*")]))
    assert {slip: len(folders) for slip, folders in groups.items()} == {0.3: 2, 0.0: 1}
    assert {waits: added.tolist() for waits, added in budget_forcing.gains(groups[0.3]).items()} == {
        waits: [pytest.approx(0.1), pytest.approx(0.2)] for waits in (1, 2, 4, 6)
    }
    assert budget_forcing.main([str(runs / "*")]) == 0
    told = capsys.readouterr().out
    assert "| maximum | 8: 8, 0.500 ± 0.000; 16: 16, 0.600 ± 0.000 | 50% |" in told
    assert "1 waits add +0.150 ± 0.071" in told and (runs / "a" / "forcing.png").is_file()


def test_wrong_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "a" / "config.json").write_text(json.dumps({"name": "a", "data": {"task": "addition", "options": {}}}))
    assert budget_forcing.main([str(runs / "*")]) == 2 and "trained on 'addition'" in capsys.readouterr().err
    assert equal_compute.main([str(runs / "none*")]) == 2 and "no run directory matches" in capsys.readouterr().err
