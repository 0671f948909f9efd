"""Selection of examples: the published ranks of one-shot RLVR, LIMR's score, and the command that ranks a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tasks import build_task
from data.tasks.base import examples_of
from rl.history import AccuracyLog, example_key, from_json
from rl.select import (
    above,
    alignment_scores,
    main,
    places,
    rank_by_alignment,
    rank_by_variance,
    ranked,
    variance_scores,
)
from store.records import plain, write_json
from tests.tiny_config import get_config

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "one_shot_rlvr"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data of one-shot RLVR is not in {SHARED}")
# Rows of the published history in eighths, in its order: ranks 14, 13, 2, 1, 15, 3 and 1209; 100 and 291 tie.
EIGHTHS = {
    "100": "110001120000000001000111311111222144233243325453767768",
    "682": "511232212214033345125127553564547766477566548665787876",
    "267": "210020011001000000100200003001131356567778788688888",
    "124": "02101001210100100000011014333126757568788887877886888",
    "291": "104205236553625368745566787877786677786888877787778888",
    "531": "01101001120221131153122133136835777657875577665766878",
    "789": "0000000000000000000000000000000000000000000000000",
}
KEPT = {key: [int(digit) / 8 for digit in digits] for key, digits in EIGHTHS.items()}
TOP = ["124", "267", "531", "931", "212", "25", "568", "131", "649", "724", "875", "925", "682"]
PI = {"pi1_r128": 0, "pi2_r128": 1, "pi13_r128": 12, "pi1209_r128": 1208}


@pytest.fixture(scope="module")
def published() -> dict[str, list[float]]:
    return from_json((SHARED / "acc_step_500.json").read_text())


def test_ranks_of_the_kept_rows() -> None:
    assert rank_by_variance(KEPT) == ["124", "267", "531", "682", "100", "291", "789"]
    scores = variance_scores(KEPT)
    assert [round(scores[key], 3) for key in ("124", "267", "682", "789")] == [0.407, 0.396, 0.273, 0.0]


def test_ties_keep_the_order_of_the_history() -> None:
    scores = variance_scores(KEPT)
    assert scores["100"] == scores["291"]
    turned = dict(reversed(KEPT.items()))
    assert rank_by_variance(turned) == ["124", "267", "531", "682", "291", "100", "789"]


@needs_data
def test_published_ranks(published: dict[str, list[float]]) -> None:
    order = rank_by_variance(published)
    assert len(order) == 1209
    assert order[:13] == TOP
    assert [order[n] for n in (0, 1, 12, 1208)] == ["124", "267", "682", "789"]
    for key, row in KEPT.items():
        assert published[key] == row


@needs_data
@pytest.mark.parametrize("file", PI)
def test_the_ranked_examples_are_those_of_the_shipped_files(file: str, published: dict[str, list[float]]) -> None:
    rows = [json.loads(line) for line in (SHARED / f"{file}.jsonl").read_text().splitlines()]
    assert len(rows) == 128
    assert {str(row["extra_info"]["index"]) for row in rows} == {rank_by_variance(published)[PI[file]]}


@needs_data
def test_the_whole_order_is_the_official_one(published: dict[str, list[float]]) -> None:
    official = sorted(published, key=lambda key: np.std(published[key]), reverse=True)
    assert rank_by_variance(published) == official


@needs_data
def test_alignment_order_is_that_of_plain_sums(published: dict[str, list[float]]) -> None:
    epochs = min(map(len, published.values()))
    means = [sum(row[k] for row in published.values()) / len(published) for k in range(epochs)]
    room = sum((1 - mean) * (1 - mean) for mean in means)
    naive = {
        key: 1 - sum((row[k] - means[k]) * (row[k] - means[k]) for k in range(epochs)) / room
        for key, row in published.items()
    }
    assert rank_by_alignment(published) == sorted(naive, key=lambda key: naive[key], reverse=True)
    assert rank_by_alignment(published)[:3] == ["416", "964", "569"]
    assert alignment_scores(published)["416"] == pytest.approx(0.940892, abs=1e-6)
    assert len(above(alignment_scores(published), 0.6)) == 575


def test_alignment_by_hand() -> None:
    scores = alignment_scores({"up": [0.0, 1.0, 1.0], "flat": [0.0, 0.0], "mean": [0.0, 0.5]})
    # Means over the two common epochs: 0 and 0.5; the room is 1 + 0.25.
    assert scores == pytest.approx({"up": 0.8, "flat": 0.8, "mean": 1.0})
    assert ranked(scores) == ["mean", "up", "flat"]
    assert above(scores, 0.9) == ["mean"]


def test_alignment_of_the_always_right() -> None:
    with pytest.raises(ValueError, match="right in all of the first 2 epochs"):
        alignment_scores({"a": [1.0, 1.0], "b": [1.0, 1.0]})


def test_an_array_is_ranked_by_row() -> None:
    history = np.array([[0, 0, 0], [0, 1, 0], [0.5, 1, 0.5]])
    assert rank_by_variance(history) == [1, 2, 0]
    assert rank_by_alignment(history) == [1, 2, 0]


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ({}, "no example"),
        ({"a": []}, "'a' must have a list"),
        ({"a": [[0.5]]}, r"shape \(1, 1\)"),
        ({"a": [0.5], "b": [0.5, 1.5]}, r"'b' has 1\.5"),
        ({"a": [float("nan")]}, "'a' has nan"),
        (np.zeros(3), "must have a list"),
    ],
)
def test_what_cannot_be_ranked_is_named(history: dict[str, list[float]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rank_by_variance(history)


EIGHTH = st.integers(0, 8).map(lambda n: n / 8)


@given(st.dictionaries(st.text(max_size=3), st.lists(EIGHTH, min_size=1, max_size=9), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_every_ranking_is_a_permutation_in_order(history: dict[str, list[float]]) -> None:
    order, scores = rank_by_variance(history), variance_scores(history)
    assert sorted(order) == sorted(history)
    assert [scores[str(key)] for key in order] == sorted(scores.values(), reverse=True)
    assert from_json(json.dumps(history)) == history


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a history of four one-digit sums, and what the command reads besides."""
    folder, config = tmp_path / "run", get_config("grpo")
    config.model.update(vocab_size=17, dtype="float32")
    write_json(folder / "config.json", plain(config.to_dict()) | {"resolved": plain(config.model.to_dict())})
    keys = [example_key(example) for example in sums()[:4]]
    log = AccuracyLog(folder)
    for step, row in enumerate(([0, 1, 0.5, 0], [0, 0, 1, 0.25], [0, 1, 1, 0.25])):
        log(step, dict(zip(keys, row, strict=True)))
    return folder


