"""Published models whose layers differ among themselves: Gemma 3, gpt-oss, Qwen3-Next.

Sources: the config.json files of google, openai and Qwen on the Hub. Qwen3-Next comes without its module of multi-token
prediction.
"""

from __future__ import annotations

from typing import Any


def _gpt_oss(n_layers: int, n_experts: int) -> dict[str, Any]:
    rope = {"kind": "yarn", "theta": 150_000.0, "factor": 32.0, "original_length": 4096, "truncate": False}
    # router_aux_loss_coef 0.9 of transformers: its loss is top_k times ours and counted once for all layers.
    balance = {"balance": "batch", "aux_weight": 0.9 * 4 / n_layers}
    return {
        "family": "gpt_oss",
        "vocab_size": 201_088,
        "d_model": 2880,
        "n_layers": n_layers,
        "n_heads": 64,
        "n_kv_heads": 8,
        "head_dim": 64,
        "d_ff": 2880,
        "max_length": 131_072,
        "norm_eps": 1e-5,
        "rope": {**rope, "beta_fast": 32.0, "beta_slow": 1.0},
        "window": [128, None] * (n_layers // 2),
        "tied": False,
        **dict.fromkeys(("sinks", "qkv_bias", "out_bias", "mlp_bias"), True),
        **{"activation": "quick_gelu", "glu_limit": 7.0, "glu_offset": 1.0},
        "ffn": "moe",
        "moe": {"n_experts": n_experts, "top_k": 4, "router_bias": True, **balance},
    }


MIXED: dict[str, dict[str, Any]] = {
    "gemma3_1b": {
        "parameters": 999_885_952,
        "model": {
            "family": "gemma3_text",
            "vocab_size": 262_144,
            "d_model": 1152,
            "n_layers": 26,
            "n_heads": 4,
            "n_kv_heads": 1,
            "head_dim": 256,
            "d_ff": 6912,
            "max_length": 32_768,
            "norm": "peri",
            "norm_plus_one": True,
            "qk_norm": True,
            "query_scalar": 256,
            "activation": "gelu_tanh",
            "rope": {"theta": 1_000_000.0, "local_theta": 10_000.0},
            "window": [None if layer % 6 == 5 else 512 for layer in range(26)],
            "tied": True,
            "embed_scale": 1152**0.5,
        },
    },
    "gpt_oss_20b": {"parameters": 20_914_757_184, "model": _gpt_oss(24, 32)},
    "gpt_oss_120b": {"parameters": 116_829_156_672, "model": _gpt_oss(36, 128)},
    "qwen3_next_80b_a3b": {
        "parameters": 79_674_391_296,
        "model": {
            "family": "qwen3_next",
            "vocab_size": 151_936,
            "d_model": 2048,
            "n_layers": 48,
            "n_heads": 16,
            "n_kv_heads": 2,
            "head_dim": 256,
            "d_ff": 5120,
            "max_length": 262_144,
            "mixer": ["gated_delta", "gated_delta", "gated_delta", "gqa"] * 12,
            "delta": {"key_heads": 16, "value_heads": 32, "key_dim": 128, "value_dim": 128},
            **dict.fromkeys(("norm_plus_one", "qk_norm", "out_gate"), True),
            "rope": {"theta": 10_000_000.0, "partial": 0.25},
            "tied": False,
            "ffn": "moe",
            # router_aux_loss_coef 0.001, likewise.
            "moe": {
                "n_experts": 512,
                "top_k": 10,
                "d_expert": 512,
                "n_shared": 1,
                "d_shared": 512,
                "shared_gate": True,
                "balance": "batch",
                "aux_weight": 0.000208333333333,
            },
        },
    },
}
