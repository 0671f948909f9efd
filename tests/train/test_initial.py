"""A run that starts from a stack and is recurrent: by surgery first, then deeper stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from infer.load import load_run
from tests.tiny_config import get_config
from train.loop import run
from train.metrics import read_metrics

SURGERY = {"prelude": 0, "core": 1, "coda": 1, "mean": 2, "start": "zero", "readout": "none", "draw": "poisson"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of a plain stack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        folder = tmp_path_factory.mktemp("run") / "stack"
        run(changed(get_config("sft"), steps=2), folder)
        return folder


def changed(config: ConfigDict, **changes: Any) -> ConfigDict:
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def recurrent(origin: Path, **more: Any) -> ConfigDict:
    asked = {f"model__recurrent__{name}": value for name, value in SURGERY.items()}
    return changed(get_config("sft"), init_from=str(origin), model__depth="recurrent", steps=2, **(asked | more))


def test_a_stack_becomes_recurrent_and_deeper(stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    at_start = {"eval__at_start": True, "eval__loss_batches": 2, "eval__depths": (1, 3)}
    run(recurrent(stack, **at_start), tmp_path / "r2")
    first, trained = read_metrics(tmp_path / "r2")[0], load_run(tmp_path / "r2")
    losses = [first[f"eval/answer_loss{name}"] for name in ("", "_at_depth_1", "_at_depth_3")]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5, err_msg="at first every depth is the stack's")
    assert trained.model.config.recurrent.mean == 2
    run(recurrent(tmp_path / "r2", model__recurrent__mean=4), tmp_path / "r4")
    assert load_run(tmp_path / "r4").model.config.recurrent.mean == 4


def test_layers_that_do_not_add_up_are_refused(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the stack has"):
        run(recurrent(stack, model__recurrent__core=7), tmp_path / "r")
    with pytest.raises(ValueError, match="computes what the stack did only with"):
        run(recurrent(stack, model__recurrent__start="random"), tmp_path / "r")
