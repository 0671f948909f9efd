"""Steps taken by hand, and training in four verbs: the same as the loop and its compiled step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.sources.batch import TokenRows
from infer.load import checkpoint_steps, load_run
from infer.sampling import SamplingParams
from model.sharding import make_mesh
from store.records import read_metrics
from tests.tiny_config import get_config
from tests.trunk import prompts_of, tiny, tiny_params, trees_equal
from train.loop import by_hand, run
from train.objectives.losses import sft_objective
from train.optimizer import make_optimizer
from train.session import Session
from train.state import make_state
from train.step import make_step

OPTIMIZER = {"lr": 1e-2, "eps": 1e-3, "ema": 0.9}
MODEL = tiny()
OBJECTIVE = sft_objective(MODEL)


@pytest.fixture(scope="module")
def one_device() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield


def short(steps: int = 4) -> ConfigDict:
    config = get_config("sft")
    config.update_from_flattened_dict({"steps": steps, "eval.every": 2, "eval.examples": 4, "checkpoint.every": 0})
    return config


def rows(seed: int, count: int = 8) -> TokenRows:
    tokens = np.asarray(prompts_of(*[12] * count, seed=seed), np.int32)
    columns = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)
    mask = (columns >= np.random.default_rng(seed).integers(2, 9, (count, 1))).astype(np.float32)
    return TokenRows(tokens=tokens, mask=mask, positions=columns, segments=np.ones_like(tokens))


def test_steps_by_hand_are_those_of_a_run(one_device: None, tmp_path: Path) -> None:
    """Interrupted and gone on with, by hand and by `run`: the same parameters, the same records."""
    run(short(), tmp_path / "run")
    with by_hand(short(), tmp_path / "hand") as trainer:
        first = trainer.step()
    assert checkpoint_steps(tmp_path / "hand") == [1]
    with by_hand(short(), tmp_path / "hand") as trainer:
        trainer.step()
        trainer.step()
    run(short(), tmp_path / "hand")
    assert trees_equal(load_run(tmp_path / "hand").params, load_run(tmp_path / "run").params)
    losses = [[r["loss"] for r in read_metrics(tmp_path / at) if "loss" in r] for at in ("hand", "run")]
    assert losses[0] == losses[1]
    assert first["loss"] == losses[0][0]
    with pytest.raises(ValueError, match="is complete: name another directory"), by_hand(short(), tmp_path / "hand"):
        pass


def test_the_state_may_be_changed_between_steps(one_device: None, tmp_path: Path) -> None:
    with by_hand(short(2), tmp_path / "hand") as trainer:
        loss = trainer.step()["loss"]
        zeros = jax.tree.map(lambda x: x * 0, trainer.state.params)
        trainer.state = trainer.state.replace(params=zeros)  # type: ignore[attr-defined]
        uniform = trainer.step()["loss"]
        with pytest.raises(ValueError, match="all 2 steps are taken"):
            trainer.step()
    assert loss != pytest.approx(uniform)
    assert uniform == pytest.approx(np.log(load_run(tmp_path / "hand").model.config.vocab_size), rel=1e-5)
    assert (tmp_path / "hand" / "result.json").is_file(), "after its last step the run is complete"


def test_an_error_between_steps_loses_nothing(one_device: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), by_hand(short(), tmp_path / "hand") as trainer:
        trainer.step()
        raise RuntimeError("mine")
    assert checkpoint_steps(tmp_path / "hand") == [1]


@pytest.mark.more_but("one")
@pytest.mark.parametrize("shape", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one", "mesh"])
def test_four_verbs_are_the_fused_step(shape: dict[str, int] | None) -> None:
    """Two steps, the second of a batch in two halves."""
    mesh = None if shape is None else make_mesh(shape)
    optimizer = make_optimizer(OPTIMIZER, 10, axes=MODEL.axes())
    place = lambda: jax.device_put(jax.device_get(tiny_params()), mesh and MODEL.shardings(mesh))  # noqa: E731
    settings = ConfigDict({"seed": 0, "optimizer": {"ema": 0.9, "memory": "device"}})
    state, step = make_state(place, optimizer, settings, mesh), make_step(OBJECTIVE, optimizer, mesh, ema_decay=0.9)
    session = Session(MODEL, tiny_params(), OPTIMIZER, steps=10, mesh=mesh)
    for seed in (0, 1):
        state, fused = step(state, rows(seed))
        halves = [rows(seed)] if seed == 0 else [jax.tree.map(lambda x, n=n: x[n::2], rows(seed)) for n in (0, 1)]
        own = [session.forward_backward(half, OBJECTIVE) for half in halves]
        metrics = session.optim_step()
        assert metrics["loss"] == pytest.approx(float(fused["loss"]), rel=1e-6)
        assert metrics["grad_norm"] == pytest.approx(float(fused["grad_norm"]), rel=1e-5)
        assert own[0]["loss"] == pytest.approx(metrics["loss"], rel=1e-6) or seed == 1
    for left, right in ((session.params, state.params), (session.state.ema, state.ema)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), left, right)


def test_a_further_batch_of_a_step_has_noise_of_its_own() -> None:
    def noisy(params: Any, batch: TokenRows, key: jax.Array) -> Any:
        drawn = jax.random.normal(key)
        return (
            sum(x.sum() for x in jax.tree.leaves(params)) * drawn,
            jnp.float32(1.0),
            {"drawn": (drawn, jnp.float32(1.0))},
        )

    def drawn() -> list[float]:
        session = Session(MODEL, tiny_params(), OPTIMIZER)
        found = [session.forward_backward(rows(0), noisy)["drawn"] for _ in range(3)]
        session.optim_step()
        return [*found, session.forward_backward(rows(0), noisy)["drawn"]]

    first, again = drawn(), drawn()
    assert len(set(first)) == 4 and first == again


def test_a_session_is_saved_and_goes_on(tmp_path: Path) -> None:
    session = Session(MODEL, tiny_params(), OPTIMIZER)
    sampling = SamplingParams(4)
    session.forward_backward(rows(0), OBJECTIVE)
    with pytest.raises(ValueError, match="gradients wait for optim_step"):
        session.save_state(tmp_path / "mine")
    session.optim_step()
    with pytest.raises(ValueError, match="call forward_backward first"):
        session.optim_step()
    first = session.sample(prompts_of(3, 5), sampling)
    assert session.save_state(tmp_path / "mine") == 1
    other = Session(MODEL, jax.tree.map(lambda x: x * 0, tiny_params()), OPTIMIZER)
    with pytest.raises(FileNotFoundError, match="name a folder that save_state has written"):
        other.load_state(tmp_path / "nowhere")
    assert other.load_state(tmp_path / "mine") == 1
    assert trees_equal(other.state, session.state)
    again, further = (s.sample(prompts_of(3, 5), sampling) for s in (other, session))
    np.testing.assert_array_equal(again.tokens, further.tokens)
    assert not np.array_equal(first.tokens, further.tokens), "every call has a key of its own"