def sums() -> list[dict[str, Any]]:
    """The examples behind the run."""
    options = get_config("grpo").data.options
    return list(build_task("addition", **options).examples("train"))


def test_the_command_ranks_a_run_and_writes_what_is_chosen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, task, rows = run.parent / "chosen.jsonl", build_task("addition", digits=1), sums()
    assert main([str(run), "--ranks=1,-1", f"--out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 examples by variance"
    assert lines[2].split() == ["1", "0.4714", "0.667", "3", task.prompt(rows[1])]
    assert lines[3].split() == ["4", "0.0000", "0.000", "3", task.prompt(rows[0])]
    assert lines[4].endswith(f"--config.data.split={out}")
    assert [json.loads(line) for line in out.read_text().splitlines()] == [rows[1], rows[0]]
    assert examples_of(task, str(out)) == [rows[1], rows[0]]
    assert main([str(run), "--number=2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


@needs_data
def test_the_command_gives_the_published_indices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SHARED / "acc_step_500.json"), "--ranks=1,2,13,1209"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], row[-1]) for row in rows] == [("1", "124"), ("2", "267"), ("13", "682"), ("1209", "789")]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ranks=5"], "ranks 1 to 4"),
        (["--ranks=one"], "whole numbers"),
        (["--rule=varience"], "Did you mean 'variance'"),
        (["--out=x.json"], "ends in .jsonl"),
    ],
)
def test_wrong_flags_are_told(run: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *flags]) == 2
    assert says in capsys.readouterr().err


def test_what_the_command_cannot_find_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AccuracyLog(run)(9, {"0123456789abcdef": 0.5})
    assert main([str(run)]) == 2
    assert "1 of 5 examples, such as 0123456789abcdef" in capsys.readouterr().err
    assert main([str(run.parent)]) == 2
    assert "the directory of a GRPO run" in capsys.readouterr().err


def test_places() -> None:
    assert places("1,13,-1", 20) == [0, 12, 19]
    for wrong in ("0", "21", "-21"):
        with pytest.raises(ValueError, match="ranks 1 to 20"):
            places(wrong, 20)
