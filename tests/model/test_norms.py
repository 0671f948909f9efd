"""Norms are their definitions, in fp32 whatever the dtype."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from model.norms import layer_norm, rms_norm

X = np.random.default_rng(0).normal(1.0, 2.0, (3, 8)).astype(np.float32)
SCALE, BIAS, EPS = np.linspace(0.5, 2, 8, dtype=np.float32), np.linspace(-1, 1, 8, dtype=np.float32), 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_are_their_definitions(dtype: str) -> None:
    x = jnp.asarray(X, dtype)
    wide = np.asarray(x, np.float32)
    root = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + EPS) * SCALE
    centred = wide - wide.mean(-1, keepdims=True)
    layer = centred / np.sqrt(wide.var(-1, keepdims=True) + EPS) * SCALE + BIAS
    tolerance = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    scale, bias = jnp.asarray(SCALE), jnp.asarray(BIAS)
    for found, want in ((rms_norm(x, scale, EPS), root), (layer_norm(x, scale, bias, EPS), layer)):
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, np.float32), want, rtol=tolerance, atol=tolerance)
