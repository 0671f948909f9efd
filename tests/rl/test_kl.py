"""KL estimators: golden values and gradients, and the properties that tell them apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.kl import KINDS, kl
from tests.rl.golden import ARRAYS, cases


@functools.partial(jax.jit, static_argnums=2)
def value_and_gradient(logps: jax.Array, ref: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    return kl(logps, ref, kind), jax.grad(lambda x: kl(x, ref, kind).sum())(logps)


@pytest.mark.parametrize(("file", "case", "kind"), cases("kl"))
def test_golden_value_and_gradient(file: str, case: str, kind: str) -> None:
    arrays = ARRAYS[file]
    with jax.enable_x64(True):
        logps, ref = jnp.asarray(arrays[f"{case}/logps"]), jnp.asarray(arrays[f"{case}/ref_logps"])
        value, gradient = value_and_gradient(logps, ref, kind)
    np.testing.assert_allclose(value, arrays[f"{case}/kl/{kind}/value"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(gradient, arrays[f"{case}/kl/{kind}/grad"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_one_policy_has_no_divergence(kind: str) -> None:
    logps = jnp.linspace(-9.0, -0.1, 12)
    assert np.all(kl(logps, logps, kind) == 0)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_unbiased_under_the_policy(kind: str) -> None:
    """The expectation of k1 and of k3, taken exactly over a small vocabulary, is the KL."""
    policy, reference = (jax.nn.log_softmax(jax.random.normal(jax.random.key(i), (7,))) for i in range(2))
    expected = jnp.sum(jnp.exp(policy) * (policy - reference))
    np.testing.assert_allclose(jnp.sum(jnp.exp(policy) * kl(policy, reference, kind)), expected, rtol=1e-5)


def test_far_apart_policies_stay_finite() -> None:
    far = jnp.array([-200.0, -1.0]), jnp.array([-1.0, -200.0])
    value, gradient = jax.value_and_grad(lambda x: kl(x, far[1], "k3").sum())(far[0])
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_reference_gets_no_gradient() -> None:
    gradient = jax.grad(lambda ref: kl(jnp.array([-1.0]), ref, "k2").sum())(jnp.array([-2.0]))
    assert gradient == 0


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="k3_straight_through"):
        kl(jnp.zeros(2), jnp.zeros(2), "k3_straight")
