"""Recurrent depth: one program for all depths, flat memory, caches, exits, injections, and the errors of wrong use."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.batch import TokenRows
from model import Model, build
from model.depth import Exit, draw_depth
from model.depth.measures import correlation
from model.depth.state import first_state
from model.rules import learn
from settings.model_parts import RecurrentConfig
from tests.model.common import random_params
from tests.sampled import generate
from train.objectives.losses import sft_objective

SMALL: dict[str, Any] = {
    "vocab_size": 24,
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 2,
    "d_ff": 48,
    "max_length": 32,
    "init_std": 0.15,
    "norm": "sandwich",
    "depth": "recurrent",
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 24, (3, 8)), jnp.int32)


@functools.cache
def model_of(recurrent: tuple[tuple[str, Any], ...] = (), **changes: Any) -> Model:
    return build(SMALL | changes | {"recurrent": {"mean": 4, "grad_steps": 2} | dict(recurrent)})


@functools.cache
def params_of(model: Model) -> Any:
    """As they begin, but disturbed: with larger weights a core is chaotic, and rounding grows with the depth."""
    rng = np.random.default_rng(0)

    def disturbed(path: Any, leaf: jax.Array) -> jax.Array:
        spread = 0.1 if path[-1].key == "scale" else 0.02
        return jnp.asarray(np.asarray(leaf) + spread * rng.standard_normal(leaf.shape).astype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(disturbed, jax.jit(model.init)(jax.random.key(0)))


def hidden(model: Model, **options: Any) -> np.ndarray:
    return np.asarray(jax.jit(lambda p: model.apply(p, TOKENS, **options).hidden)(params_of(model)))


def decoded(model: Model, prefill: int, **options: Any) -> np.ndarray:
    """The hidden states of a prefill and single steps."""
    step = jax.jit(lambda p, cache, tokens: model.apply(p, tokens, cache=cache, **options))
    cache, found = model.init_cache(*TOKENS.shape, depth=8), []
    stops = [prefill, *range(prefill + 1, TOKENS.shape[1] + 1)]
    for start, stop in zip([0, *stops], stops, strict=False):
        out = step(params_of(model), cache, TOKENS[:, start:stop])
        cache = out.cache
        found.append(out.hidden)
    return np.concatenate(found, 1)


@pytest.mark.more
def test_one_program_serves_all_depths() -> None:
    model = model_of()

    @jax.jit
    def run(params: Any, depth: jax.Array) -> jax.Array:
        return model.apply(params, TOKENS, depth=depth).hidden

    for depth in (1, 2, 3, 7):
        found = run(params_of(model), jnp.int32(depth))
        np.testing.assert_allclose(found, hidden(model, depth=depth), rtol=0, atol=1e-5)
    assert run._cache_size() == 1


def test_rows_of_different_depth_are_those_of_each_depth_alone() -> None:
    model = model_of()
    depths = jnp.array([1, 5, 3])
    together = hidden(model, depth=depths)
    for row, depth in enumerate(depths.tolist()):
        np.testing.assert_allclose(together[row], hidden(model, depth=depth)[row], rtol=0, atol=1e-5)
    np.testing.assert_allclose(decoded(model, 5, depth=depths), together, rtol=0, atol=1e-5)


CASES: dict[str, tuple[tuple[str, Any], ...]] = {
    "concat": (),
    "add": (("injection", "add"),),
    "gate": (("injection", "gate"), ("start", "zero")),
    "diagonal": (("injection", "diagonal"), ("start", "embedding")),
    "none": (("injection", "none"), ("start", "embedding"), ("readout", "none")),
    "whole": (("prelude", 0), ("core", 3), ("coda", 0)),
    "loop": (("readout", "loop"),),
    "looped": (
        ("prelude", 0),
        ("core", 3),
        ("coda", 0),
        ("injection", "none"),
        ("start", "embedding"),
        ("readout", "loop"),
    ),
}


@pytest.mark.more_but("concat")
@pytest.mark.parametrize("case", CASES)
def test_cached_decode_is_one_full_pass(case: str) -> None:
    model = model_of(CASES[case])
    full = hidden(model)
    np.testing.assert_allclose(decoded(model, 5), full, rtol=0, atol=1e-5 * full.std())
    assert np.abs(full - hidden(model, depth=2)).max() > 1e-3, "depth must matter"


def test_the_norm_may_end_every_iteration() -> None:
    """Then the state is the normed one, and without a coda the output."""
    model = model_of(CASES["looped"])
    plain = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[0].key == "final_norm" else leaf, params_of(model)
    )
    out = jax.jit(lambda p: model.apply(p, TOKENS, depth=2))(plain)
    np.testing.assert_array_equal(out.state, out.hidden)
    np.testing.assert_allclose((out.state**2).mean(-1), 1, rtol=1e-4)


def test_packed_documents_are_those_alone() -> None:
    """Noise belongs to a position, so it is the same wherever a document stands in its row."""
    model = model_of()
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]] * 3)
    run = jax.jit(lambda params, tokens, segments: model.apply(params, tokens, segments=segments).hidden)
    out = run(params_of(model), TOKENS, segments)
    for part in (slice(0, 3), slice(3, 7)):
        alone = run(params_of(model), TOKENS[:, part], None)
        np.testing.assert_allclose(out[:, part], alone, rtol=0, atol=1e-5)


def gradient(model: Model, **options: Any) -> Any:
    def loss(params: Any) -> jax.Array:
        out = model.apply(params, TOKENS, **options)
        return (model.logits(params, out.hidden) ** 2).mean()

    return jax.jit(jax.grad(loss))(params_of(model))


@pytest.mark.more
def test_gradients_stop_before_the_last_iterations() -> None:
    """With as many iterations with gradient as there are, it is that of the definition; fewer change it."""
    full, two = model_of((("grad_steps", 6),)), model_of((("grad_steps", 2),))

    def by_hand(params: Any) -> jax.Array:
        out = model_of().apply(params, TOKENS, depth=1)
        for _ in range(5):
            out = model_of().apply(params, TOKENS, depth=1, state=out.state)
        return (full.logits(params, out.hidden) ** 2).mean()

    want = jax.jit(jax.grad(by_hand))(params_of(full))["layer_1"]
    for a, b in zip(jax.tree.leaves(gradient(full, depth=6)["layer_1"]), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), gradient(full, depth=6), gradient(two, depth=6))
    assert max(jax.tree.leaves(apart)) > 1e-5
    traced = gradient(two, depth=jnp.int32(6))
    for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(gradient(two, depth=6)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.more
def test_training_memory_does_not_grow_with_the_depth() -> None:
    model = model_of()

    def temporaries(depth: int) -> int:
        objective = lambda p: (model.apply(p, TOKENS, depth=depth).hidden ** 2).sum()  # noqa: E731
        analysis = jax.jit(jax.grad(objective)).lower(params_of(model)).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)

    assert temporaries(64) <= 1.02 * temporaries(8)


def test_drawn_depths_have_the_published_distribution() -> None:
    """Section 3.3: mean 33, median 29, mode 22-24, 0.9 % below 8."""
    drawn = np.asarray(
        draw_depth(RecurrentConfig(mean=32, draw="lognormal", per_sequence=True), jax.random.key(0), 20_000)
    )
    assert 32.3 < drawn.mean() < 33.7
    assert 28 <= np.median(drawn) <= 30
    assert 0.005 < (drawn < 8).mean() < 0.015
    poisson = draw_depth(RecurrentConfig(mean=8, draw="poisson", per_sequence=True), jax.random.key(0), 20_000)
    assert abs(float(poisson.mean()) - 8) < 0.1
    assert int(poisson.min()) >= 1
    assert draw_depth(RecurrentConfig(draw="poisson"), jax.random.key(0), 5).shape == ()


def test_training_draws_and_evaluation_does_not() -> None:
    model = model_of((("draw", "poisson"), ("mean", 6)))
    params = params_of(model)
    run = jax.jit(lambda p, key: model.apply(p, TOKENS, train=True, key=key).aux["depth"][0])
    assert len({int(run(params, jax.random.key(n))) for n in range(6)}) > 2
    evaluated = jax.jit(lambda p, key: model.apply(p, TOKENS, key=key).aux["depth"])
    assert evaluated(params, jax.random.key(0)).tolist() == [6, 6, 6]


def test_states_begin_like_embeddings_and_differ_by_row_only_with_a_key() -> None:
    model = model_of((), d_model=256, embed_scale=16.0, init="truncated", init_std=(2 / (5 * 256)) ** 0.5)
    e, positions = jnp.zeros((4, 64, 256)), jnp.broadcast_to(jnp.arange(64), (4, 64))
    s = first_state(model.config, e, positions, None)
    assert abs(float(s.var()) - 0.4 * 0.973) < 0.01, "2/5, less what lies beyond three deviations"
    np.testing.assert_array_equal(s[0], s[3])
    keyed = first_state(model.config, e, positions, jax.random.key(1))
    assert float(jnp.abs(keyed[0] - keyed[3]).max()) > 0.1
    drawn = jax.jit(model.init)(jax.random.key(0))["embed"]
    assert float(jnp.abs(drawn).max()) <= 3 * model.config.init_std


@pytest.mark.more
def test_the_metrics_tell_collapse_and_convergence() -> None:
    same = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 1, 8)), (2, 5, 8))
    found = jax.jit(correlation)(same, jnp.ones((2, 5), jnp.int32))
    np.testing.assert_allclose(found, [2, 2], rtol=1e-5)
    apart = jax.jit(correlation)(jnp.eye(5)[None], jnp.array([[1, 1, 1, 1, 0]]))
    np.testing.assert_allclose(apart, [0, 1], atol=1e-6)
    moe = {"n_experts": 4, "top_k": 2, "balance": "batch", "d_expert": 16}
    model = build(SMALL | {"ffn": "moe", "moe": moe, "recurrent": {"mean": 4, "grad_steps": 2}})
    positions, ones = jnp.broadcast_to(jnp.arange(8), TOKENS.shape), jnp.ones_like(TOKENS)
    batch = TokenRows(tokens=TOKENS, mask=jnp.ones(TOKENS.shape), positions=positions, segments=ones)
    _, _, metrics = jax.jit(sft_objective(model))(params_of(model), batch, jax.random.key(0))
    # Prelude and coda see every token once, the core at each of its four iterations.
    np.testing.assert_allclose(metrics["sums"].stack.sums["load"].sum(1), np.array([1, 4, 1]) * TOKENS.size * 2)
    _, found = jax.jit(functools.partial(learn, model.config))({}, metrics["sums"])
    assert found["recurrent/depth"] == 4
    assert 0 < found["recurrent/change"] < 3


@pytest.mark.more_but("kl")
@pytest.mark.parametrize("criterion", ["kl", "latent", "argmax"])
def test_exits_end_rows_one_by_one(criterion: str) -> None:
    """A row that leaves holds what it had there, whatever the others do."""
    model = model_of()
    threshold = {"kl": 0.05, "latent": 0.4, "argmax": 2}[criterion]
    run = jax.jit(lambda p, t, c: model.apply(p, t, cache=c, depth=8, exit=Exit(criterion, threshold)))
    out = run(params_of(model), TOKENS, model.init_cache(3, 8, depth=8))
    used = out.aux["depth"].tolist()
    stay = jax.jit(lambda p, t, c, depth: model.apply(p, t, cache=c, depth=depth))
    for row in range(3):
        alone = stay(params_of(model), TOKENS[row : row + 1], model.init_cache(1, 8, depth=8), used[row])
        np.testing.assert_allclose(out.hidden[row], alone.hidden[0], rtol=0, atol=1e-5)
        one = run(params_of(model), TOKENS[row : row + 1], model.init_cache(1, 8, depth=8))
        assert one.aux["depth"].tolist() == [used[row]]


PROMPTS = [[1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.more
@pytest.mark.parametrize("slots", [0, 2])
def test_every_sample_can_have_its_depth(slots: int) -> None:
    model, key = model_of(), jax.random.key(2)
    options: dict[str, Any] = {"max_new_tokens": 6, "n": 2}
    depths = np.array([1, 4, 2, 2, 4, 1])
    varied = generate(model, params_of(model), PROMPTS, key, depth=depths, max_depth=5, slots=slots, **options)
    assert varied.depth is not None
    assert varied.prompts.shape[0] == 3
    for depth in (1, 2, 4):
        alone = generate(model, params_of(model), PROMPTS, key, depth=depth, **options)
        rows = depths == depth
        np.testing.assert_array_equal(varied.tokens[rows], alone.tokens[rows])
        np.testing.assert_allclose(varied.logps[rows], alone.logps[rows], atol=1e-5)
        assert (varied.depth[rows] == depth).all()


@pytest.mark.more
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_of_few_iterations_change_no_token(temperature: float) -> None:
    model, key = model_of((("mean", 6),)), jax.random.key(3)
    options: dict[str, Any] = {"max_new_tokens": 10, "n": 2, "temperature": temperature, "slots": 4}
    plain = generate(model, params_of(model), PROMPTS, key, **options)
    drafted = generate(model, params_of(model), PROMPTS, key, draft_depth=3, draft_length=3, **options)
    np.testing.assert_array_equal(plain.tokens, drafted.tokens)
    np.testing.assert_allclose(plain.logps, drafted.logps, atol=1e-5)
    assert drafted.acceptance is not None
    assert 0 < drafted.acceptance < 1
    assert drafted.steps < plain.steps


def test_half_precision_stays_near() -> None:
    wide, narrow = model_of(), model_of((), dtype="bfloat16")
    full, half = (
        hidden(wide),
        np.asarray(jax.jit(lambda p: narrow.apply(p, TOKENS).hidden)(params_of(wide)), np.float32),
    )
    assert np.abs(full - half).mean() < 0.05 * full.std()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 4}, "n_layers=4, but recurrent.prelude=1"),
        ({"recurrent": {"core": 0}}, "recurrent.core must be at least 1"),
        ({"recurrent": {"mean": 0}}, "recurrent.mean must be at least 1"),
        ({"recurrent": {"injection": "none"}}, "would never show the core its input"),
        ({"recurrent": {"injection": "ad"}}, "Did you mean 'add'"),
        ({"depth": "recurent"}, "Did you mean 'recurrent'"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SMALL | changes)


def test_wrong_calls() -> None:
    model, params = model_of(), params_of(model_of())
    with pytest.raises(ValueError, match="number of iterations, found -1"):
        model.apply(params, TOKENS, depth=-1)
    with pytest.raises(ValueError, match="give a cache"):
        model.apply(params, TOKENS, exit=Exit("kl"))
    with pytest.raises(ValueError, match="the cache holds keys of 4 iterations"):
        model.apply(params, TOKENS, cache=model.init_cache(3, 8), depth=6)
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        Exit("cosin")
    ask = functools.partial(generate, model, params, PROMPTS, jax.random.key(0), max_new_tokens=2)
    with pytest.raises(ValueError, match=r"depth must be an integer >= 1.* found 0"):
        ask(depth=0)
    with pytest.raises(ValueError, match=r"depth must be an integer >= 1.* found 1\.5"):
        ask(depth=1.5)
    with pytest.raises(ValueError, match="depth has 2 entries for 3 samples"):
        ask(depth=[1, 2])
    with pytest.raises(ValueError, match="does not go with exit or warm_start"):
        ask(draft_depth=2, exit="kl")
    with pytest.raises(ValueError, match="plain stack"):
        stack = build(SMALL | {"depth": "stack"})
        generate(stack, random_params(stack), PROMPTS, jax.random.key(0), max_new_tokens=2, exit="kl")
    running = model_of((), mixer="mingru")
    with pytest.raises(ValueError, match="running state of mixer 'mingru'"):
        generate(running, params_of(running), PROMPTS, jax.random.key(0), max_new_tokens=2, exit="kl")
