"""ModelConfig: what it fills in, what it refuses, and that it survives a dict."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ml_collections import ConfigDict

from model import ModelConfig, RopeConfig, build
from tests.model.common import TINY, tiny


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_layer": 3}, "unknown ModelConfig key 'n_layer'. Did you mean 'n_layers'"),
        ({"rope": {"thetta": 1.0}}, "unknown RopeConfig key 'thetta'. Did you mean 'theta'"),
        ({"rope": {"kind": "yarm"}}, "unknown rope.kind 'yarm'. Did you mean 'yarn'"),
        ({"rope": {"kind": "longrope"}}, "longrope needs short_factor and long_factor"),
        ({"rope": {"partial": 0.0}}, r"rope.partial must lie in \(0, 1\]"),
        ({"rope": {"partial": 0.4}}, "rope rotates pairs"),
        ({"rope": {"theta": -1.0}}, "rope.theta must be positive"),
        ({"norm": "pree"}, "unknown norm 'pree'. Did you mean 'pre'"),
        ({"norm_type": "rms_norm"}, "unknown norm_type 'rms_norm'. Did you mean 'rmsnorm'"),
        ({"positions": "rop"}, "unknown positions 'rop'. Did you mean 'rope'"),
        ({"activation": "gelu_tan"}, "unknown activation 'gelu_tan'. Did you mean 'gelu_tanh'"),
        ({"dtype": "bf16"}, "unknown dtype 'bf16'"),
        ({"param_dtype": "float8"}, "unknown param_dtype 'float8'"),
        ({"mixer": "gqaa"}, "unknown mixer 'gqaa'. Did you mean 'gqa'"),
        ({"ffn": ("glu", "mpl")}, "unknown ffn 'mpl'. Did you mean 'mlp'"),
        ({"depth": "stak"}, "unknown depth 'stak'. Did you mean 'stack'"),
        ({"ffn": ("glu",)}, "ffn has 1 entries for n_layers=2"),
        ({"window": (3, 0)}, "window must be None or positive, found 0"),
        ({"n_kv_heads": 3}, "n_heads=4 is no multiple of n_kv_heads=3"),
        ({"n_heads": 3, "n_kv_heads": 3}, "d_model=32 is no multiple of n_heads=3: give head_dim"),
        ({"d_ff": 0}, "d_ff must be a positive integer, found 0"),
        ({"n_layers": 2.0}, "n_layers must be a positive integer, found 2.0"),
        ({"vocab_size": True}, "vocab_size must be a positive integer"),
        ({"head_dim": 7}, "rope rotates pairs: head_dim=7"),
    ],
)
def test_wrong_settings_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(TINY | changes)


def test_missing_sizes_raise() -> None:
    with pytest.raises(ValueError, match=r"ModelConfig: .*d_model"):
        build({"vocab_size": 8})


def test_defaults_are_filled_in() -> None:
    config = ModelConfig(vocab_size=8, d_model=32, n_layers=1, n_heads=4, d_ff=8)
    assert (config.n_kv_heads, config.head_dim) == (4, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window": (None, 4), "ffn": ("glu", "mlp")},
        {"rope": RopeConfig(kind="longrope", short_factor=(1.0,) * 4, long_factor=(2.0,) * 4)},
    ],
)
def test_dicts_give_the_same_config(changes: dict[str, Any]) -> None:
    config = ModelConfig.from_dict(TINY | changes)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_dict(ConfigDict(config.to_dict())) == config
    assert build(ConfigDict(config.to_dict())) == build(config) == build(config.to_dict())
    assert hash(build(config)) == hash(build(config.to_dict()))


def test_replace_checks() -> None:
    config = tiny().config
    assert config.replace(norm="post").norm == "post"
    with pytest.raises(ValueError, match="Did you mean 'norm'"):
        config.replace(nrom="post")
    with pytest.raises(ValueError, match="unknown norm 'front'"):
        config.replace(norm="front")


def test_a_slot_of_every_layer_in_one_string() -> None:
    """Flags know strings only where the default is one."""
    assert tiny(ffn="glu, mlp").config.ffn == ("glu", "mlp")
    with pytest.raises(ValueError, match="ffn has 3 entries for n_layers=2"):
        tiny(ffn="glu,glu,glu")
