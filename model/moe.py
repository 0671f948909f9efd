"""The mixture-of-experts feed-forward (DeepSeek-V3, 2412.19437 section 2.1; Mixtral; Qwen-MoE; expert choice)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model import routing
from model.config import ModelConfig, MoEConfig
from model.expert_parallel import dispatch
from model.ffn import FeedForward, Gating, gated, gating_of
from model.hooks import hook_point
from model.initial import weights
from model.precision import PRECISIONS, dot, ragged_dot
from model.reports import Reports
from model.sharding import constrain


class MoE(nn.Module):
    """Routed experts, and shared ones that see every token; a slot like `FeedForward`."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array | None = None,
        train: bool = False,
        routes: jax.Array | None = None,
    ) -> tuple[jax.Array, Reports]:
        """x [B, S, D], segments [B, S] (0: padding, sent nowhere and never counted) -> (y [B, S, D], reports).

        `routes` [B, S, k] are the experts to take; None leaves the choice to the router.

        Reported: the losses `balance` and `router_z` where they weigh anything, weighted; the sums over the tokens
        `load` [E], `tokens`, `dropped` (pairs of token and expert), `router_entropy`; and, of tokens that choose
        experts in a plain stack, the routes [B, S, k]: the experts taken.
        """
        del train
        m = self.config.moe
        valid = jnp.ones(x.shape[:2], bool) if segments is None else segments > 0
        bias = self._selection_bias() if m.balance == "bias" else None
        logits = routing.router_logits(x, self._matrix("router", ("embed", "choices")))
        if m.router_bias:
            logits = logits + self._zeros("router_bias", ("choices",)).astype(jnp.float32)
        scores = hook_point(self, "router.scores", routing.router_scores(logits, m.score))
        if m.router == "expert_choice":
            y, picked, dropped, taken = *self._to_tokens(x, scores, valid), None
        else:
            y, picked, dropped, taken = self._to_experts(x, scores, bias, valid, routes)
        y = constrain(y.astype(x.dtype), "batch", "length", "act_embed") + self._shared(x)
        # The iterations of a recurrent core would leave one for each.
        taken = None if self.config.depth == "recurrent" else taken
        return y, dataclasses.replace(report(logits, scores, picked, valid, dropped, m), routes=taken)

    def _to_experts(
        self, x: jax.Array, scores: jax.Array, bias: Any, valid: jax.Array, replayed: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        m = self.config.moe
        routes = routing.choose_tokens(scores, bias, valid, m, replayed)
        y, dropped = self._dispatch(x, routes)
        return y, routing.chosen(routes.experts, m.n_experts), dropped, routes.experts

    def _to_tokens(self, x: jax.Array, scores: jax.Array, valid: jax.Array) -> tuple[jax.Array, ...]:
        m, flat = self.config.moe, x.reshape(-1, x.shape[-1])
        tokens, routes = routing.choose_experts(scores.reshape(-1, m.n_experts), valid.reshape(-1), m)
        rows, routes = flat[tokens][:, None], jax.tree.map(lambda part: part[:, None], routes)
        y, dropped = self._dispatch(rows, routes)
        y = jnp.zeros(flat.shape, jnp.float32).at[tokens].add(y[:, 0])
        picked = jnp.zeros((flat.shape[0], m.n_experts + 1)).at[tokens, routes.experts[:, 0, 0]].add(1.0)
        return y.reshape(x.shape), picked[:, :-1].reshape(scores.shape), dropped

    def _shared(self, x: jax.Array) -> jax.Array:
        c = self.config
        if not c.moe.shared_width(c.d_ff):
            return jnp.zeros_like(x)
        y, _ = FeedForward(c, gated=True, width=c.moe.shared_width(c.d_ff), name="shared")(x)
        if c.moe.shared_gate:
            y = y * jax.nn.sigmoid(x @ self._matrix("shared_gate", ("embed",)).astype(x.dtype))[..., None]
        return y

    def _dispatch(self, x: jax.Array, routes: routing.Routes) -> tuple[jax.Array, jax.Array]:
        c, m = self.config, self.config.moe
        expert = functools.partial(glu, gating=gating_of(c), precision=c.precision)
        quantized = PRECISIONS[c.precision].quantized
        return dispatch(m.dispatch, expert, self._weights(), x, routes, m.capacity_factor, whole=quantized)

    def _weights(self) -> dict[str, jax.Array]:
        c, out = self.config, self.config.residual_std
        weights = {
            "gate": self._matrix("gate", ("experts", "expert_embed", "mlp")),
            "up": self._matrix("up", ("experts", "expert_embed", "mlp")),
            "down": self._matrix("down", ("experts", "mlp", "expert_embed"), out),
        }
        if c.mlp_bias:
            weights |= {f"{name}_bias": self._zeros(f"{name}_bias", ("experts", "mlp")) for name in ("gate", "up")}
            weights["down_bias"] = self._zeros("down_bias", ("experts", "expert_embed"))
        # FP8 rounds the stored weights; all else is cheaper to move once it is small.
        return weights if PRECISIONS[c.precision].quantized else {n: w.astype(c.dtype) for n, w in weights.items()}

    def _matrix(self, name: str, axes: tuple[str, ...], std: float | None = None) -> jax.Array:
        return self._parameter(name, axes, weights(self.config, std))

    def _zeros(self, name: str, axes: tuple[str, ...]) -> jax.Array:
        return self._parameter(name, axes, nn.initializers.zeros)

    def _parameter(self, name: str, axes: tuple[str, ...], init: nn.initializers.Initializer) -> jax.Array:
        c = self.config
        sizes = {"experts": c.moe.n_experts, "embed": c.d_model, "mlp": c.moe.expert_width(c.d_ff)}
        sizes |= {"choices": c.moe.n_experts, "expert_embed": c.d_model}
        boxed = nn.with_logical_partitioning(init, axes)
        return self.param(name, boxed, tuple(sizes[axis] for axis in axes), jnp.dtype(c.param_dtype))

    def _selection_bias(self) -> jax.Array:
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("experts",))
        return self.variable("state", "bias", zeros, None, (self.config.moe.n_experts,), jnp.float32).value


