"""RLTT: rewards that reach every iteration of a recurrent core, and the teacher that thinks for longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import train.objectives.logps
from model import build
from rl.batch import RolloutRows, take
from rl.grpo import batch_loss, grpo_objective
from rl.loops import exit_weights, loop_weights, read_loops
from rl.rules import RolloutRules
from settings.rl import LoopConfig, RLConfig
from store.records import read_metrics
from tests.model.common import random_params
from tests.rl.test_depth_rl import model_of, params, source
from tests.rl.test_rollout import RULES
from tests.tiny_config import get_config
from tests.trunk import TINY, assert_trees_close, trees_equal
from train.accumulate import UpdatePlan, accumulate
from train.completions import completion_logps
from train.loop import run

pytestmark = pytest.mark.usefixtures("one_device")

CHANCES = np.log([0.2, 0.4, 0.6, 0.8])  # of a token after each of four iterations


def batch_of(rules: RolloutRules = RULES, **changes: Any) -> RolloutRows:
    """A rollout of three prompts x four samples at the mean depth, with advantages of both signs."""
    batch = jax.tree.map(jnp.asarray, source(rules, model_of("fixed")).next(params(), 0))
    gains = jnp.asarray(np.random.default_rng(3).normal(size=batch.rows), jnp.float32)
    return batch.replace(advantages=gains, **changes)


def gradient(objective: Any, batch: RolloutRows, weights: Any = None) -> Any:
    """Of the total over the count."""

    def loss(weights: Any) -> jax.Array:
        total, count, _ = objective(weights, batch, jax.random.key(0))
        return total / count

    return jax.jit(jax.grad(loss))(params() if weights is None else weights)


@pytest.mark.parametrize(("kind", "wanted"), [("uniform", -0.814924), ("progressive", -0.586707)])
def test_weights_of_iterations_are_those_of_the_paper(kind: str, wanted: float) -> None:
    weights = loop_weights(kind, (1, 2, 3, 4))
    assert weights.sum() == pytest.approx(1)
    assert float(weights @ CHANCES) == pytest.approx(wanted, abs=1e-6)


def test_the_exit_gate_weighs_iterations_and_does_not_learn_from_it() -> None:
    gates = jnp.log(jnp.array([0.1, 0.3, 0.6, 0.5]) / (1 - jnp.array([0.1, 0.3, 0.6, 0.5])))
    np.testing.assert_allclose(exit_weights(gates), [0.1, 0.27, 0.378, 0.252], atol=1e-6)
    assert float(exit_weights(gates) @ CHANCES) == pytest.approx(-0.657667, abs=1e-6)
    moved = jax.grad(lambda gates: (exit_weights(gates) * CHANCES).sum())(gates)
    np.testing.assert_array_equal(moved, 0)


def test_the_last_iteration_alone_is_the_gradient_without_loops() -> None:
    """Bit for bit: weights (0, .., 0, 1), beta 0 and no ratio are REINFORCE as it was."""
    batch, model = batch_of(depth=None), model_of("fixed")

    def reinforce(weights: Any, batch: RolloutRows, key: jax.Array) -> Any:
        logps = completion_logps(model, weights, batch)[0]
        return batch_loss(batch, logps, logps)

    alone = gradient(grpo_objective(model, loops=LoopConfig("uniform", loops_at=(3,))), batch)
    assert trees_equal(alone, gradient(reinforce, batch))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone)) > 1e-3


def test_every_iteration_is_what_a_pass_of_that_depth_says() -> None:
    batch, model = batch_of(depth=None), model_of("fixed")

    def read(rules: LoopConfig) -> tuple[Any, Any]:
        return jax.jit(lambda weights, batch: read_loops(model, weights, batch, rules)[:2])(params(), batch)

    summed, last = read(LoopConfig("progressive", loop_alpha=2.0))
    said = [read(LoopConfig("uniform", loops_at=(t,)))[1] for t in (1, 2, 3)]
    wanted = sum(t**2 / 14 * logps for t, logps in zip((1, 2, 3), said, strict=True))
    np.testing.assert_allclose(summed, wanted, atol=1e-5)
    np.testing.assert_allclose(last, said[-1], atol=1e-5)
    assert float(jnp.abs(said[0] - said[2]).max()) > 1e-2


def test_the_kl_and_the_entropy_are_those_of_the_last_iteration() -> None:
    batch, model = batch_of(), model_of("fixed")
    batch = batch.replace(ref_logps=batch.old_logps + 0.3 * batch.mask)
    options = {"beta": 0.1, "entropy_coef": 0.2}
    alone, loops = (
        jax.jit(grpo_objective(model, loops=rules, **options))(params(), batch, jax.random.key(0))
        for rules in (LoopConfig(), LoopConfig("uniform"))
    )
    for name in ("kl", "entropy"):
        np.testing.assert_allclose(loops[2][name][0], alone[2][name][0], rtol=1e-4)
    # At ratio 1 the surrogate is the advantages alone.
    np.testing.assert_allclose(loops[0], alone[0], rtol=1e-4)


def test_micro_batches_add_up() -> None:
    objective, batch = grpo_objective(model_of("fixed"), loops=LoopConfig("uniform")), batch_of()
    whole, parts = (
        jax.jit(lambda batch, plan=plan: accumulate(objective, params(), batch, jax.random.key(0), plan=plan))(batch)
        for plan in (UpdatePlan(), UpdatePlan(micro_batch=4))
    )
    assert_trees_close(whole.gradients, parts.gradients, 2e-4)


def test_one_block_of_logits_is_held_however_many_iterations_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading three iterations in the place of one costs less memory than the logits of one of them."""
    vocab = 16384  # of so many that logits weigh more than what the layers keep
    monkeypatch.setattr(train.objectives.logps, "TIME_BLOCK", 16)
    model = build(TINY | {"vocab_size": vocab, "depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 3}})
    weights, batch = random_params(model), take(batch_of(), jnp.arange(96) % 12)

    def held(loops: LoopConfig) -> int:
        objective = grpo_objective(model, loops=loops)
        lowered = jax.jit(jax.grad(lambda w: objective(w, batch, jax.random.key(0))[0])).lower(weights)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    logits = batch.tokens.size * vocab * 4
    assert held(LoopConfig("uniform")) - held(LoopConfig()) < logits


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": "drawn"}, "rl.depth='drawn' gives samples other ones"),
        ({"epochs": 2}, "rl.epochs=1, rl.minibatches=1 and rl.overlap=False, found 2, 1, False"),
        ({"loops_at": (3, 1)}, r"whole, positive and rising, found \(3, 1\)"),
        ({"loops": "last", "loops_at": (1,)}, 'rl.loops="last" reads the last alone'),
        ({"surrogate": "cispo"}, "surrogate=clip and level=token, found cispo"),
    ],
)
def test_rules_that_do_not_go_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RLConfig(**{"loops": "uniform", **changes})


