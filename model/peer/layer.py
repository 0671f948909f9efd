"""The PEER feed-forward slot, and its rules after a training step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.hooks import hook_point
from model.peer.banks import STATISTICS, bank_leaves, bank_name
from model.peer.experts import Arrays, tap_shapes
from model.peer.retrieval import retrieve
from model.reports import Reports


class PEER(nn.Module):
    """The sum of its banks of experts; a plain model has one, `grow_experts` adds more and freezes those before."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, train: bool = False) -> tuple[jax.Array, Reports]:
        """x [B, S, D], segments [B, S] (0: padding) -> (y [B, S, D], sums over the newest bank)."""
        tokens, valid = x.reshape(-1, x.shape[-1]), segments.reshape(-1) > 0
        last = len(self.config.peer.banks)
        total = jnp.zeros_like(tokens)
        sums: Arrays = {}
        for i in range(last + 1):
            tap = self._tap(tokens.shape[0]) if i == last else None
            y, sums, indices = retrieve(self._bank(i, i == last), tokens, valid, self.config, train and i == last, tap)
            total = total + y
        hook_point(self, "peer.indices", indices.reshape(*x.shape[:2], *indices.shape[1:]))
        return total.reshape(x.shape), Reports(sums=sums)

    def _bank(self, index: int, live: bool) -> Arrays:
        """The arrays of one bank by their own names; a frozen bank lies in "state", where nothing moves it."""
        store, bank = jnp.dtype(self.config.param_dtype), {}
        for name, (init, axes, shape) in bank_leaves(self.config, index).items():
            boxed, full = nn.with_logical_partitioning(init, axes), bank_name(name, index)
            if live and name not in STATISTICS:
                bank[name] = self.param(full, boxed, shape, store)
            else:
                kind = jnp.float32 if name in STATISTICS else store
                make = functools.partial(self._state_leaf, boxed, shape, kind)
                bank[name] = self.variable("state", full, make).value
        return bank

    def _state_leaf(self, init: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> Any:
        return init(self.make_rng("params"), shape, dtype)

    def _tap(self, tokens: int) -> Arrays | None:
        if not self.has_variable("taps", "indices"):
            return None
        tap = {name: self.get_variable("taps", name) for name in tap_shapes(self.config, tokens)}
        if tap["indices"].shape[0] != tokens:
            tapped = tap["indices"].shape[0]
            raise ValueError(f"a tap made for {tapped} tokens, but the layer sees {tokens}: one tap per call of apply")
        return tap


def update_state(state: Arrays, sums: Arrays, config: ModelConfig) -> Arrays:
    """The running statistics of one layer after a step, from sums over all its tokens (torch's BatchNorm1d).

    `state` holds `mean` and `var` of the newest bank among others, `sums` what the layer reported; the running
    variance is the unbiased one.
    """
    last = len(config.peer.banks)
    mean_name, var_name = (bank_name(name, last) for name in STATISTICS)
    if mean_name not in state:
        return state
    n, keep = sums["peer_tokens"], config.peer.momentum
    moved = sums["query"] / jnp.maximum(n, 1)
    mean = state[mean_name] + moved
    var = (sums["query_sq"] - n * moved**2) / jnp.maximum(n - 1, 1)

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(n > 1, keep * old + (1 - keep) * new, old)

    return state | {mean_name: blend(state[mean_name], mean), var_name: blend(state[var_name], jnp.maximum(var, 0))}


def metrics(sums: Arrays, config: ModelConfig) -> Arrays:
    """Section 3.4: the share of experts used at all, and log N + Σ z log z (0: all alike); means over layers."""
    del config
    score = sums["usage"].reshape(-1, sums["usage"].shape[-1])
    z = score / jnp.maximum(score.sum(-1, keepdims=True), 1e-30)
    unevenness = math.log(score.shape[-1]) + jax.scipy.special.xlogy(z, z).sum(-1)
    return {"peer/usage": (score != 0).mean(), "peer/unevenness": unevenness.mean()}
