"""Forms without golden values against references written out in NumPy, with gradients by finite differences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.kl import kl
from rl.masks import off_policy_mask, top_entropy_mask
from rl.objectives import importance_weights, policy_loss, sampler_metrics
from tests.rl.golden import ARRAYS

Arrays = dict[str, np.ndarray]
Row = dict[str, Any]


def arrays(case: str = "large_drift") -> Arrays:
    names = ("logps", "old_logps", "ref_logps", "sampler_logps", "mask", "advantages")
    found = {name: ARRAYS["kept"][f"{case}/{name}"].astype(np.float64) for name in names}
    return found | {"entropies": np.random.default_rng(0).gamma(1.0, size=found["mask"].shape)}


def rows(given: Arrays) -> list[Row]:
    """The valid tokens of each row that has any, with the row's advantage as "A"."""
    found = []
    for n, length in enumerate(given["mask"].sum(1).astype(int)):
        row = {name: array[n, :length] for name, array in given.items() if array.ndim == 2}
        found += [row | {"A": given["advantages"][n]}] if length else []
    return found


def clipped(r: np.ndarray, A: float, low: float, high: float) -> np.ndarray:
    return -np.minimum(r * A, np.clip(r, 1 - low, 1 + high) * A)


def ratios(row: Row) -> np.ndarray:
    return np.exp(row["logps"] - row["old_logps"])


def gmpo(given: Arrays) -> float:
    def loss(row: Row) -> float:
        r, A = ratios(row), row["A"]
        worse = np.minimum(r, np.exp(0.4)) if A > 0 else np.maximum(r, np.exp(-0.4))
        return -A * np.prod(worse) ** (1 / len(r))

    return float(np.mean([loss(row) for row in rows(given)]))


def luspo(given: Arrays) -> float:
    def loss(row: Row) -> float:
        r = ratios(row)
        return len(r) * clipped(np.prod(r) ** (1 / len(r)), row["A"], 2e-3, 2.5e-3)

    return float(np.mean([loss(row) for row in rows(given)]))


def r1(given: Arrays) -> float:
    def loss(row: Row) -> float:
        d = row["logps"] - row["ref_logps"]
        return np.mean(clipped(ratios(row), row["A"], 10, 10) + 0.001 * (np.exp(-d) + d - 1))

    return float(np.mean([loss(row) for row in rows(given)]))


def unbiased(given: Arrays) -> float:
    def loss(row: Row) -> float:
        d, r = row["logps"] - row["ref_logps"], ratios(row)
        return np.mean(clipped(r, row["A"], 0.2, 0.2) + 0.3 * r * (np.exp(-d) + d - 1))

    return float(np.mean([loss(row) for row in rows(given)]))


def off_policy(given: Arrays) -> float:
    """Rows with A < 0 that drifted are worth 0, but count."""

    def loss(row: Row) -> float:
        stray = row["A"] < 0 and np.mean(row["old_logps"] - row["logps"]) > 0.05
        return 0.0 if stray else np.mean(clipped(ratios(row), row["A"], 0.2, 0.2))

    return float(np.mean([loss(row) for row in rows(given)]))


def top_entropy(given: Arrays) -> float:
    """The fifth of the tokens with the highest entropies, over the count of all."""
    tokens = rows(given)
    threshold = np.quantile(np.concatenate([row["entropies"] for row in tokens]), 0.8)
    kept = [(clipped(ratios(r), r["A"], 0.2, 0.28) * (r["entropies"] >= threshold)).sum() for r in tokens]
    return sum(kept) / sum(len(row["logps"]) for row in tokens)


def sequence_mask(given: Arrays) -> float:
    """A row whose trainer finds it more than three times as likely as its sampler did is worth 0, but counts."""
    tokens = rows(given)
    weights = [np.exp(np.sum(row["old_logps"] - row["sampler_logps"])) for row in tokens]
    losses = [clipped(ratios(row), row["A"], 0.2, 0.28).sum() for row in tokens]
    kept = sum(w * loss for w, loss in zip(weights, losses, strict=True) if w <= 3)
    return kept / sum(len(row["logps"]) for row in tokens)


