"""Arrays captured inside a pass, and replaced there: all kinds of layers, whole and cached, on a mesh, in a loop."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import Model, attention, block, ffn
from model.latent import Columns, think
from model.sharding import make_mesh
from tests.grid import Case, case_of, demonstrations

BATCH = demonstrations()
EVERYWHERE = ("embedding", "residual.pre", "mixer.out", "residual.mid", "ffn.out", "residual", "final_norm")
OF_MIXER = {"gqa": ("attention.out", "attention.weights"), "mla": ("attention.out", "attention.weights")}
OF_FFN = {"glu": ("ffn.hidden",), "moe": ("ffn.hidden", "router.scores"), "peer": ("peer.indices",)}
CASES = [("gqa", "glu", "stack"), ("mla", "moe", "recurrent"), ("mingru", "peer", "scanned")]


def names_of(mixer: str, feed_forward: str, depth: str) -> tuple[str, ...]:
    own = OF_MIXER.get(mixer, ("rnn.state",)) + OF_FFN[feed_forward]
    return EVERYWHERE + own + (("state",) if depth == "recurrent" else ())


@functools.partial(jax.jit, static_argnums=(0, 3))
def captured(model: Model, params: Any, patches: Any, names: tuple[str, ...]) -> tuple[jax.Array, Any]:
    out = model.apply(params, BATCH.tokens, BATCH.positions, BATCH.segments, capture=names, patches=patches)
    return out.hidden, out.captured


def apart(left: jax.Array, right: jax.Array) -> float:
    """The largest difference in real columns of arrays [B, S, ...]."""
    return float(np.abs(np.asarray(left) - np.asarray(right))[BATCH.segments > 0].max())


@pytest.mark.more_but("gqa-glu-stack", "mingru-peer-scanned")
@pytest.mark.parametrize(("mixer", "feed_forward", "depth"), CASES)
def test_what_a_layer_makes(mixer: str, feed_forward: str, depth: str) -> None:
    """Captured arrays add up as the block says, change nothing, and put back where they were change nothing either."""
    case, names = case_of(mixer, feed_forward, 0, depth), names_of(mixer, feed_forward, depth)
    plain, nothing = captured(case.model, case.params, None, ())
    hidden, arrays = captured(case.model, case.params, None, names)
    assert nothing == {}
    assert set(arrays) == set(names)
    np.testing.assert_array_equal(hidden, plain)
    np.testing.assert_array_equal(arrays["final_norm"], plain)
    np.testing.assert_array_equal(arrays["embedding"], arrays["residual.pre"][0])
    if case.model.config.norm == "pre":
        for layer, start in arrays["residual.pre"].items():
            middle = start + arrays["mixer.out"][layer]
            np.testing.assert_allclose(arrays["residual.mid"][layer], middle, rtol=0, atol=1e-6)
            end = middle + arrays["ffn.out"][layer]
            np.testing.assert_allclose(arrays["residual"][layer], end, rtol=0, atol=2e-6)
    if "attention.weights" in names:
        np.testing.assert_allclose(arrays["attention.weights"][0].sum(-1), 1, atol=1e-5)
    back = {name: arrays[name] for name in names if name not in ("peer.indices", "state")}
    assert apart(captured(case.model, case.params, back, ())[0], plain) < 2e-5


@pytest.mark.parametrize("name", ["mixer.out", "attention.weights", "ffn.hidden", "residual.mid"])
def test_a_patch_is_felt_where_it_is_and_after(name: str) -> None:
    case = case_of("gqa", "glu", 0, "stack")
    plain, arrays = captured(case.model, case.params, None, (name,))
    array = arrays[name][0]
    axis = 2 if name == "attention.weights" else 1
    here = np.arange(array.shape[axis]).reshape(-1, *(1,) * (array.ndim - 1 - axis)) == 2
    hidden, _ = captured(case.model, case.params, {name: {0: jnp.where(here, 0.3 - array, jnp.nan)}}, ())
    moved = np.abs(np.asarray(hidden - plain)).max((0, 2)) > 1e-4
    assert moved.tolist() == [column == 2 for column in range(len(moved))], "one layer: no other column can see it"


def test_patched_with_another_input_it_answers_as_for_that() -> None:
    case = case_of("mingru", "peer", 0, "scanned")
    other = jnp.flip(jnp.asarray(BATCH.tokens), 0)

    @jax.jit
    def run(tokens: jax.Array, patches: Any = None) -> Any:
        names = ("residual",)
        return case.model.apply(case.params, tokens, BATCH.positions, BATCH.segments, capture=names, patches=patches)

    source = run(other)
    out = run(jnp.asarray(BATCH.tokens), {"residual": {0: source.captured["residual"][0]}})
    assert apart(out.hidden, source.hidden) < 1e-5
    assert apart(run(jnp.asarray(BATCH.tokens)).hidden, source.hidden) > 0.1


@pytest.mark.more_but("gqa-glu-stack")
@pytest.mark.parametrize(("mixer", "feed_forward", "depth"), CASES[:2])
def test_cached_columns_are_those_of_the_whole_pass(mixer: str, feed_forward: str, depth: str) -> None:
    case, names = case_of(mixer, feed_forward, 0, depth), names_of(mixer, feed_forward, depth)
    _, whole = captured(case.model, case.params, None, names)

    @jax.jit
    def run(cache: Any, *columns: jax.Array) -> Any:
        return case.model.apply(case.params, *columns, cache=cache, capture=names)

    columns = [jnp.asarray(x) for x in (BATCH.tokens, BATCH.positions, BATCH.segments)]
    cache = case.model.init_cache(*columns[0].shape)
    first = run(cache, *(x[:, :7] for x in columns))
    second = run(first.cache, *(x[:, 7:] for x in columns))
    for path, array in jax.tree_util.tree_leaves_with_path(whole):
        name, layer = path[0].key, path[1].key if len(path) > 1 else None
        rows = int(name == "state" or (depth == "recurrent" and layer == 1))  # an axis of iterations comes first
        axis = rows + (2 if name == "attention.weights" else 1)
        parts = [out.captured[name] if layer is None else out.captured[name][layer] for out in (first, second)]
        joined = jnp.moveaxis(jnp.concatenate(parts, axis), (rows, axis), (0, 1))
        assert apart(joined, jnp.moveaxis(array, (rows, axis), (0, 1))) < 2e-5, (name, layer)


def recurrent() -> Case:
    return case_of("gqa", "glu", 0, "recurrent")


def test_every_iteration_of_a_core() -> None:
    """The state after i iterations is the last one of a pass of depth i; rows that stop earlier have NaN beyond."""
    model, params = recurrent().model, recurrent().params
    depth = np.array([1, 4, 2, 3, 2, 4, 1, 3])

    @functools.partial(jax.jit, static_argnums=0)
    def at(iterations: int) -> jax.Array:
        out = model.apply(params, BATCH.tokens, BATCH.positions, BATCH.segments, depth=iterations, capture=("state",))
        return out.state, out.captured["state"]

    last, states = at(4)
    np.testing.assert_array_equal(states[3], last)
    assert apart(states[1], at(2)[0]) < 1e-5
    rows = jax.jit(
        lambda: model.apply(params, BATCH.tokens, BATCH.positions, BATCH.segments, depth=depth, capture=("state",))
    )().captured["state"]
    for row, iterations in enumerate(depth):
        assert np.isnan(rows[iterations:, row]).all()
        np.testing.assert_allclose(rows[:iterations, row], states[:iterations, row], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="a depth known outside jit"):
        jax.eval_shape(lambda d: model.apply(params, BATCH.tokens, depth=d, capture=("state",)).hidden, jnp.int32(2))


def test_a_patch_of_one_iteration() -> None:
    """A core's last state put in the place of its first: the iterations after it go on from there."""
    model, params = recurrent().model, recurrent().params
    _, arrays = captured(model, params, None, ("state",))
    patch = jnp.full_like(arrays["state"], jnp.nan).at[1].set(arrays["state"][2])
    hidden, moved = captured(model, params, {"state": patch}, ("state",))
    np.testing.assert_array_equal(moved["state"][:2], jnp.stack([arrays["state"][0], arrays["state"][2]]))
    plain = functools.partial(model.apply, params, BATCH.tokens, BATCH.positions, BATCH.segments)
    assert apart(hidden, jax.jit(lambda s: plain(state=s, depth=1).hidden)(arrays["state"][2])) < 1e-5
    with pytest.raises(ValueError, match=r"one array per iteration, \[3, B, ...\], found the shape \(8, 12, 32\)"):
        captured(model, params, {"state": arrays["state"][0]}, ())


