"""Recurrent depth against the stored outputs of Huginn's own code, through the loader, and proof that it can fail."""

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

from model import Model, ModelConfig, build, hf
from model.depth import Exit
from tests.sampled import generate
from train.objectives.logps import token_logps

CRITERIA = {
    "kl": "kl",
    "latent-diff": "latent",
    "cosine": "cosine",
    "entropy-diff": "entropy",
    "argmax-stability": "argmax",
    "minp-kl": "min_p_kl",
}
# The five parameters whose gradients are stored, by their names in the files.
GRADIENTS = ("adapter", "core_block.1.mlp.fc", "prelude.0.attn.Wqkv", "wte", "ln_f")
Golden = dict[str, np.ndarray]


def folder_of(golden: Golden, to: Path, tied: bool) -> Path:
    """The stored weights in the Hub's layout."""
    description = {
        "model_type": "huginn_raven",
        "n_embd": 64,
        "n_heads": 4,
        "vocab_size": 256,
        "intermediate_size": 96,
        "n_layers_in_prelude": 2,
        "n_layers_in_recurrent_block": 4,
        "n_layers_in_coda": 2,
        "mean_recurrence": 16,
        "block_size": 256,
        "norm_eps": 1e-6,
        "rope_base": 50_000,
        "tie_embeddings": tied,
        "state_init": "zero",
        "init_values": {"std": 0.08, "embed_scale": 8.0},
    }
    to.mkdir()
    (to / "config.json").write_text(json.dumps(description))
    weights = {name[2:]: value for name, value in golden.items() if name.startswith("w:")}
    weights["freqs_cis"] = np.zeros((4, 2), np.float32)  # a buffer that the published files hold
    save_file(weights, to / "model.safetensors")
    return to


class Stored:
    """One golden file, its model and its parameters."""

    def __init__(self, shared: Path, name: str, to: Path) -> None:
        with np.load(shared / "golden" / f"{name}.npz") as file:
            self.golden = dict(file)
        self.folder = folder_of(self.golden, to / name, tied=name == "huginn")
        self.model, self.params = hf.load(self.folder)

    def logits(self, model: Model | None = None, **options: Any) -> np.ndarray:
        model = model or self.model
        ids = jnp.asarray(self.golden["ids"], jnp.int32)

        @jax.jit
        def run(params: Any) -> jax.Array:
            return model.logits(params, model.apply(params, ids, state=self.golden["s0"], **options).hidden)

        return np.asarray(run(self.params))


