"""What a forward pass promises whatever the configuration: packing, padding, jit, precision, caches, wrong
use.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from data.sources.batch import TokenRows
from model import build
from model.attention import attend, attention_mask
from model.context import Context
from model.layers import repeats
from model.remat import POLICIES
from tests.model.common import apply, assert_close, cached, distance, forward, left_pad, random_params, tiny, tokens_of
from train.objectives.losses import sft_objective

WAYS = [
    *({"remat": name} for name in (True, "dots", "attention", "offload")),
    {"layers": "scanned"},
    {"layers": "scanned", "remat": "full", "window": (None, 3, None)},
    {"attention": "blocked"},
]


@pytest.mark.more_but("{'positions': 'learned'}")
@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"window": 3}], ids=str)
def test_packed_segments_equal_separate_rows(changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    params = random_params(model)
    lengths = (5, 4, 2)
    rows = [tokens_of(model, (1, length), seed) for seed, length in enumerate(lengths)]
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [3] * 2 + [0]])
    packed, _ = forward(model, params, jnp.concatenate([*rows, jnp.zeros((1, 1), jnp.int32)], 1), None, segments)
    start = 0
    for row, length in zip(rows, lengths, strict=True):
        assert_close(packed[:, start : start + length], forward(model, params, row)[0])
        start += length


def test_padding_is_never_seen() -> None:
    """What stands under the padding, left or right, changes nothing."""
    model = tiny()
    params = random_params(model)
    tokens = tokens_of(model, (2, 8))
    segments = jnp.asarray([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]])
    first, _ = forward(model, params, tokens, None, segments)
    other, _ = forward(model, params, jnp.where(segments > 0, tokens, 63), None, segments)
    real = np.asarray(segments) > 0
    np.testing.assert_array_equal(np.asarray(first)[real], np.asarray(other)[real])


def test_norms_behind_a_half_scale_what_it_adds() -> None:
    """Where those norms are zero, nothing is added."""
    model = tiny(norm="peri")
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "post_norm" in path[-2].key else leaf,
        {name: leaf for name, leaf in random_params(model).items() if name.startswith("layer")},
    )
    params, tokens = random_params(model), tokens_of(model)
    _, hidden = forward(model, params | silent, tokens)
    np.testing.assert_allclose(hidden, model.normed(params, params["embed"][tokens]), rtol=1e-5)
    assert distance(forward(model, params, tokens)[1], hidden) > 0.1


def test_the_future_is_never_seen() -> None:
    model = tiny(norm="sandwich", positions="none")
    params = random_params(model)
    tokens = tokens_of(model, (1, 8))
    first, _ = forward(model, params, tokens)
    other, _ = forward(model, params, tokens.at[0, 5].add(1) % 64)
    np.testing.assert_array_equal(first[:, :5], other[:, :5])
    assert distance(other[:, 5:], first[:, 5:]) > 1e-2


@pytest.mark.programs(250)
def test_jit_equals_no_jit() -> None:
    model = tiny(qk_norm=True, n_layers=1, window=4)
    params = random_params(model)
    tokens = tokens_of(model)
    hidden = model.apply(params, tokens).hidden
    jitted, jitted_hidden = forward(model, params, tokens)
    assert distance(jitted_hidden, hidden) < 1e-5
    assert_close(jitted, model.logits(params, hidden))


@pytest.mark.parametrize("family", [{}, {"ffn": "mlp", "norm_type": "layernorm", "positions": "learned"}], ids=str)
def test_bf16_stays_close_to_fp32(family: dict[str, Any]) -> None:
    """bf16 computation is a rounding of the fp32 one, its logits are fp32, and so it remains for a scale of
    24^-0.5.
    """
    wide = tiny(head_dim=24, **family)
    narrow = tiny(head_dim=24, dtype="bfloat16", **family)
    params = random_params(wide)
    want, _ = forward(wide, params, tokens_of(wide))
    got, hidden = forward(narrow, params, tokens_of(wide))
    assert hidden.dtype == jnp.bfloat16 and got.dtype == jnp.float32
    assert distance(got, want) < 0.15
    assert np.sqrt(np.mean((np.asarray(got) - np.asarray(want)) ** 2)) < 0.02 * np.std(want)


def test_rows_of_padding_give_no_nan() -> None:
    """Neither forward nor backward, though such a query may see no key at all."""
    model = tiny()
    params = random_params(model)
    segments = jnp.asarray([[0] * 6, [0, 0, 0, 1, 1, 1]])

    def loss(params: Any) -> jax.Array:
        hidden = model.apply(params, tokens_of(model, (2, 6)), None, segments).hidden
        return jnp.where(segments > 0, model.logits(params, hidden).max(-1), 0).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def naive_attention(q: Any, k: Any, v: Any, mask: Any, scale: float) -> np.ndarray:
    """One query at a time, one head at a time, in float64."""
    B, H, S, _ = q.shape
    out = np.zeros(q.shape)
    for b, h, s in np.ndindex(B, H, S):
        keys, values = k[b, h * k.shape[1] // H], v[b, h * k.shape[1] // H]
        scores = np.where(mask[b, s], keys @ q[b, h, s] * scale, -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, h, s] = weights / weights.sum() @ values
    return out


@pytest.mark.parametrize("kind", ["einsum", "fused", "blocked"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_the_definition(kind: str, kv_heads: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 4, 5, 8))
    k, v = (rng.standard_normal((2, kv_heads, 7, 8)) for _ in range(2))
    segments = rng.integers(1, 3, (2, 7))
    segments[:, 0] = 1
    ones, columns = np.ones((2, 5), int), np.broadcast_to(np.arange(7), (2, 7))
    context = Context(*(jnp.asarray(x) for x in (columns[:, 2:], ones, columns, segments)), {}, None)
    mask = attention_mask(context, None)
    got = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), context, None, 0.3, kind)
    np.testing.assert_allclose(got, naive_attention(q, k, v, mask, 0.3), atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_mask_is_the_definition(window: int | None) -> None:
    rng = np.random.default_rng(0)
    positions, segments = rng.integers(0, 6, (2, 8)), rng.integers(0, 3, (2, 8))
    arrays = [jnp.asarray(x) for x in (positions, segments)]
    got = np.asarray(attention_mask(Context(*arrays, *arrays, None, None), window))
    for b, i, j in np.ndindex(2, 8, 8):
        back = positions[b, i] - positions[b, j]
        near = 0 <= back < (window or 99)
        assert got[b, i, j] == (near and segments[b, i] == segments[b, j] > 0)


@pytest.mark.more_but("learned")
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_default_positions_continue_the_cache(positions: str) -> None:
    """Left padding included: leaving the positions out is the same as counting the row's own tokens."""
    model = tiny(positions=positions)
    params = random_params(model)
    tokens, explicit, segments = left_pad(np.asarray(tokens_of(model, (2, 9))), (3, 0))
    want = cached(model, params, tokens, explicit, segments, 5)
    cache = model.init_cache(2, 12)
    hidden = []
    for part in (slice(0, 5), slice(5, 6), slice(6, 9)):
        out = apply(model, params, tokens[:, part], segments=segments[:, part], cache=cache)
        cache = out.cache
        hidden.append(out.hidden)
    got = model.logits(params, jnp.concatenate(hidden, 1))
    assert distance(got[1], want[1]) < 1e-5
    assert distance(got[0, 3:], want[0, 3:]) < 1e-5
    np.testing.assert_array_equal(cache.positions[:, 3:9], explicit[:, 3:])
    assert int(cache.index) == 9


