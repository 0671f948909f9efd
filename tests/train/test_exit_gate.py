"""The learnt exit: its distribution, its objective, and leaving by it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.batch import TokenRows
from model import build
from model.depth import Exit
from tests.sampled import generate
from train.objectives.exit_gate import exit_distribution, loop_objective
from train.objectives.logps import token_logps
from train.objectives.sft import supervised

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
