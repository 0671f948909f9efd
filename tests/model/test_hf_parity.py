"""The families against the stored outputs of transformers, and proof that the comparison can fail."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from model import Model, RopeConfig, build, hf
from model.config import MoEConfig
from tests.model.common import assert_close, cached, distance, forward, left_pad

FAMILIES = (
    "llama3",
    "llama32_tied",
    "qwen2",
    "qwen25math_theta1e4",
    "qwen25_yarn",
    "qwen2_swa",
    "qwen3",
    "mistral_swa",
    "gpt2",
    "mixtral",
    "qwen3moe",
    "qwen3moe_nonorm_mlp0",
    "qwen2moe_shared",
    "deepseek_v3",
)


@functools.cache
def read(folder: Path) -> tuple[Model, Any, dict[str, np.ndarray]]:
    with warnings.catch_warnings():
        # transformers writes DeepSeek-V3 without the multi-token prediction layer that its config promises.
        warnings.filterwarnings("ignore", "config.json promises 1 multi-token prediction")
        model, params = hf.load(folder)
    with np.load(folder / "golden.npz") as golden:
        return model, params, dict(golden)


@pytest.mark.more_but("llama3", "qwen25math_theta1e4", "mistral_swa", "qwen3moe")
@pytest.mark.parametrize("family", FAMILIES)
def test_forward(shared: Path, family: str) -> None:
    model, params, golden = read(shared / "tiny_hf" / family)
    logits, hidden = forward(model, params, golden["ids"].astype(np.int32))
    print(f"{family}: {distance(logits, golden['logits']):.2g} standard deviations")
    assert_close(logits, golden["logits"])
    if family != "deepseek_v3":  # whose hidden states tests/model/test_deepseek_golden.py compares
        assert distance(hidden, golden["hidden_last"]) < 1e-4


@pytest.mark.more_but("llama3")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deepseek_v3"])
def test_left_padded_row(shared: Path, family: str) -> None:
    model, params, golden = read(shared / "tiny_hf" / family)
    ids, positions, segments = (golden[key].astype(np.int32) for key in ("ids", "leftpad_pos", "leftpad_mask"))
    logits, _ = forward(model, params, ids, positions, segments)
    pads = int((segments[0] == 0).sum())
    assert_close(logits[0, pads:], golden["leftpad_logits"])
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.more_but("llama3", "mistral_swa")
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decode(shared: Path, family: str) -> None:
    """Prefill and single steps on rows that begin in different columns."""
    model, params, golden = read(shared / "tiny_hf" / family)
    pads = (5, 0)
    batch = left_pad(golden["ids"], pads)
    logits = np.asarray(cached(model, params, *batch, 20))
    for row, pad in enumerate(pads):
        assert_close(logits[row, pad:], golden["logits"][row, : logits.shape[1] - pad])


def rope(**changes: Any) -> Any:
    return lambda config: {"rope": RopeConfig(**{**vars(config.rope), **changes})}


def moe(**changes: Any) -> Any:
    return lambda config: {"moe": MoEConfig(**{**vars(config.moe), **changes})}


MUTANTS: dict[str, tuple[str, Any]] = {
    "rope base": ("qwen2", rope(theta=10_000.0)),
    "rope base of the maths models": ("qwen25math_theta1e4", rope(theta=1_000_000.0)),
    "interleaved rope": ("llama3", rope(interleaved=True)),
    "partial rope": ("qwen3", rope(partial=0.5)),
    "llama3 factor 8 -> 32": ("llama3", rope(factor=32.0)),
    "llama3 factor 32 -> 8": ("llama32_tied", rope(factor=8.0)),
    "llama3 trained length": ("llama3", rope(original_length=64)),
    "llama3 high_freq_factor": ("llama3", rope(high_freq_factor=16.0)),
    "llama3 low_freq_factor": ("llama3", rope(low_freq_factor=0.5)),
    "yarn attention factor": ("qwen25_yarn", rope(attention_factor=1.0)),
    "yarn factor": ("qwen25_yarn", rope(factor=8.0, attention_factor=1.1386294361)),
    "yarn beta_slow": ("qwen25_yarn", rope(beta_slow=0.25)),
    "yarn off": ("qwen25_yarn", rope(kind="default")),
    "norm eps x 10": ("llama3", lambda c: {"norm_eps": 10 * c.norm_eps}),
    "norm eps x 1000": ("qwen3", lambda c: {"norm_eps": 1000 * c.norm_eps}),
    "layer norm eps x 100": ("gpt2", lambda c: {"norm_eps": 100 * c.norm_eps}),
    "no qkv bias": ("qwen2", lambda c: {"qkv_bias": False}),
    "no bias, GPT-2": ("gpt2", lambda c: {"qkv_bias": False}),
    "no output bias": ("gpt2", lambda c: {"out_bias": False}),
    "no MLP bias": ("gpt2", lambda c: {"mlp_bias": False}),
    "no qk-norm": ("qwen3", lambda c: {"qk_norm": False}),
    "no window": ("mistral_swa", lambda c: {"window": None}),
    "window + 1": ("mistral_swa", lambda c: {"window": c.window + 1}),
    "window - 1": ("mistral_swa", lambda c: {"window": c.window - 1}),
    "window on every layer": ("qwen2_swa", lambda c: {"window": 6}),
    "window on no layer": ("qwen2_swa", lambda c: {"window": None}),
    "exact GELU": ("gpt2", lambda c: {"activation": "gelu"}),
    "GELU for SiLU": ("llama3", lambda c: {"activation": "gelu"}),
    "no positions": ("gpt2", lambda c: {"positions": "none"}),
    "logit scale": ("qwen2", lambda c: {"logit_scale": 0.5}),
    "embedding scale": ("qwen2", lambda c: {"embed_scale": 2.0}),
    "sandwich norm": ("llama3", lambda c: {"norm": "sandwich"}),
    "tied": ("llama3", lambda c: {"tied": True}),
    "one expert fewer": ("mixtral", moe(top_k=1)),
    "no normalisation, Mixtral": ("mixtral", moe(normalize=False)),
    "sigmoid scores": ("mixtral", moe(score="sigmoid")),
    "no normalisation, Qwen3-MoE": ("qwen3moe", moe(normalize=False)),
    "normalisation, Qwen3-MoE": ("qwen3moe_nonorm_mlp0", moe(normalize=True)),
    "no qk-norm, Qwen3-MoE": ("qwen3moe", lambda c: {"qk_norm": False}),
    "one expert more": ("qwen3moe", moe(top_k=5)),
    "normalisation, Qwen2-MoE": ("qwen2moe_shared", moe(normalize=True)),
    "no gate of the shared expert": ("qwen2moe_shared", moe(shared_gate=False)),
    "no shared expert": ("qwen2moe_shared", moe(n_shared=0, d_shared=0, shared_gate=False)),
    "scaled experts": ("qwen2moe_shared", moe(scale=1.5)),
    "no scaling, DeepSeek-V3": ("deepseek_v3", moe(scale=1.0)),
    "other groups": ("deepseek_v3", moe(n_groups=2, top_groups=1)),
}


@pytest.mark.more_but("rope base")
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(shared: Path, name: str) -> None:
    """Flipping one setting must break parity by far more than the tolerance, or the tests above prove nothing
    about it.
    """
    family, change = MUTANTS[name]
    model, params, golden = read(shared / "tiny_hf" / family)
    mutant = build(model.config.replace(**change(model.config)))
    if mutant.config.norm == "sandwich":
        ones = {"scale": jnp.ones(model.config.d_model)}
        extra = {"mixer_post_norm": ones, "ffn_post_norm": ones}
        params = {k: v | extra if k.startswith("layer_") else v for k, v in params.items()}
    logits, _ = forward(mutant, params, golden["ids"].astype(np.int32))
    found = distance(logits, golden["logits"])
    print(f"{name}: {found:.3g} standard deviations")
    assert found > 5e-4, f"{name}: only {found:.3g} standard deviations away"