def test_a_column_may_change_its_owner() -> None:
    """Segment 0 empties a column: a new sample in the same row sees none of the old one's keys."""
    model = tiny()
    params = random_params(model)
    old, new = tokens_of(model, (1, 4), 5), tokens_of(model, (1, 3), 6)
    cache = apply(model, params, old, cache=model.init_cache(1, 8)).cache
    cache = cache.replace(segments=jnp.zeros_like(cache.segments))
    out = apply(model, params, new, positions=jnp.arange(3)[None], cache=cache)
    assert_close(model.logits(params, out.hidden), forward(model, params, new)[0])


def test_a_narrow_cache_is_enough() -> None:
    model = tiny()
    params = random_params(model)
    tokens = tokens_of(model, (1, 6))
    cache = model.init_cache(1, 6, jnp.bfloat16)
    assert cache.layers[0]["k"].dtype == jnp.bfloat16
    out = apply(model, params, tokens, cache=cache)
    assert out.cache.layers[0]["k"].dtype == jnp.bfloat16
    assert distance(out.hidden, forward(model, params, tokens)[1]) < 0.1


def test_embeds_replace_where_given() -> None:
    model = tiny(embed_scale=3.0)
    params = random_params(model)
    tokens = tokens_of(model, (1, 6))
    nothing = jnp.full((1, 6, 32), jnp.nan)
    want = apply(model, params, tokens).hidden
    np.testing.assert_allclose(apply(model, params, tokens, embeds=nothing).hidden, want, atol=1e-5)
    given = nothing.at[0, 2].set(3.0 * params["embed"][9])
    same = apply(model, params, tokens.at[0, 2].set(9)).hidden
    np.testing.assert_allclose(apply(model, params, tokens, embeds=given).hidden, same, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda e: model.apply(params, tokens, embeds=e).hidden[0, -1, 0]))(given)
    assert np.abs(gradient[0, 2]).max() > 0
    np.testing.assert_array_equal(gradient.at[0, 2].set(0), 0)


@pytest.mark.more_but("{'remat': 'offload'}")
@pytest.mark.parametrize("changes", WAYS, ids=str)
def test_ways_to_run_change_nothing(changes: dict[str, Any]) -> None:
    plain, other = tiny(n_layers=3, window=changes.get("window")), tiny(n_layers=3, **changes)
    params = random_params(plain)
    tokens = tokens_of(plain)
    values = [
        jax.jit(jax.value_and_grad(lambda p, m=model: m.apply(p, tokens).hidden.std()))(params)
        for model in (plain, other)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *values)