def top_entropy_weights(given: dict[str, jax.Array]) -> jax.Array:
    return top_entropy_mask(given["entropies"], given["mask"], 0.2)


def sequence_mask_weights(given: dict[str, jax.Array]) -> jax.Array:
    logps = (given["old_logps"], given["sampler_logps"], given["mask"])
    return importance_weights(*logps, level="sequence", cap=None, keep=(0.0, 3.0))


Reference = Callable[[Arrays], float]
DAPO = {"clip_high": 0.28, "aggregate": "token_mean"}
GRPO = {"clip_high": 0.2, "aggregate": "sequence_mean"}
FORMS: dict[str, tuple[Reference, dict[str, Any]]] = {
    "gmpo": (gmpo, GRPO | {"surrogate": "gmpo", "clip_low": 0.4, "clip_high": 0.4}),
    "luspo": (luspo, {"level": "sequence", "clip_low": 2e-3, "clip_high": 2.5e-3, "aggregate": "sequence_sum"}),
    "r1": (r1, GRPO | {"clip_low": 10.0, "clip_high": 10.0, "beta": 0.001}),
    "unbiased_kl": (unbiased, GRPO | {"beta": 0.3, "unbiased_kl": True}),
    "off_policy": (off_policy, GRPO | {"off_policy_threshold": 0.05}),
    "top_entropy": (top_entropy, DAPO | {"weights": top_entropy_weights}),
    "sequence_mask": (sequence_mask, DAPO | {"weights": sequence_mask_weights}),
}


def loss_of(logps: jax.Array, given: dict[str, jax.Array], arguments: dict[str, Any]) -> jax.Array:
    arguments = {name: value(given) if callable(value) else value for name, value in arguments.items()}
    ref = given["ref_logps"] if arguments.get("beta") else None
    total, count, _ = policy_loss(
        logps, given["old_logps"], given["advantages"], given["mask"], ref_logps=ref, **arguments
    )
    return total / count


def differences(reference: Reference, given: Arrays, step: float = 1e-5) -> np.ndarray:
    """The gradient with respect to logps [N, T] by central differences."""
    gradient = np.zeros_like(given["logps"])
    for place in np.ndindex(gradient.shape):
        shift = np.zeros_like(gradient)
        shift[place] = step
        ahead, behind = (reference(given | {"logps": given["logps"] + s}) for s in (shift, -shift))
        gradient[place] = (ahead - behind) / (2 * step)
    return gradient


@pytest.mark.parametrize("case", ["large_drift", "empty_row"])
@pytest.mark.parametrize("form", FORMS)
def test_form(form: str, case: str) -> None:
    reference, arguments = FORMS[form]
    given = arrays(case)
    with jax.enable_x64(True):
        on_device = {name: jnp.asarray(array) for name, array in given.items()}
        both = jax.jit(jax.value_and_grad(lambda logps: loss_of(logps, on_device, arguments)))
        value, gradient = both(on_device["logps"])
    np.testing.assert_allclose(value, reference(given), rtol=0, atol=1e-8)
    np.testing.assert_allclose(gradient, differences(reference, given), rtol=0, atol=1e-8)
    single = {name: jnp.asarray(array, jnp.float32) for name, array in given.items()}
    alone = jax.jit(lambda given: loss_of(given["logps"], given, arguments))(single)
    np.testing.assert_allclose(alone, reference(given), rtol=1e-6, atol=1e-6)


ROWWISE = ("gmpo", "luspo", "unbiased_kl", "off_policy")