def test_thoughts_are_captured_and_replaced_both_ways() -> None:
    model, params = case_of("gqa", "glu", 0, "stack")[:2]
    tokens = np.random.default_rng(0).integers(2, 16, (3, 10))
    latent = np.zeros((3, 10), bool)
    latent[:, 4:6] = [[True, True], [True, False], [True, True]]
    rows = Columns(*(jnp.asarray(x) for x in (tokens, np.tile(np.arange(10), (3, 1)), np.ones((3, 10), int), latent)))
    names = ("thoughts", "residual", "attention.weights")

    @functools.partial(jax.jit, static_argnums=0)
    def run(first: int | None, patch: Any = None) -> Any:
        patches = None if patch is None else {"thoughts": patch}
        return think(model, params, rows, thoughts=2, first=first, capture=names, patches=patches)

    whole, apart_ = run(None), run(4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), whole.captured, apart_.captured)
    np.testing.assert_allclose(whole.captured["thoughts"][0], whole.hidden[0, 3:5], atol=1e-5)
    assert np.isnan(whole.captured["thoughts"][1, 1]).all()
    patch = jnp.full((3, 2, 32), jnp.nan).at[:, 0].set(1.0)
    new, other = run(None, patch), run(4, patch)
    np.testing.assert_allclose(new.hidden, other.hidden, atol=1e-5)
    np.testing.assert_allclose(new.hidden[:, :4], whole.hidden[:, :4], atol=1e-5)
    assert float(jnp.abs(new.hidden - whole.hidden)[:, 4:].max()) > 0.1
    with pytest.raises(ValueError, match="leave `first` out"):
        think(model, params, rows, thoughts=2, first=4, patches={"residual": {0: whole.captured["residual"][0]}})


