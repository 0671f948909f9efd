"""DeepSeek-V3 against stored outputs of transformers, layer by layer: a small model committed beside the tests, and
three larger ones and a multi-token prediction pair in `shared`. Every ingredient is then broken in turn, and must show.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from model import Model, build, hf, mla, rope, routing
from model.block import Block
from model.embedding import embed_tokens
from model.lm import variables_of
from model.moe import MoE
from model.rope import attention_factor, inverse_frequencies
from tests.model.common import assert_close, cached, distance, forward, left_pad

TINY = Path(__file__).resolve().parents[1] / "golden" / "tiny_deepseek"
VARIANTS = ("yarn", "plain", "noqlora")


def hub_tensors(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of a release: one tensor per expert, multi-token prediction after the last layer."""
    tensors: dict[str, np.ndarray] = {}
    for stored, value in arrays.items():
        name = stored.replace(".mtp_block.", ".").replace("post_norm", "shared_head.norm")
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(value):
                for projection, half in zip(("gate_proj", "up_proj"), np.split(both, 2), strict=True):
                    tensors[name.replace("gate_up_proj", f"{e}.{projection}.weight")] = half
        elif name.endswith("experts.down_proj"):
            tensors |= {name.replace("down_proj", f"{e}.down_proj.weight"): down for e, down in enumerate(value)}
        else:
            tensors[name] = value
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


@functools.cache
def read(file: Path, folder: Path) -> tuple[Model, Any, dict[str, np.ndarray]]:
    """A stored variant through the loader: (model, parameters, what was stored)."""
    golden = dict(np.load(file))
    tensors = hub_tensors({name[2:]: value for name, value in golden.items() if name.startswith("w:")})
    config = json.loads(str(golden["cfg"])) | {"num_nextn_predict_layers": 0}
    return (*written(folder / file.stem, config, tensors), golden)