@pytest.mark.parametrize("form", ROWWISE)
def test_micro_batches_add_up_and_padding_changes_nothing(form: str) -> None:
    given = {name: jnp.asarray(array, jnp.float32) for name, array in arrays("empty_row").items()}
    valid = given["mask"] > 0
    dirty = {name: jnp.where(valid, array, jnp.nan) if array.ndim == 2 else array for name, array in given.items()}
    dirty["mask"] = given["mask"]
    arguments = FORMS[form][1]

    @jax.jit
    def sums(part: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        given = (part["logps"], part["old_logps"], part["advantages"], part["mask"])
        return policy_loss(*given, ref_logps=part["ref_logps"] if "beta" in arguments else None, **arguments)[:2]

    total, count = sums(dirty)
    parts = [sums(jax.tree.map(lambda x, i=i: x[i : i + 4], dirty)) for i in (0, 4, 8)]
    np.testing.assert_allclose([total, count], np.sum(parts, axis=0), rtol=1e-6)
    assert (total, count) == sums(given)


@pytest.mark.parametrize(("form", "changed"), [("gmpo", {"clip_high": 0.2}), ("luspo", {"aggregate": "constant"})])
def test_a_flipped_argument_is_noticed(form: str, changed: dict[str, Any]) -> None:
    reference, arguments = FORMS[form]
    given = arrays()
    on_device = {name: jnp.asarray(array, jnp.float32) for name, array in given.items()}
    found = loss_of(on_device["logps"], on_device, arguments | changed | {"max_length": 12})
    assert abs(float(found) - reference(given)) > 1e-4


def test_the_absolute_cap_is_one_plus_epsilon() -> None:
    """TRL's absolute cap of 1.28 and verl's clip of .28 are one rule, with one golden value and gradient."""
    with jax.enable_x64(True):
        given = {name: jnp.asarray(array) for name, array in arrays("ragged").items()}
        arguments = {"surrogate": "cispo", "clip_low": 1.0, "ratio_cap": 1.28, "aggregate": "token_mean"}
        found = jax.value_and_grad(loss_of)(given["logps"], given, arguments)
    for mine, kind in zip(found, ("value", "grad"), strict=True):
        golden = ARRAYS["kept"][f"ragged/loss/cispo/{kind}/trl"]
        np.testing.assert_allclose(mine, golden, rtol=0, atol=1e-8)


def test_the_unbiased_kl_has_the_gradient_of_the_kl() -> None:
    """Under samples of an older policy the expectation of ratio x k3, taken exactly, is the current policy's KL."""
    scores = [jax.random.normal(jax.random.key(i), (7,)) for i in range(3)]
    old, reference = (jax.nn.log_softmax(x) for x in scores[1:])

    def exact(x: jax.Array) -> jax.Array:
        logps = jax.nn.log_softmax(x)
        return jnp.sum(jnp.exp(logps) * (logps - reference))

    def estimated(x: jax.Array) -> jax.Array:
        logps = jax.nn.log_softmax(x)
        return jnp.sum(jnp.exp(old) * jnp.exp(logps - old) * kl(logps, reference, "k3"))

    np.testing.assert_allclose(estimated(scores[0]), exact(scores[0]), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(estimated)(scores[0]), jax.grad(exact)(scores[0]), atol=1e-6)


def test_top_entropy_keeps_the_share() -> None:
    entropies, mask = jnp.arange(20.0).reshape(2, 10), jnp.ones((2, 10)).at[1, 5:].set(0)
    dirty = jnp.where(mask > 0, entropies, jnp.nan)
    kept = top_entropy_mask(dirty, mask, 0.2)
    assert [tuple(map(int, place)) for place in np.argwhere(kept)] == [(1, 2), (1, 3), (1, 4)]
    assert np.array_equal(top_entropy_mask(dirty, mask, 1.0), mask)
    assert np.all(top_entropy_mask(dirty, 0 * mask) == 0)
    with pytest.raises(ValueError, match=r"share = 0.0 .* \(0, 1\]"):
        top_entropy_mask(entropies, mask, 0.0)


def test_a_mask_made_before_the_cut_adds_up() -> None:
    """Micro-batches of one global mask sum to the whole; masks of their own would not."""
    entropies, mask = jnp.arange(20.0).reshape(2, 10), jnp.ones((2, 10))
    whole = top_entropy_mask(entropies, mask)
    parts = jnp.concatenate([top_entropy_mask(entropies[i : i + 1], mask[i : i + 1]) for i in (0, 1)])
    assert whole[0].sum() == 0 and whole[1].sum() == 4 and parts[0].sum() == 2

    def total(cut: slice) -> jax.Array:
        zeros = jnp.zeros((2, 10))[cut]
        return policy_loss(zeros, zeros, jnp.ones(2)[cut], mask[cut], weights=whole[cut], aggregate="token_mean")[0]

    assert total(slice(0, 1)) + total(slice(1, 2)) == total(slice(0, 2)) == -4


def test_off_policy_rows_are_dropped_only_where_they_were_bad() -> None:
    old, logps = jnp.zeros((4, 2)), jnp.array([[-1.0, -0.5], [-1.0, -0.5], [-0.4, -0.4], [0.0, jnp.nan]])
    mask = jnp.ones((4, 2)).at[3, 1].set(0)
    found = off_policy_mask(logps, old, jnp.array([-1.0, 1.0, -1.0, -1.0]), mask, 0.5)
    assert found.tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]