@pytest.fixture(scope="module")
def huginn(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return Stored(shared, "huginn", tmp_path_factory.mktemp("huginn"))


@pytest.fixture(scope="module")
def speaking(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return Stored(shared, "huginn_gen", tmp_path_factory.mktemp("huginn"))


@pytest.mark.more_but("0")
@pytest.mark.parametrize("depth", [0, 1, 2, 4, 16])
def test_logits_and_latents(huginn: Stored, depth: int) -> None:
    out = jax.jit(lambda p: huginn.model.apply(p, huginn.golden["ids"], depth=depth, state=huginn.golden["s0"]))(
        huginn.params
    )
    logits = huginn.model.logits(huginn.params, out.hidden)
    np.testing.assert_allclose(logits, huginn.golden[f"logits_r{depth}"], rtol=0, atol=1e-4)
    latent = huginn.model.normed(huginn.params, out.state)
    np.testing.assert_allclose(latent, huginn.golden[f"latent_r{depth}"], rtol=0, atol=1e-4)
    assert out.aux["depth"].tolist() == [depth, depth]


CHANGES: dict[str, dict[str, Any]] = {
    "readout": {"recurrent": {"readout": "none"}},
    "injection": {"recurrent": {"injection": "add"}},
    "norm": {"norm": "pre"},
    "scale": {"embed_scale": 1.0},
    "rope": {"rope": {"theta": 50_000.0, "interleaved": False}},
    "theta": {"rope": {"theta": 10_000.0, "interleaved": True}},
    "bias": {"qk_bias": False},
    "coda": {"recurrent": {"core": 5, "coda": 1}},
}


@pytest.mark.more_but("readout", "norm", "theta")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_constant_breaks_parity(huginn: Stored, change: str) -> None:
    settings = huginn.model.config.to_dict()
    for name, value in CHANGES[change].items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    found = huginn.logits(build(settings | {"family": "sagax"}), depth=4)
    assert np.abs(found - huginn.golden["logits_r4"]).max() > 1e-2


@pytest.mark.more_but("3-2")
@pytest.mark.parametrize(("skipped", "learning"), [(3, 2), (0, 5)])
def test_loss_and_truncated_gradients(huginn: Stored, skipped: int, learning: int, tmp_path: Path) -> None:
    golden, ids = huginn.golden, jnp.asarray(huginn.golden["ids"], jnp.int32)
    recurrent = huginn.model.config.to_dict()["recurrent"] | {"grad_steps": learning}
    model = build(huginn.model.config.replace(recurrent=recurrent))

    def loss(params: Any) -> jax.Array:
        hidden = model.apply(params, ids, depth=skipped + learning, state=golden["s0"]).hidden
        return -token_logps(hidden, model.head(params), jnp.roll(ids, -1, 1))[0].mean()

    found, gradients = jax.jit(jax.value_and_grad(loss))(huginn.params)
    name = f"n{skipped}k{learning}"
    np.testing.assert_allclose(found, golden[f"loss_{name}"], atol=1e-5)
    hf.save(tmp_path / "gradients", model, gradients)  # the same renaming as for weights
    written = read_tensors(tmp_path / "gradients")
    for part in GRADIENTS:
        want = golden[f"grad_{name}:transformer.{part}.weight"]
        assert np.abs(written[f"transformer.{part}.weight"] - want).max() < 1e-4 * np.abs(want).max(), part


def read_tensors(folder: Path) -> Golden:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_the_gradients_differ_though_the_losses_do_not(huginn: Stored) -> None:
    one, other = (huginn.golden[f"grad_{n}:transformer.adapter.weight"] for n in ("n3k2", "n0k5"))
    assert np.abs(one - other).max() > 0.01 * np.abs(other).max()


@pytest.mark.more
@pytest.mark.parametrize("slots", [0, 1, 2, 4])
def test_shared_keys(huginn: Stored, slots: int) -> None:
    """`compress-s<4 b>` of the reference: iteration i reads and writes slot i mod b."""
    golden = huginn.golden
    want = golden[f"kv:compress-s{4 * slots}" if slots else "kv:full"]
    recurrent = huginn.model.config.to_dict()["recurrent"] | {"kv_slots": slots}
    model, ids = build(huginn.model.config.replace(recurrent=recurrent)), golden["ids"].astype(np.int32)

    @functools.partial(jax.jit, static_argnums=3)
    def run(cache: Any, tokens: jax.Array, state: jax.Array, depth: int) -> Any:
        out = model.apply(huginn.params, tokens, cache=cache, state=state, depth=depth)
        return out.cache, model.logits(huginn.params, out.hidden)

    cache, _ = run(model.init_cache(2, 12, depth=8), ids[:, :6], golden["s0"][:, :6], 8)
    found = []
    for t in range(6, 12):
        cache, logits = run(cache, ids[:, t : t + 1], golden["s0"][:, t : t + 1], 8)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), want, rtol=0, atol=1e-4)


def settings_of(file: str) -> list[str]:
    """Every exit criterion x threshold stored in a file (known without it, so that tests have names)."""
    thresholds = {
        "huginn": ("kl:0.002", "latent-diff:0.1", "cosine:0.005", "entropy-diff:0.001", "argmax-stability:4"),
        "huginn_gen": (
            "kl:0.002",
            "kl:0.0005",
            "latent-diff:0.05",
            "cosine:0.001",
            "entropy-diff:0.01",
            "argmax-stability:5",
        ),
    }
    return [*thresholds[file], "minp-kl:0.001"]