def written(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[Model, Any]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return hf.load(folder)


@pytest.fixture(scope="module")
def variant(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    folder = tmp_path_factory.mktemp("deepseek")
    return lambda name: read(shared / "golden" / f"deepseek_v3_{name}.npz", folder)


@pytest.fixture(scope="module")
def tiny() -> tuple[Model, Any, dict[str, np.ndarray]]:
    return (*hf.load(TINY), dict(np.load(TINY / "golden.npz")))


def ids_of(golden: dict[str, np.ndarray]) -> np.ndarray:
    return golden["input_ids" if "input_ids" in golden else "ids"].astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def layers_of(model: Model, params: Any, tokens: jax.Array) -> list[jax.Array]:
    """The embeddings and the state after each block."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    context, _ = model._context(positions, jnp.ones_like(tokens), None)
    states = [embed_tokens(model.config, params, tokens)]
    for i in range(model.config.n_layers):
        block = Block(model.config, i)
        weights = variables_of(params, f"layer_{i}")
        states.append(block.apply(weights, states[-1], context, None)[0])
    return states


def test_committed_model(tiny: Any) -> None:
    """Logits, last hidden state, left padding, cached decode and the module that predicts one token further."""
    model, params, golden = tiny
    ids = ids_of(golden)
    logits, hidden = forward(model, params, ids)
    assert_close(logits, golden["logits"])
    assert distance(hidden, golden["hidden_last"]) < 1e-4
    pads = (5, 0)
    decoded = np.asarray(cached(model, params, *left_pad(ids, pads), 16))
    for row, pad in enumerate(pads):
        assert_close(decoded[row, pad:], golden["logits"][row, : ids.shape[1] - pad])
    (ahead,) = logits_ahead(model, params, ids)
    assert_close(ahead, golden["mtp_logits"])


@pytest.mark.more_but("yarn")
@pytest.mark.parametrize("name", VARIANTS)
def test_logits(variant: Any, name: str) -> None:
    model, params, golden = variant(name)
    assert_close(forward(model, params, ids_of(golden))[0], golden["logits"])


@pytest.mark.more_but("yarn", "plain")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_layer(variant: Any, name: str) -> None:
    model, params, golden = variant(name)
    states = layers_of(model, params, ids_of(golden))
    final = forward(model, params, ids_of(golden))[1]
    for got, want in zip([*states[:-1], final], golden["hidden"], strict=True):
        assert distance(got, want) < 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_constants(variant: Any, name: str) -> None:
    """Frequencies, the factor on cos and sin, the softmax scale."""
    model, _, golden = variant(name)
    c = model.config
    frequencies = inverse_frequencies(c.rope, c.mla.rope_dim, c.max_length)
    np.testing.assert_allclose(frequencies, golden["inv_freq"], rtol=1e-6)
    np.testing.assert_allclose(attention_factor(c.rope, c.max_length), golden["rope_attention_scaling"], rtol=1e-6)
    np.testing.assert_allclose(mla.softmax_scale(c), golden["attn_scaling"], rtol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_router_and_experts(variant: Any, name: str) -> None:
    """Layer 1 on given inputs: the dense matrix of gates, and routed plus shared experts."""
    model, params, golden = variant(name)
    config, weights = model.config, variables_of(params, "layer_1")
    weights = {kind: tree["ffn"] for kind, tree in weights.items()}
    x = jnp.asarray(golden["router_x"])
    scores = routing.router_scores(routing.router_logits(x[0], weights["params"]["router"]), config.moe.score)
    routes = routing.choose_tokens(scores, weights["state"]["bias"], jnp.ones(x.shape[1], bool), config.moe)
    gates = [np.zeros((x.shape[1], config.moe.n_experts)) for _ in range(2)]
    for dense, (experts, values) in zip(
        gates, [(golden["router_idx"], golden["router_w"]), (routes.experts, routes.gates)], strict=True
    ):
        np.put_along_axis(dense, np.asarray(experts), np.asarray(values), -1)
    np.testing.assert_array_equal(gates[1] > 0, gates[0] > 0)
    np.testing.assert_allclose(gates[1], gates[0], atol=1e-6 * config.moe.scale)
    y, _ = jax.jit(MoE(config).apply)(weights, x)
    assert distance(y, golden["moe_y"]) < 1e-4


@pytest.mark.more_but("True-yarn")
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("absorb", [True, False])
def test_decoding(variant: Any, name: str, absorb: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill of 20 tokens and four single steps, with the projections absorbed and not."""
    model, params, golden = variant(name)
    monkeypatch.setattr(mla, "absorbing_pays", lambda *_: absorb)
    # A new function each time: `jit` would find the other branch in its cache.
    decode = jax.jit(lambda params, *batch: cached.__wrapped__(model, params, *batch, 20))
    assert_close(decode(params, *left_pad(ids_of(golden), (0, 0))), golden["logits"])


@pytest.fixture(scope="module")
def pair(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any, dict[str, np.ndarray]]:
    """The main model with two modules of multi-token prediction."""
    golden, yarn = (dict(np.load(shared / "golden" / name)) for name in ("mtp.npz", "deepseek_v3_yarn.npz"))
    config = json.loads(str(yarn["cfg"])) | {"num_nextn_predict_layers": 2}
    arrays = {name.removeprefix("main:"): value for name, value in golden.items() if name.startswith("main:")}
    for k in range(2):
        home = f"model.layers.{config['num_hidden_layers'] + k}"
        found = {name: value for name, value in golden.items() if name.startswith(f"mtp:{k}.")}
        arrays |= {name.replace(f"mtp:{k}", home): value for name, value in found.items()}
    return (*written(tmp_path_factory.mktemp("mtp") / "pair", config, hub_tensors(arrays)), golden)


@functools.partial(jax.jit, static_argnums=0)
def logits_ahead(model: Model, params: Any, tokens: jax.Array) -> list[jax.Array]:
    """What each module predicts, without the columns that have no token so far ahead."""
    outputs = model.predict_ahead(params, model.apply(params, tokens).hidden, tokens)
    return [model.logits(params, out.hidden)[:, : tokens.shape[1] - k - 1] for k, out in enumerate(outputs)]


def test_multi_token_prediction(pair: Any) -> None:
    model, params, golden = pair
    ids = ids_of(golden)
    assert distance(forward(model, params, ids)[1], golden["h_main"]) < 1e-4
    for k, logits in enumerate(logits_ahead(model, params, ids)):
        assert_close(logits, golden[f"logits{k + 1}"])
        log_probs = jax.nn.log_softmax(logits[:, :-1])
        loss = -jnp.take_along_axis(log_probs, jnp.asarray(ids)[:, k + 2 :, None], -1).mean()
        np.testing.assert_allclose(loss, golden["losses"][k], rtol=1e-5)


@pytest.mark.parametrize("name", ["order of the concatenation", "norm before the head", "norms swapped"])
def test_mutant_of_multi_token_prediction_is_caught(pair: Any, name: str) -> None:
    model, params, golden = pair
    module = params["mtp_0"]
    changes = {
        "order of the concatenation": {"proj": jnp.roll(module["proj"], model.config.d_model, 0)},
        "norm before the head": {"norm": {"scale": jnp.ones(model.config.d_model)}},
        "norms swapped": {"embed_norm": module["hidden_norm"], "hidden_norm": module["embed_norm"]},
    }
    mutant = params | {"mtp_0": module | changes[name]}
    found = distance(logits_ahead(model, mutant, ids_of(golden))[0], golden["logits1"])
    print(f"{name}: {found:.3g} standard deviations")
    assert found > 1e-2


def part(name: str, **changes: Any) -> Callable[[Any], dict[str, Any]]:
    """A change of some settings of one part of the config."""
    return lambda config: {name: type(getattr(config, name))(**{**vars(getattr(config, name)), **changes})}


# Changes of our own config ...
CONFIGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "group score by the best expert": part("moe", group_score="max"),
    "no groups": part("moe", n_groups=1, top_groups=1),
    "one group more": part("moe", top_groups=3),
    "no normalisation of the chosen": part("moe", normalize=False),
    "no scaling factor": part("moe", scale=1.0),
    "softmax gate": part("moe", score="softmax"),
    "one expert fewer": part("moe", top_k=2),
    "no m^2 on the softmax scale": part("rope", mscale_all_dim=None, attention_factor=1.0),
    "m on cos and sin too": part("rope", attention_factor=1.3688879454),
    "half-split rope": part("rope", interleaved=False),
    "another base": part("rope", theta=20_000.0),
    "norm eps": lambda config: {"norm_eps": 1e-6},
    "another original length": part("rope", original_length=64),
}
# ... and of the code itself: (module, name, replacement made from the original).
CODE: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "m once": (mla, "softmax_scale", lambda old: lambda c: old(c) / rope.yarn_scale(c.rope.factor, 1.0)),
    "norm eps in the latents too": (mla, "LATENT_NORM_EPS", lambda old: 1e-3),
    "plain frequencies": (rope, "_yarn", lambda old: lambda rope, dim, plain, longest: plain),
    "no norm of the latent": (
        mla.MLA,
        "_norm",
        lambda old: lambda self, name, x: x if name == "kv_norm" else old(self, name, x),
    ),
    "no norm of the query": (
        mla.MLA,
        "_norm",
        lambda old: lambda self, name, x: x if name == "q_norm" else old(self, name, x),
    ),
}


