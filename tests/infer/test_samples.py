"""The browser of samples: what is chosen, in which order, and that hostile text cannot steer a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infer.samples import chosen, main, read, shown

ROWS: list[dict[str, Any]] = [
    {"step": 5, "kind": "eval", "prompt": "1+1=", "completion": "2", "score": 1.0, "reason": "correct", "tokens": 2},
    {"step": 9, "kind": "eval", "prompt": "1+2=", "completion": "4", "score": 0.0, "reason": "wrong sum", "tokens": 2},
    {
        "step": 9,
        "kind": "rollout",
        "prompt": "2+2=",
        "completion": "4\x1b[2J",
        "reward": 1.2,
        "rewards": {"accuracy": 1.0, "format": 0.2},
        "reason": "correct",
        "advantage": 0.7,
        "tokens": 3,
        "depth": 4.5,
    },
    {"step": 9, "kind": "rollout", "prompt": "2+3=", "completion": "77", "reward": 0.1, "reason": "no", "tokens": 7},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory whose last line is half written."""
    text = "".join(json.dumps(row) + "\n" for row in ROWS) + '{"step": 9, "kin'
    (tmp_path / "samples.jsonl").write_text(text)
    return tmp_path


def test_records_are_chosen_and_ordered(run: Path) -> None:
    records = read(run)
    assert records == ROWS
    assert chosen(records) == ROWS[1:], "the last step"
    assert chosen(records, step=5) == ROWS[:1]
    assert chosen(records, kind="rollout", right=True) == [ROWS[2]]
    assert chosen(records, right=False) == [ROWS[1], ROWS[3]]
    assert chosen(records, order="tokens", number=2) == [ROWS[3], ROWS[2]]
    assert chosen(records, order="reward")[0] == ROWS[2]
    assert chosen(records, text="wrong sum") == [ROWS[1]]
    with pytest.raises(ValueError, match=r"step 7 .* steps \[5, 9\]"):
        chosen(records, step=7)


def test_a_panel_holds_everything_and_no_escape_sequence() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(shown(ROWS[2]))
    text = console.export_text()
    for part in ("step 9 rollout", "2+2=4", r"\x1b[2J", "accuracy=1", "format=0.2", "advantage 0.7", "depth 4.5"):
        assert part in text
    assert "\x1b" not in text


def test_the_command_prints_and_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--wrong", "--kind=rollout"]) == 0
    assert "2+3=77" in capsys.readouterr().out
    assert main([str(run / "samples.jsonl"), "--number=1"]) == 0
    (tmp_path / "stages" / "grpo").mkdir(parents=True)
    (tmp_path / "stages" / "grpo" / "samples.jsonl").write_text("")
    assert main([str(tmp_path / "stages")]) == 2
    assert "there are some in" in capsys.readouterr().err
    assert main([str(tmp_path / "stages" / "grpo")]) == 2
    assert "written when a run evaluates" in capsys.readouterr().err
