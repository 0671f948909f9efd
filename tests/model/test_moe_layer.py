"""The mixture-of-experts layer: published outputs, its mutants, what it reports, and how it behaves in a model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import Model, ModelConfig
from model.ffn import FeedForward
from model.moe import MoE
from tests.model.common import apply, cached, distance, random_params, tiny, tokens_of

VARIANTS = ("yarn", "plain", "noqlora")
PUBLISHED = dict(
    n_experts=16,
    top_k=4,
    d_expert=32,
    n_shared=1,
    score="sigmoid",
    scale=2.5,
    n_groups=4,
    top_groups=2,
    balance="bias",
)
MOE: dict[str, Any] = dict(n_experts=8, top_k=2, d_expert=24)


def layer_config(**moe: Any) -> ModelConfig:
    sizes = dict(vocab_size=512, d_model=64, n_layers=1, n_heads=4, d_ff=128, ffn="moe")
    return ModelConfig.from_dict(sizes | {"moe": moe})


def golden_layer(shared: Path, variant: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Layer 1 of the reference: our variables, and inputs and outputs."""
    with np.load(shared / "golden" / f"deepseek_v3_{variant}.npz") as file:
        arrays = {name: file[name] for name in ("router_x", "router_w", "router_idx", "moe_y")}
        found = {name.split(".mlp.")[1]: file[name] for name in file.files if "layers.1.mlp." in name}
    gate, up = np.split(found["experts.gate_up_proj"].swapaxes(1, 2), 2, -1)
    params = {"router": found["gate.weight"].T, "gate": gate, "up": up}
    params["down"] = found["experts.down_proj"].swapaxes(1, 2)
    params["shared"] = {n: found[f"shared_experts.{n}_proj.weight"].T for n in ("gate", "up", "down")}
    variables = {"params": params, "state": {"bias": found["gate.e_score_correction_bias"]}}
    return jax.tree.map(jnp.asarray, variables), arrays


@functools.partial(jax.jit, static_argnums=0)
def run(config: ModelConfig, variables: Any, x: jax.Array, segments: Any = None) -> Any:
    return MoE(config).apply(variables, x, segments)