def biased_gates(old: Any) -> Any:
    """Gates from the biased scores."""
    return lambda scores, bias, *rest: old(scores + bias, None, *rest)


def all_normalised(old: Any) -> Any:
    """Gates over the sum of all scores, not of the chosen."""

    def choose(scores: Any, bias: Any, valid: Any, config: Any, given: Any) -> Any:
        routes = old(scores, bias, valid, part("moe", normalize=False)(Holder(config))["moe"], given)
        return routes._replace(gates=routes.gates / scores.sum(-1, keepdims=True))

    return choose


class Holder:
    """Something with a `moe`, for `part`."""

    def __init__(self, moe: Any) -> None:
        self.moe = moe


CODE |= {
    "bias inside the weights": (routing, "choose_tokens", biased_gates),
    "normalised over all experts": (routing, "choose_tokens", all_normalised),
}


def mutant_logits(model: Model, params: Any, ids: np.ndarray) -> jax.Array:
    """Compiled apart from everything else, whose traces are of the code as it is."""
    return jax.jit(lambda params: forward.__wrapped__(model, params, ids)[0])(params)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No warning may come unasked from the loader."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.more_but("group score by the best expert", "another base")
@pytest.mark.parametrize("name", [*CONFIGS, *CODE, "no bias"])
def test_mutant_is_caught(tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each must miss the stored logits by more than a hundred times what parity allows."""
    model, params, golden = tiny
    if name in CODE:
        home, attribute, change = CODE[name]
        monkeypatch.setattr(home, attribute, change(getattr(home, attribute)))
    if name == "no bias":
        params = params | {"state": jax.tree.map(jnp.zeros_like, params["state"])}
    changes = CONFIGS[name](model.config) if name in CONFIGS else {}
    mutant = build(model.config.replace(**changes))
    found = distance(mutant_logits(mutant, params, ids_of(golden)), golden["logits"])
    print(f"{name}: {found:.3g} standard deviations")
    assert found > 1e-2
