"""An update that reads prompts once, leaves empty columns out and skips parts without a gradient is the same update."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.thoughts import NO_ENDING
from infer.sampler import Rollout
from model import build
from model.cache import empty_cache
from model.lm import Model
from model.prefix import Prefix, can_share, prefill
from model.reports import Reports
from model.sharding import make_mesh
from rl.batch import RolloutRows, in_order, take, training_batch
from rl.grpo import grpo_objective, reader, update_plan_of, without_advantage
from rl.rules import RolloutRules
from tests.sampled import generate
from tests.trunk import assert_trees_close
from train.accumulate import WHOLE, Accumulated, UpdatePlan, accumulate, per_token
from train.batches import on_devices
from train.completions import completion_logps, joined_rows, longest, truncate, widths_of
from train.objectives.losses import batch_logps
from train.objectives.metrics import Maximum, finish
from train.state import new_state
from train.step import make_step

PROMPTS, GROUP, T = 4, 4, 8
TINY: dict[str, Any] = dict(vocab_size=40, d_model=32, n_layers=1, n_heads=4, d_ff=48, max_length=64, init_std=0.1)
MODELS: dict[str, dict[str, Any]] = {
    "gqa": {"n_layers": 2, "n_kv_heads": 2, "window": (4, None)},
    "learned positions": {"positions": "learned"},
    "mla": {"mixer": "mla", "mla": dict(kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8)},
    "mingru": {"mixer": "mingru", "rnn": dict(conv=4)},
    "gated_delta": {"n_layers": 2, "mixer": ("gated_delta", "gqa"), "sinks": True, "window": 6},
    "moe": {"ffn": "moe", "moe": dict(n_experts=4, d_expert=16, balance="bias", aux_weight=0.0)},
    "peer": {"ffn": "peer", "peer": dict(n_experts=16, heads=2, top_k=2)},
}
WIDTHS = (4, 8)


@functools.cache
def model_of(name: str) -> Model:
    return build(TINY | MODELS[name])


@functools.cache
def params_of(name: str) -> Any:
    return jax.jit(model_of(name).init)(jax.random.key(0))


@functools.cache
def rollout(name: str, routes: bool = False, thoughts: int = 0) -> Rollout:
    """Samples of prompts of different lengths, some of which end early."""
    ending = [38] * thoughts
    rng = np.random.default_rng(0)
    prompts = [[*rng.integers(1, 38, n).tolist(), *ending] for n in (2, 5, 9, 4)]
    options: dict[str, Any] = dict(thoughts=thoughts, after=0) if thoughts else {}
    found = generate(
        model_of(name),
        params_of(name),
        prompts,
        jax.random.key(1),
        max_new_tokens=T,
        n=GROUP,
        stop=tuple(range(1, 9)),
        routes=routes,
        **options,
    )
    assert {1, 2} & set(found.lengths.tolist()) and found.lengths.max() > 4, "lengths must differ"
    return found


def batch_of(found: Rollout, no_gradient: int = 1) -> RolloutRows:
    """The rows of a rollout; `no_gradient` groups have no advantage."""
    gains = np.random.default_rng(2).normal(size=(PROMPTS, GROUP))
    gains[1 : 1 + no_gradient] = 0
    return training_batch(found, gains.reshape(-1))


def order_of(batch: RolloutRows) -> np.ndarray:
    return in_order(batch.lengths, batch.advantages)


def learnt(name: str, batch: RolloutRows, plan: UpdatePlan) -> Accumulated:
    """What a plan finds; without a reader every row has its prompt in front."""
    objective = grpo_objective(model_of(name), aggregate="sequence_mean")
    run = functools.partial(accumulate, objective, plan=plan)
    return jax.jit(run)(params_of(name), batch=take(batch, order_of(batch)), key=jax.random.key(0))


def everything(name: str, micro_batch: int = 4) -> UpdatePlan:
    return UpdatePlan(micro_batch, reader(model_of(name)), without_advantage, WIDTHS, longest, truncate)


def check_same(found: Accumulated, wanted: Accumulated) -> None:
    np.testing.assert_allclose(found.total, wanted.total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.count, wanted.count, rtol=1e-6)
    for left, right in zip(jax.tree.leaves(found.gradients), jax.tree.leaves(wanted.gradients), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=2e-6)
    metrics, others = (finish({k: v for k, v in x.metrics.items() if k != "sums"}) for x in (found, wanted))
    for name, value in metrics.items():
        np.testing.assert_allclose(value, others[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted.gradients)) > 1e-3


@pytest.mark.more_but("gqa")
@pytest.mark.parametrize("name", MODELS)
def test_prompts_read_once_are_prompts_read_in_every_row(name: str) -> None:
    batch = batch_of(rollout(name))
    wanted = learnt(name, batch, WHOLE)
    check_same(learnt(name, batch, everything(name)), wanted)


@pytest.mark.more
def test_reading_once_and_leaving_out_are_each_the_same_update() -> None:
    batch = batch_of(rollout("gqa"))
    wanted = learnt("gqa", batch, WHOLE)
    check_same(learnt("gqa", batch, UpdatePlan(read=reader(model_of("gqa")))), wanted)
    check_same(learnt("gqa", batch, dataclasses.replace(everything("gqa"), read=None)), wanted)


def test_parts_report_together_what_the_prompts_report_once() -> None:
    reports = Reports(sums={"load": jnp.arange(4.0)})
    prefix = Prefix((), jnp.ones((2, 3)), reports, empty_cache((), 2, 5), jnp.array([5, 4]))
    np.testing.assert_allclose(prefix.share(4).reports.sums["load"], np.arange(4) / 4)


@pytest.mark.parametrize(
    ("settings", "skips"),
    [({}, True), ({"beta": 0.1}, False), ({"entropy_coef": 0.1}, False), ({"entropy_target": 2.0}, False)],
)
def test_gradients_are_left_out_only_where_advantages_are_all(settings: dict[str, float], skips: bool) -> None:
    rules = RolloutRules(**settings)  # type: ignore[arg-type]
    config = SimpleNamespace(rl=rules, micro_batch=0)
    given = SimpleNamespace(model=model_of("gqa"), rows=None, config=config, ending=NO_ENDING)
    plan = update_plan_of(given, rules)  # type: ignore[arg-type]
    assert (plan.no_gradient is without_advantage) == skips and (plan.no_gradient is None) == (not skips)
    given.rows = "trained by rows"
    assert update_plan_of(given, rules) == WHOLE  # type: ignore[arg-type]


@pytest.mark.more
def test_experts_are_taken_again_by_prompts_and_by_rows() -> None:
    batch = batch_of(rollout("moe", routes=True))
    assert batch.shared.routes.shape[:2] == batch.shared.tokens.shape
    found = learnt("moe", batch, everything("moe"))
    check_same(found, learnt("moe", batch, WHOLE))
    # Every token is counted once: those of prompts, and all of a row but its last, which is not read.
    per_layer = 2 * (batch.shared.segments.sum() + batch.mask[:, 1:].sum())
    load = np.asarray(found.metrics["sums"].stack.sums["load"]).sum(-1)
    np.testing.assert_allclose(load, per_layer, rtol=1e-5)


@pytest.mark.more
def test_thoughts_of_a_prompt_are_thought_once() -> None:
    batch = batch_of(rollout("gqa", thoughts=2))
    wanted = learnt("gqa", batch, WHOLE)
    check_same(learnt("gqa", batch, everything("gqa")), wanted)
    forgotten = batch.replace(shared=batch.shared.replace(latent=None))
    found = learnt("gqa", forgotten, everything("gqa"))
    assert abs(float(found.total - wanted.total)) > 1e-4


@pytest.mark.more
@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["fsdp", "mixed"])
def test_a_mesh_changes_nothing(shape: dict[str, int]) -> None:
    """P prompts, which no mesh need divide, stay whole; rows are spread."""
    model, mesh = model_of("gqa"), make_mesh(shape)
    batch = batch_of(rollout("gqa"))
    objective, optimizer = grpo_objective(model), optax.sgd(0.1)
    step = make_step(objective, optimizer, mesh, plan=everything("gqa", micro_batch=8))
    params = jax.device_put(jax.device_get(params_of("gqa")), model.shardings(mesh))
    moved, metrics = step(new_state(params, optimizer, 0), on_devices(take(batch, order_of(batch)), mesh))
    alone = new_state(jax.tree.map(jnp.copy, params_of("gqa")), optimizer, 0)
    wanted, others = make_step(objective, optimizer)(alone, batch)
    for name, value in others.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert_trees_close(moved.params, wanted.params, 1e-5)


def test_an_objective_alone_reads_prompts_by_itself() -> None:
    batch, model, params = batch_of(rollout("gqa")), model_of("gqa"), params_of("gqa")
    read = batch.replace(shared=prefill(model, params, batch.shared))
    objective = grpo_objective(model)
    total = jax.jit(lambda params, rows: objective(params, rows, jax.random.key(0))[0])
    found, wanted = (total(params, rows) for rows in (batch, read))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.programs(250)
def test_log_probs_are_those_of_whole_rows() -> None:
    batch = batch_of(rollout("gqa"))
    plan, order = everything("gqa"), order_of(batch)
    logps = functools.partial(completion_logps, model_of("gqa"))
    (found,) = jax.jit(
        lambda params, batch: per_token(lambda p, b: (logps(p, b)[0],), params, batch, plan),
    )(params_of("gqa"), take(batch, order))
    rows, start = joined_rows(batch), batch.shared.tokens.shape[1] - 1
    wanted = batch_logps(model_of("gqa"), params_of("gqa"), rows)[0][:, start:][order]
    mask = batch.mask[order]
    np.testing.assert_allclose(found * mask, wanted * mask, atol=1e-5)
    np.testing.assert_allclose(np.asarray(found * mask), batch.old_logps[order], atol=1e-4)


def bare(**arrays: Any) -> RolloutRows:
    """Rows of which only some arrays are there."""
    nothing = dict.fromkeys(("tokens", "mask", "lengths", "prompt_of", "old_logps", "advantages"))
    return RolloutRows(**nothing | arrays)


def poisoned(params: Any, part: RolloutRows, key: jax.Array) -> Any:
    """Its gradient is not a number for rows without advantage, its value is."""
    total = jnp.sqrt(params["w"] * jnp.abs(part.advantages).max()) * part.mask.sum()
    return total, part.mask.sum(), {"rows": (jnp.float32(len(part.mask)), jnp.float32(1))}


def test_parts_without_advantage_are_measured_and_not_differentiated() -> None:
    batch = bare(mask=jnp.ones((4, 3)), advantages=jnp.asarray([1.0, 1, 0, 0]))
    run = functools.partial(accumulate, poisoned, {"w": jnp.float32(4)}, batch, jax.random.key(0))
    assert np.isnan(run(plan=UpdatePlan(2)).gradients["w"])
    found = run(plan=UpdatePlan(2, no_gradient=without_advantage))
    assert found.gradients["w"] == 1.5 and found.count == 12 and found.metrics["rows"] == (4, 2)


def test_parts_are_as_wide_as_they_must_be() -> None:
    seen = []

    def objective(params: Any, part: RolloutRows, key: jax.Array) -> Any:
        seen.append(part.columns)
        return (params["w"] * part.old_logps).sum(), jnp.float32(1), {"width": Maximum(jnp.float32(part.columns))}

    lengths = np.asarray([1, 2, 3, 4, 4, 7])
    mask = jnp.asarray(np.arange(8) < lengths[:, None], jnp.float32)
    batch = bare(tokens=jnp.ones((6, 8), int), mask=mask, lengths=jnp.asarray(lengths), old_logps=mask)
    plan = UpdatePlan(widths=(2, 4, 8), length=longest, truncate=truncate)
    for rows, width in ((slice(0, 2), 2), (slice(2, 5), 4), (slice(0, 6), 8)):
        part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        found = accumulate(objective, {"w": jnp.float32(1)}, part, jax.random.key(0), plan=plan)
        assert float(found.metrics["width"]) == width and found.gradients["w"] == lengths[rows].sum()
    assert set(seen) == {2, 4, 8}


def test_rows_are_ordered_by_what_they_cost() -> None:
    gains, lengths = np.asarray([0, 1, -1, 0, 2.0]), np.asarray([1, 5, 2, 8, 3])
    order = in_order(lengths, gains)
    assert order.tolist() == [2, 4, 1, 0, 3]
    assert in_order(lengths, gains[:, None] * (np.arange(8) < lengths[:, None])).tolist() == order.tolist()
    taken = take(bare(advantages=gains, shared=np.arange(3)), order)
    np.testing.assert_array_equal(taken.advantages, gains[order].astype(np.float32))
    np.testing.assert_array_equal(taken.shared, np.arange(3))


def test_who_cannot_share() -> None:
    assert all(can_share(model_of(name)) for name in MODELS)
    for changes in (
        {"depth": "recurrent", "n_layers": 3},
        {"ffn": "moe", "moe": dict(n_experts=4, d_expert=16, router="expert_choice")},
        {"ffn": "moe", "moe": dict(n_experts=4, d_expert=16, balance="sequence")},
        {"rope": dict(kind="dynamic", factor=2.0)},
    ):
        assert not can_share(build(TINY | changes))


def test_widths_end_with_the_whole_and_are_worth_their_programs() -> None:
    assert widths_of(512, 4) == (128, 256, 384, 512)
    assert widths_of(100, 8) == (34, 67, 100)
    assert widths_of(63, 8) == widths_of(512, 1) == widths_of(8, 4) == ()