def assert_exits(stored: Stored, ids: np.ndarray, setting: str) -> None:
    """The prompt walked token by token: iterations exactly, logits closely."""
    criterion, threshold = setting.split(":")
    leave = Exit(CRITERIA[criterion], float(threshold))

    @jax.jit
    def run(cache: Any, tokens: jax.Array) -> Any:
        out = stored.model.apply(stored.params, tokens, cache=cache, depth=16, exit=leave)
        return out.cache, out.aux["depth"][0], stored.model.logits(stored.params, out.hidden)

    cache, steps, logits = stored.model.init_cache(1, 12, depth=16), [], []
    for t in range(12):
        cache, used, found = run(cache, ids[:1, t : t + 1])
        steps.append(int(used))
        logits.append(found)
    assert steps == stored.golden[f"exit:{setting}:latest-m4:steps"].tolist()
    want = stored.golden[f"exit:{setting}:latest-m4:logits"]
    np.testing.assert_allclose(np.concatenate(logits, 1), want, rtol=0, atol=1e-4)


@pytest.mark.more_but("kl:0.002")
@pytest.mark.parametrize("setting", settings_of("huginn"))
def test_exits(huginn: Stored, setting: str) -> None:
    assert_exits(huginn, huginn.golden["ids"].astype(np.int32), setting)


@pytest.mark.more
@pytest.mark.parametrize("setting", settings_of("huginn_gen"))
def test_exits_that_differ_more(speaking: Stored, setting: str) -> None:
    assert_exits(speaking, speaking.golden["prompt"].astype(np.int32), setting)


GENERATION: dict[str, dict[str, Any]] = {
    "minimal": {},
    "spec": {"draft_depth": 3, "draft_length": 3},
    "spec4": {"draft_depth": 8, "draft_length": 4},
    "contcot": {"warm_start": "normed"},
    "adaptive_kl": {"exit": Exit("kl", 0.002)},
    "adaptive_kl_cont": {"exit": Exit("kl", 0.002), "warm_start": "raw"},
    "minimal_kv_s16": {},
}


@pytest.mark.more
@pytest.mark.parametrize("mode", GENERATION)
def test_generated_tokens(speaking: Stored, mode: str) -> None:
    model = speaking.model
    if mode == "minimal_kv_s16":
        model = build(model.config.replace(recurrent=model.config.to_dict()["recurrent"] | {"kv_slots": 4}))
    options = {"max_new_tokens": 24, "temperature": 0.0, "depth": 16} | GENERATION[mode]
    prompt = speaking.golden["prompt"].tolist()
    rollout = generate(model, speaking.params, prompt, jax.random.key(0), **options)
    assert rollout.tokens[0].tolist() == speaking.golden[f"gen:{mode}"][0, 12:].tolist()
    assert rollout.depth is not None
    if "exit" in GENERATION[mode]:
        assert rollout.depth[0, 0] == 11, "the whole prompt leaves together"
        assert len(set(rollout.depth[0].tolist())) > 4
    else:
        assert set(rollout.depth[0].tolist()) == {16}
    if "draft_depth" in GENERATION[mode]:
        assert rollout.steps < 20


def test_the_layout_goes_there_and_back(speaking: Stored, tmp_path: Path) -> None:
    hf.save(tmp_path / "again", speaking.model, speaking.params)
    before, after = read_tensors(speaking.folder), read_tensors(tmp_path / "again")
    before.pop("freqs_cis")
    assert set(before) == set(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    model, params = hf.load(tmp_path / "again")
    assert model.config == speaking.model.config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, speaking.params)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"injection_type": "add"}, "injection_type='add' is not supported"),
        ({"sampling_scheme": "uniform"}, "sampling_scheme='uniform' is not supported"),
        ({"n_layers_in_coda": None}, "lacks n_layers_in_coda"),
        ({"mean_recurrence": 0}, "recurrent.mean must be at least 1"),
    ],
)
def test_what_the_config_cannot_say(speaking: Stored, change: dict[str, Any], message: str) -> None:
    described = json.loads((speaking.folder / "config.json").read_text()) | change
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(described)
