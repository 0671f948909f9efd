"""Continuous thoughts: against the reference's numbers, by the definition in transformers, and one path against the
other.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from data.sources.batch import TokenRows
from data.thoughts import Chain, Curriculum, Markers, thought_batch
from model import Model, hf
from model.latent import Columns, init_projector, mapped, project, think
from model.reports import Reports, merge_passes
from tests.model.common import apply, distance, random_params, tiny

COMMITTED = Path(__file__).resolve().parents[1] / "golden" / "coconut.npz"
IDS = Markers(start=99, latent=101, end=100, pad=98)
CURRICULUM = Curriculum(thoughts_per_step=2, max_stage=3)
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 102,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 96,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 102,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
    },
}


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """The whole file where it is, else the committed part: Llama's weights and losses, one gradient."""
    whole = Path(__file__).resolve().parents[3] / "shared" / "golden" / "coconut.npz"
    with np.load(whole if whole.exists() else COMMITTED) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> (model, params) of the golden file, through the loader of Hub folders."""

    @functools.cache
    def load(name: str) -> tuple[Model, Any]:
        prefix = f"{name}:w:"
        weights = {key.removeprefix(prefix): x for key, x in golden().items() if key.startswith(prefix)}
        if not weights:
            pytest.skip(f"the committed file holds no weights of {name}")
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
        save_file(weights, folder / "model.safetensors")
        return hf.load(folder)

    return load


def chains() -> list[Chain]:
    return [Chain(*parts) for parts in json.loads(str(golden()["data"]))]


THOUGHTS, FIRST, LENGTH = 6, 12, 32


def rows(stage: int) -> TokenRows:
    """The batch of a stage in the shape that serves them all, so that they share one program."""
    batch = thought_batch(chains(), CURRICULUM, IDS, stage, first=FIRST, length=LENGTH)
    return jax.tree.map(jnp.asarray, batch.replace(answer=None))


def columns(batch: TokenRows) -> Columns:
    """What `think` runs of rows whose `latent` [B, S] covers all columns."""
    return Columns(batch.tokens, batch.positions, batch.segments, batch.latent)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("thoughts", "first", "feedback", "train", "depth"))
def thinking(model: Model, params: Any, batch: TokenRows, **options: Any) -> Any:
    """`think`, compiled."""
    return think(model, params, columns(batch), **options)


def mean_loss(model: Model, params: Any, batch: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The reference's loss, and the logits."""
    logits = model.logits(params, hidden)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), batch.tokens[:, 1:, None], -1)[..., 0]
    mask = batch.mask[:, 1:]
    return -(picked * mask).sum() / mask.sum(), logits


@functools.partial(jax.jit, static_argnums=0, static_argnames=("thoughts", "first", "feedback"))
def run(
    model: Model, params: Any, batch: Any, *, thoughts: int, first: int | None = None, feedback: Any = None
) -> tuple[Any, Any, Any]:
    """The reference's loss, the logits, and the loss's gradient with respect to all parameters."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        hidden = think(model, params, columns(batch), thoughts=thoughts, first=first, feedback=feedback).hidden
        return mean_loss(model, params, batch, hidden)

    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, logits, gradient


def assert_golden(name: str, stage: int, batch: Any, result: tuple[Any, Any, Any]) -> None:
    """Loss 1e-5, logits 1e-4 at real tokens, the gradient of the embedding 1e-4 of its largest entry."""
    value, logits, gradient = result
    want = {key: golden().get(f"{name}:s{stage}:{key}") for key in ("loss", "logits", "grad_emb")}
    assert abs(float(value) - float(want["loss"])) < 1e-5
    if want["logits"] is not None:
        theirs = golden()[f"{name}:s{stage}:attention_mask"] > 0
        assert np.abs(np.asarray(logits)[np.asarray(batch.segments) > 0] - want["logits"][theirs]).max() < 1e-4
    if want["grad_emb"] is not None:
        assert np.abs(gradient["embed"] - want["grad_emb"]).max() < 1e-4 * np.abs(want["grad_emb"]).max()


@pytest.mark.more_but("gpt2-0-recompute")
@pytest.mark.parametrize("reuse", [False, True], ids=["recompute", "reuse"])
@pytest.mark.parametrize("stage", range(5))
@pytest.mark.parametrize("name", CONFIGS)
def test_parity_with_the_reference(reference: Any, name: str, stage: int, reuse: bool) -> None:
    model, params = reference(name)
    batch = rows(stage)
    assert_golden(name, stage, batch, run(model, params, batch, thoughts=THOUGHTS, first=FIRST if reuse else None))


@pytest.mark.more
def test_sizes_that_fit_one_stage_only(reference: Any) -> None:
    """As many thoughts as the stage has, in the reference's own columns."""
    model, params = reference("llama")
    tight = thought_batch(chains(), CURRICULUM, IDS, 2)
    first = int(tight.latent[0].argmax())
    batch = jax.tree.map(jnp.asarray, tight.replace(answer=None))
    assert_golden("llama", 2, batch, run(model, params, batch, thoughts=CURRICULUM.thoughts(2), first=first))


