"""What `Model.apply` refuses where values are known, and what it takes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.checks import known
from model.latent import Columns, think
from model.lm import _default_positions, one_segment
from tests.model.common import TINY, random_params, tiny, tokens_of

MODEL = tiny()
LEARNED = tiny(positions="learned")
TOKENS = np.asarray(tokens_of(MODEL, (2, 6)))
ONES = np.ones((2, 6), np.int32)


def changed(value: Any, x: np.ndarray = TOKENS, at: tuple[int, int] = (1, 3)) -> np.ndarray:
    """`x` with one other value in it."""
    x = x.copy()
    x[at] = value
    return x


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tokens": changed(300)}, r"tokens\[1, 3\] is 300, and the model knows ids 0\.\.63"),
        ({"tokens": changed(64)}, r"tokens\[1, 3\] is 64"),
        ({"tokens": changed(-5)}, r"tokens\[1, 3\] is -5"),
        ({"tokens": TOKENS[0]}, r"\[rows, columns\]; found shape \[6\]; a single row is tokens\[None\]"),
        ({"tokens": TOKENS[None]}, r"found shape \[1, 2, 6\]"),
        ({"tokens": TOKENS[:, :0]}, r"found shape \[2, 0\]"),
        ({"tokens": TOKENS * 1.0}, "found dtype float"),
        ({"positions": changed(-1, ONES)}, r"positions\[1, 3\] is -1: positions count from 0$"),
        ({"positions": ONES[:, :5]}, r"\[2, 6\] like the tokens; found shape \[2, 5\]"),
        ({"positions": ONES * 0.5}, "positions must be .* found dtype float"),
        ({"segments": ONES[:1]}, r"segments must be .* found shape \[1, 6\]"),
        ({"segments": changed(-1, ONES)}, r"segments\[1, 3\] is -1"),
        ({"embeds": np.zeros((2, 6, 31), np.float32)}, r"\[2, 6, 32\]; found \[2, 6, 31\]"),
        ({"embeds": np.zeros((6, 32), np.float32)}, r"\[2, 6, 32\]; found \[6, 32\]"),
    ],
)
def test_wrong_inputs(given: dict[str, Any], words: str, make: Any) -> None:
    with pytest.raises(ValueError, match=words):
        MODEL.apply(random_params(MODEL), **{name: make(x) for name, x in ({"tokens": TOKENS} | given).items()})


def test_lists_and_a_cache_that_does_not_fit() -> None:
    params = random_params(MODEL)
    with pytest.raises(ValueError, match=r"found list: make it one by jnp\.asarray"):
        MODEL.apply(params, TOKENS.tolist())
    with pytest.raises(ValueError, match="2 rows of tokens were given a cache of 3 rows"):
        MODEL.apply(params, TOKENS, cache=MODEL.init_cache(3, 8))
    full = MODEL.init_cache(2, 8).replace(index=jnp.int32(4))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="6 tokens do not fit a cache of 8 columns, of which 4 are written"):
        MODEL.apply(params, TOKENS, cache=full)


def test_learned_positions_end() -> None:
    params, last = random_params(LEARNED), TINY["max_length"] - 1
    LEARNED.apply(params, TOKENS, changed(last, ONES))
    with pytest.raises(ValueError, match=rf"positions\[1, 3\] is {last + 1}.* learned positions 0\.\.{last}"):
        LEARNED.apply(params, TOKENS, changed(last + 1, ONES))
    MODEL.apply(random_params(MODEL), TOKENS, changed(last + 1, ONES))


@pytest.mark.parametrize("depth", [-1, [1, -2], 1.5, [1, 2, 3]], ids=str)
def test_depths(depth: Any) -> None:
    model = tiny(n_layers=3, depth="recurrent", recurrent={"prelude": 1, "coda": 1, "mean": 2})
    for given in (depth, np.asarray(depth), jnp.asarray(depth)):
        with pytest.raises(ValueError, match="depth"):
            model.apply(random_params(model), TOKENS, depth=given)


def test_padding_may_hold_anything() -> None:
    params, segments = random_params(MODEL), changed(0, ONES)
    want = MODEL.apply(params, TOKENS, ONES, segments).hidden
    got = MODEL.apply(params, changed(-100), changed(-1, ONES), segments > 0).hidden
    np.testing.assert_array_equal(np.delete(got, 3, 1), np.delete(want, 3, 1))


def test_pairs_have_ids_beyond_the_vocabulary() -> None:
    model = tiny(pairs=True)
    model.apply(random_params(model), changed(64 + 64 * 64 - 1))
    with pytest.raises(ValueError, match=r"is 4160, and the model knows ids 0\.\.63 and pairs up to 4159"):
        model.apply(random_params(model), changed(64 + 64 * 64))


def test_thoughts_and_modules_that_look_ahead() -> None:
    model = tiny(mtp={"depth": 1})
    params, hidden = random_params(model), jnp.zeros((2, 6, 32))
    with pytest.raises(ValueError, match=r"\[1, 3\] is 300"):
        model.ahead(params, 0, hidden, jnp.asarray(changed(300)), jnp.asarray(ONES), jnp.asarray(ONES))
    rows = Columns(*map(jnp.asarray, (changed(300), ONES, ONES, changed(1, 0 * ONES))))
    with pytest.raises(ValueError, match=r"tokens\[1, 3\] is 300"):
        think(MODEL, random_params(MODEL), rows, thoughts=1)


def test_inside_jit_shapes_alone_are_known_and_nothing_is_fetched() -> None:
    params = random_params(MODEL)
    found = jax.jit(lambda tokens: MODEL.apply(params, tokens).hidden)(changed(300))
    np.testing.assert_allclose(found, MODEL.apply(params, changed(63)).hidden, atol=2e-5)
    with pytest.raises(ValueError, match=r"found shape \[6\]"):
        jax.jit(lambda tokens: MODEL.apply(params, tokens).hidden)(TOKENS[0])
    on_device = jnp.asarray(TOKENS)
    with jax.transfer_guard("disallow"):
        np.testing.assert_array_equal(known(on_device) == TOKENS, True)


def test_nothing_large_is_computed_at_compile_time() -> None:
    """What follows from a long row without padding is a matter of running: to fold 65,536 columns takes a second."""
    positions = jax.jit(lambda tokens: tokens + _default_positions(one_segment(tokens), None))
    text = positions.lower(jax.ShapeDtypeStruct((1, 2**16), jnp.int32)).compile().as_text()
    assert not [line for line in text.splitlines() if "[1,65536]{1,0} constant(" in line]
    np.testing.assert_array_equal(positions(TOKENS), TOKENS + np.arange(6))
