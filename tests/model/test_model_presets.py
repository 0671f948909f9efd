"""The presets: exact parameter counts without making a parameter, and the Hub's config.json from each."""

from __future__ import annotations

import jax
import pytest

from configs.models import PRESETS, get_preset
from model import ModelConfig, build, parameter_count


@pytest.mark.more_but("llama3_1_8b", "qwen3_0_6b", "mixtral_8x7b", "deepseek_16b", "ouro_1_4b", "gpt2", "gemma3_1b")
@pytest.mark.parametrize("name", PRESETS)
def test_exact_parameter_count(name: str) -> None:
    model = build(get_preset(name))
    assert parameter_count(model.abstract()) == PRESETS[name]["parameters"]
    assert ModelConfig.from_hf(model.config.to_hf()) == model.config


@pytest.mark.more
def test_multi_token_prediction_comes_on_top() -> None:
    """The embedding and head of the module are the model's own, and the routers' biases are no parameters."""
    model = build(get_preset("deepseek_v3") | {"mtp": {"depth": 1}})
    params, preset = model.abstract(), PRESETS["deepseek_v3"]
    assert parameter_count(params) == preset["parameters"] + preset["mtp_parameters"]
    biases = jax.tree.leaves(params["state"])
    assert sum(leaf.size for leaf in biases) == (58 + 1) * 256


def test_presets_are_copies() -> None:
    get_preset("qwen3_8b")["rope"]["theta"] = 1.0
    assert get_preset("qwen3_8b")["rope"]["theta"] == 1_000_000.0


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'qwen3_06b'. Did you mean 'qwen3_0_6b'"):
        get_preset("qwen3_06b")


def test_maths_models_keep_the_small_rope_base() -> None:
    assert get_preset("qwen2_5_math_7b")["rope"] == {"theta": 10_000.0}
    assert get_preset("qwen2_5_7b")["rope"] == {"theta": 1_000_000.0}