def test_the_gap_between_sampler_and_trainer() -> None:
    logps, mask = jnp.log(jnp.array([[0.5, 0.8, jnp.nan]])), jnp.array([[1.0, 1.0, 0.0]])
    found = sampler_metrics(logps, jnp.log(jnp.array([[0.25, 0.8, 0.1]])), mask)
    means = {name: float(pair[0] / pair[1]) for name, pair in found.items() if isinstance(pair, tuple)}
    assert means == pytest.approx(
        {"sampling/sampling_logp_difference/mean": np.log(2) / 2, "sampling/importance_sampling_ratio/mean": 1.5}
    )
    extremes = {name.removeprefix("sampling/"): float(v) for name, v in found.items() if not isinstance(v, tuple)}
    assert extremes == pytest.approx(
        {
            "sampling_logp_difference/max": np.log(2),
            "importance_sampling_ratio/max": 2,
            "importance_sampling_ratio/min": 1,
        }
    )


@pytest.mark.parametrize("coefficient", [0.3, jnp.float32(0.3), jnp.array([0.3, 0.3])])
def test_entropy_coefficients_may_be_carried_by_the_batch(coefficient: float | jax.Array) -> None:
    def loss(entropies: jax.Array) -> jax.Array:
        zeros = jnp.zeros((2, 3))
        found = policy_loss(
            zeros, zeros, zeros[:, 0], zeros + 1, entropies=entropies, entropy_coef=coefficient, aggregate="token_mean"
        )
        return found[0] / found[1]

    np.testing.assert_allclose(jax.grad(loss)(jnp.ones((2, 3))), -0.05, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_low": -0.2}, "clip_low must be at least 0, found -0.2"),
        ({"clip_high": float("nan")}, "clip_high must be at least 0, found nan"),
        ({"ratio_cap": 0.5}, "ratio_cap = 0.5 must lie above 0 and above the lower bound 0.8"),
        ({"dual_clip": 0.9}, "dual_clip must be more than 1, found 0.9"),
        ({"delta": 1.1, "clip_high": 0.2}, "delta = 1.1 must lie above the upper clip bound 1.2"),
        ({"entropy_coef": jnp.float32(0.1)}, "needs entropies"),
        ({"surrogate": "cispo", "delta": 4.0}, 'delta = 4.0 acts on surrogate="clip" alone'),
    ],
)
def test_wrong_bounds(arguments: dict[str, Any], message: str) -> None:
    zeros = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=message):
        policy_loss(zeros, zeros, jnp.zeros(2), zeros + 1, **arguments)


@pytest.mark.parametrize(("arguments", "message"), [({"keep": (5.0, 0.5)}, "low < high"), ({"cap": 0.0}, "positive")])
def test_wrong_truncation(arguments: dict[str, Any], message: str) -> None:
    zeros = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=message):
        importance_weights(zeros, zeros, zeros, **arguments)
