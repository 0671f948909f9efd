"""Blocked attention against all scores at once: values and gradients, on one device and around a ring."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import attention_mask, einsum, sight
from model.blocked_attention import blocked_attention
from model.context import Context
from model.sharding import make_mesh

MESHES = [{"context": 4, "data": 2}, {"context": 2, "tensor": 2, "data": 2}, {"fsdp": 8}, {"context": 8}]
S = 40


def context_of(offset: int = 0) -> Context:
    """Two packed documents and padding; from the column `offset` on, as queries that follow a cache."""
    segments = jnp.asarray([[1] * 15 + [2] * 20 + [0] * 5, [1] * 38 + [0] * 2])
    positions = jnp.asarray([[*range(15), *range(20), *[0] * 5], [*range(38), 0, 0]])
    return Context(positions[:, offset:], segments[:, offset:], positions, segments, {}, None)


def operands(key_heads: int, width: int, queries: int = S) -> tuple[Any, ...]:
    """q, k, v of four query heads, and what the output is multiplied with; sinks may follow."""
    rng = np.random.default_rng(0)
    shapes = ((2, 4, queries, 8), (2, key_heads, S, 8), (2, key_heads, S, width), (2, 4, queries, width))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def learnt(way: Any, given: tuple[Any, ...], context: Context) -> Any:
    """The output where there is something to see, and its gradients."""
    real = (context.segments > 0)[:, None, :, None]

    q, k, v, dy, *rest = given

    def loss(*learning: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = way(*learning) * real
        return (y * dy).sum(), y

    learning = (q, k, v, *rest)
    (_, y), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(learning))), has_aux=True))(*learning)
    return y, gradients


def assert_alike(found: Any, wanted: Any) -> None:
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.more_but("None-16-None", "5-16-{'context': 2, 'tensor': 2, 'data': 2}")
@pytest.mark.parametrize("mesh", [None, *MESHES], ids=str)
@pytest.mark.parametrize(("window", "block"), [(None, 16), (5, 16), (None, 512)])
def test_equals_all_scores_at_once(mesh: dict[str, int] | None, window: int | None, block: int) -> None:
    context, given = context_of(), operands(2, 6)
    mask = attention_mask(context, window)
    wanted = learnt(lambda q, k, v: einsum(q, k, v, mask, 0.3), given, context)
    way = lambda q, k, v: blocked_attention(q, k, v, sight(context), window, 0.3, block)  # noqa: E731
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        assert_alike(learnt(way, given, context), wanted)


@pytest.mark.more_but("None", "{'context': 2, 'tensor': 2, 'data': 2}")
@pytest.mark.parametrize("mesh", [None, *MESHES], ids=str)
def test_sinks_take_their_share(mesh: dict[str, int] | None) -> None:
    """Of one softmax over all keys, wherever those lie; and they learn what they learn there."""
    context, given = context_of(), operands(2, 6)
    given = (*given, jnp.asarray([-1.0, 0.5, 2.0, 4.0]))
    mask = attention_mask(context, 9)
    wanted = learnt(lambda q, k, v, sinks: einsum(q, k, v, mask, 0.3, sinks), given, context)
    without = learnt(lambda q, k, v, _: einsum(q, k, v, mask, 0.3), given, context)
    assert float(jnp.abs(wanted[0] - without[0]).max()) > 0.1
    way = lambda q, k, v, sinks: blocked_attention(q, k, v, sight(context), 9, 0.3, 16, sinks)  # noqa: E731
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        assert_alike(learnt(way, given, context), wanted)


@pytest.mark.more_but("1-None", "1-{'context': 4, 'data': 2}", "4-None")
@pytest.mark.parametrize("mesh", [None, MESHES[0]], ids=str)
@pytest.mark.parametrize("key_heads", [1, 4])
def test_queries_that_follow_a_cache(mesh: dict[str, int] | None, key_heads: int) -> None:
    """Fewer queries than keys: the keys stay whole on every device."""
    context, given = context_of(20), operands(key_heads, 8, S - 20)
    mask = attention_mask(context, None)
    wanted = learnt(lambda q, k, v: einsum(q, k, v, mask, 0.3), given, context)
    way = lambda q, k, v: blocked_attention(q, k, v, sight(context), None, 0.3, 8)  # noqa: E731
    with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
        assert_alike(learnt(way, given, context), wanted)


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    context, (q, k, v, _) = context_of(), operands(2, 8)
    y = blocked_attention(q, k, v, sight(context), None, 0.3, 16)
    np.testing.assert_array_equal(y[0, :, 35:], 0)


def test_no_more_than_a_block_of_scores_is_held() -> None:
    """Neither pass has an array of queries x keys, on one device or on many."""
    rows, columns = 2, 2048
    marks = jnp.ones((rows, columns), jnp.int32)
    context = Context(marks, marks, marks, marks, {}, None)
    shapes = [jax.ShapeDtypeStruct((rows, 4, columns, 16), jnp.float32)] * 3
    loss = lambda way: lambda *given: way(*given).sum()  # noqa: E731
    blocked = functools.partial(blocked_attention, sight=sight(context), window=None, scale=0.3, block=128)
    whole = functools.partial(einsum, mask=attention_mask(context, None), scale=0.3)
    sizes = []
    for way in (blocked, whole):
        compiled = jax.jit(jax.grad(loss(way), (0, 1, 2))).lower(*shapes).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    scores = rows * 4 * columns * columns * 4
    assert sizes[0] < scores / 4
    assert sizes[1] >= scores


def test_the_ring_gathers_no_keys() -> None:
    context, given = context_of(), operands(2, 8)
    with jax.set_mesh(make_mesh(MESHES[0])):
        way = lambda q, k, v: blocked_attention(q, k, v, sight(context), None, 0.3, 16).sum()  # noqa: E731
        text = jax.jit(jax.grad(way, (0, 1, 2))).lower(*given[:3]).compile().as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text