@pytest.mark.parametrize("dispatch", ["dense", "capacity", "ragged"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_output_equals_the_published_layer(shared: Path, variant: str, dispatch: str) -> None:
    variables, golden = golden_layer(shared, variant)
    y, reports = run(layer_config(**PUBLISHED, dispatch=dispatch), variables, golden["router_x"])
    assert distance(y, golden["moe_y"]) < 1e-4
    np.testing.assert_array_equal(reports.sums["load"], np.bincount(golden["router_idx"].reshape(-1), minlength=16))


@pytest.mark.parametrize(
    "change",
    [
        {"group_score": "max"},
        {"n_groups": 1, "top_groups": 1},
        {"balance": "none"},
        {"normalize": False},
        {"scale": 1.0},
        {"score": "softmax"},
        {"n_shared": 0},
        {"top_k": 3},
    ],
    ids=str,
)
def test_another_setting_is_another_layer(shared: Path, change: dict[str, Any]) -> None:
    variables, golden = golden_layer(shared, "plain")
    y, _ = run(layer_config(**PUBLISHED | change), variables, golden["router_x"])
    assert distance(y, golden["moe_y"]) > 0.05


def test_normalising_over_all_experts_is_another_layer(shared: Path) -> None:
    """Scores over the sum of all 16 instead of the chosen 4 are smaller gates."""
    variables, golden = golden_layer(shared, "plain")
    full, _ = run(layer_config(**PUBLISHED), variables, golden["router_x"])
    routed = (
        full
        - FeedForward(layer_config(**PUBLISHED), True, 32).apply(
            {"params": variables["params"]["shared"]}, golden["router_x"]
        )[0]
    )
    scores = jax.nn.sigmoid(golden["router_x"] @ variables["params"]["router"])
    kept = np.take_along_axis(np.asarray(scores)[0], golden["router_idx"], -1).sum(-1) / scores[0].sum(-1)
    assert distance(full - routed + routed * kept[None, :, None], golden["moe_y"]) > 0.1


# --- what the layer is made of


def test_shared_experts_see_every_token_behind_their_gate() -> None:
    model = tiny(n_layers=1, ffn="moe", moe=MOE | dict(d_shared=20, shared_gate=True))
    params, x = random_params(model)["layer_0"]["ffn"], jnp.ones((1, 3, 32)) * jnp.arange(1.0, 4.0)[:, None] / 8
    y, _ = run(model.config, {"params": params}, x)
    alone = {name: value for name, value in params.items() if not name.startswith("shared")}
    routed, _ = run(tiny(n_layers=1, ffn="moe", moe=MOE).config, {"params": alone}, x)
    shared = FeedForward(model.config, True, 20).apply({"params": params["shared"]}, x)[0]
    want = routed + jax.nn.sigmoid(x @ params["shared_gate"])[..., None] * shared
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_parameters_have_their_names_shapes_and_axes() -> None:
    model = tiny(n_layers=1, ffn="moe", moe=MOE | dict(n_shared=2, shared_gate=True, balance="bias"))
    found = jax.tree.map(lambda leaf: leaf.shape, model.abstract()["layer_0"]["ffn"])
    shared = {"gate": (32, 48), "up": (32, 48), "down": (48, 32)}
    experts = {"gate": (8, 32, 24), "up": (8, 32, 24), "down": (8, 24, 32)}
    assert found == experts | {"router": (32, 8), "shared": shared, "shared_gate": (32,)}
    axes = model.axes()
    assert axes["layer_0"]["ffn"]["down"] == ("experts", "mlp", "expert_embed")
    assert axes["layer_0"]["ffn"]["router"] == ("embed", "choices")
    assert axes["state"]["layer_0"]["ffn"] == {"bias": ("experts",)}
    assert "state" not in tiny(ffn="moe", moe=MOE | dict(balance="batch")).abstract()


def test_some_layers_are_dense() -> None:
    model = tiny(n_layers=4, ffn="moe", moe=MOE | dict(first_dense=1, every=2))
    kinds = ["router" in model.abstract()[f"layer_{i}"]["ffn"] for i in range(4)]
    assert kinds == [False, True, False, True]
    assert apply(model, random_params(model), tokens_of(model)).aux["load"].shape == (2, 8)


# --- what it reports


@pytest.mark.parametrize("balance, losses", [("none", 0), ("sequence", 1), ("batch", 1), ("bias", 1)])
def test_reports(balance: str, losses: int) -> None:
    model = tiny(ffn="moe", moe=MOE | dict(balance=balance))
    segments = jnp.ones((2, 12), jnp.int32).at[0, 5:].set(0)
    out = apply(model, random_params(model), tokens_of(model), segments=segments)
    aux = out.aux
    assert len(out.reports.losses) == losses
    np.testing.assert_array_equal(aux["tokens"], 17)
    np.testing.assert_array_equal(aux["load"].sum(-1), 2 * 17)
    assert (np.asarray(aux["router_entropy"]) <= 17 * np.log(8) + 1e-3).all()
    assert not np.asarray(aux["dropped"]).any()


@pytest.mark.programs(250)
def test_losses_are_weighted_and_reach_the_router() -> None:
    def total(params: Any, **moe: Any) -> jax.Array:
        reports = model_of(**moe).apply(params, tokens_of(model_of())).reports
        return sum(value.sum() for value in reports.losses.values())

    def model_of(**moe: Any) -> Model:
        return tiny(n_layers=1, ffn="moe", moe=MOE | dict(balance="batch") | moe)

    params = random_params(model_of())
    one = total(params, aux_weight=0.5, z_weight=0.0)
    assert float(total(params, aux_weight=1.0, z_weight=0.0)) == pytest.approx(2 * float(one), rel=1e-5)
    both = total(params, aux_weight=0.5, z_weight=0.1)
    assert float(both) > float(one)
    gradient = jax.jit(jax.grad(functools.partial(total, aux_weight=0.5, z_weight=0.1)))(params)["layer_0"]["ffn"]
    assert float(jnp.abs(gradient["router"]).max()) > 1e-4
    assert not np.asarray(gradient["gate"]).any()


def test_sums_of_micro_batches_add_up() -> None:
    model = tiny(ffn="moe", moe=MOE | dict(balance="bias"))
    params, tokens = random_params(model), tokens_of(model, (4, 6))
    segments = jnp.ones((4, 6), jnp.int32).at[1, 2:].set(0)
    whole = apply(model, params, tokens, segments=segments).aux
    parts = [apply(model, params, tokens[i : i + 2], segments=segments[i : i + 2]).aux for i in (0, 2)]
    for name in ("load", "tokens", "dropped", "router_entropy"):
        np.testing.assert_allclose(whole[name], parts[0][name] + parts[1][name], rtol=1e-5)
    rows = [part["balance_loss"] for part in parts]
    np.testing.assert_allclose(whole["balance_loss"], (rows[0] + rows[1]) / 2, rtol=1e-5)


def test_drops_are_counted() -> None:
    model = tiny(n_layers=1, ffn="moe", moe=MOE | dict(capacity_factor=0.5))
    aux = apply(model, random_params(model), tokens_of(model, (2, 12))).aux
    room = np.ceil(0.5 * 24 * 2 / 8)
    np.testing.assert_array_equal(aux["dropped"][0], np.maximum(np.asarray(aux["load"][0]) - room, 0).sum())
    assert float(aux["dropped"][0]) >= 24


# --- how it behaves in a model


def test_what_stands_in_padding_is_irrelevant() -> None:
    model = tiny(ffn="moe", moe=MOE | dict(balance="sequence", capacity_factor=1.0))
    params, tokens = random_params(model), tokens_of(model)
    segments = jnp.ones((2, 12), jnp.int32).at[:, :4].set(0)
    other = tokens.at[:, :4].set((tokens[:, :4] + 7) % 64)
    got, want = (apply(model, params, t, segments=segments) for t in (other, tokens))
    np.testing.assert_array_equal(got.hidden[:, 4:], want.hidden[:, 4:])
    jax.tree.map(np.testing.assert_array_equal, got.aux, want.aux)


@pytest.mark.more
@pytest.mark.programs(500)
def test_jit_and_remat_change_nothing() -> None:
    settings = dict(n_layers=1, ffn="moe", moe=MOE | dict(balance="bias", n_shared=1))
    model, plain = tiny(**settings, remat=True), tiny(**settings)
    params, tokens = random_params(plain), tokens_of(plain)

    def loss(model: Model, params: Any) -> jax.Array:
        out = model.apply(params, tokens)
        return (out.hidden**2).mean() + out.aux["balance_loss"].sum()

    want = jax.value_and_grad(functools.partial(loss, plain))(params)
    for compiled in (plain, model):
        got = jax.jit(jax.value_and_grad(functools.partial(loss, compiled)))(params)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(np.abs(b).max())))


