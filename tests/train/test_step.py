"""The step: micro-batches add up, bad gradients do no harm, and a mesh changes nothing."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from data.sources.batch import TokenRows
from model.prefix import Prompts
from model.sharding import make_mesh
from rl.batch import RolloutRows
from rl.grpo import grpo_objective
from tests.trunk import TOKENIZER, assert_trees_close, tiny, tiny_params, trees_equal
from train.accumulate import UpdatePlan, accumulate
from train.batches import on_devices
from train.objectives.losses import Objective, batch_logps, sft_objective
from train.objectives.metrics import Maximum, Minimum, finish, merge
from train.optimizer import make_optimizer
from train.state import HOST, TrainState, make_state, new_state
from train.step import make_step, make_update

ROWS, LENGTH, PROMPT = 8, 12, 4
ADAMW: dict[str, Any] = {"lr": 1e-2, "clip_norm": 1.0, "weight_decay": 0.01}


@functools.cache
def batches_of(seed: int) -> tuple[TokenRows, RolloutRows]:
    """Eight rows of ragged answers after prompts of four tokens, and as GRPO has them, near the policy."""
    rng = np.random.default_rng(seed)
    lengths = np.array([1, 8, 3, 2, 7, 5, 8, 4])
    tokens = rng.integers(2, TOKENIZER.vocab_size, (ROWS, LENGTH))
    seen = np.arange(LENGTH) < PROMPT + lengths[:, None]
    columns = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    mask = seen & (columns >= PROMPT)
    whole = {"tokens": tokens * seen, "positions": columns * seen, "segments": seen}
    integers = {k: jnp.asarray(v, jnp.int32) for k, v in whole.items()}
    batch = TokenRows(**integers, mask=jnp.asarray(mask, jnp.float32))
    logps = jax.jit(lambda p: batch_logps(tiny(), p, batch, temperature=0.8)[0][:, PROMPT - 1 :])(tiny_params())
    old, reference = (np.asarray(logps) + 0.2 * rng.standard_normal(logps.shape) for _ in range(2))
    parts = {"old_logps": old, "ref_logps": reference, "advantages": rng.standard_normal(ROWS)}
    rollout = RolloutRows(
        tokens=batch.tokens[:, PROMPT:],
        mask=batch.mask[:, PROMPT:],
        shared=Prompts(tokens=batch.tokens[:, :PROMPT], segments=batch.segments[:, :PROMPT]),
        lengths=jnp.asarray(lengths, jnp.int32),
        prompt_of=jnp.arange(ROWS, dtype=jnp.int32),
        **{k: jnp.asarray(v, jnp.float32) for k, v in parts.items()},
    )
    return batch, rollout


def batch_of(seed: int = 0) -> TokenRows:
    return batches_of(seed)[0]


def rollout_of(seed: int = 0) -> RolloutRows:
    return batches_of(seed)[1]


def grpo(aggregate: str) -> Objective:
    """The full GRPO objective of the tiny model."""
    return grpo_objective(
        tiny(), aggregate=aggregate, max_length=LENGTH - PROMPT, beta=0.1, entropy_coef=0.01, temperature=0.8
    )


OBJECTIVES: dict[str, Objective] = {
    "sft": sft_objective(tiny()),
    "token_mean": grpo("token_mean"),
    "sequence_mean": grpo("sequence_mean"),
    "constant": grpo("constant"),
}


def fresh(optimizer: optax.GradientTransformation | None = None, ema: bool = False) -> TrainState:
    """A state of its own arrays, for steps that donate it."""
    params = jax.tree.map(jnp.copy, tiny_params())
    return new_state(params, optimizer or make_optimizer(ADAMW, 10), seed=0, ema=ema)


@functools.cache
def sft_step(micro_batch: int | None = None) -> Any:
    """One compiled SFT step for all tests."""
    return make_step(OBJECTIVES["sft"], make_optimizer(ADAMW, 10), plan=UpdatePlan(micro_batch))


@pytest.mark.more_but("sequence_mean")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_to_the_big_batch(name: str) -> None:
    batch = batch_of() if name == "sft" else rollout_of()
    runs = [jax.jit(functools.partial(accumulate, OBJECTIVES[name], plan=UpdatePlan(size))) for size in (None, 2)]
    whole, parts = (run(tiny_params(), batch, jax.random.key(0)) for run in runs)
    mean = lambda found: jax.tree.map(lambda g: g / found.count, found.gradients)  # noqa: E731
    np.testing.assert_allclose(parts.count, whole.count, rtol=1e-7)
    np.testing.assert_allclose(parts.total / parts.count, whole.total / whole.count, atol=1e-6)
    assert relative_distance(mean(parts), mean(whole)) < 1e-5  # fp32; a mean of means is 1e-3 and more away
    for key, value in finish(whole.metrics).items():
        np.testing.assert_allclose(finish(parts.metrics)[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


def relative_distance(left: Any, right: Any) -> float:
    """|left - right| / |right| over whole trees: another order of a sum moves each entry by the sum's own scale."""
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, left, right)) / optax.tree.norm(right))


