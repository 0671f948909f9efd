"""The reference's renewal and the entropy coefficient's rule, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rl.control import adapt_entropy_coef, gated_entropy_coef, sync_reference

REFERENCE = {"w": jnp.full((2,), 4.0), "count": jnp.array([1])}
PARAMS = {"w": jnp.full((2,), 8.0), "count": jnp.array([7])}


def test_it_is_renewed_every_so_many_updates() -> None:
    found = [float(sync_reference(REFERENCE, PARAMS, step, 3, 0.25)["w"][0]) for step in range(7)]
    assert found == [4, 4, 4, 5, 4, 4, 5]
    assert sync_reference(REFERENCE, PARAMS, 2, 3) is REFERENCE
    assert sync_reference(REFERENCE, PARAMS, 3, 0) is REFERENCE


def test_a_traced_step_does_the_same() -> None:
    traced = jax.jit(lambda step: sync_reference(REFERENCE, PARAMS, step, 2, 0.5))
    for step in range(5):
        expected = sync_reference(REFERENCE, PARAMS, step, 2, 0.5)
        assert jax.tree.all(jax.tree.map(np.array_equal, traced(step), expected))


def test_a_copy_outlives_donated_parameters() -> None:
    params = {"w": jnp.ones((2,))}
    reference = sync_reference({"w": jnp.full((2,), jnp.nan)}, params, 1, 1)
    params["w"].delete()
    assert reference["w"].tolist() == [1, 1]


def test_integers_are_copied_and_types_kept() -> None:
    reference = {"w": jnp.zeros((2,), jnp.bfloat16), "count": jnp.array([1])}
    found = sync_reference(reference, PARAMS, 1, 1, 0.5)
    assert found["w"].dtype == jnp.bfloat16 and found["w"].tolist() == [4, 4] and found["count"].tolist() == [7]


def test_many_syncs_are_an_exponential_mean() -> None:
    reference, values = jnp.float32(0), np.random.default_rng(0).normal(size=20).astype(np.float32)
    for step, value in enumerate(values, 1):
        reference = sync_reference(reference, jnp.asarray(value), step, 1, 0.3)
    expected = sum(0.3 * 0.7 ** (19 - i) * value for i, value in enumerate(values))
    np.testing.assert_allclose(reference, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("every", "alpha", "message"),
    [(-1, 1.0, "sync_every must be .* found -1"), (2, 0.0, "alpha must lie .* found 0.0"), (2, 1.5, "alpha")],
)
def test_wrong_intervals(every: int, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sync_reference(REFERENCE, PARAMS, 0, every, alpha)


def test_the_entropy_coefficient_moves_towards_the_target() -> None:
    coef, seen = jnp.float32(0), []
    for entropy in (0.5, 0.1, 0.1, 0.2, 0.5, 0.5, 0.5, 0.5, float("nan")):
        coef = adapt_entropy_coef(coef, entropy, 0.2)
        seen.append(round(float(coef), 6))
    assert seen == [0, 0.005, 0.01, 0.015, 0.01, 0.005, 0, 0, 0]


def test_the_entropy_coefficient_stays_within_bounds() -> None:
    assert adapt_entropy_coef(0.019, 0.0, 0.2, 0.005, high=0.02) == jnp.float32(0.02)
    assert adapt_entropy_coef(0.011, 1.0, 0.2, 0.005, low=0.01) == jnp.float32(0.01)


def test_the_bonus_acts_at_or_below_the_target() -> None:
    assert [float(gated_entropy_coef(0.5, entropy, 0.2)) for entropy in (0.1, 0.2, 0.3)] == [0.5, 0.5, 0]
