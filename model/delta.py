"""Gated DeltaNet (2412.06464) as Qwen3-Next has it: a short convolution, the gated delta rule, and an output that is
normalised and gated head by head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.context import Context
from model.convolution import boundaries, causal_convolution
from model.delta_rule import Steps, gated_delta_rule
from model.initial import weights
from model.linear import linear
from model.norms import Norm
from model.sharding import constrain

State = dict[str, jax.Array]
UNIT_EPS = 1e-6  # added to the square of a key's or a query's length


class Sizes(NamedTuple):
    """Heads of keys and queries, values' heads that share one of them, and the widths of keys and of values."""

    heads: int
    group: int
    key: int
    value: int

    @property
    def mixed(self) -> int:
        """Channels of one key head that the convolution sees: its query, its key and its values."""
        return 2 * self.key + self.group * self.value


def sizes_of(config: ModelConfig) -> Sizes:
    """The sizes that `delta` says or leaves to the model; ValueError where values' heads share no keys evenly."""
    d = config.delta.filled(config.n_heads, config.head_dim)
    return Sizes(d.key_heads, d.value_heads // d.key_heads, d.key_dim, d.value_dim)


class GatedDelta(nn.Module):
    """Declares the projections of one layer and calls the functions above.

    A key head's query, key, values and output gates lie together in `qkvz`, its rates and decays in `ba`, as in
    Qwen3-Next; `conv` has its channels as files have them: all queries, all keys, all values.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, window: int | None, state: State | None
    ) -> tuple[jax.Array, Any]:
        """x [B, S, D], state as `delta_state` makes it or None -> (y [B, S, D], new state); `window` is unused."""
        c, s = self.config, sizes_of(self.config)
        held = delta_state(c, x.shape[0], 0, x.dtype) if state is None else state
        fresh, last = boundaries(context.segments, held["segment"])
        both = self._project(x, "qkvz", s.mixed + s.group * s.value)
        mixed, gates = both[..., : s.mixed], both[..., s.mixed :]
        mixed, tail = causal_convolution(
            mixed.reshape(*x.shape[:2], -1),
            self._kernel(),
            jnp.zeros((), x.dtype),
            context.segments,
            held["segment"],
            held["conv"],
        )
        q, k, v = _split(jax.nn.silu(mixed).reshape(*x.shape[:2], s.heads, -1), s)
        decay, rate = self._rates(x, context.segments > 0)
        steps = Steps(unit(q) * s.key**-0.5, unit(k), v, decay, rate, fresh)
        y, matrix = gated_delta_rule(steps, held["state"], c.delta.chunk)
        new = {"state": matrix, "segment": last, "conv": tail}
        return self._output(y, gates), None if state is None else new

    def _parameter(
        self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init: nn.initializers.Initializer
    ) -> jax.Array:
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.dtype(self.config.param_dtype))

    def _project(self, x: jax.Array, name: str, width: int) -> jax.Array:
        """x [B, S, D] -> [B, S, K, width]."""
        c, heads = self.config, sizes_of(self.config).heads
        kernel = self._parameter(name, (c.d_model, heads, width), ("embed", "heads", "head_dim"), weights(c))
        y = linear(x, kernel.reshape(c.d_model, heads * width), ("embed", "heads"), c.precision)
        return constrain(y.reshape(*x.shape[:2], heads, width), "batch", "length", "act_heads", None)

    def _kernel(self) -> jax.Array:
        """The convolution's kernel [W, channels], its channels head by head."""
        c, s = self.config, sizes_of(self.config)
        taps, keys = c.delta.conv, s.heads * s.key
        init = nn.initializers.normal(taps**-0.5)
        kernel = self._parameter("conv", (taps, s.heads * s.mixed), ("conv", "channels"), init).astype(c.dtype)
        parts = jnp.split(kernel, (keys, 2 * keys), -1)
        return jnp.concatenate([part.reshape(taps, s.heads, -1) for part in parts], -1).reshape(taps, -1)

    def _rates(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The logarithm of what a column keeps of the state and the rate of its correction, [B, K, G, S] fp32 each:
        everything and 0 in columns that are not `real` [B, S].
        """
        s = sizes_of(self.config)
        rate, step = jnp.split(self._project(x, "ba", 2 * s.group).astype(jnp.float32), 2, -1)
        shape = (s.heads * s.group,)
        speed = self._parameter("a_log", shape, ("heads",), log_speeds).astype(jnp.float32)
        bias = self._parameter("dt_bias", shape, ("heads",), step_biases).astype(jnp.float32)
        speed, bias = (part.reshape(s.heads, s.group) for part in (speed, bias))
        decay = -jnp.exp(speed) * jax.nn.softplus(step + bias)
        kept = (jnp.where(real[..., None, None], part, 0.0) for part in (decay, jax.nn.sigmoid(rate)))
        decay, rate = (jnp.moveaxis(part, 1, 3) for part in kept)
        return decay, rate

    def _output(self, y: jax.Array, gates: jax.Array) -> jax.Array:
        """y [B, K, G, S, V] fp32 and gates [B, S, K, G V] -> [B, S, D]."""
        c, s = self.config, sizes_of(self.config)
        gates = gates.reshape(*gates.shape[:3], s.group, s.value)
        y = Norm("rmsnorm", c.norm_eps, "norm", c.param_dtype, name="norm")(jnp.moveaxis(y, 3, 1).astype(c.dtype))
        y = y.astype(jnp.float32) * jax.nn.silu(gates.astype(jnp.float32))
        shape, axes = (s.heads * s.group, s.value, c.d_model), ("heads", "head_dim", "embed")
        kernel = self._parameter("out", shape, axes, weights(c, c.residual_std))
        joined = constrain(y.astype(c.dtype), "batch", "length", "act_heads", None, None)
        joined = joined.reshape(*gates.shape[:2], -1)
        return linear(joined, kernel.reshape(-1, c.d_model), ("heads", "embed"), c.precision)


def _split(mixed: jax.Array, s: Sizes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B, S, K, 2 D + G V] -> q, k [B, K, S, D] and v [B, K, G, S, V], fp32."""
    mixed = jnp.moveaxis(mixed.astype(jnp.float32), 1, 2)
    q, k, v = jnp.split(mixed, (s.key, 2 * s.key), -1)
    return q, k, jnp.moveaxis(v.reshape(*v.shape[:3], s.group, s.value), 3, 2)


def unit(x: jax.Array) -> jax.Array:
    """x [..., D] divided by its length."""
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + UNIT_EPS)


def log_speeds(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Logarithms of speeds of forgetting between 1 and 16, as Mamba 2 begins (2405.21060)."""
    return jnp.log(jax.random.uniform(key, shape, minval=1.0, maxval=16.0)).astype(dtype)


def step_biases(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Biases whose softplus is between 0.001 and 0.1, evenly by magnitude, as Mamba 2 begins (2405.21060)."""
    step = 10.0 ** jax.random.uniform(key, shape, minval=-3.0, maxval=-1.0)
    return (step + jnp.log(-jnp.expm1(-step))).astype(dtype)


def delta_state(config: ModelConfig, batch: int, length: int, dtype: Any) -> State:
    """Empty state of one layer: `state` [B, K, G, D, V] fp32, the `segment` [B] it belongs to, `conv` [B, W - 1,
    channels] inputs.
    """
    del length
    s = sizes_of(config)
    matrix = jnp.zeros((batch, s.heads, s.group, s.key, s.value), jnp.float32)
    tail = jnp.zeros((batch, config.delta.conv - 1, s.heads * s.mixed), dtype)
    return {
        "state": constrain(matrix, "batch", "act_heads", None, None, None),
        "segment": constrain(jnp.zeros((batch,), jnp.int32), "batch"),
        "conv": constrain(tail, "batch", None, "act_heads"),
    }


def delta_rotary(config: ModelConfig) -> int:
    """No dimension is rotated: the recurrence knows the order of tokens by itself."""
    del config
    return 0
