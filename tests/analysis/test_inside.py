"""Lenses, what heads read, activation patching, gradients of single examples, and captures of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import captures, lens
from analysis.attention import columns_read, distance_read, draw_head, entropy_read, share_by_kind
from analysis.captures import open_captures, write_captures
from analysis.gradients import chosen, per_example_gradients
from analysis.lens import guesses, layers_of_stack, probability_of
from analysis.patching import exchanged, only, restore_one_by_one
from data.sources.batch import TokenRows
from model import build
from model.lm import Output
from tests.grid import case_of
from tests.tiny_config import get_config
from tests.trunk import TINY, tiny, tiny_params
from train.loop import run
from train.objectives.losses import batch_logps

MODEL, PARAMS = tiny(2), tiny_params(2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(2, TINY["vocab_size"], (4, 6)))


@jax.jit
def looked(params: Any, tokens: jax.Array) -> Any:
    return MODEL.apply(params, tokens, capture=("residual", "attention.weights"))


def test_the_lens_of_the_last_layer_is_the_model() -> None:
    out = looked(PARAMS, TOKENS)
    states = layers_of_stack(out.captured)
    assert states.shape == (2, *TOKENS.shape, 32)
    logits = jax.jit(lambda p, x: lens.lens(MODEL, p, x))(PARAMS, states)
    spoken = jax.jit(MODEL.logits)(PARAMS, out.hidden)
    np.testing.assert_allclose(logits[-1], spoken, rtol=0, atol=1e-5)
    best = guesses(logits, 3)
    np.testing.assert_array_equal(best.tokens[-1, ..., 0], spoken.argmax(-1))
    chances = probability_of(logits[-1], jnp.asarray(best.tokens[-1, ..., 0]))
    np.testing.assert_allclose(chances, best.probabilities[-1, ..., 0], rtol=1e-6)
    with pytest.raises(ValueError, match="k=99 of 16 tokens"):
        guesses(logits, 99)
    with pytest.raises(ValueError, match=r"'ffn\.out' by layer is not among what was captured: attention\.weights"):
        layers_of_stack(out.captured, "ffn.out")


def test_iterations_stand_in_the_place_of_the_core() -> None:
    case = case_of("gqa", "glu", 0, "recurrent")
    found = lens.prompt_lens(case.model, case.params, TOKENS[0].tolist(), depth=3)
    assert found.tokens.shape == (5, 6, 1), "prelude, three iterations, coda"
    out = jax.jit(lambda p, t: case.model.apply(p, t, depth=3, capture=("residual", "state")))(case.params, TOKENS)
    np.testing.assert_array_equal(layers_of_stack(out.captured)[1:4], out.captured["state"])


def test_what_heads_read() -> None:
    weights = jnp.zeros((1, 2, 3, 3)).at[:, :, 0, 0].set(1).at[:, 0, 1, 0].set(1).at[:, 1, 1, 1].set(1)
    weights = weights.at[:, :, 2].set(jnp.array([0.5, 0.25, 0.25]))
    read = columns_read(weights, 2)
    assert read.columns[0, :, :2, 0].tolist() == [[0, 0], [0, 1]]
    assert read.weights[0, 0, 2].tolist() == [0.5, 0.25]
    shares = share_by_kind(weights, jnp.array([[1, 0, -1]]), 2)
    assert shares[0, 0].tolist() == [[0, 1], [0, 1], [0.25, 0.5]]
    positions = jnp.arange(3)[None]
    assert distance_read(weights, positions, positions)[0].tolist() == [[0, 1, 1.25], [0, 0, 1.25]]
    np.testing.assert_allclose(entropy_read(weights)[0, 0], [0, 0, 1.5 * np.log(2)], atol=1e-6)
    with pytest.raises(ValueError, match=r"kinds must be \[B, L\] = \(1, 3\), found \(3,\)"):
        share_by_kind(weights, jnp.array([1, 0, 0]), 2)
    with pytest.raises(ValueError, match="k=4 of 3 columns"):
        columns_read(weights, 4)
    with pytest.raises(ValueError, match=r"weights must be \[2, 2\] for as many tokens"):
        draw_head(np.eye(3), ["a", "b"])
    assert len(draw_head(np.eye(3), ["a", "b", "c"], "head 0").axes) == 2


def test_a_part_of_an_array() -> None:
    array = jnp.arange(24.0).reshape(2, 3, 4)
    kept = ~np.isnan(only(array, rows=[1], columns=[0, 2]))
    assert kept.sum() == 8
    assert kept[1, [0, 2]].all()
    assert (~np.isnan(only(array, iterations=[0], rows=[1], columns=[-1]))).sum() == 1
    assert exchanged(array, [1, 0])[0].tolist() == array[1].tolist()
    with pytest.raises(ValueError, match=r"columns=\[3\] of an array of the shape \(2, 3, 4\): there are 3"):
        only(array, columns=[3])
    with pytest.raises(ValueError, match="name each of 2 rows once"):
        exchanged(array, [0, 0])


def last_state(out: Output) -> jax.Array:
    return out.hidden[:, -1, 0]


def test_states_restored_one_by_one() -> None:
    """After the last layer only the column itself answers as in the other pass; before it any column may."""
    other = jnp.flip(TOKENS, 0)
    source, plain = looked(PARAMS, other), looked(PARAMS, TOKENS)
    effect = restore_one_by_one(MODEL, PARAMS, TOKENS, source.captured["residual"], last_state)
    assert effect.shape == (2, 6, 4)
    np.testing.assert_allclose(effect[1, -1], last_state(source), atol=1e-5)
    np.testing.assert_allclose(effect[1, :-1], np.broadcast_to(last_state(plain), (5, 4)), atol=1e-5)
    assert np.abs(effect[0, :-1] - last_state(plain)).max() > 1e-3
    with pytest.raises(ValueError, match="the source's rows"):
        restore_one_by_one(MODEL, PARAMS, TOKENS[:2], source.captured["residual"], last_state)


def rows(tokens: jax.Array) -> TokenRows:
    columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return TokenRows(tokens=tokens, mask=jnp.ones(tokens.shape), positions=columns, segments=jnp.ones_like(tokens))


def test_gradients_of_single_examples_add_up() -> None:
    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return -batch_logps(MODEL, params, rows(tokens[None]))[0].sum()

    part = jax.jit(lambda p, t: per_example_gradients(loss, p, t, ("layer_1/mixer", "final_norm")))(PARAMS, TOKENS)
    assert set(part) == {"layer_1", "final_norm"}
    total = jax.jit(jax.grad(lambda p, t: -batch_logps(MODEL, p, rows(t))[0].sum()))(PARAMS, TOKENS)
    whole = chosen(total, ("layer_1/mixer", "final_norm"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-4, atol=1e-4), part, whole)
    with pytest.raises(ValueError, match="no parameter matches 'layer_7'"):
        per_example_gradients(loss, PARAMS, TOKENS, ("layer_7",))


def test_captures_of_a_data_set(tmp_path: Path) -> None:
    batches = [rows(TOKENS + shift) for shift in (0, -1, -2)]
    names = ("residual", "embedding")
    written = write_captures(MODEL, PARAMS, batches, names, tmp_path / "out", shard_bytes=1)
    assert written == open_captures(tmp_path / "out")
    assert written.shards == (4, 4, 4)
    assert written.shapes["residual/1"] == (6, 32)
    tokens = np.concatenate([batch.tokens for batch in batches])
    np.testing.assert_array_equal(written.read("tokens"), tokens)
    whole = looked(PARAMS, jnp.asarray(tokens)).captured["residual"][1]
    np.testing.assert_allclose(written.read("residual/1"), whole, atol=1e-4)
    with pytest.raises(ValueError, match="is not empty"):
        write_captures(MODEL, PARAMS, batches, names, tmp_path / "out")
    with pytest.raises(ValueError, match=r"no 'ffn\.out'"):
        written.read("ffn.out")
    with pytest.raises(ValueError, match="pad rows to one length"):
        write_captures(MODEL, PARAMS, [batches[0], rows(TOKENS[:, :4])], names, tmp_path / "two")
    with pytest.raises(FileNotFoundError, match="or not to the end"):
        open_captures(tmp_path / "two")
    with pytest.raises(ValueError, match="there were no batches"):
        write_captures(MODEL, PARAMS, [], names, tmp_path / "none")


def test_captures_of_a_recurrent_model_and_of_thoughts(tmp_path: Path) -> None:
    """Rows come first, whatever there is in front of them."""
    model = build(TINY | {"n_layers": 3, "depth": "recurrent", "recurrent": {"mean": 2}})
    params = jax.jit(model.init)(jax.random.key(0))
    latent = rows(TOKENS[:3]).replace(latent=jnp.ones((3, 2), bool), first=2)
    written = write_captures(model, params, [latent], ("state", "residual", "thoughts"), tmp_path / "out")
    shapes = {"state": (2, 6, 32), "residual/0": (6, 32), "residual/1": (2, 6, 32), "thoughts": (2, 32)}
    assert {name: written.shapes[name] for name in shapes} == shapes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        folder = tmp_path_factory.mktemp("run") / "sft"
        config = get_config("sft")
        config.steps = 1
        run(config, folder)
        yield folder


def test_the_commands(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lens.main([f"--run={trained}", "--prompt=12+3="]) == 0
    assert (trained / "lens.png").read_bytes().startswith(b"\x89PNG")
    assert lens.main([f"--run={trained}", "--prompt=12+3=", "--depth=3"]) == 2
    assert "is a plain stack: leave --depth out" in capsys.readouterr().err
    asked = [f"--run={trained}", "--rows=5", "--batch=3", f"--output={tmp_path / 'out'}"]
    assert captures.main([*asked, "--names", "residual", "final_norm"]) == 0
    assert "final_norm: 5 rows of" in capsys.readouterr().out
    assert captures.main([*asked[:3], f"--output={tmp_path / 'no'}", "--names", "residul"]) == 2
    assert "Did you mean 'residual'" in capsys.readouterr().err