def test_a_policy_keeps_what_its_name_says(capsys: pytest.CaptureFixture[str]) -> None:
    """What a backward pass finds kept besides its arguments: less and less."""
    kept = {}
    for name in POLICIES:
        model = tiny(n_layers=3, remat=name, attention="blocked", layers="scanned")
        loss = lambda p, m=model: m.apply(p, tokens_of(m)).hidden.std()  # noqa: E731
        print_saved_residuals(loss, random_params(model))
        lines = [line for line in capsys.readouterr().out.splitlines() if "from the argument" not in line]
        shapes = [re.match(r"\w+\[([\d,]*)\]", line) for line in lines]
        kept[name] = sum(math.prod(int(size) for size in shape[1].split(",") if size) for shape in shapes if shape)
    assert kept["none"] > kept["dots"] > kept["attention"] > kept["full"] == kept["offload"]


@pytest.mark.parametrize(
    ("kinds", "groups"),
    [
        ("a", [(0, 1, 1)]),
        ("aaaa", [(0, 1, 4)]),
        ("aaabbbbb", [(0, 1, 3), (3, 1, 5)]),
        ("abababc", [(0, 2, 3), (6, 1, 1)]),
        ("abc", [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
    ],
)
def test_repeats(kinds: str, groups: list[tuple[int, int, int]]) -> None:
    assert list(repeats(kinds)) == groups


def test_like_layers_are_one_loop() -> None:
    """Twice as many layers are no longer program."""
    sizes = []
    for n in (4, 8):
        model = tiny(n_layers=n, layers="scanned")
        text = (
            jax.jit(jax.grad(lambda p, m=model: m.apply(p, tokens_of(m)).hidden.std()))
            .lower(model.abstract())
            .as_text()
        )
        sizes.append(text.count("stablehlo.dot_general"))
    assert sizes[0] == sizes[1]


def test_scales() -> None:
    model, scaled = tiny(), tiny(logit_scale=0.25)
    params = random_params(model)
    tokens = tokens_of(model)
    np.testing.assert_allclose(
        forward(scaled, params, tokens)[0], 0.25 * forward(model, params, tokens)[0], rtol=1e-5, atol=1e-5
    )


def test_wrong_use_is_loud() -> None:
    model = tiny()
    params = random_params(model)
    with pytest.raises(ValueError, match=r"depth=4 requires .* a plain stack of 2 layers"):
        model.apply(params, tokens_of(model), depth=4)
    with pytest.raises(ValueError, match="12 tokens do not fit a cache of 5 columns"):
        model.apply(params, tokens_of(model), cache=model.init_cache(2, 5))
    learned = tiny(positions="learned", max_length=8)
    with pytest.raises(ValueError, match="12 tokens, but only max_length=8 learned positions"):
        learned.apply(random_params(learned), tokens_of(learned))


@pytest.mark.programs(250)
@pytest.mark.parametrize("changes", [{}, {"mtp": {"depth": 1}}], ids=["stack", "mtp"])
def test_pairs_are_two_tokens_in_one_position(changes: dict[str, Any]) -> None:
    """The pair (a, b) is embedded as a plus what the second table holds for b; no token is predicted in its place."""
    model = tiny(pairs=True, embed_scale=2.0, **changes)
    params, size = random_params(model), model.config.vocab_size
    tokens = tokens_of(model, (2, 6))
    pairs = tokens.at[:, 1].set(size + 3 * size + 5)
    embeds = jnp.full((2, 6, model.config.d_model), jnp.nan)
    embeds = embeds.at[:, 1].set(2 * (params["embed"][3] + params["pair_embed"][5]))
    expected = model.apply(params, tokens, embeds=embeds).hidden
    found = model.apply(params, pairs).hidden
    assert_close(found, expected)
    assert model.logits(params, found).shape == (2, 6, size)
    other = model.apply(params, tokens.at[:, 1].set(size + 5 * size + 3)).hidden
    assert distance(other[:, 1:], found[:, 1:]) > 1e-2, "the order of the two matters"
    assert_close(
        model.apply(params, tokens).hidden, build(model.config.replace(pairs=False)).apply(params, tokens).hidden
    )


@pytest.mark.more
def test_pairs_train_both_tables_through_the_loss() -> None:
    model = tiny(pairs=True)
    params, size = random_params(model), model.config.vocab_size
    tokens = tokens_of(model, (1, 6)).at[0, 2].set(size + 3 * size + 5)
    ones = jnp.ones_like(tokens)
    positions, mask = jnp.cumsum(ones, 1) - 1, ones.at[0, :3].set(0)
    batch = TokenRows(tokens=tokens, mask=mask, positions=positions, segments=ones)

    def loss(params: Any) -> jax.Array:
        return sft_objective(model)(params, batch, jax.random.key(0))[0]

    grads = jax.grad(loss)(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    assert list(np.flatnonzero(np.abs(grads["pair_embed"]).sum(1))) == [5]