def tiny(**changes: Any) -> ConfigDict:
    """A tiny recurrent run."""
    found = get_config("grpo")
    found.model.update(depth="recurrent", n_layers=3)
    found.model.recurrent.mean = 2
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rl__loops": "exit"}, "the model has none"),
        ({"rl__loops": "uniform", "rl__loops_at": (1, 3)}, "must end with the iteration that samples"),
        ({"rl__loops": "uniform", "model__depth": "stack"}, "is for recurrent models"),
        ({"rl__teacher": "self", "rl__teacher_depth": 4, "model__depth": "stack"}, "is for recurrent teachers"),
    ],
)
def test_models_that_have_no_such_iterations(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        run(tiny(**changes), tmp_path / "run")


def test_a_run_learns_from_its_own_deeper_thought(tmp_path: Path) -> None:
    """A teacher as deep as the student has nothing to say; a deeper one has."""
    distances = []
    for depth in (2, 5):
        found = tiny(rl__teacher="self", rl__teacher_depth=depth, rl__loops="uniform")
        found.rl.rewards = ConfigDict({"accuracy": 0.0})
        found.steps, found.eval.examples, found.eval.loss_batches = 2, 0, 1
        run(found, tmp_path / str(depth))
        records = [record for record in read_metrics(tmp_path / str(depth)) if "teacher/kl" in record]
        distances.append(max(abs(record["teacher/advantage"]) for record in records))
    assert distances[0] < 1e-4 < distances[1]
