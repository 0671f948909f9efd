"""Policy objectives: golden losses and gradients, exact accumulation, hostile padding and wrong arguments."""

import functools
import inspect
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.objectives import importance_weights, policy_loss
from tests.rl.golden import ARRAYS, cases

GRPO: dict[str, Any] = {"aggregate": "sequence_mean", "clip_high": 0.2}
DAPO: dict[str, Any] = {"aggregate": "token_mean", "clip_high": 0.28}
RULES: dict[str, dict[str, Any]] = {
    "grpo": GRPO,
    "grpo_k3": GRPO | {"beta": 0.04},
    "bnpo": {"aggregate": "token_mean", "clip_high": 0.2},
    "dapo": DAPO,
    "dapo_k3": DAPO | {"beta": 0.04},
    "dr_grpo": {"aggregate": "constant", "clip_high": 0.2},
    "gspo": GRPO | {"level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "gspo_wide": GRPO | {"level": "sequence", "clip_low": 0.1, "clip_high": 0.15},
    "cispo": DAPO | {"surrogate": "cispo", "clip_low": 1.0},
    "sapo": GRPO | {"surrogate": "sapo"},
    "dual_clip": DAPO | {"dual_clip": 3.0},
    "two_sided_delta": DAPO | {"delta": 4.0},
    "dapo_tis_token": DAPO | {"weights": "token"},
    "dapo_tis_sequence": DAPO | {"weights": "sequence"},
    "dapo_tis_token_mask": DAPO | {"weights": "token_mask"},
}
TRUNCATIONS: dict[str, dict[str, Any]] = {
    "token": {"cap": 2.0},
    "sequence": {"cap": 2.0, "level": "sequence"},
    "token_mask": {"cap": None, "keep": (0.5, 5.0)},
}
LOSSES = cases("loss")
KEPT = [case for case in LOSSES if case[0] == "kept"]
weights_of = jax.jit(importance_weights, static_argnames=("level", "cap", "keep"))


def inputs(file: str, case: str, dtype: Any) -> dict[str, jax.Array]:
    names = ("logps", "old_logps", "ref_logps", "sampler_logps", "mask", "advantages")
    return {name: jnp.asarray(ARRAYS[file][f"{case}/{name}"], dtype) for name in names}


def value_and_grad(given: dict[str, jax.Array], **arguments: Any) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient with respect to the log-probabilities."""

    def loss(logps: jax.Array) -> jax.Array:
        total, count, _ = policy_loss(logps, given["old_logps"], given["advantages"], given["mask"], **arguments)
        return total / count

    return jax.jit(jax.value_and_grad(loss))(given["logps"])


def arguments_of(file: str, case: str, rule: str, library: str, given: dict[str, jax.Array]) -> dict[str, Any]:
    """A rule's arguments, with the arrays it needs; the two libraries differ on rows without a token."""
    arguments = RULES[rule] | {"empty_rows": "count" if library == "trl" else "skip"}
    if arguments.get("beta"):
        arguments["ref_logps"] = given["ref_logps"]
    if arguments["aggregate"] == "constant":
        arguments["max_length"] = int(ARRAYS[file][f"{case}/max_length"])
    if "weights" in arguments:
        truncation = TRUNCATIONS[arguments["weights"]]
        arguments["weights"] = weights_of(given["old_logps"], given["sampler_logps"], given["mask"], **truncation)
    return arguments


def libraries(file: str, case: str, rule: str) -> list[str]:
    return [name for name in ("trl", "verl") if f"{case}/loss/{rule}/value/{name}" in ARRAYS[file]]


def test_every_golden_rule_is_tried() -> None:
    assert {rule for _, _, rule in LOSSES} == set(RULES)


@pytest.mark.parametrize(("file", "case", "rule"), LOSSES)
def test_golden_loss_and_gradient(file: str, case: str, rule: str) -> None:
    for library in libraries(file, case, rule):
        expected = [ARRAYS[file][f"{case}/loss/{rule}/{kind}/{library}"] for kind in ("value", "grad")]
        with jax.enable_x64(True):
            given = inputs(file, case, jnp.float64)
            found = value_and_grad(given, **arguments_of(file, case, rule, library, given))
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-8, err_msg=library)


@pytest.mark.parametrize(("file", "case", "rule"), KEPT)
def test_golden_in_float32(file: str, case: str, rule: str) -> None:
    library = libraries(file, case, rule)[0]
    given = inputs(file, case, jnp.float32)
    value, gradient = value_and_grad(given, **arguments_of(file, case, rule, library, given))
    for mine, kind in ((value, "value"), (gradient, "grad")):
        expected = ARRAYS[file][f"{case}/loss/{rule}/{kind}/{library}"]
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize(("file", "case", "name"), cases("tis"))
def test_golden_importance_weights(file: str, case: str, name: str) -> None:
    with jax.enable_x64(True):
        given = inputs(file, case, jnp.float64)
        found = weights_of(given["old_logps"], given["sampler_logps"], given["mask"], **TRUNCATIONS[name])
    np.testing.assert_allclose(found, ARRAYS[file][f"{case}/tis/{name}/weights"], rtol=0, atol=1e-8)
    assert json.loads(str(ARRAYS[file][f"{case}/tis/{name}/hyper"]))