def test_a_mean_of_means_would_be_another_loss() -> None:
    batch, key = batch_of(), jax.random.key(0)
    halves = [jax.tree.map(lambda x, i=i: x[i::4], batch) for i in range(4)]
    objective = jax.jit(OBJECTIVES["sft"])
    losses = [objective(tiny_params(), half, key) for half in halves]
    whole = objective(tiny_params(), batch, key)
    mean_of_means = sum(float(total / count) for total, count, _ in losses) / 4
    assert abs(mean_of_means - float(whole[0] / whole[1])) > 1e-3


def test_extremes_are_merged_as_extremes() -> None:
    left = {"a": Maximum(jnp.float32(3)), "b": Minimum(jnp.float32(2)), "c": (jnp.float32(1), jnp.float32(2))}
    right = {"a": Maximum(jnp.float32(1)), "b": Minimum(jnp.float32(5)), "c": (jnp.float32(4), jnp.float32(3))}
    found = finish(merge(left, right))
    assert {name: float(value) for name, value in found.items()} == {"a": 3, "b": 2, "c": 1}


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="divisor of 8"):
        accumulate(OBJECTIVES["sft"], tiny_params(), batch_of(), jax.random.key(0), plan=UpdatePlan(3))


def test_steps_learn_and_donate_their_state() -> None:
    state, losses = fresh(), []
    first = state.params["embed"]
    for _ in range(6):
        state, metrics = sft_step()(state, batch_of())
        losses.append(float(metrics["loss"]))
    assert first.is_deleted()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    assert int(state.step) == 6
    assert {"loss", "grad_norm", "entropy", "skipped", "bad"} <= set(metrics)


def test_a_step_is_the_plain_update() -> None:
    optimizer = make_optimizer(ADAMW, 10)
    want = fresh()

    @jax.jit
    def gradient_of(params: Any) -> Any:
        objective = lambda p: OBJECTIVES["sft"](p, batch_of(), jax.random.key(0))  # noqa: E731
        return jax.grad(lambda p: objective(p)[0] / objective(p)[1])(params)

    gradient = gradient_of(want.params)
    updates, _ = jax.jit(optimizer.update)(gradient, want.optimizer, want.params)
    compiled, metrics = sft_step()(fresh(), batch_of())
    assert_trees_close(compiled.params, optax.apply_updates(want.params, updates), 1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)


def test_without_jit_the_step_is_the_same() -> None:
    bare = jax.jit(make_update(OBJECTIVES["sft"], make_optimizer(ADAMW, 10)))
    kept = fresh()
    (got, got_metrics), (want, want_metrics) = bare(kept, batch_of()), sft_step()(fresh(), batch_of())
    assert not kept.params["embed"].is_deleted()
    assert_trees_close(got.params, want.params, 1e-5)
    np.testing.assert_allclose(got_metrics["loss"], want_metrics["loss"], rtol=1e-6)


class Poisoned(TokenRows, kw_only=True):
    """Rows with a number [B] that an objective may take up."""

    poison: Any


def test_a_non_finite_gradient_changes_nothing_and_is_counted() -> None:
    poison = make_optimizer(ADAMW, 10)

    def objective(params: Any, batch: Any, key: jax.Array) -> Any:
        total, count, metrics = OBJECTIVES["sft"](params, batch, key)
        return total + params["embed"].sum() * batch.poison[0], count, metrics

    step = make_step(objective, poison, ema_decay=0.5)
    good, bad = (Poisoned(**vars(batch_of()), poison=jnp.full((ROWS,), value)) for value in (0.0, jnp.nan))
    state, _ = step(fresh(poison, ema=True), good)
    before = jax.device_get(state)
    for n in (1, 2):
        state, metrics = step(state, bad)
        assert (int(metrics["bad"]), int(metrics["skipped"])) == (n, n)
    for part in ("params", "optimizer", "ema"):
        assert trees_equal(getattr(state, part), getattr(before, part)), part
    state, metrics = step(state, good)
    assert (int(metrics["bad"]), int(metrics["skipped"])) == (0, 2)
    assert not trees_equal(state.params, before.params)
    assert int(state.step) == 4


def test_the_average_follows_the_parameters() -> None:
    step = make_step(OBJECTIVES["sft"], make_optimizer(ADAMW, 10), ema_decay=0.75)
    state, want = fresh(ema=True), jax.device_get(tiny_params())
    for _ in range(3):
        state, _ = step(state, batch_of())
        want = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * np.asarray(p), want, jax.device_get(state.params))
    assert_trees_close(state.ema, want, 1e-6)


