"""Any two slots together: cached decode equals the full forward, and gradients are finite."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import pytest

from model import Model
from model.block import FEED_FORWARDS, MIXERS
from settings.model import NORM_PLACEMENTS, NORMS, POSITIONS
from tests.model.common import assert_close, cached, distance, forward, left_pad, random_params, tiny, tokens_of
from tests.pairs import pairwise

SWITCHES = ("tied", "sinks", "out_gate", "norm_plus_one")
ON_OR_OFF = [(True, False)] * len(SWITCHES)
DENSE = list(itertools.product(("gqa",), ("glu", "mlp"), NORM_PLACEMENTS, NORMS, POSITIONS, *ON_OR_OFF))
# tests/test_grid.py takes the other slots further, with the plainest norms; here they meet the least plain.
OTHERS = [
    (*pair, "sandwich", "layernorm", "learned", False, False, False, True)
    for pair in itertools.product(MIXERS, FEED_FORWARDS)
]
GRID = [*pairwise(DENSE), *(slots for slots in OTHERS if slots not in DENSE)]
PARTS = {
    "mla": {"kv_rank": 16, "nope_dim": 8, "rope_dim": 4, "v_dim": 8},
    "moe": {"n_experts": 4, "d_expert": 16},
    "peer": {"n_experts": 64, "heads": 2, "top_k": 3, "key_dim": 16},
    "delta": {"key_heads": 2, "value_heads": 4, "key_dim": 8, "value_dim": 6, "chunk": 2},
}


def run(model: Model, params: Any, *batch: Any) -> jax.Array:
    return model.logits(params, model.apply(params, *batch).hidden)


@pytest.mark.more_but(
    "gqa-glu-pre-rmsnorm-rope-True-True-True-True",
    "gqa-mlp-peri-layernorm-none-False-True-True-True",
    "gated_delta-moe-sandwich-layernorm-learned-False-False-False-True",
    "mla-moe-sandwich-layernorm-learned-False-False-False-True",
    "minlstm-peer-sandwich-layernorm-learned-False-False-False-True",
)
@pytest.mark.parametrize("slots", GRID, ids=lambda slots: "-".join(map(str, slots)))
def test_slots(slots: tuple[Any, ...]) -> None:
    names = ("mixer", "ffn", "norm", "norm_type", "positions", *SWITCHES)
    biases = slots[1] != "peer"
    model = tiny(**dict(zip(names, slots, strict=True)), **PARTS, mlp_bias=biases, n_layers=1)
    params = random_params(model)
    pads = (2, 0)
    batch = left_pad(np.asarray(tokens_of(model, (2, 5))), pads)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = run(model, params, *batch)
        return jax.nn.logsumexp(logits, -1).mean(), logits

    (_, full), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    stepped = cached(model, params, *batch, 3)
    for row, pad in enumerate(pads):
        assert_close(stepped[row, pad:], full[row, pad:])
    for leaf in jax.tree.leaves({name: tree for name, tree in gradients.items() if name != "state"}):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


@pytest.mark.parametrize("slots", [("glu", "mlp"), ("mlp", "glu")])
def test_slots_differ_by_layer(slots: tuple[str, str]) -> None:
    model = tiny(ffn=slots, window=(None, 3))
    params = random_params(model)
    assert ["gate" in params[f"layer_{i}"]["ffn"] for i in range(2)] == [slot == "glu" for slot in slots]
    batch = left_pad(np.asarray(tokens_of(model, (2, 8))), (1, 0))
    full, stepped = forward(model, params, *batch)[0], cached(model, params, *batch, 3)
    assert distance(stepped[:, 1:], full[:, 1:]) < 1e-5


def test_every_slot_of_init_is_used() -> None:
    """`init` makes exactly the parameters that `axes` names, with the standard deviations the config asks
    for.
    """
    model = tiny(n_layers=3, init_std=0.05, d_ff=512, vocab_size=512)
    params = jax.jit(model.init)(jax.random.key(0))
    is_leaf = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    named = jax.tree.map(lambda names, leaf: len(names) == leaf.ndim, model.axes(), params, is_leaf=is_leaf)
    assert all(jax.tree.leaves(named))
    ffn = params["layer_0"]["ffn"]
    assert float(ffn["up"].std()) == pytest.approx(0.05, rel=0.05)
    assert float(ffn["down"].std()) == pytest.approx(0.05 / 6**0.5, rel=0.05)
    assert float(params["embed"].std()) == pytest.approx(0.05, rel=0.05)
    again = jax.jit(model.init)(jax.random.key(0))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, again)))