def test_on_a_mesh_as_on_one_device() -> None:
    case, names = case_of("mla", "moe", 0, "stack"), names_of("mla", "moe", "stack")
    _, alone = captured(case.model, case.params, None, names)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        params = jax.device_put(case.params, case.model.shardings(mesh))
        _, arrays = jax.jit(captured, static_argnums=(0, 3))(case.model, params, None, names)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), arrays, alone)


def test_hook_points_cost_nothing_where_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them in the code the same text is compiled."""
    case = case_of("gqa", "glu", 0, "stack")

    def text() -> str:
        run = lambda p: case.model.apply(p, BATCH.tokens, BATCH.positions, BATCH.segments).hidden  # noqa: E731
        return jax.jit(run).lower(case.params).as_text()

    before = text()
    for room in (block, ffn, attention):
        monkeypatch.setattr(room, "hook_point", lambda module, name, x: x)
    assert text() == before


def test_what_does_not_exist_is_refused() -> None:
    model, params = case_of("gqa", "glu", 0, "stack")[:2]
    array = jnp.zeros((8, 12, 32))
    for options, message in (
        ({"capture": ("residul",)}, "Did you mean 'residual'"),
        ({"capture": "residual"}, r"write \('residual',\)"),
        ({"capture": ("router.scores",)}, "no layer of this model has router.scores"),
        ({"capture": ("state",)}, "state requires depth='recurrent'"),
        ({"capture": ("thoughts",)}, "model.latent.think"),
        ({"patches": {"residual": array}}, "must name their layers"),
        ({"patches": {"residual": {1: array}}}, r"in layer 1; this model has layers 0 to 0"),
        ({"patches": {"router.scores": {0: array}}}, "layer 0 makes no router.scores that can be replaced"),
        ({"patches": {"peer.indices": {0: array}}}, "can be captured, not replaced"),
        ({"patches": {"residual": {0: array[:, :3]}}}, r"has the shape \(8, 3, 32\), the array \(8, 12, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.apply(params, BATCH.tokens, **options)  # type: ignore[arg-type]


def test_weights_that_are_never_held_are_refused() -> None:
    model, params = case_of("gqa", "glu", 0, "stack")[:2]
    blocked = Model(model.config.replace(attention="blocked"))
    with pytest.raises(ValueError, match="requires attention='einsum', found 'blocked' for 12 queries and 12 keys"):
        jax.eval_shape(lambda: blocked.apply(params, BATCH.tokens, capture=("attention.weights",)).hidden)
    long = jnp.ones((40, 1024), jnp.int32)
    with pytest.raises(ValueError, match="40 rows x 2 heads x 1024 queries x 1024 keys are more than"):
        wide = Model(model.config.replace(max_length=1024))
        jax.eval_shape(lambda: wide.apply(params, long, capture=("attention.weights",)).hidden)