def test_cached_decode_equals_one_pass() -> None:
    model = tiny(ffn="moe", moe=MOE | dict(balance="bias", score="sigmoid", n_shared=1))
    params, tokens = random_params(model), tokens_of(model, (2, 10))
    positions, segments = jnp.broadcast_to(jnp.arange(10), tokens.shape), jnp.ones_like(tokens)
    want = model.logits(params, apply(model, params, tokens).hidden)
    np.testing.assert_allclose(cached(model, params, tokens, positions, segments, 7), want, atol=1e-4)


def test_bf16_is_near_fp32() -> None:
    """With the same experts chosen: a score near a tie may fall either way."""
    model = tiny(n_layers=1, ffn="moe", moe=MOE | dict(top_k=8))
    low = tiny(n_layers=1, ffn="moe", moe=MOE | dict(top_k=8), dtype="bfloat16")
    params, tokens = random_params(model), tokens_of(model)
    want, got = (apply(m, params, tokens).hidden for m in (model, low))
    assert got.dtype == jnp.bfloat16
    assert distance(np.asarray(got, np.float32), want) < 0.1


def test_expert_choice_loads_evenly_and_cannot_decode() -> None:
    model = tiny(ffn="moe", moe=MOE | dict(router="expert_choice"))
    segments = jnp.ones((2, 12), jnp.int32).at[1, 8:].set(0)
    out = apply(model, random_params(model), tokens_of(model), segments=segments)
    np.testing.assert_array_equal(out.aux["load"], 20 * 2 // 8)
    with pytest.raises(ValueError, match=r"expert.choice"):
        model.init_cache(2, 8)


@pytest.mark.parametrize("dispatch", ["capacity", "ragged"])
def test_expert_choice_is_the_same_whatever_the_dispatch(dispatch: str) -> None:
    settings = dict(n_layers=1, ffn="moe")
    model = tiny(**settings, moe=MOE | dict(router="expert_choice", dispatch="dense"))
    other = tiny(**settings, moe=MOE | dict(router="expert_choice", dispatch=dispatch))
    params, tokens = random_params(model), tokens_of(model)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradient(model: Model, params: Any) -> Any:
        return jax.value_and_grad(lambda p: (model.apply(p, tokens).hidden ** 2).mean())(params)

    for a, b in zip(*(jax.tree.leaves(value_and_gradient(m, params)) for m in (other, model)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
