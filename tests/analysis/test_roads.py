"""Stages side by side: figures, FLOPs, claims, tables, and the curves of an over-optimised reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from analysis.studies import proxy, roads
from tests.tiny_config import get_config
from train.loop import run

SEEDS = [{"a": {"accuracy": 0.5 + 0.1 * n}, "b": {"accuracy": 0.4, "loss": 1.0}} for n in range(3)]


@pytest.mark.parametrize(
    ("claim", "holds", "seeds"),
    [
        ("a.accuracy > b.accuracy", True, [True, True, True]),
        ("a.accuracy > b.accuracy + .15", False, [False, True, True]),
        ("b.accuracy<a.accuracy - 0.05", True, [True, True, True]),
        ("a.accuracy < b.accuracy", False, [False, False, False]),
    ],
)
def test_claims(claim: str, holds: bool, seeds: list[bool]) -> None:
    assert roads.verdict(claim, SEEDS) == {"claim": claim, "holds": holds, "seeds": seeds}


@pytest.mark.parametrize(
    ("claim", "words"),
    [("a is good", "is no claim"), ("a.loss > b.loss", "a has no loss"), ("c.loss > b.loss", "no stage c; a, b")],
)
def test_claims_that_cannot_be_judged(claim: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        roads.verdict(claim, SEEDS)


def test_tables() -> None:
    text = roads.table(SEEDS, ["accuracy", "loss"])
    assert "| a | 0.6 ± 0.1 |  |" in text and "| b | 0.4 ± 0 | 1 ± 0 |" in text


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roads") / "seed=0"
    config = get_config("stages")
    config.rl.update(track_kl=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        run(config, folder)
    return folder


def test_flops_of_stages(pipeline: Path) -> None:
    found = roads.figures_of(pipeline)
    for stage in ("sft", "grpo"):
        last = json.loads((pipeline / stage / "metrics.jsonl").read_text().splitlines()[-1])
        assert found[stage]["flops"] == last["compute/flops"] > 0
    assert found["grpo"]["accuracy"] == found["grpo"]["score"]


def test_when_the_form_was_there() -> None:
    records: list[dict[str, Any]] = [{"step": n, "rewards/format/mean": 0.5 * n} for n in range(4)]
    assert roads.formed(records) == {"formed_at": 2.0} and roads.formed(records[:2]) == {}


def test_the_commands(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(pipeline), "--claim=grpo.flops > sft.flops - 1e12", "--majority=grpo", "--votes=2", "--examples=2"]
    assert roads.main([flag.replace("1e12", "1000000000000") for flag in flags]) == 0
    told = capsys.readouterr().out
    assert "| grpo, majority of 2 |" in told and "holds" in told
    assert (pipeline.parent / "roads.png").is_file()
    assert proxy.main([str(pipeline)]) == 0
    assert "| grpo |" in capsys.readouterr().out and (pipeline.parent / "proxy.png").is_file()
    assert roads.main([str(pipeline / "none")]) == 2


def test_what_is_over_optimised() -> None:
    curve = {"score": [0.5, 0.8, 0.6], "rewards/model/mean": [0.0, 1.0, 3.0], "kl": [0.0, 0.1, 0.4]}
    told = proxy.summary(curve)
    assert told["fall"] == pytest.approx(0.2) and told["proxy_after_best"] == 2.0 and told["proxy_rise"] == 3.0
    assert "proxy_rise" not in proxy.summary({"score": [0.5, 0.6], "kl": [0.0, 0.1]})