@pytest.mark.parametrize(
    ("case", "rule", "flipped"),
    [
        ("ragged", "dapo", {"clip_high": 0.2}),
        ("ragged", "dapo", {"clip_low": 0.28}),
        ("ragged", "grpo", {"aggregate": "token_mean"}),
        ("ragged", "gspo_wide", {"level": "token"}),
        ("ragged", "dapo_k3", {"kl_kind": "k1"}),
        ("ragged", "dapo_k3", {"beta": 0.05}),
        ("ragged", "dr_grpo", {"max_length": 10}),
        ("large_drift", "dual_clip", {"dual_clip": None}),
        ("large_drift", "two_sided_delta", {"delta": None}),
        ("empty_row", "grpo", {"empty_rows": "skip"}),
    ],
)
def test_a_flipped_argument_is_noticed(case: str, rule: str, flipped: dict[str, Any]) -> None:
    library = libraries("kept", case, rule)[0]
    with jax.enable_x64(True):
        given = inputs("kept", case, jnp.float64)
        value, _ = value_and_grad(given, **arguments_of("kept", case, rule, library, given) | flipped)
    expected = ARRAYS["kept"][f"{case}/loss/{rule}/value/{library}"]
    assert abs(np.asarray(value) - expected) > 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_micro_batches_add_up(rule: str) -> None:
    """Totals, counts and metric pairs of three parts of unequal token counts sum to those of the whole."""
    with jax.enable_x64(True):
        given = inputs("kept", "ragged", jnp.float64)
        arguments = arguments_of("kept", "ragged", rule, "verl", given)
        whole = loss_of(given, arguments)
        parts = [loss_of(*rows(given, arguments, slice(i, i + 4))) for i in (0, 4, 8)]
        summed = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    for mine, theirs in zip(summed[:2], whole[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    for name, pair in whole[2].items():
        if isinstance(pair, tuple):
            np.testing.assert_allclose(summed[2][name], pair, rtol=1e-12, atol=1e-12, err_msg=name)


@functools.cache
def compiled_loss(settings: tuple[tuple[str, Any], ...]) -> Any:
    """`policy_loss` with these settings, as one program."""
    return jax.jit(functools.partial(policy_loss, **dict(settings)))


def loss_of(given: dict[str, jax.Array], arguments: dict[str, Any]) -> Any:
    arrays = {name: value for name, value in arguments.items() if isinstance(value, jax.Array)}
    settings = tuple(sorted((name, value) for name, value in arguments.items() if name not in arrays))
    return compiled_loss(settings)(given["logps"], given["old_logps"], given["advantages"], given["mask"], **arrays)


def rows(given: dict[str, jax.Array], arguments: dict[str, Any], part: slice) -> tuple[Any, Any]:
    """The same rows of every array among inputs and arguments."""
    cut = {name: value[part] if isinstance(value, jax.Array) else value for name, value in arguments.items()}
    return {name: value[part] for name, value in given.items()}, cut


@pytest.mark.parametrize("hostile", [np.nan, np.inf, -np.inf, -1e30])
@pytest.mark.parametrize("rule", ["grpo_k3", "dr_grpo", "gspo", "cispo", "sapo", "dapo_tis_sequence"])
def test_padding_changes_nothing(rule: str, hostile: float) -> None:
    given = inputs("kept", "empty_row", jnp.float32)
    clean = value_and_grad(given, **arguments_of("kept", "empty_row", rule, "verl", given))
    valid = given["mask"] > 0
    dirty = {name: jnp.where(valid, array, hostile) for name, array in given.items() if array.ndim == 2}
    dirty |= {"mask": given["mask"], "advantages": given["advantages"]}
    value, gradient = value_and_grad(dirty, **arguments_of("kept", "empty_row", rule, "verl", dirty))
    assert value == clean[0] and np.array_equal(gradient, clean[1])
    assert np.all(np.asarray(gradient)[~np.asarray(valid)] == 0)


def test_a_batch_without_tokens_adds_nothing() -> None:
    zeros = jnp.zeros((2, 3))
    for aggregate in ("token_mean", "sequence_mean", "constant"):
        total, count, metrics = policy_loss(zeros, zeros, zeros[:, 0], zeros, aggregate=aggregate, max_length=3)
        assert total == 0 and count == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))


