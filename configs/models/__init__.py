"""Published models as plain dicts for `model.build`, each with its exact parameter count.

    from configs.models import get_preset
    model = build(get_preset("qwen2_5_0_5b") | {"dtype": "bfloat16"})

Sources: the config.json files of meta-llama, Qwen, openai-community, mistralai, deepseek-ai and ByteDance on the Hub.
Weights with the same layout are loaded by `model.hf.load`, which reads the folder's own config.json instead.
DeepSeek-V3 comes without its multi-token prediction module: `get_preset("deepseek_v3") | {"mtp": {"depth": 1}}` adds
`mtp_parameters`.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any

from configs.models.mixed import MIXED


def _llama(factor: float = 32.0, **sizes: Any) -> dict[str, Any]:
    rope = {
        "kind": "llama3",
        "theta": 500_000.0,
        "factor": factor,
        "original_length": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    return {
        "family": "llama",
        "vocab_size": 128_256,
        "n_kv_heads": 8,
        "max_length": 131_072,
        "norm_eps": 1e-5,
        "rope": rope,
    } | sizes


def _qwen2(theta: float = 1_000_000.0, max_length: int = 32_768, **sizes: Any) -> dict[str, Any]:
    return {
        "family": "qwen2",
        "vocab_size": 151_936,
        "max_length": max_length,
        "norm_eps": 1e-6,
        "qkv_bias": True,
        "rope": {"theta": theta},
    } | sizes


def _qwen3(**sizes: Any) -> dict[str, Any]:
    return {
        "family": "qwen3",
        "vocab_size": 151_936,
        "n_kv_heads": 8,
        "head_dim": 128,
        "max_length": 40_960,
        "norm_eps": 1e-6,
        "qk_norm": True,
        "rope": {"theta": 1_000_000.0},
    } | sizes


def _deepseek(mscale: float, **sizes: Any) -> dict[str, Any]:
    rope = {
        "kind": "yarn",
        "theta": 10_000.0,
        "factor": 40.0,
        "original_length": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": mscale,
        "mscale_all_dim": mscale,
        "interleaved": True,
    }
    return {
        "max_length": 163_840,
        "norm_eps": 1e-6,
        "mixer": "mla",
        "ffn": "moe",
        "head_dim": 64,
        "rope": rope,
        "tied": False,
    } | sizes


def _ouro(layers: int) -> dict[str, Any]:
    loops = {"prelude": 0, "core": layers, "coda": 0, "mean": 4, "grad_steps": 4, "injection": "none"}
    return {
        "family": "ouro",
        "vocab_size": 49_152,
        "d_model": 2048,
        "n_layers": layers,
        "n_heads": 16,
        "d_ff": 5632,
        "max_length": 65_536,
        "norm": "peri",
        "rope": {"theta": 1_000_000.0},
        "tied": False,
        "depth": "recurrent",
        "recurrent": loops | {"start": "embedding", "readout": "loop", "exit_gate": True, "exit_threshold": 1.0},
    }


def _mla(q_rank: int) -> dict[str, int]:
    return {"q_rank": q_rank, "kv_rank": 512, "nope_dim": 128, "rope_dim": 64, "v_dim": 128}


QWEN2_0_5B = {"d_model": 896, "n_layers": 24, "n_heads": 14, "n_kv_heads": 2, "d_ff": 4864, "tied": True}
QWEN2_1_5B = {"d_model": 1536, "n_layers": 28, "n_heads": 12, "n_kv_heads": 2, "d_ff": 8960, "tied": True}
QWEN2_7B = {
    "d_model": 3584,
    "n_layers": 28,
    "n_heads": 28,
    "n_kv_heads": 4,
    "d_ff": 18_944,
    "tied": False,
    "vocab_size": 152_064,
}
# Qwen2.5-Math kept the base of Qwen2.5's pre-training (1e4) and its 4096 positions.
QWEN2_MATH: dict[str, Any] = {"theta": 10_000.0, "max_length": 4096}

V2_ROUTER: dict[str, Any] = {
    "n_shared": 2,
    "normalize": False,
    "group_score": "max",
    "balance": "sequence",
    "aux_weight": 0.001,
    "first_dense": 1,
}

PRESETS: dict[str, dict[str, Any]] = {
    "llama3_2_1b": {
        "parameters": 1_235_814_400,
        "model": _llama(d_model=2048, n_layers=16, n_heads=32, head_dim=64, d_ff=8192, tied=True),
    },
    "llama3_2_3b": {
        "parameters": 3_212_749_824,
        "model": _llama(d_model=3072, n_layers=28, n_heads=24, head_dim=128, d_ff=8192, tied=True),
    },
    "llama3_1_8b": {
        "parameters": 8_030_261_248,
        "model": _llama(factor=8.0, d_model=4096, n_layers=32, n_heads=32, d_ff=14_336, tied=False),
    },
    "llama2_70b": {
        "parameters": 68_976_648_192,
        "model": {
            "family": "llama",
            "vocab_size": 32_000,
            "d_model": 8192,
            "n_layers": 80,
            "n_heads": 64,
            "n_kv_heads": 8,
            "d_ff": 28_672,
            "max_length": 4096,
            "norm_eps": 1e-5,
            "tied": False,
        },
    },
    "qwen2_5_0_5b": {"parameters": 494_032_768, "model": _qwen2(**QWEN2_0_5B)},
    "qwen2_5_1_5b": {"parameters": 1_543_714_304, "model": _qwen2(**QWEN2_1_5B)},
    "qwen2_5_7b": {"parameters": 7_615_616_512, "model": _qwen2(**QWEN2_7B)},
    "qwen2_5_math_1_5b": {"parameters": 1_543_714_304, "model": _qwen2(**QWEN2_MATH, **QWEN2_1_5B)},
    "qwen2_5_math_7b": {"parameters": 7_615_616_512, "model": _qwen2(**QWEN2_MATH, **QWEN2_7B)},
    "qwen3_0_6b": {
        "parameters": 596_049_920,
        "model": _qwen3(d_model=1024, n_layers=28, n_heads=16, d_ff=3072, tied=True),
    },
    "qwen3_1_7b": {
        "parameters": 1_720_574_976,
        "model": _qwen3(d_model=2048, n_layers=28, n_heads=16, d_ff=6144, tied=True),
    },
    "qwen3_8b": {
        "parameters": 8_190_735_360,
        "model": _qwen3(d_model=4096, n_layers=36, n_heads=32, d_ff=12_288, tied=False),
    },
    "mixtral_8x7b": {
        "parameters": 46_702_792_704,
        "model": {
            "family": "mixtral",
            "vocab_size": 32_000,
            "d_model": 4096,
            "n_layers": 32,
            "n_heads": 32,
            "n_kv_heads": 8,
            "d_ff": 14_336,
            "max_length": 32_768,
            "norm_eps": 1e-5,
            "rope": {"theta": 1_000_000.0},
            "tied": False,
            "ffn": "moe",
            # router_aux_loss_coef 0.02 of transformers: its loss is top_k times ours and counted once for all layers.
            "moe": {"n_experts": 8, "top_k": 2, "balance": "batch", "aux_weight": 0.02 * 2 / 32},
        },
    },
    "qwen3_30b_a3b": {
        "parameters": 30_532_122_624,
        "model": _qwen3(
            family="qwen3_moe",
            d_model=2048,
            n_layers=48,
            n_heads=32,
            n_kv_heads=4,
            d_ff=6144,
            tied=False,
            ffn="moe",
            # router_aux_loss_coef 0.001, likewise.
            moe={"n_experts": 128, "top_k": 8, "d_expert": 768, "balance": "batch", "aux_weight": 0.000166666666667},
        ),
    },
    "deepseek_16b": {
        "parameters": 15_706_484_224,
        "model": _deepseek(
            family="deepseek_v2",
            vocab_size=102_400,
            d_model=2048,
            n_layers=27,
            n_heads=16,
            d_ff=10_944,
            mscale=0.707,
            mla=_mla(0),
            moe=V2_ROUTER | {"n_experts": 64, "top_k": 6, "d_expert": 1408},
        ),
    },
    "deepseek_v2": {
        "parameters": 235_741_434_880,
        "model": _deepseek(
            family="deepseek_v2",
            vocab_size=102_400,
            d_model=5120,
            n_layers=60,
            n_heads=128,
            d_ff=12_288,
            mscale=0.707,
            mla=_mla(1536),
            moe=V2_ROUTER
            | {"n_experts": 160, "top_k": 6, "d_expert": 1536, "scale": 16.0, "n_groups": 8, "top_groups": 3},
        ),
    },
    "deepseek_v3": {
        "parameters": 671_026_404_352,
        "mtp_parameters": 11_610_067_968,
        "model": _deepseek(
            family="deepseek_v3",
            vocab_size=129_280,
            d_model=7168,
            n_layers=61,
            n_heads=128,
            d_ff=18_432,
            mscale=1.0,
            mla=_mla(1536),
            moe={
                "n_experts": 256,
                "top_k": 8,
                "d_expert": 2048,
                "n_shared": 1,
                "score": "sigmoid",
                "scale": 2.5,
                "n_groups": 8,
                "top_groups": 4,
                "balance": "bias",
                "first_dense": 3,
            },
        ),
    },
    "huginn_3_5b": {
        "parameters": 3_564_976_800,
        "model": {
            "family": "huginn_raven",
            "vocab_size": 65_536,
            "d_model": 5280,
            "n_layers": 8,
            "n_heads": 55,
            "d_ff": 17_920,
            "max_length": 4096,
            "norm": "sandwich",
            "qk_bias": True,
            "rope": {"theta": 50_000.0, "interleaved": True},
            "tied": True,
            "embed_scale": 5280**0.5,
            "init": "truncated",
            "init_std": (2 / (5 * 5280)) ** 0.5,
            "depth": "recurrent",
            "recurrent": {"prelude": 2, "core": 4, "coda": 2, "mean": 32, "draw": "lognormal", "grad_steps": 8},
        },
    },
    "ouro_1_4b": {"parameters": 1_434_652_673, "model": _ouro(24)},
    "ouro_2_6b": {"parameters": 2_667_974_657, "model": _ouro(48)},
    "gpt2": {
        "parameters": 124_439_808,
        "model": {
            "family": "gpt2",
            "vocab_size": 50_257,
            "d_model": 768,
            "n_layers": 12,
            "n_heads": 12,
            "d_ff": 3072,
            "max_length": 1024,
            "ffn": "mlp",
            "norm_type": "layernorm",
            "norm_eps": 1e-5,
            "activation": "gelu_tanh",
            "qkv_bias": True,
            "out_bias": True,
            "mlp_bias": True,
            "positions": "learned",
            "tied": True,
        },
    },
    **MIXED,
}


def get_preset(name: str) -> dict[str, Any]:
    """The model dict of a published model, a fresh copy; ValueError names the nearest preset."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown preset {name!r}.{hint} Choices: {', '.join(PRESETS)}.")
    return copy.deepcopy(PRESETS[name]["model"])
