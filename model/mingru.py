"""minGRU and minLSTM (2410.01201): recurrent mixers whose gates see the input alone, so that all steps run at once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.context import Context
from model.convolution import Pair, boundaries, causal_convolution
from model.hooks import hook_point
from model.initial import weights
from model.linear import linear
from model.recurrence import linear_recurrence, log_recurrence
from model.sharding import constrain

State = dict[str, jax.Array]

GATES = {"gru": 1, "lstm": 2}


def positive(x: jax.Array) -> jax.Array:
    """g of 2410.01201, appendix B: x + 1/2 for x >= 0, else sigmoid(x); positive and continuous."""
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


def log_positive(x: jax.Array) -> jax.Array:
    """log g(x) without the underflow of g."""
    return jnp.where(x >= 0, jnp.log(jax.nn.relu(x) + 0.5), jax.nn.log_sigmoid(x))


def gate_logits(cell: str, gates: list[jax.Array], normalize: bool = True, forget_bias: float = 0.0) -> Pair:
    """The logits of what is kept of the state and of what is taken of the candidate, each [B, S, E].

    cell "gru": keep 1 - z and take z. "lstm": f / (f + i) and i / (f + i) if `normalize`, else f and i themselves;
    `forget_bias` is added to f's logit. Source: 2410.01201, sections 3.1 and 3.2, appendix B.
    """
    if cell == "gru":
        (z,) = gates
        return -z, z
    f, i = gates[0] + forget_bias, gates[1]
    if not normalize:
        return f, i
    lead = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
    return lead, -lead


def hidden_states(
    candidate: jax.Array,
    logits: Pair,
    space: str,
    start: jax.Array,
    fresh: jax.Array,
    real: jax.Array,
    first: jax.Array,
) -> jax.Array:
    """h_t = keep_t h_{t-1} + take_t g(candidate_t), all [B, S, E] -> [B, S, E] fp32, h linear in both spaces.

    `start` [B, E] is the state before the first column and `first` [E] the one before the first token of a segment,
    which `fresh` [B, S] marks; columns that are not `real` [B, S] leave the state alone.
    """
    candidate, keep, take = (part.astype(jnp.float32) for part in (candidate, *logits))
    fresh, real = fresh[..., None], real[..., None]
    if space == "linear":
        a, b = jax.nn.sigmoid(keep), jax.nn.sigmoid(take) * positive(candidate)
        b = jnp.where(real, jnp.where(fresh, a * first + b, b), 0.0)
        return linear_recurrence(jnp.where(real, jnp.where(fresh, 0.0, a), 1.0), b, start)
    a, b = jax.nn.log_sigmoid(keep), jax.nn.log_sigmoid(take) + log_positive(candidate)
    b = jnp.where(real, jnp.where(fresh, jnp.logaddexp(a + _safe_log(first), b), b), -jnp.inf)
    return jnp.exp(log_recurrence(jnp.where(real, jnp.where(fresh, -jnp.inf, a), 0.0), b, _safe_log(start)))


def _safe_log(x: jax.Array) -> jax.Array:
    """log x, -inf at 0 with a gradient of 0 there instead of NaN."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)


class MinRNN(nn.Module):
    """Declares the projections of one layer and calls the functions above.

    The state has width E = expansion x d_model; the projection `out` back to d_model is there only if E != d_model.
    """

    config: ModelConfig
    cell: str

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, window: int | None, state: State | None
    ) -> tuple[jax.Array, Any]:
        """x [B, S, D], state as `rnn_state` makes it or None -> (y [B, S, D], new state); `window` is unused."""
        c, rnn = self.config, self.config.rnn
        held = rnn_state(c, x.shape[0], 0, x.dtype) if state is None else state
        fresh, last = boundaries(context.segments, held["segment"])
        new = {"segment": last}
        if rnn.conv:
            kernel = self._parameter("conv", (rnn.conv, c.d_model), ("conv", "embed"), rnn.conv**-0.5)
            bias = self._parameter("conv_bias", (c.d_model,), ("embed",))
            mixed, new["conv"] = causal_convolution(
                x, kernel.astype(x.dtype), bias.astype(x.dtype), context.segments, held["segment"], held["conv"]
            )
            x = x + mixed
        candidate, *gates = self._project(x)
        logits = gate_logits(self.cell, gates, rnn.coefficient_norm, rnn.forget_bias)
        first = jnp.zeros((width(c),), jnp.float32)
        if rnn.learned_start:
            first = positive(self._parameter("start", first.shape, ("mlp",)).astype(jnp.float32))
        h = hidden_states(candidate, logits, rnn.space, held["h"], fresh, context.segments > 0, first)
        h = hook_point(self, "rnn.state", h)
        new["h"] = h[:, -1]
        y = self._output(constrain(h.astype(x.dtype), "batch", "length", "act_mlp"))
        return y, None if state is None else new

    def _parameter(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float = 0.0) -> jax.Array:
        init = weights(self.config, std) if std else nn.initializers.zeros
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.dtype(self.config.param_dtype))

    def _project(self, x: jax.Array) -> list[jax.Array]:
        """The candidate and the gates' logits, fp32 [B, S, E] each."""
        c, E, gates = self.config, width(self.config), 1 + GATES[self.cell]
        kernel = self._parameter("in", (c.d_model, gates, E), ("embed", "gates", "mlp"), c.init_std)
        # One product per gate: a product over gates and channels together could not be split by channels.
        parts = [linear(x, kernel[:, g], ("embed", "mlp"), c.precision).astype(jnp.float32) for g in range(gates)]
        if c.rnn.bias:
            bias = self._parameter("in_bias", (gates, E), ("gates", "mlp"))
            parts = [part + row for part, row in zip(parts, bias.astype(jnp.float32), strict=True)]
        return [constrain(part, "batch", "length", "act_mlp") for part in parts]

    def _output(self, h: jax.Array) -> jax.Array:
        c, E = self.config, width(self.config)
        if c.d_model == E:
            return h
        kernel = self._parameter("out", (E, c.d_model), ("mlp", "embed"), c.residual_std)
        y = linear(h, kernel, ("mlp", "embed"), c.precision)
        return y + self._parameter("out_bias", (c.d_model,), ("embed",)).astype(y.dtype) if c.rnn.bias else y


MinGRU = functools.partial(MinRNN, cell="gru")
MinLSTM = functools.partial(MinRNN, cell="lstm")


def width(config: ModelConfig) -> int:
    """Channels of the recurrent state, E."""
    return round(config.rnn.expansion * config.d_model)


def rnn_state(config: ModelConfig, batch: int, length: int, dtype: Any) -> State:
    """Empty state of one layer: `h` [B, E] fp32, the `segment` [B] it belongs to, `conv` [B, W - 1, D] inputs."""
    del length
    h = constrain(jnp.zeros((batch, width(config)), jnp.float32), "batch", "act_mlp")
    state = {"h": h, "segment": constrain(jnp.zeros((batch,), jnp.int32), "batch")}
    if config.rnn.conv:
        tail = jnp.zeros((batch, config.rnn.conv - 1, config.d_model), dtype)
        state["conv"] = constrain(tail, "batch", None, "act_embed")
    return state


def rnn_rotary(config: ModelConfig) -> int:
    """No dimension is rotated: the recurrence knows the order of tokens by itself."""
    del config
    return 0