def test_far_policies_stay_finite() -> None:
    logps, old = jnp.full((1, 2), -300.0), jnp.zeros((1, 2))
    for drift in ((logps, old), (old, logps)):
        given = {
            "logps": drift[0],
            "old_logps": drift[1],
            "mask": jnp.ones((1, 2)),
            "advantages": jnp.array([-1.0]),
        }
        value, gradient = value_and_grad(given, ref_logps=drift[1], beta=0.1)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_metrics() -> None:
    """Ratios .5 (A < 0), 2 (A > 0), 2 (A < 0) and a masked 9, clip .2/.2: one low, one high, deviation 1."""
    logps = jnp.log(jnp.array([[0.5, 2.0, 2.0, 9.0]]))
    advantages = jnp.array([[-1.0, 1.0, -1.0, 1.0]])
    mask = jnp.array([[1.0, 1.0, 1.0, 0.0]])
    _, _, metrics = policy_loss(
        logps, jnp.zeros((1, 4)), advantages, mask, clip_high=0.2, entropies=jnp.arange(4.0)[None], ref_logps=logps
    )
    assert {name: (float(pair[0]), float(pair[1])) for name, pair in metrics.items() if "clip" in name} == {
        "clip_ratio/low_mean": (1, 3),
        "clip_ratio/high_mean": (1, 3),
        "clip_ratio/region_mean": (2, 3),
    }
    np.testing.assert_allclose(metrics["ratio_deviation/max"].value, 1, rtol=1e-6)
    assert tuple(map(float, metrics["entropy"])) == (3, 3) and tuple(map(float, metrics["kl"])) == (0, 3)


def test_on_policy_ratio_is_one_and_the_gradient_is_reinforce() -> None:
    given = inputs("kept", "ragged", jnp.float32)
    given["old_logps"] = given["logps"]
    _, gradient = value_and_grad(given, aggregate="token_mean")
    expected = -given["advantages"][:, None] * given["mask"] / given["mask"].sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert loss_of(given, {})[2]["ratio_deviation/max"].value == 0


def test_entropy_bonus_pushes_entropy_up() -> None:
    zeros, mask = jnp.zeros((2, 3)), jnp.ones((2, 3))

    def loss(entropies: jax.Array) -> jax.Array:
        total, count, _ = policy_loss(zeros, zeros, zeros[:, 0], mask, entropies=entropies, entropy_coef=0.01)
        return total / count

    np.testing.assert_allclose(jax.grad(loss)(jnp.ones((2, 3))), -0.01 / 6, rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 0.001, 0.0), (0.0, 0.0, 0.02), (0.5, 0.001, 0.02)])
def test_each_term_has_its_own_coefficient(weights: tuple[float, float, float]) -> None:
    """Total and gradient are the sum of the three terms alone, each by its weight; metrics are without the weights."""
    given = inputs("kept", "ragged", jnp.float32)
    entropies = -given["logps"]

    def terms(policy_coef: float, beta: float, entropy_coef: float) -> tuple[jax.Array, jax.Array, jax.Array]:
        def loss(logps: jax.Array, entropies: jax.Array) -> tuple[jax.Array, Any]:
            named = dict(policy_coef=policy_coef, beta=beta, entropy_coef=entropy_coef, aggregate="token_mean")
            fixed = (given["old_logps"], given["advantages"], given["mask"])
            more = dict(ref_logps=given["ref_logps"], entropies=entropies)
            total, count, metrics = policy_loss(logps, *fixed, **more, **named)
            return total / count, (metrics["policy_loss"], metrics["kl"], metrics["entropy"])

        (value, metrics), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(given["logps"], entropies)
        return jnp.concatenate([value[None], *map(jnp.ravel, gradients)]), metrics

    alone = [terms(*row)[0] for row in np.eye(3).tolist()]
    found, metrics = terms(*weights)
    wanted = sum(weight * term for weight, term in zip(weights, alone, strict=True))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, metrics, terms(1.0, 1.0, 1.0)[1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy_coef": -0.5}, "policy_coef must be at least 0, found -0.5"),
        ({"policy_coef": float("nan")}, "policy_coef must be at least 0, found nan"),
        ({"aggregate": "token"}, "Did you mean 'token_mean'"),
        ({"level": "tokens"}, "Did you mean 'token'"),
        ({"surrogate": "cipso"}, "Did you mean 'cispo'"),
        ({"empty_rows": "skipp"}, "Did you mean 'skip'"),
        ({"aggregate": "constant"}, "max_length"),
        ({"beta": 0.1}, "ref_logps"),
        ({"entropy_coef": 0.1}, "entropies"),
        ({"kl_kind": "k4", "ref_logps": jnp.zeros((2, 3))}, "k3"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(2), jnp.ones((2, 3)), **arguments)


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match="found"):  # without the tests' own check of shapes
        inspect.unwrap(policy_loss)(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(3), jnp.ones((2, 3)))
