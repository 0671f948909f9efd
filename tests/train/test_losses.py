"""Blocked log-probs: the values and gradients of a plain log-softmax, in a fraction of its memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.batch import TokenRows
from model.sharding import make_mesh, named_sharding
from tests.trunk import TOKENIZER, forward, tiny, tiny_params
from train.objectives.logps import token_logps
from train.objectives.losses import batch_logps, next_token_mask, sft_objective

BLOCKS = [None, (1, 1), (4, 5), (7, 13), (24, 31), (5, 40), (100, 8)]


def arrays(tokens: int = 24, vocab: int = 31, width: int = 8) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states [4, tokens / 4, width], a head [vocab, width] and targets."""
    rng = np.random.default_rng(0)
    shape = (4, tokens // 4)
    hidden, head = rng.standard_normal((*shape, width)), rng.standard_normal((vocab, width))
    targets = rng.integers(0, vocab, shape)
    targets.flat[:2] = 0, vocab - 1
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32), jnp.asarray(targets, jnp.int32)


def plain(hidden: jax.Array, head: jax.Array, targets: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """The same two numbers from whole logits."""
    logps = jax.nn.log_softmax(scale * jnp.einsum("...d,vd->...v", hidden, head))
    chosen = jnp.take_along_axis(logps, targets[..., None], -1)[..., 0]
    return chosen, -(jnp.exp(logps) * logps).sum(-1)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_values_and_gradients_are_those_of_log_softmax(blocks: tuple[int, int] | None) -> None:
    hidden, head, targets = arrays()
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((2, *targets.shape)), jnp.float32)

    def weighted(function: Any) -> Any:
        def total(hidden: jax.Array, head: jax.Array) -> Any:
            found = function(hidden, head)
            return (weights[0] * found[0] + weights[1] * found[1]).sum(), found

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, head)

    (_, got), got_gradients = weighted(lambda x, w: token_logps(x, w, targets, 0.7, blocks))
    (_, want), want_gradients = weighted(lambda x, w: plain(x, w, targets, 0.7))
    for a, b in zip((*got, *got_gradients), (*want, *want_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


MESHES = [{"fsdp": 8}, {"fsdp": 2, "tensor": 2, "data": 2}, {"context": 4, "expert": 2}]


@pytest.mark.more_but(
    "None-{'fsdp': 2, 'tensor': 2, 'data': 2}", "blocks1-{'fsdp': 8}", "blocks1-{'context': 4, 'expert': 2}"
)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("blocks", [None, (7, 13)])
def test_a_mesh_changes_nothing(mesh: dict[str, int], blocks: tuple[int, int] | None) -> None:
    """Rows, columns (17, which no axis divides), vocabulary and width split over eight devices."""
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((8, 17, 16), (46, 16)))
    targets = jnp.asarray(rng.integers(0, 46, (8, 17)))
    weights = jnp.asarray(rng.standard_normal((2, *targets.shape)), jnp.float32)

    def total(hidden: jax.Array, head: jax.Array) -> Any:
        found = token_logps(hidden, head, targets, 0.7, blocks)
        return (weights[0] * found[0] + weights[1] * found[1]).sum(), found

    learn = jax.value_and_grad(total, (0, 1), has_aux=True)
    wanted = jax.jit(learn)(hidden, head)
    with jax.set_mesh(make_mesh(mesh)):
        found = jax.jit(lambda *given: learn(*given))(hidden, head)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_no_device_sees_the_states_of_others() -> None:
    """The temporaries of a device are those of its own rows, not of the batch."""
    shapes = [((64, 1024, 128), jnp.float32), ((256, 128), jnp.float32), ((64, 1024), jnp.int32)]
    loss = lambda hidden, head, targets: token_logps(hidden, head, targets)[0].sum()  # noqa: E731
    mesh = make_mesh({"fsdp": 8})
    names = [("batch", None, None), ("vocab", "embed"), ("batch", None)]
    given = [
        jax.ShapeDtypeStruct(*shape, sharding=named_sharding(mesh, axes))
        for shape, axes in zip(shapes, names, strict=True)
    ]
    with jax.set_mesh(mesh):
        memory = jax.jit(jax.grad(loss, (0, 1))).lower(*given).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 1024 * 128 * 4 / 2


def test_logits_far_apart_stay_finite() -> None:
    hidden, head, targets = arrays()
    logps, entropies = token_logps(hidden, head, targets, 1e4, (7, 13))
    want = plain(hidden, head, targets, 1e4)
    np.testing.assert_allclose(logps, want[0], rtol=1e-5)
    np.testing.assert_allclose(entropies, want[1], atol=1e-3)
    gradient = jax.grad(lambda x: sum(t.sum() for t in token_logps(x, head, targets, 1e4, (7, 13))))(hidden)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("width", [64, 1024])
def test_memory_stays_far_below_the_logits(width: int) -> None:
    vocab, batch, length = 151_936, 4, 1024

    def loss(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        logps, entropies = token_logps(hidden, head, targets)
        return -(logps + 0.01 * entropies).sum()

    shapes = ((batch, length, width), jnp.float32), ((vocab, width), jnp.float32), ((batch, length), jnp.int32)
    structs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*structs).compile()
    memory = compiled.memory_analysis()
    gradients = 4 * width * (vocab + batch * length)
    scratch = memory.temp_size_in_bytes + memory.output_size_in_bytes - gradients
    assert scratch < batch * length * vocab * 4 / 8, f"{scratch / 1e6:.0f} MB beside the gradients"


def batch_of(rows: list[tuple[list[int], list[int]]], length: int) -> TokenRows:
    """Rows of (tokens, segments), the first token of each segment being a prompt."""
    filled: dict[str, list[list[int]]] = {"tokens": [], "positions": [], "segments": [], "mask": []}
    for tokens, segments in rows:
        pad = [0] * (length - len(tokens))
        first = [i for i, s in enumerate(segments) if i == 0 or segments[i - 1] != s]
        starts = [max(f for f in first if f <= i) for i in range(len(tokens))]
        filled["tokens"].append(tokens + pad)
        filled["segments"].append(segments + pad)
        filled["positions"].append([i - start for i, start in enumerate(starts)] + pad)
        filled["mask"].append([int(i not in first) for i in range(len(tokens))] + pad)
    return TokenRows(**{k: jnp.asarray(v, jnp.float32 if k == "mask" else jnp.int32) for k, v in filled.items()})


def texts() -> list[list[int]]:
    """Three texts of different lengths."""
    return [TOKENIZER.encode("12+3=15"), TOKENIZER.encode("7+1=8"), TOKENIZER.encode("90=9+81")]


def test_packed_rows_have_the_loss_of_separate_rows() -> None:
    a, b, c = texts()
    packed = batch_of([(a + b + c, [1] * len(a) + [2] * len(b) + [3] * len(c))], 20)
    apart = batch_of([(t, [1] * len(t)) for t in (a, b, c)], 20)
    objective = jax.jit(jax.value_and_grad(lambda p, x: sft_objective(tiny())(p, x, jax.random.key(0))[:2][0]))
    (got, got_gradient), (want, want_gradient) = objective(tiny_params(), packed), objective(tiny_params(), apart)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), got_gradient, want_gradient)


