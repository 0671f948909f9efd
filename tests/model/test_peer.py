"""PEER against its definition, the reference's numbers and torch's batch norm; chunks, padding, caches, devices."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import Model
from model.config import ModelConfig, PEERConfig
from model.peer.banks import bank_leaves, half_width
from model.peer.experts import CHUNK_BYTES, chunk_tokens, tap_shapes
from model.peer.layer import metrics, update_state
from model.peer.retrieval import normalize_queries, product_keys, retrieve
from model.sharding import batch_sharding, make_mesh, replicated
from tests.model.common import assert_close, cached, forward, left_pad, random_params, tiny, tokens_of

GELU = functools.partial(jax.nn.gelu, approximate=False)
SMALL = {"n_experts": 64, "heads": 2, "top_k": 4, "key_dim": 12}
CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "default": {"gate": "relu", "top_k": 1},
    "sepheads": {"separate": True},
    "prenorm": {},
}


def layer(**changes: Any) -> ModelConfig:
    """A model of one PEER layer."""
    return tiny(n_layers=1, ffn="peer", peer=SMALL | changes).config


def random_bank(config: ModelConfig, seed: int = 0) -> dict[str, jax.Array]:
    """Arrays of the first bank, spread so that scores are far from ties and statistics from their start."""
    rng, bank = np.random.default_rng(seed), {}
    for name, (_, _, shape) in bank_leaves(config, 0).items():
        noise = rng.standard_normal(shape)
        bank[name] = jnp.asarray(np.abs(noise) + 0.5 if name in ("var", "query_norm_scale") else noise, jnp.float32)
    return bank


def random_tokens(config: ModelConfig, count: int = 13, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, config.d_model)), jnp.float32)


def model_params(model: Model) -> Any:
    """Random parameters whose running variances are positive."""
    positive = lambda path, leaf: jnp.abs(leaf) + 0.5 if path[-1].key == "var" else leaf  # noqa: E731
    return jax.tree_util.tree_map_with_path(positive, random_params(model))


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(model: Model, params: Any, tokens: jax.Array, segments: jax.Array | None = None, train: bool = False) -> Any:
    return model.apply(params, tokens, segments=segments, train=train)


def all_valid(x: jax.Array) -> jax.Array:
    return jnp.ones(x.shape[0], bool)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference(case: str, shared: Path) -> None:
    arrays = {k.split(":", 1)[1]: v for k, v in np.load(shared / "golden/peer.npz").items() if k.startswith(case)}
    heads, n, _, half = arrays["w:keys"].shape
    width = arrays["x"].shape[-1]
    options = {"n_experts": n * n, "heads": heads, "top_k": 8, "key_dim": 2 * half, "query_norm": "none"}
    config = layer(**options | {"share_keys": False} | CASES[case])
    bank = {
        "query": arrays["w:to_queries.0.weight"].reshape(2, heads, half, width).transpose(3, 1, 0, 2),
        "keys": arrays["w:keys"].transpose(0, 2, 1, 3),
        "down": arrays["w:weight_down_embed.weight"],
        "up": arrays["w:weight_up_embed.weight"],
    }
    bank = {name: jnp.asarray(value) for name, value in bank.items()}
    x = arrays["x"].reshape(-1, width)
    if case == "prenorm":
        x = x * width**0.5 / np.linalg.norm(x, axis=-1, keepdims=True) * (arrays["w:norm.gamma"] + 1)
    y, _, _ = retrieve(bank, jnp.asarray(x), jnp.ones(len(x), bool), config, train=False)
    want = arrays["y"].reshape(-1, width)
    assert np.abs(np.asarray(y) - want).max() < 1e-5 * want.std()
    if case == "paper":
        queries = jnp.einsum("td,dhpe->thpe", x, bank["query"])
        scores, indices = product_keys(queries, bank["keys"], 8)
        np.testing.assert_array_equal(np.sort(indices, -1), np.sort(arrays["idx"].reshape(indices.shape), -1))
        np.testing.assert_allclose(scores, arrays["scores"].reshape(scores.shape), rtol=1e-5)


@pytest.mark.parametrize("shared_keys", [True, False])
@pytest.mark.parametrize(("n", "top_k"), [(2, 1), (3, 3), (8, 5), (16, 4), (40, 16)])
def test_product_keys_find_the_best_of_all_experts(n: int, top_k: int, shared_keys: bool) -> None:
    rng = np.random.default_rng(n)
    queries, keys = rng.standard_normal((6, 3, 2, 5)), rng.standard_normal((1 if shared_keys else 3, 2, n, 5))
    every = np.broadcast_to(keys, (3, 2, n, 5))
    first, second = (np.einsum("thd,hnd->thn", queries[:, :, p], every[:, p]) for p in (0, 1))
    scores = (first[..., :, None] + second[..., None, :]).reshape(6, 3, n * n)
    best = np.argsort(-scores, -1)[..., :top_k]
    found, indices = product_keys(jnp.asarray(queries, jnp.float32), jnp.asarray(keys, jnp.float32), top_k)
    np.testing.assert_array_equal(np.sort(indices, -1), np.sort(best, -1))
    np.testing.assert_allclose(found, np.take_along_axis(scores, best, -1), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"separate": True, "share_keys": False}, {"gate": "sigmoid"}])
def test_layer_is_the_weighted_sum_of_its_neurons(options: dict[str, Any]) -> None:
    config = layer(query_norm="none", **options)
    p, bank, x = config.peer, random_bank(config), random_tokens(config)
    y, _, _ = retrieve(bank, x, all_valid(x), config, train=False)
    want, n = np.zeros(x.shape), 8
    for t, h in np.ndindex(len(x), p.heads):
        q = np.asarray(x[t] @ bank["query"][:, h].reshape(config.d_model, -1)).reshape(2, -1)
        keys = np.asarray(bank["keys"])[h if len(bank["keys"]) > 1 else 0]
        scores = (keys[0] @ q[0])[:, None] + (keys[1] @ q[1])[None]
        chosen = np.argsort(-scores.ravel())[: p.top_k]
        s = scores.ravel()[chosen]
        gates = 1 / (1 + np.exp(-s)) if p.gate == "sigmoid" else np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        rows = chosen + (n * n * h if p.separate else 0)
        hidden = np.asarray(GELU(bank["down"][rows] @ x[t]))
        want[t] += (gates * hidden) @ np.asarray(bank["up"])[rows]
    np.testing.assert_allclose(y, want, atol=2e-5 * want.std())


@pytest.mark.parametrize("chunk", [1, 4, 13])
def test_chunks_change_nothing(chunk: int) -> None:
    def outputs(size: int) -> Any:
        config = layer(chunk=size)
        bank, x = random_bank(config), random_tokens(config)

        def total(bank: Any, x: jax.Array) -> Any:
            y, sums, _ = retrieve(bank, x, all_valid(x), config, train=True)
            return (y * jnp.arange(y.size).reshape(y.shape)).sum(), (y, sums)

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(bank, x)

    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-3)
    jax.tree.map(close, outputs(chunk), outputs(100))


def test_a_chosen_chunk_bounds_the_gather() -> None:
    config = layer()
    size = chunk_tokens(config, jax.ShapeDtypeStruct((10**6, 256), jnp.float32))
    assert size * config.peer.heads * config.peer.top_k * 256 * 4 <= CHUNK_BYTES["cpu"] < 2 * size * 8 * 256 * 4
    assert chunk_tokens(config, jnp.zeros((5, 256))) == 5


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_that_of_torch(train: bool, parity_seed: int) -> None:
    torch = pytest.importorskip("torch")
    config = layer(momentum=0.8)
    bank, rng = random_bank(config), np.random.default_rng(parity_seed)
    features = bank["mean"].size
    norm = torch.nn.BatchNorm1d(features, momentum=0.2, eps=1e-5).train(train)
    leaves = {"weight": "query_norm_scale", "bias": "query_norm_bias", "running_mean": "mean", "running_var": "var"}
    norm.load_state_dict({k: torch.tensor(np.asarray(bank[v])) for k, v in leaves.items()}, strict=False)
    state = {name: bank[name] for name in ("mean", "var")}
    for _ in range(2):
        queries = 3 * rng.standard_normal((11, 2, 2, 6)).astype(np.float32) + 1
        valid = rng.permutation(11) < 7
        got, sums = normalize_queries(jnp.asarray(queries), jnp.asarray(valid), bank | state, "batch", train)
        want = norm(torch.tensor(queries.reshape(11, -1)[valid])).detach().numpy()
        np.testing.assert_allclose(np.asarray(got).reshape(11, -1)[valid], want, atol=2e-5)
        if train:
            state = update_state(state, sums, config)
            np.testing.assert_allclose(state["mean"], norm.running_mean, atol=1e-5)
            np.testing.assert_allclose(state["var"], norm.running_var, rtol=1e-5)


def test_running_variance_keeps_its_digits_far_from_zero() -> None:
    config = layer()
    bank = random_bank(config) | {"mean": jnp.full_like(random_bank(config)["mean"], 300.0)}
    queries = (300 + 0.1 * np.random.default_rng(0).standard_normal((4096, 2, 2, 6))).astype(np.float32)
    _, sums = normalize_queries(jnp.asarray(queries), jnp.ones(4096, bool), bank, "batch", True)
    state = update_state({name: bank[name] for name in ("mean", "var")}, sums, config)
    keep, flat = config.peer.momentum, queries.reshape(4096, -1).astype(np.float64)
    np.testing.assert_allclose(state["mean"], keep * 300 + (1 - keep) * flat.mean(0), rtol=1e-7)
    np.testing.assert_allclose(state["var"] - keep * bank["var"], (1 - keep) * flat.var(0, ddof=1), rtol=1e-3)


def test_layer_norm_normalises_every_half() -> None:
    config = layer(query_norm="layer")
    bank = random_bank(config)
    queries = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2, 2, 6)), jnp.float32)
    got, sums = normalize_queries(queries, jnp.ones(5, bool), bank, "layer", True)
    centred = queries - queries.mean(-1, keepdims=True)
    want = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    want = want * bank["query_norm_scale"].reshape(2, 2, 6) + bank["query_norm_bias"].reshape(2, 2, 6)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not sums


def test_sums_of_micro_batches_give_the_statistics_of_the_whole() -> None:
    config = layer()
    bank, x = random_bank(config), random_tokens(config, 12)
    valid = jnp.arange(12) % 4 > 0
    run = jax.jit(functools.partial(retrieve, config=config, train=True))
    whole = run(bank, x, valid)[1]
    parts = [run(bank, x[i : i + 4], valid[i : i + 4])[1] for i in (0, 4, 8)]
    for name in ("query", "query_sq", "peer_tokens"):
        np.testing.assert_allclose(sum(part[name] for part in parts), whole[name], rtol=1e-4, atol=1e-4)


def test_no_valid_token_leaves_the_statistics_alone() -> None:
    config = layer()
    bank, x = random_bank(config), random_tokens(config)
    y, sums, _ = retrieve(bank, x, jnp.zeros(len(x), bool), config, train=True)
    state = {name: bank[name] for name in ("mean", "var")}
    for name, value in update_state(state, sums, config).items():
        np.testing.assert_array_equal(value, state[name])
    assert np.isfinite(y).all() and not sums["usage"].any()


@pytest.mark.parametrize("train", [True, False])
def test_padding_does_not_matter(train: bool) -> None:
    model = tiny(n_layers=1, ffn="peer", peer=SMALL)
    params, tokens = model_params(model), tokens_of(model, (2, 8))
    segments = jnp.ones((2, 8), jnp.int32).at[:, 6:].set(0)
    run = functools.partial(apply, model, params, segments=segments, train=train)
    left, right = run(tokens=tokens), run(tokens=tokens.at[:, 6:].add(1) % 64)
    np.testing.assert_allclose(left.hidden[:, :6], right.hidden[:, :6], atol=1e-5)
    assert left.aux["usage"].shape == (1, 64)
    for name, value in left.aux.items():
        np.testing.assert_allclose(value, right.aux[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(left.aux["usage"].sum(), 12 * SMALL["heads"], rtol=1e-5)


def test_training_uses_the_batch_and_evaluation_the_running_statistics() -> None:
    model = tiny(n_layers=1, ffn="peer", peer=SMALL)
    params, tokens = model_params(model), tokens_of(model, (2, 8))
    trained, still = (apply(model, params, tokens=tokens, train=train).hidden for train in (True, False))
    assert np.abs(np.asarray(trained - still)).max() > 1e-2


def test_decoding_with_a_cache_agrees_with_the_full_pass() -> None:
    model = tiny(n_layers=1, ffn="peer", peer=SMALL | {"chunk": 5})
    params = model_params(model)
    tokens, positions, segments = left_pad(np.asarray(tokens_of(model)), (0, 3))
    steps = cached(model, params, tokens, positions, segments, 6)
    full, _ = forward(model, params, tokens, positions, segments)
    seen = np.asarray(segments) > 0
    assert_close(np.asarray(steps)[seen], np.asarray(full)[seen])


def test_metrics_of_the_paper() -> None:
    config = layer()
    scores = np.array([[0.0, 1.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    found = metrics({"usage": jnp.asarray(scores)}, config)
    assert set(found) == {"peer/usage", "peer/unevenness"}
    np.testing.assert_allclose(found["peer/usage"], (0.5 + 1.0) / 2)
    first = np.log(4) + 0.25 * np.log(0.25) + 0.75 * np.log(0.75)
    np.testing.assert_allclose(found["peer/unevenness"], (first + 0) / 2, atol=1e-6)


def test_devices_agree_with_one() -> None:
    model = tiny(n_layers=1, ffn="peer", peer=SMALL | {"chunk": 24})
    params, tokens = model_params(model), tokens_of(model, (8, 6))

    def total(params: Any, tokens: jax.Array) -> Any:
        out = model.apply(params, tokens, train=True)
        return (out.hidden**2).sum() / 100, out

    run = jax.value_and_grad(total, has_aux=True)
    want = jax.jit(run)(params, tokens)
    on = make_mesh({"data": 2, "fsdp": 2, "expert": 2})
    with jax.set_mesh(on):
        laid = jax.device_put(params, model.shardings(on))
        got = jax.jit(run)(laid, jax.device_put(tokens, batch_sharding(on)))
        got = jax.device_put(got, replicated(on))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, want)


def test_low_precision_stays_close() -> None:
    config = layer(query_norm="none")
    bank, x = random_bank(config), random_tokens(config)
    exact, _, _ = retrieve(bank, x, all_valid(x), config, train=False)
    # The same experts for both: rounding of queries may choose others where scores are close.
    x = x.astype(jnp.bfloat16)
    low, sums, _ = retrieve(bank, x, all_valid(x), config, train=False)
    assert low.dtype == jnp.bfloat16 and sums["usage"].dtype == jnp.float32
    error = np.abs(np.asarray(low, np.float32) - np.asarray(exact))
    assert np.median(error) < 0.05 * np.asarray(exact).std()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_experts": 60}, "n_experts=60 must be a square .* 49 or 64"),
        ({"key_dim": 7}, "key_dim=7"),
        ({"n_experts": 16, "top_k": 5}, "top_k=5 of only 4 keys"),
        ({"banks": (64, 10), "top_k": 4}, "banks=10 must be a square"),
    ],
)
def test_impossible_sizes_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PEERConfig(**options)


def test_an_odd_model_width_asks_for_a_key_width() -> None:
    with pytest.raises(ValueError, match=r"d_model=33 .*key_dim"):
        half_width(ModelConfig(vocab_size=8, d_model=33, n_layers=1, n_heads=1, d_ff=8, head_dim=4))


def test_sparse_rows_must_be_countable() -> None:
    config = layer(n_experts=4100**2)
    with pytest.raises(ValueError, match=f"up to {2**24} rows exactly, found {4100**2}"):
        tap_shapes(config, 4)
