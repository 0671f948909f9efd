"""The learnt exit: its distribution, its objective in two stages, and leaving by it."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.sources.batch import TokenRows
from infer.load import load_run
from model import Model, build, hf
from model.depth import Exit
from model.depth.exit import exit_distribution
from settings.model_parts import RecurrentConfig
from tests.sampled import generate
from tests.tiny_config import get_config
from tests.trunk import assert_trees_close, trees_equal
from train.accumulate import UpdatePlan, accumulate
from train.initial import make_tokenizer
from train.loop import run
from train.objectives.exit_gate import gate_loss, loop_objective
from train.objectives.logps import token_logps
from train.objectives.sft import supervised
from train.session import Session
from train.setup import make_task, run_optimizer

SETTINGS: dict[str, Any] = {
    "vocab_size": 16,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 2,
    "d_ff": 24,
    "max_length": 32,
    "init_std": 0.2,
    "depth": "recurrent",
    "norm": "sandwich",
    "recurrent": {
        "prelude": 0,
        "core": 2,
        "coda": 0,
        "mean": 3,
        "injection": "none",
        "start": "embedding",
        "readout": "none",
        "exit_gate": True,
    },
}
MODEL = build(SETTINGS)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 16, (2, 6)), jnp.int32)
BATCH = TokenRows(
    tokens=TOKENS,
    mask=jnp.ones(TOKENS.shape),
    positions=jnp.broadcast_to(jnp.arange(6), TOKENS.shape),
    segments=jnp.ones_like(TOKENS),
)


def with_gate(bias: float) -> Any:
    """The parameters with a gate that hardly looks at the state."""
    gate = {"kernel": jnp.zeros(16), "bias": jnp.array([bias])}
    return PARAMS | {"exit_gate": gate}


def test_the_distribution_sums_to_one_and_is_that_of_the_paper() -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5)))
    p, gate = np.exp(exit_distribution(logits)), 1 / (1 + np.exp(-np.asarray(logits)))
    np.testing.assert_allclose(p.sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(p[1], gate[1] * (1 - gate[0]), rtol=1e-5)
    np.testing.assert_allclose(p[3], (1 - gate[:3]).prod(0), rtol=1e-5)


@pytest.mark.more_but("2")
@pytest.mark.parametrize("stop", [0, 2])
def test_a_sure_gate_trains_one_iteration(stop: int) -> None:
    """A gate that always stops at once leaves the loss of one iteration, one that never does that of the last."""
    total, count, metrics = jax.jit(loop_objective(MODEL))(with_gate(-40.0 if stop else 40.0), BATCH, jax.random.key(0))
    hidden = MODEL.apply(PARAMS, TOKENS, depth=stop + 1).hidden[:, :-1]
    want = -token_logps(hidden, MODEL.head(PARAMS), TOKENS[:, 1:])[0].mean()
    np.testing.assert_allclose(total / count, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["exit/iteration"][0] / count, stop + 1, rtol=1e-5)
    np.testing.assert_allclose(metrics[f"exit/loss_{stop + 1}"][0] / count, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["sums"].stack.means["depth"], [6, 2], err_msg="two rows, three iterations each")


def test_the_joint_loss_is_weighed_by_the_gate_less_its_entropy() -> None:
    """An even gate stops with chances 1/2, 1/4, 1/4."""
    total, count, metrics = jax.jit(loop_objective(MODEL))(with_gate(0.0), BATCH, jax.random.key(0))
    losses = [metrics[f"exit/loss_{t}"][0] / count for t in (1, 2, 3)]
    want = np.dot([0.5, 0.25, 0.25], losses) - MODEL.config.recurrent.exit_entropy * 1.5 * np.log(2)
    np.testing.assert_allclose(total / count, want, rtol=1e-5)


@pytest.mark.more
def test_every_parameter_learns_and_the_entropy_keeps_the_gate_open() -> None:
    objective = loop_objective(MODEL)
    gradient = jax.jit(jax.grad(lambda p: objective(p, BATCH, jax.random.key(0))[0]))(PARAMS)
    still = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(gradient) if not jnp.any(g)]
    assert not still
    open_ = build(SETTINGS | {"recurrent": SETTINGS["recurrent"] | {"exit_entropy": 10.0}})
    shut = with_gate(3.0)
    pull = jax.grad(lambda p: loop_objective(open_)(p, BATCH, jax.random.key(0))[0])(shut)["exit_gate"]["bias"]
    assert float(pull[0]) > 0, "more entropy lies at a lower bias"


def test_supervised_training_takes_it_up() -> None:
    found = supervised(MODEL)(PARAMS, BATCH, jax.random.key(0))
    want = loop_objective(MODEL)(PARAMS, BATCH, jax.random.key(0))
    np.testing.assert_allclose(found[0], want[0], rtol=1e-6)


@pytest.mark.more
def test_leaving_by_the_gate() -> None:
    ask: dict[str, Any] = {"max_new_tokens": 4, "depth": 6}
    for bias, threshold, used in ((0.0, 0.5, 1), (0.0, 0.6, 2), (0.0, 0.9, 4), (-40.0, 0.5, 6)):
        gate = Exit("gate", threshold)
        rollout = generate(MODEL, with_gate(bias), [[1, 2]], jax.random.key(0), exit=gate, **ask)
        assert rollout.depth is not None
        np.testing.assert_array_equal(rollout.depth, [[used] * 4])


def test_wrong_use() -> None:
    plain = build(SETTINGS | {"recurrent": SETTINGS["recurrent"] | {"exit_gate": False}})
    with pytest.raises(ValueError, match=r"exit='gate' requires recurrent\.exit_gate=True"):
        generate(plain, PARAMS, [[1, 2]], jax.random.key(0), max_new_tokens=2, exit="gate")
    with pytest.raises(ValueError, match='leave draw="fixed"'):
        build(SETTINGS | {"recurrent": SETTINGS["recurrent"] | {"draw": "poisson"}})
    for change in ({"exit_gate": False}, {"mean": 1}):
        with pytest.raises(ValueError, match=r'exit_stage="gate" trains the gate of a model with exit_gate=True'):
            changed(exit_stage="gate", **change)


# The second stage


def changed(**recurrent: Any) -> Model:
    return build(SETTINGS | {"recurrent": SETTINGS["recurrent"] | recurrent})


def test_the_gate_is_asked_for_what_an_iteration_gains() -> None:
    """By hand: two tokens, three iterations, of which the second gains 1 and nothing."""
    losses, gates = jnp.array([[3.0, 1.0], [2.0, 1.5], [2.0, 1.0]]), jnp.array([[9.0, 9.0], [0.5, -1.0], [2.0, 0.0]])
    config = RecurrentConfig(exit_slope=2.0, exit_margin=0.25)
    found, wanted = gate_loss(losses, gates, config)
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x)))  # noqa: E731
    want = sigmoid([[2 * 0.75, -0.5], [-0.5, 2 * 0.25]])
    np.testing.assert_allclose(wanted, want, rtol=1e-5)
    goes_on = 1 - sigmoid(gates[1:])
    entropy = -(want * np.log(goes_on) + (1 - want) * np.log(1 - goes_on))
    np.testing.assert_allclose(found, entropy.mean(0), rtol=1e-5)
    pull = jax.grad(lambda losses: gate_loss(losses, gates, config)[0].sum())(losses)
    np.testing.assert_array_equal(pull, 0, err_msg="the gain is no target of the gradient")


@pytest.mark.parametrize("stage", ["joint", "gate"])
def test_packed_rows_are_those_alone(stage: str) -> None:
    objective = jax.jit(loop_objective(changed(exit_stage=stage)))
    packed = TokenRows(
        tokens=TOKENS,
        mask=jnp.ones(TOKENS.shape),
        positions=jnp.array([[0, 1, 2, 0, 1, 0]] * 2),
        segments=jnp.array([[1, 1, 1, 2, 2, 0]] * 2),
    )
    column = jnp.arange(6)
    alone = []
    for start, length in ((0, 3), (3, 2)):
        inside = jnp.broadcast_to((column < length).astype(jnp.int32), TOKENS.shape)
        rows = TokenRows(
            tokens=jnp.roll(TOKENS, -start, 1) * inside,
            mask=inside.astype(jnp.float32),
            positions=column * inside,
            segments=inside,
        )
        alone.append(objective(PARAMS, rows, jax.random.key(0)))
    total, count, _ = objective(PARAMS, packed, jax.random.key(0))
    np.testing.assert_allclose(total, alone[0][0] + alone[1][0], rtol=1e-5)
    assert count == alone[0][1] + alone[1][1]


def test_the_model_beside_the_gate_is_frozen() -> None:
    """Through updates with weight decay, of a mixture whose router is balanced by rule."""
    experts = {"ffn": "moe", "moe": {"n_experts": 4, "top_k": 2, "d_expert": 8, "score": "sigmoid", "balance": "bias"}}
    model = build(SETTINGS | experts | {"recurrent": SETTINGS["recurrent"] | {"exit_stage": "gate", "mean": 2}})
    params = jax.jit(model.init)(jax.random.key(0))
    before = jax.tree.map(np.asarray, params)
    session = Session(model, params, {"lr": 0.1, "weight_decay": 0.5, "no_decay": ()})
    objective = loop_objective(model)
    losses = []
    for _ in range(3):
        losses.append(session.forward_backward(BATCH, objective)["loss"])
        session.optim_step()
    assert losses[-1] < losses[0]
    after = dict(session.params)
    assert np.abs(after.pop("exit_gate")["kernel"] - before.pop("exit_gate")["kernel"]).max() > 0.01
    assert trees_equal(after, before)
    moments = [leaf for leaf in jax.tree.leaves(session.state.optimizer) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * (16 + 1)


def test_a_stage_is_a_run_of_its_own(tmp_path: Path, one_device: pytest.MonkeyPatch) -> None:
    """joint -> gate -> joint, each from the one before: what learns is a run's own choice."""

    def config_of(start: str, stage: str) -> ConfigDict:
        config = get_config("sft")
        config.steps, config.init_from = 2, start and str(tmp_path / start)
        config.eval.examples, config.eval.loss_batches = 0, 1
        if not start:
            config.model.depth = "recurrent"
            config.model.recurrent.update(SETTINGS["recurrent"] | {"core": 1, "mean": 2})
        config.model.recurrent.exit_stage = stage
        config.optimizer.weight_decay = 0.1
        return config

    trained = {}
    for name, start, stage in (("first", "", "joint"), ("second", "first", "gate"), ("third", "second", "joint")):
        run(config_of(start, stage), tmp_path / name)
        trained[name] = load_run(tmp_path / name)
        assert trained[name].model.config.recurrent.exit_stage == stage
    moved = {
        name: not trees_equal(leaf, trained["first"].params[name]) for name, leaf in trained["second"].params.items()
    }
    assert [name for name, was in moved.items() if was] == ["exit_gate"]
    assert not trees_equal(trained["third"].params["embed"], trained["second"].params["embed"])


