"""Growth keeps the old function and the old experts, and what is new learns at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from data.sources.batch import TokenRows
from model import Model
from model.lm import Params, parameter_count
from model.peer.growth import grow_experts
from model.rules import learn
from tests.model.common import random_params, tiny, tokens_of
from train.objectives.losses import sft_objective
from train.optimizer import make_optimizer, optimizer_config
from train.sparse_tables import sparse_tables_of
from train.state import new_state
from train.step import make_step

SMALL = {"n_experts": 16, "heads": 2, "top_k": 3, "key_dim": 12}
OPTIONS = {"lr": 0.03, "weight_decay": 0.1, "no_decay": ()}


def first(**changes: Any) -> tuple[Model, Params]:
    model = tiny(**{"n_layers": 1, "ffn": "peer", "peer": SMALL} | changes)
    positive = lambda path, leaf: jnp.abs(leaf) + 0.5 if path[-1].key == "var" else leaf  # noqa: E731
    return model, jax.tree_util.tree_map_with_path(positive, random_params(model))


def batch_of(model: Model) -> TokenRows:
    tokens = tokens_of(model, (4, 8))
    ones, positions = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(8), tokens.shape)
    return TokenRows(tokens=tokens, mask=ones.astype(jnp.float32), positions=positions, segments=ones)


def loss(model: Model, params: Params) -> float:
    """The loss with running statistics."""
    batch = batch_of(model)
    hidden = jax.jit(lambda params: model.apply(params, batch.tokens).hidden)(params)
    logps = jax.nn.log_softmax(model.logits(params, hidden))
    return -float(jnp.take_along_axis(logps[:, :-1], batch.tokens[:, 1:, None], -1).mean())


@pytest.mark.more_but("peer0")
@pytest.mark.parametrize("peer", [SMALL, SMALL | {"query_norm": "none", "separate": True, "share_keys": False}])
def test_growth_keeps_the_loss(peer: dict[str, Any]) -> None:
    model, params = first(peer=peer)
    was = loss(model, params)
    for n in (25, 9):
        model, params = grow_experts(params, n, model=model, key=jax.random.key(n))
        assert abs(loss(model, params) - was) < 1e-6
    assert model.config.peer.banks == (25, 9)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, model.abstract())
    assert {"keys_2", "up_2"} <= set(params["layer_0"]["ffn"]) and "up_1" not in params["layer_0"]["ffn"]


@pytest.mark.more_but("rows")
@pytest.mark.parametrize("tables", ["rows", "dense"])
def test_only_the_new_bank_learns_and_at_once(tables: str) -> None:
    model, params = first()
    model, params = grow_experts(params, 25, model=model, key=jax.random.key(1))
    frozen = {path: np.asarray(leaf) for path, leaf in flatten_dict(params["state"]["layer_0"]["ffn"]).items()}
    before = jax.tree.map(np.asarray, params["layer_0"]["ffn"])
    assert parameter_count(params) == sum(x.size for x in jax.tree.leaves({**params, "state": {}}))
    by_rows = sparse_tables_of(model, optimizer_config(OPTIONS, tables=tables), 10)
    assert (by_rows is None) == (tables == "dense")
    optimizer = make_optimizer(OPTIONS, 10, axes=model.axes())
    rule = lambda state, sums: learn(model.config, state, sums)  # noqa: E731
    step = make_step(sft_objective(model), optimizer, learn=rule, rows=by_rows)
    state = new_state(jax.tree.map(jnp.copy, params), optimizer, 0, rows=by_rows)
    state, first_metrics = step(state, batch_of(model))
    assert np.abs(state.params["layer_0"]["ffn"]["up_1"]).max() > 0
    for _ in range(5):
        state, metrics = step(state, batch_of(model))
    assert metrics["loss"] < first_metrics["loss"] - 0.1
    after = flatten_dict(state.params["state"]["layer_0"]["ffn"])
    for path, leaf in frozen.items():
        if path[0] not in ("mean_1", "var_1"):
            np.testing.assert_array_equal(after[path], leaf, err_msg=str(path))
    assert not np.array_equal(after["mean_1",], frozen["mean_1",])
    for name in ("query_1", "keys_1", "down_1", "up_1"):
        assert not np.array_equal(state.params["layer_0"]["ffn"][name], before[name])


def test_a_larger_grid_would_change_the_old_function() -> None:
    # What growth does not do: five keys per half instead of four, the old ones first, and new rows of zeros.
    model, params = first(n_layers=1, ffn="peer", peer=SMALL | {"query_norm": "none"})
    larger = tiny(n_layers=1, ffn="peer", peer=SMALL | {"query_norm": "none", "n_experts": 25})
    ffn = params["layer_0"]["ffn"]
    grid = np.pad(np.asarray(ffn["up"]).reshape(4, 4, -1), ((0, 1), (0, 1), (0, 0))).reshape(25, -1)
    down = np.pad(np.asarray(ffn["down"]).reshape(4, 4, -1), ((0, 1), (0, 1), (0, 0))).reshape(25, -1)
    keys = jnp.concatenate([ffn["keys"], random_params(larger)["layer_0"]["ffn"]["keys"][:, :, 4:]], 2)
    enlarged = params | {"layer_0": params["layer_0"] | {"ffn": ffn | {"keys": keys, "up": grid, "down": down}}}
    assert abs(loss(larger, enlarged) - loss(model, params)) > 1e-3


def test_growth_needs_peer_layers_and_a_square() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="ffn='peer' can grow experts, found 'glu'"):
        grow_experts(random_params(model), 9, model=model, key=jax.random.key(0))
    with pytest.raises(ValueError, match="banks=10 must be a square"):
        grow_experts(first()[1], 10, model=first()[0], key=jax.random.key(0))
