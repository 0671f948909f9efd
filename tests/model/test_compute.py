"""What passes cost: weights met, tokens read, iterations run; and what a looped model's parameters are worth."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.batch import TokenRows
from model import Model, build
from model.compute import equivalent_parameters, flops, parameters, weights_met
from model.latent import Columns, think
from model.lm import parameter_count
from model.reports import Work
from model.rules import learn
from tests.model.common import TINY, random_params, tiny
from train.accumulate import UpdatePlan, accumulate
from train.objectives.exit_gate import loop_objective
from train.objectives.losses import sft_objective

LOOPED: dict[str, Any] = {"n_layers": 3, "depth": "recurrent"}
HEAD, LAYER, INJECTION = 64 * 32, 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48, 2 * 32 * 32
# Rows with padding on either side, and two texts in one.
SEGMENTS = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], np.int32)
REAL = (SEGMENTS > 0).sum(1)


def looped(**recurrent: Any) -> Model:
    return tiny(**LOOPED, recurrent={"mean": 4, "grad_steps": 2} | recurrent)


def rows() -> TokenRows:
    tokens = np.random.default_rng(0).integers(1, 64, SEGMENTS.shape).astype(np.int32)
    places = np.maximum(np.cumsum(SEGMENTS > 0, 1) - 1, 0).astype(np.int32)
    return TokenRows(tokens=tokens, mask=np.ones(tokens.shape, np.float32), positions=places, segments=SEGMENTS)


def measured(model: Model, objective: Any, micro_batch: int | None = None) -> dict[str, float]:
    """The metrics compute/... of an update, jitted."""
    run = functools.partial(accumulate, objective, plan=UpdatePlan(micro_batch))
    sums = jax.jit(run)(random_params(model), batch=rows(), key=jax.random.key(1)).metrics["sums"]
    found = learn(model.config, {}, sums)[1]
    return {name: float(value) for name, value in found.items() if name.startswith("compute/")}


def test_six_a_weight_and_token_learnt_two_a_token_read() -> None:
    model = tiny()
    assert flops(model, Work(10), trains=True) == 60 * (HEAD + 2 * LAYER)
    assert flops(model, Work(10), trains=False) == 20 * (HEAD + 2 * LAYER)
    ahead = tiny(mtp={"depth": 1})
    assert weights_met(ahead, trains=False) == weights_met(model, trains=False)
    assert weights_met(ahead, trains=True).once == 2 * HEAD + 3 * LAYER + 2 * 32 * 32, "a module, and the head again"


def test_a_core_counts_as_often_as_it_ran_and_carried_gradient() -> None:
    model, once, core = looped(), HEAD + 2 * LAYER, LAYER + INJECTION
    assert weights_met(model, trains=True) == (once, core)
    assert flops(model, Work(10, 40, 20), trains=True) == 2 * (10 * once + 40 * core) + 4 * (10 * once + 20 * core)
    assert flops(model, Work(10, 40, 20), trains=False) == 2 * (10 * once + 40 * core)


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"tied": False}, HEAD + 2 * LAYER),
        ({"positions": "learned"}, HEAD + 2 * LAYER),
        # A router, and two experts in four.
        (
            {"ffn": "moe", "moe": {"n_experts": 4, "top_k": 2}},
            HEAD + 2 * (LAYER + 32 * 4 + 3 * 32 * 48),
        ),
    ],
    ids=["untied", "learned positions", "moe"],
)
def test_what_is_looked_up_or_not_met_is_left_out(changes: dict[str, Any], weights: int) -> None:
    assert weights_met(tiny(**changes), trains=True).once == weights


def test_padding_is_no_token_and_packed_texts_are() -> None:
    model = tiny()
    assert measured(model, sft_objective(model)) == {"compute/tokens": REAL.sum()}
    batch = rows()
    found = model.apply(random_params(model), batch.tokens, batch.positions, batch.segments).reports.work
    assert found is not None and float(found.tokens) == REAL.sum(), "jit changes nothing"


@pytest.mark.parametrize(("micro_batch", "by_row"), [(None, False), (2, False), (2, True)])
def test_iterations_are_those_drawn(micro_batch: int | None, by_row: bool) -> None:
    """Of every micro-batch, or of every row, each with its own tokens."""
    model = looped(draw="poisson", per_sequence=by_row)
    seen: list[np.ndarray] = []
    objective = sft_objective(model)

    def spied(params: Any, batch: TokenRows, key: jax.Array) -> Any:
        found = model.apply(params, batch.tokens, batch.positions, batch.segments, train=True, key=key)
        jax.debug.callback(lambda depth: seen.append(np.asarray(depth)), found.reports.depth, ordered=True)
        return objective(params, batch, key)

    found = measured(model, spied, micro_batch)
    jax.effects_barrier()
    depth = np.concatenate(seen)
    assert len(set(depth.tolist())) > (micro_batch is not None), "they must differ"
    assert found["compute/iterations"] == (REAL * depth).sum()
    assert found["compute/gradients"] == (REAL * np.minimum(depth, 2)).sum()
    assert found["compute/tokens"] == REAL.sum()


def test_an_exit_gate_reads_all_rows_once_an_iteration() -> None:
    model = looped(exit_gate=True)
    found = measured(model, loop_objective(model))
    assert found == {f"compute/{name}": 4 * REAL.sum() for name in ("tokens", "iterations", "gradients")}


@pytest.mark.parametrize(("first", "passes"), [(3, 1), (None, 3)])
def test_thoughts_are_passes(first: int | None, passes: int) -> None:
    """Two thoughts: each column once where keys are kept, all of them three times where rows are read anew."""
    model, tokens = tiny(), np.ones((2, 7), np.int32)
    latent = np.zeros((2, 7), bool)
    latent[:, 3:5] = True
    columns = Columns(*map(jnp.asarray, (tokens, np.broadcast_to(np.arange(7), (2, 7)), tokens, latent)))
    out = jax.jit(lambda params: think(model, params, columns, thoughts=2, first=first))(random_params(model))
    assert out.reports.work is not None and float(out.reports.work.tokens) == passes * 14


@pytest.mark.parametrize(("r", "worth"), [(1, 1.0), (4, 1.89), (8, 2.60)])
def test_what_a_loop_is_worth(r: int, worth: float) -> None:
    """Iso-depth laws (2604.21106): a core run r times in unique cores; another exponent gives others."""
    config = looped(mean=r).config
    once, core = parameters(config)
    assert once + core == parameter_count(looped().abstract())
    assert (equivalent_parameters(config) - once) / core == pytest.approx(worth, abs=0.005)
    other = (equivalent_parameters(config, exponent=0.38) - once) / core
    assert r == 1 or other != pytest.approx(worth, abs=0.1)


def test_a_stack_is_worth_its_parameters() -> None:
    config = build(TINY | {"ffn": "peer", "peer": {"n_experts": 16, "heads": 2, "top_k": 2}}).config
    assert equivalent_parameters(config) == sum(parameters(config)) == parameter_count(build(config).abstract())
