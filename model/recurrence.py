"""First-order recurrences h_t = a_t h_{t-1} + b_t, in two spaces and two ways, over one device's columns or many's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.platform import recurrence_implementation
from model.sharding import activation_spec, axes_of, varying

Pair = tuple[jax.Array, jax.Array]


def linear_recurrence(a: jax.Array, b: jax.Array, start: jax.Array, implementation: str = "auto") -> jax.Array:
    """h_t = a_t h_{t-1} + b_t over axis 1, in fp32: a, b [B, S, E], start [B, E] -> h [B, S, E].

    `implementation`: "associative" (`jax.lax.associative_scan`: logarithmic depth), "loop" (one pass over memory), or
    "auto" for the faster one here. The gradient is the same recurrence run backwards; no scan is differentiated.
    """
    return _over_columns(LINEAR, a, b, start, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _linear(a: jax.Array, b: jax.Array, start: jax.Array, implementation: str) -> jax.Array:
    return _scan(a, b, start, implementation)


def _linear_forward(a: jax.Array, b: jax.Array, start: jax.Array, implementation: str) -> tuple[jax.Array, Any]:
    h = _scan(a, b, start, implementation)
    return h, (a, h, start)


def _linear_backward(implementation: str, saved: Any, dh: jax.Array) -> tuple[jax.Array, ...]:
    a, h, start = saved
    db = _adjoint(a, dh, implementation)
    return db * _shifted(h, start), db, a[:, 0] * db[:, 0]


_linear.defvjp(_linear_forward, _linear_backward)


def log_recurrence(log_a: jax.Array, log_b: jax.Array, log_start: jax.Array, implementation: str = "auto") -> jax.Array:
    """log h of the same recurrence where all terms are positive: log_a, log_b [B, S, E], log_start [B, E], fp32.

    A log_a of -inf forgets all that came before. "associative" composes steps as logarithms. (Heinsen's scan,
    2311.06281, takes differences of one running sum, which lose digits with every step and every segment of a row.)
    """
    return _over_columns(LOGARITHMIC, log_a, log_b, log_start, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _logarithmic(log_a: jax.Array, log_b: jax.Array, log_start: jax.Array, implementation: str) -> jax.Array:
    if implementation == "loop":
        return _loop(lambda h, step: jnp.logaddexp(step[0] + h, step[1]), (log_a, log_b), log_start)
    decay, h = jax.lax.associative_scan(_compose_logs, (log_a, log_b), axis=1)
    return jnp.logaddexp(decay + log_start[:, None], h)


def _logarithmic_forward(
    log_a: jax.Array, log_b: jax.Array, log_start: jax.Array, implementation: str
) -> tuple[jax.Array, Any]:
    h = _logarithmic(log_a, log_b, log_start, implementation)
    alive = ~jnp.isneginf(h)
    kept, taken = (jnp.where(alive, jnp.exp(part - h), 0.0) for part in (log_a + _shifted(h, log_start), log_b))
    return h, (kept, taken)


def _logarithmic_backward(implementation: str, saved: Any, dh: jax.Array) -> tuple[jax.Array, ...]:
    """d log h_t = kept_t (d log a_t + d log h_{t-1}) + taken_t d log b_t, with the two shares of h_t."""
    kept, taken = saved
    total = _adjoint(kept, dh, implementation)
    return total * kept, total * taken, kept[:, 0] * total[:, 0]


_logarithmic.defvjp(_logarithmic_forward, _logarithmic_backward)


def _shifted(h: jax.Array, start: jax.Array) -> jax.Array:
    """The state before each step."""
    return jnp.concatenate([start[:, None], h[:, :-1]], 1)


def _adjoint(a: jax.Array, dh: jax.Array, implementation: str) -> jax.Array:
    """g_t = dh_t + a_{t+1} g_{t+1}."""
    following = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], 1)
    return _scan(following, dh, jnp.zeros_like(dh[:, 0]), implementation, reverse=True)


def _scan(a: jax.Array, b: jax.Array, start: jax.Array, implementation: str, reverse: bool = False) -> jax.Array:
    if implementation == "loop":
        return _loop(lambda h, step: step[0] * h + step[1], (a, b), start, reverse)
    decay, h = jax.lax.associative_scan(_compose, (a, b), reverse=reverse, axis=1)
    return h + decay * start[:, None]


def _compose(first: Pair, second: Pair) -> Pair:
    """The map h -> a h + b that does `first`, then `second`."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def _compose_logs(first: Pair, second: Pair) -> Pair:
    """The like for logarithms; -inf meets -inf in sums and in `logaddexp` alone, and stays -inf."""
    return first[0] + second[0], jnp.logaddexp(second[0] + first[1], second[1])


def _loop(
    step: Callable[[jax.Array, Pair], jax.Array], steps: Pair, start: jax.Array, reverse: bool = False
) -> jax.Array:
    def body(h: jax.Array, step_inputs: Pair) -> Pair:
        h = step(h, step_inputs)
        return h, h

    by_time = (steps[0].swapaxes(0, 1), steps[1].swapaxes(0, 1))
    return jax.lax.scan(body, start, by_time, reverse=reverse)[1].swapaxes(0, 1)


class Space(NamedTuple):
    """One of the two spaces: the recurrence, a state of nothing, what columns multiply the state before them by all
    together, and a state after columns that multiply it by `decay` and add `more`.
    """

    states: Callable[..., jax.Array]
    nothing: float
    whole: Callable[[jax.Array], jax.Array]
    after: Callable[..., jax.Array]


LINEAR = Space(_linear, 0.0, lambda a: a.prod(1), lambda state, decay, more: decay * state + more)
LOGARITHMIC = Space(
    _logarithmic, -jnp.inf, lambda a: a.sum(1), lambda state, decay, more: jnp.logaddexp(decay + state, more)
)


def _over_columns(space: Space, a: jax.Array, b: jax.Array, start: jax.Array, implementation: str) -> jax.Array:
    """The recurrence where the mesh may split columns: each device runs its own twice, from nothing and then from the
    state in which all columns before them end, which takes two numbers per channel from every device.
    """
    a, b, start = (jnp.asarray(part, jnp.float32) for part in (a, b, start))
    chosen = recurrence_implementation(implementation)
    states = lambda a, b, start: space.states(a, b, start, chosen)  # noqa: E731
    if jax.sharding.get_abstract_mesh().empty:
        return states(a, b, start)
    spec = activation_spec(("batch", "length", "act_mlp"), a.shape)
    ring = axes_of((spec[1],))

    def local(a: jax.Array, b: jax.Array, start: jax.Array) -> jax.Array:
        start = varying(start, ring)
        if ring:
            ends = states(a, b, jnp.full_like(start, space.nothing))[:, -1]
            every = jax.lax.all_gather((space.whole(a), ends), ring)
            for i in range(every[0].shape[0]):
                start = jnp.where(i < jax.lax.axis_index(ring), space.after(start, *(x[i] for x in every)), start)
        return states(a, b, start)

    return jax.shard_map(local, in_specs=(spec, spec, PartitionSpec(spec[0], spec[2])), out_specs=spec)(a, b, start)
