"""Histories of accuracy: recorded beside a run, resumed without duplicates, and refused where they are none."""

import json
from pathlib import Path

import numpy as np
import pytest

from rl.history import AccuracyLog, example_key, from_json, group_accuracies, history_of, read_history


def test_a_run_records_its_own_history() -> None:
    first = group_accuracies(["a", "b", "a"], np.array([[1, 0], [1, 1], [0, 0]]))
    assert first == {"a": 0.25, "b": 1.0}
    history = history_of(({"b": 0.5}, first, {"c": 0.0}))
    assert history == {"b": [0.5, 1.0], "a": [0.25], "c": [0.0]}
    assert from_json(json.dumps(history)) == history
    assert from_json("{}") == {}


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf")])
def test_a_history_takes_accuracies_only(value: float) -> None:
    with pytest.raises(ValueError, match="for example 'a'"):
        history_of([{"a": value}])


@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', '{"a": [2]}', '{"a": []}', "{", '{"a": ["x"]}'])
def test_a_broken_history_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)


def test_scores_that_do_not_match_their_keys() -> None:
    with pytest.raises(ValueError, match=r"\[2 prompts, samples\], found shape \(3, 1\)"):
        group_accuracies(["a", "b"], np.zeros((3, 1)))


def test_an_example_is_known_by_its_content() -> None:
    key = example_key({"a": 1, "b": [2, "é"]})
    assert key == example_key({"b": [2, "é"], "a": 1})
    assert key != example_key({"a": 1, "b": [2, "e"]})
    assert len(key) == 16


def test_a_log_is_continued_where_the_run_is(tmp_path: Path) -> None:
    """Rollouts that a killed run has made and that are made again stand in the file once."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder, starts in ((whole, (0,)), (killed, (0, 2))):
        folder.mkdir()
        for start in starts:
            log = AccuracyLog(folder)
            for step in range(start, 4):
                log(step, {"a": step / 4, "b": 0.5} if step % 2 else {"a": step / 4})
    assert (killed / "accuracy.jsonl").read_text() == (whole / "accuracy.jsonl").read_text()
    assert read_history(killed) == {"a": [0, 0.25, 0.5, 0.75], "b": [0.5, 0.5]}


def test_a_log_survives_a_torn_last_line(tmp_path: Path) -> None:
    AccuracyLog(tmp_path)(0, {"a": 1.0})
    with open(tmp_path / "accuracy.jsonl", "a") as file:
        file.write('{"step": 2, "accur')
    assert read_history(tmp_path) == {"a": [1.0]}
    AccuracyLog(tmp_path)(1, {"a": 0.5})
    assert read_history(tmp_path) == {"a": [1.0, 0.5]}


def test_a_folder_without_a_history_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the directory of a GRPO run"):
        read_history(tmp_path)