def test_every_step_has_a_key_of_its_own() -> None:
    def objective(params: Any, batch: Any, key: jax.Array) -> Any:
        return params["embed"].sum(), jnp.float32(1), {"noise": (jax.random.uniform(key), jnp.float32(1))}

    step = make_step(objective, optax.sgd(0.0))
    seen, state = [], fresh(optax.sgd(0.0))
    for _ in range(3):
        state, metrics = step(state, batch_of())
        seen.append(float(metrics["noise"]))
    assert len(set(seen)) == 3
    again, metrics = step(replace(fresh(optax.sgd(0.0)), step=jnp.int32(1)), batch_of())
    assert float(metrics["noise"]) == seen[1]
    _, metrics = step(replace(again, step=jnp.int32(1), seed=jnp.uint32(1)), batch_of())
    assert float(metrics["noise"]) not in seen


FSDP, MIXED = {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.more_but("adamw")
@pytest.mark.parametrize(
    ("name", "shape"), [("adamw", FSDP), ("adamw", MIXED), ("muon", MIXED)], ids=["adamw-fsdp", "adamw", "muon"]
)
def test_a_mesh_changes_nothing(name: str, shape: dict[str, int]) -> None:
    optimizer = make_optimizer(ADAMW | {"name": name, "lr": 1e-3, "eps": 1e-3}, 10, axes=tiny().axes())
    mesh = make_mesh(shape)
    shardings = tiny().shardings(mesh)
    config = ConfigDict({"seed": 0, "optimizer": {"ema": 0.9, "memory": "device"}})
    fresh_params = lambda: jax.device_put(jax.device_get(tiny_params()), shardings)  # noqa: E731  # the state is donated
    state = make_state(fresh_params, optimizer, config, mesh)
    check_layout(state, shardings)
    alone, step = fresh(optimizer, ema=True), make_step(OBJECTIVES["token_mean"], optimizer, ema_decay=0.9)
    on_mesh = make_step(OBJECTIVES["token_mean"], optimizer, mesh, ema_decay=0.9)
    for seed in range(2):
        state, metrics = on_mesh(state, on_devices(rollout_of(seed), mesh))
        alone, want = step(alone, rollout_of(seed))
        for key in want:
            np.testing.assert_allclose(metrics[key], want[key], rtol=2e-5, atol=1e-5, err_msg=key)
    check_layout(state, shardings)
    assert_trees_close(state.params, alone.params, 1e-5)


@pytest.mark.more
def test_moments_in_host_memory_change_nothing() -> None:
    """Bit for bit, on a mesh and on one device; and there they lie, before and after a step."""
    optimizer, mesh = make_optimizer(ADAMW, 10, axes=tiny().axes()), make_mesh(FSDP)
    for devices in (None, mesh):
        shardings = None if devices is None else tiny().shardings(devices)
        fresh_params = lambda s=shardings: jax.device_put(jax.device_get(tiny_params()), s)  # noqa: E731
        found = {}
        for memory in ("device", "host"):
            config = ConfigDict({"seed": 0, "optimizer": {"ema": 0.0, "memory": memory}})
            state = make_state(fresh_params, optimizer, config, devices)
            step = make_step(OBJECTIVES["sft"], optimizer, devices, on_host=memory == "host")
            for seed in range(2):
                kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state.optimizer) if x.ndim}
                assert kinds == {HOST if memory == "host" else "device"}
                state, _ = step(state, on_devices(batch_of(seed), devices))
            found[memory] = state
        assert trees_equal(found["device"], found["host"])


def check_layout(state: TrainState, shardings: Any) -> None:
    """Parameters, averages and every moment of a parameter's shape lie where the parameter lies."""
    by_path = dict(jax.tree_util.tree_leaves_with_path(shardings))
    matched = 0
    for part in (state.params, state.ema, state.optimizer):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            own = [s for p, s in by_path.items() if path[-len(p) :] == p]
            if own and leaf.ndim:
                assert leaf.sharding.is_equivalent_to(own[0], leaf.ndim), jax.tree_util.keystr(path)
                matched += 1
    assert matched >= 3 * len(by_path)
    assert any(len(leaf.addressable_shards[0].data.ravel()) < leaf.size for leaf in jax.tree.leaves(state.params))


def test_muon_trains_through_the_step() -> None:
    optimizer = make_optimizer({"name": "muon", "lr": 0.02}, 10, axes=tiny().axes())
    step, state, losses = make_step(OBJECTIVES["sft"], optimizer), fresh(optimizer), []
    for _ in range(6):
        state, metrics = step(state, batch_of())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