def test_only_wanted_tokens_of_the_same_segment_count() -> None:
    a, b, _ = texts()
    batch = batch_of([(a + b, [1] * len(a) + [2] * len(b))], 16)
    mask = next_token_mask(batch.replace(mask=jnp.ones_like(batch.mask)))
    assert mask.shape == (1, 15)
    assert mask.sum() == len(a) - 1 + len(b) - 1
    assert mask[0, len(a) - 1] == 0


@pytest.mark.programs(250)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_batch_logps_are_those_of_the_logits(temperature: float) -> None:
    a, b, _ = texts()
    batch = batch_of([(a, [1] * len(a)), (b, [1] * len(b))], 8)
    logps, entropies, _ = batch_logps(tiny(), tiny_params(), batch, temperature=temperature)
    logits = forward(tiny(), tiny_params(), batch.tokens, batch.positions, batch.segments)
    full = jax.nn.log_softmax(logits / temperature)[:, :-1]
    want = jnp.take_along_axis(full, batch.tokens[:, 1:, None], -1)[..., 0]
    wanted = np.asarray(batch.segments[:, 1:] > 0)
    np.testing.assert_allclose(np.asarray(logps)[wanted], np.asarray(want)[wanted], atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(entropies)[wanted], -np.asarray((jnp.exp(full) * full).sum(-1))[wanted], atol=1e-5
    )
