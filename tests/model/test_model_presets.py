"""The presets: exact parameter counts without making a parameter, and the Hub's config.json from each."""

from __future__ import annotations

import pytest

from configs.models import PRESETS, get_preset
from model import ModelConfig, build, parameter_count


@pytest.mark.parametrize("name", PRESETS)
def test_exact_parameter_count(name: str) -> None:
    model = build(get_preset(name))
    assert parameter_count(model.abstract()) == PRESETS[name]["parameters"]
    assert ModelConfig.from_hf(model.config.to_hf()) == model.config


def test_presets_are_copies() -> None:
    get_preset("qwen3_8b")["rope"]["theta"] = 1.0
    assert get_preset("qwen3_8b")["rope"]["theta"] == 1_000_000.0


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'qwen3_06b'. Did you mean 'qwen3_0_6b'"):
        get_preset("qwen3_06b")


def test_maths_models_keep_the_small_rope_base() -> None:
    assert get_preset("qwen2_5_math_7b")["rope"] == {"theta": 10_000.0}
    assert get_preset("qwen2_5_7b")["rope"] == {"theta": 1_000_000.0}
