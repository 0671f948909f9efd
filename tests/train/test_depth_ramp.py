"""A mean depth that rises over the first steps of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from settings.model_parts import RecurrentConfig
from store.records import read_metrics
from tests.tiny_config import get_config
from train.algorithms import build_algorithm
from train.depth_ramp import ramp_mean
from train.loop import run
from train.setup import prepare

pytestmark = pytest.mark.usefixtures("one_device")


def config(kind: str = "sft", **changes: Any) -> ConfigDict:
    """A tiny recurrent run of four steps, whose mean depth rises to five in three."""
    found = get_config(kind)
    found.steps = 4
    found.model.update(depth="recurrent", n_layers=3)
    found.model.recurrent.update(mean=5, draw="poisson", grad_steps=2, ramp=3)
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


def depths(tmp_path: Path, steps: int, **changes: Any) -> list[np.ndarray]:
    """The depths of the rows of some steps."""
    source = build_algorithm(prepare(config(**changes), tmp_path / "run", print)).source
    return [np.asarray(source.next({}, step).depth) for step in range(steps)]  # type: ignore[attr-defined]


def test_the_mean_rises_in_equal_parts() -> None:
    rising = RecurrentConfig(mean=9, ramp=4)
    assert [ramp_mean(rising, step) for step in (0, 1, 2, 4, 100)] == [1, 3, 5, 9, 9]
    assert ramp_mean(RecurrentConfig(mean=9), 0) == 9


def test_rows_bring_the_depth_of_their_step(tmp_path: Path) -> None:
    """One for all of a step, or one for each; the same whenever a step is asked for."""
    fixed = depths(tmp_path, 5, model__recurrent__draw="fixed")
    assert [set(each.tolist()) for each in fixed] == [{1}, {2}, {4}, {5}, {5}]
    drawn = depths(tmp_path, 60, model__recurrent__ramp=40)
    assert all(len(set(each.tolist())) == 1 for each in drawn) and drawn[0].tolist() == [1] * len(drawn[0])
    by_step = np.array([each[0] for each in drawn])
    assert by_step[:20].mean() < by_step[40:].mean() - 1
    np.testing.assert_array_equal(depths(tmp_path, 60, model__recurrent__ramp=40), drawn)
    own = depths(tmp_path, 6, model__recurrent__per_sequence=True)
    assert len(set(own[5].tolist())) > 1


def test_a_run_trains_at_these_depths(tmp_path: Path) -> None:
    run(config(), tmp_path / "run")
    records = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    np.testing.assert_allclose([record["depth/ramp"] for record in records], [1, 7 / 3, 11 / 3, 5])
    assert records[0]["recurrent/depth"] == 1


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("grpo", {}, "model.recurrent.ramp=3 is for algorithm=sft or pretrain"),
        ("sft", {"model__recurrent__draw": "task"}, "recurrent.ramp=3 draws depths at a mean that rises"),
        ("sft", {"model__recurrent__exit_gate": True, "model__recurrent__draw": "fixed"}, "exit_gate=True"),
    ],
)
def test_what_has_no_ramp(kind: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        build_algorithm(prepare(config(kind, **changes), tmp_path / "run", print))