@pytest.mark.more
@pytest.mark.parametrize("wrong", ["pause", "one too few", "another row", "positions"])
def test_mutant_breaks_parity(reference: Any, wrong: str) -> None:
    """Tokens that are not fed back, one of them only, thoughts of another row, a gap before the thoughts."""
    model, params = reference("llama")
    batch, feedback = rows(2), None
    if wrong == "pause":
        batch = batch.replace(latent=jnp.zeros_like(batch.latent))
    if wrong == "one too few":
        batch = batch.replace(latent=batch.latent.at[:, FIRST + 3].set(False))
    if wrong == "positions":
        batch = batch.replace(positions=batch.positions + (jnp.arange(LENGTH) >= FIRST))
    if wrong == "another row":
        feedback = mapped(functools.partial(jnp.roll, shift=1, axis=0))
    value = run(model, params, batch, thoughts=THOUGHTS, first=FIRST, feedback=feedback)[0]
    assert abs(float(value) - float(golden()["llama:s2:loss"])) > 1e-4


def test_a_thought_from_the_wrong_column_breaks_parity(reference: Any) -> None:
    """By plain passes: the right columns give the reference's loss, and one wrong column does not."""
    model, params = reference("llama")
    batch = rows(2)
    where = columns(batch)[:3]
    one_pass = jax.jit(lambda embeds: model.apply(params, *where, embeds=embeds).hidden)
    values = []
    for wrong in (-1, 2):
        embeds = jnp.full((*where[0].shape, model.config.d_model), jnp.nan)
        for thought in range(4):
            back = 2 if thought == wrong else 1
            embeds = embeds.at[:, FIRST + thought].set(one_pass(embeds)[:, FIRST + thought - back])
        values.append(float(mean_loss(model, params, batch, one_pass(embeds))[0]))
    want = float(golden()["llama:s2:loss"])
    assert abs(values[0] - want) < 1e-5 and abs(values[1] - want) > 1e-3


SLOTS: dict[str, dict[str, Any]] = {
    "gqa": {"window": 6},
    "learned positions": {"positions": "learned", "norm_type": "layernorm", "ffn": "mlp", "tied": True},
    "mla": {"mixer": "mla", "mla": {"kv_rank": 16, "nope_dim": 8, "rope_dim": 4, "v_dim": 8}},
    "moe": {"ffn": "moe", "moe": {"n_experts": 4, "d_expert": 16}},
    "peer": {"ffn": "peer", "peer": {"n_experts": 64, "heads": 2, "top_k": 3, "key_dim": 16}},
    "mingru": {"mixer": ("mingru", "gqa"), "n_layers": 2, "rnn": {"conv": 3}, "embed_scale": 3.0},
    "gated_delta": {"mixer": ("gated_delta", "gqa"), "n_layers": 2, "out_gate": True, "sinks": True},
}


def uneven(vocab: int) -> TokenRows:
    """Three rows of 3, 1 and 0 thoughts in columns 4 .. 6 of 11; the first is padded left, the second right."""
    rng = np.random.default_rng(3)
    segments = np.ones((3, 11), np.int32)
    segments[0, :2] = segments[1, 9:] = 0
    latent = np.zeros((3, 11), bool)
    latent[0, 4:7] = latent[1, 4] = True
    positions = np.maximum(segments.cumsum(1) - 1, 0) * segments
    arrays = {"tokens": rng.integers(0, vocab, (3, 11)), "positions": positions, "segments": segments}
    mask = segments * (np.arange(11) > 6).astype(np.float32)
    integers = {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}
    return TokenRows(**integers, latent=jnp.asarray(latent), mask=jnp.asarray(mask, jnp.float32))