def glu(
    weights: dict[str, jax.Array],
    rows: jax.Array,
    gating: Gating,
    precision: str,
    sizes: jax.Array | None = None,
    over: tuple[str, ...] = (),
) -> jax.Array:
    """down(act(gate x) * up x): one expert on rows [R, D], or with `sizes` [E] all experts on rows sorted by expert.

    Biases are added where there are any. Inside `shard_map`, D may be split over the mesh axes `over`, of rows and
    weights alike.
    """

    def product(x: jax.Array, name: str) -> jax.Array:
        w = weights[name]
        return dot(x, w, precision) if sizes is None else ragged_dot(x, w, sizes, precision)

    def shifted(y: jax.Array, name: str) -> jax.Array:
        bias = weights.get(f"{name}_bias")
        if bias is None:
            return y
        bias = bias if sizes is None else jnp.repeat(bias, sizes, axis=0, total_repeat_length=len(y))
        return y + bias.astype(y.dtype)

    def into(name: str) -> jax.Array:
        if not over:
            return shifted(product(rows, name), name)
        part = jnp.matmul(rows, weights[name].astype(rows.dtype), preferred_element_type=jnp.float32)
        return shifted(jax.lax.psum(part, over).astype(rows.dtype), name)

    return shifted(product(gated(into("gate"), into("up"), gating), "down"), "down")


def report(
    logits: jax.Array, scores: jax.Array, picked: jax.Array, valid: jax.Array, dropped: jax.Array, m: MoEConfig
) -> Reports:
    """The losses and sums that `MoE` reports: logits, scores and picked [B, S, E], valid [B, S]."""
    shares = routing.shares(scores, m.score)
    counted = jax.lax.stop_gradient(jnp.where(valid, routing.entropy(shares), 0.0))
    losses, sums = (
        {},
        {
            "load": jax.lax.stop_gradient(picked.sum((0, 1))),
            "tokens": valid.sum().astype(jnp.float32),
            "dropped": dropped.astype(jnp.float32),
            "router_entropy": counted.sum(),
        },
    )
    if m.loss_weight:
        per = "batch" if m.balance == "batch" else "sequence"
        losses["balance"] = m.loss_weight * routing.balance_loss(shares, picked, valid, m.top_k, per)
    if m.z_weight:
        losses["router_z"] = m.z_weight * routing.z_loss(logits, valid)
    return Reports(losses, sums)


REPORTS = ("load", "tokens", "dropped", "router_entropy")


def update_state(state: dict[str, jax.Array], sums: dict[str, jax.Array], config: ModelConfig) -> dict[str, jax.Array]:
    """The selection bias of one layer after a step, from the load [E] of the whole global batch."""
    if "bias" not in state:
        return state
    return state | {"bias": routing.move_bias(state["bias"], sums["load"], config.moe.bias_rate)}


def metrics(sums: dict[str, jax.Array], config: ModelConfig) -> dict[str, jax.Array]:
    """Scalars from sums [L, ...]: the largest load over the mean, minus 1, as mean over layers and of the worst layer;
    the entropy of the load, 1 when even; that of a token's scores, in nats; the share of assignments dropped.
    """
    load = sums["load"].reshape(-1, config.moe.n_experts)
    total = jnp.maximum(load.sum(-1, keepdims=True), 1.0)
    violation = routing.max_violation(load)
    return {
        "moe/max_violation": violation.mean(),
        "moe/max_violation_worst": violation.max(),
        "moe/load_entropy": routing.entropy(load / total).mean() / math.log(max(config.moe.n_experts, 2)),
        "moe/router_entropy": sums["router_entropy"].sum() / jnp.maximum(sums["tokens"].sum(), 1.0),
        "moe/dropped": sums["dropped"].sum() / jnp.maximum(load.sum(), 1.0),
    }