def test_what_does_not_learn_the_gate_refuses_to_train_it_alone() -> None:
    config = get_config("grpo")
    with pytest.raises(ValueError, match=r'exit_stage="gate" is learnt by algorithm=sft .* and this .* grpo'):
        run_optimizer(config, changed(exit_stage="gate"))
    config.rl.depth = "gate"
    run_optimizer(config, changed(exit_stage="gate"))


@pytest.mark.more
@pytest.mark.parametrize("stage", ["joint", "gate"])
def test_jit_changes_nothing(stage: str) -> None:
    objective = loop_objective(changed(exit_stage=stage))
    plain, compiled = (run(PARAMS, BATCH, jax.random.key(0)) for run in (objective, jax.jit(objective)))
    np.testing.assert_allclose(plain[0], compiled[0], rtol=1e-5)


@pytest.mark.parametrize("stage", ["joint", "gate"])
def test_micro_batches_add_up(stage: str) -> None:
    model = changed(exit_stage=stage)
    found = []
    for rows in (None, 1):
        gather = jax.jit(functools.partial(accumulate, loop_objective(model), plan=UpdatePlan(micro_batch=rows)))
        found.append(gather(PARAMS, BATCH, jax.random.key(0)))
    assert found[0].count == found[1].count
    np.testing.assert_allclose(found[0].total, found[1].total, rtol=1e-5)
    assert_trees_close(found[0].gradients, found[1].gradients, 1e-5)


@pytest.mark.more
def test_a_folder_of_the_hub_trains(shared: Path, tmp_path: Path, one_device: pytest.MonkeyPatch) -> None:
    """The gate of Ouro alone, then GRPO of its last loop; what comes of it is saved as Ouro again."""
    folder = Path(shutil.copytree(shared / "tiny_hf" / "ouro", tmp_path / "hub"))
    config = get_config("sft")
    make_tokenizer(config, make_task(config), tmp_path / "nowhere").save(folder)
    for name, start, stage in (("sft", folder, "gate"), ("grpo", tmp_path / "sft", "joint")):
        config = get_config(name)
        config.model.update(d_model=0, n_layers=0, n_heads=0, d_ff=0, max_length=2048, init_std=0.02)
        config.model.recurrent.exit_stage = stage
        config.update(dict(init_from=str(start), steps=1))
        run(config, tmp_path / name)
    last = load_run(tmp_path / "grpo")
    hf.save(tmp_path / "out", last.model, last.params)
    again, params = hf.load(tmp_path / "out")
    assert again.config.family == "ouro" and again.config.recurrent == hf.describe(folder).config.recurrent
    assert trees_equal(params, last.params)