@pytest.mark.more_but("gqa")
@pytest.mark.parametrize("slots", SLOTS)
def test_reuse_is_recompute(slots: str) -> None:
    # Half a unit in the last place of the parameters moves the gradient of gated_delta by 2e-4 to 4e-4 of its largest
    # element, in either way to compute it; that of gqa by 5e-6, of mingru by 5e-6.
    close = 5e-4 if slots == "gated_delta" else 1e-4
    model = tiny(**{"n_layers": 1, **SLOTS[slots]})
    params, batch = random_params(model), uneven(64)
    both = [run(model, params, batch, thoughts=3, first=first) for first in (None, 4)]
    real = np.asarray(batch.segments) > 0
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-6)
    assert distance(*(np.asarray(result[1])[real] for result in both)) < 1e-4
    for path, leaf in jax.tree_util.tree_leaves_with_path(both[0][2]):
        other = functools.reduce(lambda tree, key: tree[key.key], path, both[1][2])
        assert np.isfinite(leaf).all()
        assert np.abs(leaf - other).max() <= close * np.abs(leaf).max(), path
    plain = run(model, params, batch.replace(latent=jnp.zeros_like(batch.latent)), thoughts=3, first=4)
    assert distance(plain[1][:2], both[1][1][:2]) > 1e-2
    assert distance(plain[1][2], both[1][1][2]) < 1e-5


@pytest.mark.more
def test_reports_count_every_column_once() -> None:
    model = tiny(**SLOTS["moe"])
    params, batch = random_params(model), uneven(64)
    apart, together = (thinking(model, params, batch, thoughts=3, first=first).aux for first in (None, 4))
    assert set(apart) == set(together)
    np.testing.assert_array_equal(apart["load"], together["load"])
    assert apart["load"].sum() == model.config.n_layers * (batch.segments > 0).sum() * model.config.moe.top_k
    one = Reports({"b": jnp.ones(1)}, {"a": jnp.ones(1)}, depth=jnp.array([3]))
    other = Reports({"b": 5 * jnp.ones(1)}, {"a": 2 * jnp.ones(1)}, depth=jnp.array([2]))
    assert merge_passes([(3, one), (1, other)]).named() == {"a": 3.0, "b_loss": 2.0, "depth": 3}


@pytest.mark.more
def test_recurrent_depth() -> None:
    """Thoughts of a model that thinks in depth as well: both ways the same; the definition has a gradient."""
    model = tiny(n_layers=3, depth="recurrent", recurrent={"mean": 2})
    params, batch = random_params(model), uneven(64)
    apart, together = (thinking(model, params, batch, thoughts=3, first=first, depth=2) for first in (None, 4))
    real = np.asarray(batch.segments) > 0
    for name in ("hidden", "state"):
        assert distance(*(np.asarray(getattr(out, name))[real] for out in (apart, together))) < 1e-4
    assert apart.aux["depth"].tolist() == together.aux["depth"].tolist() == [2, 2, 2]
    gradient = run(model, params, batch, thoughts=3)[2]
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.more_but("recompute")
@pytest.mark.parametrize("first", [None, 4], ids=["recompute", "reuse"])
def test_gradient_flows_through_every_pass(first: int | None) -> None:
    """The loss sees the begin marker through three thoughts alone: a window of two hides it from all but its
    neighbour.
    """
    model = tiny(window=2, n_layers=1, tied=False)
    params, begin = random_params(model), 63
    batch = jax.tree.map(lambda x: x[:1], uneven(64))
    batch = batch.replace(
        tokens=jnp.where(jnp.arange(11) == 3, begin, jnp.minimum(batch.tokens, begin - 1)),
        mask=jnp.zeros((1, 11)).at[:, 8].set(1.0),  # predicted from column 7, which sees column 6
    )

    def gradient(batch: Any, feedback: Any = None) -> np.ndarray:
        return np.abs(run(model, params, batch, thoughts=3, first=first, feedback=feedback)[2]["embed"][begin])

    assert gradient(batch).max() > 1e-4
    assert first is None or not gradient(batch, mapped(jax.lax.stop_gradient)).any()
    assert not gradient(batch.replace(latent=jnp.zeros_like(batch.latent))).any()


