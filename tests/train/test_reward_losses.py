"""Losses of models that score, against TRL's values and gradients; the Hub's reward models against transformers'."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_files import cases, golden
from train.objectives.metrics import finish
from train.objectives.reward_losses import bradley_terry, group_preference, step_cross_entropy

PAIRS = {"bt": (False, 0.0), "bt_margin": (True, 0.0), "bt_center": (False, 0.01), "bt_margin_center": (True, 0.01)}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str) -> None:
    with_margin, center = PAIRS[name]

    def loss(chosen: Any, rejected: Any, margin: Any) -> jax.Array:
        total, count, _ = bradley_terry(chosen, rejected, margin, center)
        return total / count

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    with jax.enable_x64(True):
        for case in cases("reward_model"):
            arrays = {key: golden("reward_model")[f"{case}/{key}"] for key in ("chosen", "rejected", "margin")}
            value, grads = run(arrays["chosen"], arrays["rejected"], arrays["margin"] if with_margin else None)
            at = f"{case}/loss/{name}"
            np.testing.assert_allclose(value, golden("reward_model")[f"{at}/value"], rtol=1e-9)
            for side, grad in zip(("chosen", "rejected"), grads, strict=True):
                np.testing.assert_allclose(grad, golden("reward_model")[f"{at}/grad_{side}"], rtol=1e-9, atol=1e-15)


def test_metrics_of_pairs() -> None:
    for case in cases("reward_model"):
        arrays = [jnp.asarray(golden("reward_model")[f"{case}/{key}"], jnp.float32) for key in ("chosen", "rejected")]
        found = finish(jax.jit(bradley_terry)(*arrays)[2])
        for key in ("accuracy", "margin", "mean_reward", "min_reward", "max_reward"):
            wanted = golden("reward_model")[f"{case}/metrics/{key}"]
            np.testing.assert_allclose(found[key], wanted, rtol=1e-5, atol=1e-6, err_msg=f"{case} {key}")


@pytest.mark.parametrize("case", ["two", "three", "sparse"])
def test_steps(case: str) -> None:
    arrays = {key: golden("process_reward")[f"ce/{case}/{key}"] for key in ("logits", "labels")}

    def loss(logits: Any) -> Any:
        total, count, metrics = step_cross_entropy(logits, arrays["labels"])
        return total, (count, metrics["accuracy"])

    with jax.enable_x64(True):
        (total, (count, accuracy)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays["logits"])
    total, count, grad = (np.asarray(x) for x in (total, count, grad))
    for key, over in (("mean", count), ("num_items", None)):
        at = f"ce/{case}/{key}"
        hyper = json.loads(str(golden("process_reward")[f"{at}/hyper"]))
        over = hyper["num_items_in_batch"] if over is None else over
        np.testing.assert_allclose(total / over, golden("process_reward")[f"{at}/value"], rtol=1e-9)
        np.testing.assert_allclose(grad / over, golden("process_reward")[f"{at}/grad"], rtol=1e-9, atol=1e-15)
    right, steps = map(float, accuracy)
    np.testing.assert_allclose(right / steps, golden("process_reward")[f"ce/{case}/accuracy"], rtol=1e-9)


@pytest.mark.parametrize("case", ["pairs", "saturated", "one"])
def test_groups_of_steps(case: str) -> None:
    found = {key: golden("process_reward")[f"ppm/{case}/{key}"] for key in ("pos", "neg", "pos_group", "neg_group")}
    left, right = np.nonzero(found["pos_group"][:, None] == found["neg_group"][None, :])
    groups = found["pos_group"][left]
    sizes = np.array([(groups == group).sum() for group in groups], float)
    count = len(set(groups.tolist()))

    def loss(pos: Any, neg: Any) -> Any:
        total, n, metrics = group_preference(pos[left], neg[right], 1 / sizes, count)
        return total, (total / n, metrics["accuracy"])

    with jax.enable_x64(True):
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (total, (mean, accuracy)), grads = run(found["pos"], found["neg"])
    at = f"ppm/{case}"
    np.testing.assert_allclose(total, golden("process_reward")[f"{at}/sum"], rtol=1e-9)
    np.testing.assert_allclose(mean, golden("process_reward")[f"{at}/mean_over_groups"], rtol=1e-9)
    right, pairs = map(float, accuracy)
    np.testing.assert_allclose(right / pairs, golden("process_reward")[f"{at}/pair_accuracy"], rtol=1e-9)
    for key, grad in zip(("pos", "neg"), grads, strict=True):
        np.testing.assert_allclose(grad, golden("process_reward")[f"{at}/grad_{key}"], rtol=1e-9, atol=1e-15)