def test_thoughts_anywhere() -> None:
    """By the definition thoughts need not share a column: rows moved apart say the same."""
    model = tiny(n_layers=1)
    params, batch = random_params(model), uneven(64)
    row = jax.tree.map(lambda x: x[:1], batch)
    both = jax.tree.map(lambda x: jnp.concatenate([x, jnp.roll(x, -2, 1), x]), row)
    hidden = thinking(model, params, both, thoughts=3).hidden
    np.testing.assert_allclose(hidden[0, 2:], hidden[1, :-2], atol=1e-5)


def test_cache_goes_on_after_thoughts() -> None:
    """A prompt with thoughts fills a cache; single steps after it equal the whole row."""
    model = tiny(n_layers=1)
    params, batch = random_params(model), uneven(64)
    whole = thinking(model, params, batch, thoughts=3).hidden
    prompt = jax.tree.map(lambda x: x[:, :8], batch)
    out = thinking(model, params, prompt, thoughts=3, first=4, cache=model.init_cache(3, 11))
    rows, cache = np.array([0, 2]), out.cache  # the padding of row 1 sees nothing in particular
    np.testing.assert_allclose(out.hidden[rows, 2:], whole[rows, 2:8], atol=1e-5)
    for column in range(8, 11):
        now = columns(batch).between(column, column + 1)
        step = apply(model, params, now.tokens, positions=now.positions, segments=now.segments, cache=cache)
        cache = step.cache
        np.testing.assert_allclose(step.hidden[rows, 0], whole[rows, column], atol=1e-5)


def test_projector() -> None:
    model = tiny()
    weights, hidden = init_projector(model, jax.random.key(0), 48), jax.random.normal(jax.random.key(1), (2, 5, 32))
    fed = project(weights, hidden)
    assert weights["up"].shape == (32, 48) and fed.shape == hidden.shape
    np.testing.assert_allclose(fed.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(fed.std(-1), 1, atol=1e-3)


def test_feedback_and_options() -> None:
    model = tiny(n_layers=1)
    params, batch = random_params(model), uneven(64)
    half, rest = mapped(functools.partial(jnp.multiply, 0.5)), {"train": True, "key": jax.random.key(0), "thoughts": 3}
    scaled = [thinking(model, params, batch, first=first, feedback=half, **rest).hidden for first in (None, 4)]
    real = np.asarray(batch.segments) > 0
    assert distance(*(np.asarray(x)[real] for x in scaled)) < 1e-4
    plain = thinking(model, params, batch, thoughts=3).hidden
    assert distance(scaled[0], plain) > 1e-2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thoughts": -1}, "thoughts=-1"),
        ({"thoughts": 2}, "a row has 3 latent positions, but thoughts=2"),
        ({"thoughts": 3, "first": 5}, r"latent columns 4\.\.6 do not lie in 5\.\.7"),
        ({"thoughts": 3, "first": 0}, "first=0 and thoughts=3"),
        ({"thoughts": 3, "first": 9}, "rows of 11 columns"),
        ({"thoughts": 3, "cache": "any"}, "`cache` requires `first`"),
        ({"thoughts": 3, "first": 4, "state": "any"}, "`state` is of whole rows"),
    ],
)
def test_wrong_use(given: dict[str, Any], message: str) -> None:
    model = tiny()
    with pytest.raises(ValueError, match=message):
        think(model, random_params(model), columns(uneven(64)), **given)


def test_wrong_batches() -> None:
    model = tiny()
    params, rows = random_params(model), columns(uneven(64))
    with pytest.raises(TypeError, match="latent"):
        Columns(*rows[:3])  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="column 0 is latent"):
        think(model, params, rows._replace(latent=jnp.roll(rows.latent, -4, 1)), thoughts=3)
    with pytest.raises(ValueError, match="taps"):
        think(model, params | {"taps": {}}, rows, thoughts=3)
