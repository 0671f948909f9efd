"""Keys of config.json for mixtures of experts, latent attention and multi-token prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.hf.checks import need
from settings.model import Architecture
from settings.setting import unknown

EXPERT_FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")
SHARED_EXPERT = ("qwen2_moe", "qwen3_next")  # one, behind a gate
ALL_EXPERTS = ("mixtral", "gpt_oss")  # every layer has experts, as wide as intermediate_size
TOPK_METHODS = ("greedy", "group_limited_greedy")  # of DeepSeek-V2: with no groups, or the best of them


def expert_fields(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Architecture that the families with experts add to those of any decoder, or replace."""
    if family.startswith("deepseek"):
        return _deepseek_fields(family, values)
    layers = range(values["num_hidden_layers"])
    step, dense = values["decoder_sparse_step"], values["mlp_only_layers"] or ()
    sparse = [i not in dense and (i + 1) % step == 0 for i in layers]
    slots, placement = _placement(sparse)
    moe = {
        "n_experts": values["num_experts"],
        "top_k": values["num_experts_per_tok"],
        "d_expert": values["moe_intermediate_size"],
        "normalize": values["norm_topk_prob"],
        **_read_coefficient(values["router_aux_loss_coef"], values["num_experts_per_tok"], sum(sparse)),
        **placement,
    }
    if family in SHARED_EXPERT:
        moe |= {"n_shared": 1, "d_shared": values["shared_expert_intermediate_size"], "shared_gate": True}
    return {**slots, "moe": moe}


def expert_values(config: Architecture) -> dict[str, Any]:
    """The keys of config.json for what `expert_fields` reads."""
    if config.family.startswith("deepseek"):
        return _deepseek_values(config)
    moe, places = config.moe, config.per_layer("ffn")
    values = {
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": _write_coefficient(config),
        "output_router_logits": False,
    }
    if config.family in ALL_EXPERTS:
        return {"intermediate_size": moe.expert_width(config.d_ff), "num_local_experts": moe.n_experts, **values}
    step = moe.every if config.ffn == "moe" else 1
    if config.family in SHARED_EXPERT:
        values["shared_expert_intermediate_size"] = moe.shared_width(config.d_ff)
    return values | {
        "num_experts": moe.n_experts,
        "moe_intermediate_size": moe.expert_width(config.d_ff),
        "norm_topk_prob": moe.normalize,
        "decoder_sparse_step": step,
        "mlp_only_layers": [i for i, name in enumerate(places) if name != "moe" and (i + 1) % step == 0],
    }


def _deepseek_fields(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    need(family, values, "num_experts_per_tok")
    heads = values["num_attention_heads"]
    if (values["num_key_value_heads"] or heads) != heads:
        given = values["num_key_value_heads"]
        raise ValueError(f"{family}: num_key_value_heads={given}, but latent attention has one per head ({heads})")
    dense, step = values["first_k_dense_replace"], values["moe_layer_freq"]
    slots, placement = _placement([i >= dense and i % step == 0 for i in range(values["num_hidden_layers"])])
    moe = {
        "n_experts": values["n_routed_experts"],
        "top_k": values["num_experts_per_tok"],
        "d_expert": values["moe_intermediate_size"],
        "n_shared": values["n_shared_experts"] or 0,
        "scale": values["routed_scaling_factor"],
        "normalize": bool(values["norm_topk_prob"]),
        **(_v2_router(values) if family == "deepseek_v2" else _v3_router(values)),
        **placement,
    }
    return {
        **slots,
        "mixer": "mla",
        "n_kv_heads": heads,
        "head_dim": values["qk_rope_head_dim"],
        "mla": {
            "q_rank": values["q_lora_rank"] or 0,
            "kv_rank": values["kv_lora_rank"],
            "nope_dim": values["qk_nope_head_dim"],
            "rope_dim": values["qk_rope_head_dim"],
            "v_dim": values["v_head_dim"],
        },
        "moe": moe,
        "mtp": {"depth": values.get("num_nextn_predict_layers") or 0},
    }


def _v2_router(values: Mapping[str, Any]) -> dict[str, Any]:
    method, weight = values["topk_method"], values["aux_loss_alpha"] or 0.0
    if method not in TOPK_METHODS:
        raise ValueError(unknown("topk_method", method, TOPK_METHODS))
    grouped = method == "group_limited_greedy"
    if grouped:
        need("deepseek_v2, topk_method 'group_limited_greedy'", values, "n_group", "topk_group")
    return {
        "score": "softmax",
        "group_score": "max",
        "n_groups": values["n_group"] if grouped else 1,
        "top_groups": values["topk_group"] if grouped else 1,
        **({"balance": "sequence" if values["seq_aux"] else "batch", "aux_weight": weight} if weight else {}),
    }


def _v3_router(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "score": "sigmoid",
        "n_groups": values["n_group"] or 1,
        "top_groups": values["topk_group"] or 1,
        "balance": "bias",
        "aux_weight": values["aux_loss_alpha"],
    }


def _deepseek_values(config: Architecture) -> dict[str, Any]:
    moe, mla = config.moe, config.mla
    values: dict[str, Any] = {
        "head_dim": mla.rope_dim,
        "num_key_value_heads": config.n_heads,
        "q_lora_rank": mla.q_rank or None,
        "kv_lora_rank": mla.kv_rank,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "n_routed_experts": moe.n_experts,
        "n_shared_experts": moe.n_shared,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_width(config.d_ff),
        "routed_scaling_factor": moe.scale,
        "n_group": moe.n_groups,
        "topk_group": moe.top_groups,
        **_write_placement(config.per_layer("ffn")),
    }
    if config.family == "deepseek_v2":
        method = "greedy" if moe.n_groups == 1 else "group_limited_greedy"
        values |= {"topk_method": method, "scoring_func": "softmax", "norm_topk_prob": False}
        return values | {"aux_loss_alpha": moe.loss_weight, "seq_aux": moe.balance != "batch"}
    return values | {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": moe.normalize,
        "aux_loss_alpha": moe.aux_weight,
        "rope_interleave": config.rope.interleaved,
        "num_nextn_predict_layers": config.mtp.depth,
    }


def _placement(sparse: Sequence[bool]) -> tuple[dict[str, Any], dict[str, int]]:
    """The feed-forward slot, and the settings of `moe` that place the sparse layers in it where two numbers can."""
    numbers = _two_numbers(sparse, 1)
    if numbers is None:
        return {"ffn": tuple("moe" if is_sparse else "glu" for is_sparse in sparse)}, {}
    return {"ffn": "moe"}, dict(zip(("first_dense", "every"), numbers, strict=True))


def _write_placement(places: Sequence[str]) -> dict[str, int]:
    """DeepSeek's two numbers, which count from layer 0; where they cannot say it, reading them back shows."""
    numbers = _two_numbers([name == "moe" for name in places], 0) or (0, 1)
    return dict(zip(("first_k_dense_replace", "moe_layer_freq"), numbers, strict=True))


def _two_numbers(sparse: Sequence[bool], count_from: int) -> tuple[int, int] | None:
    """(first, every) such that layer i is sparse if i >= first and `every` divides i + count_from; None if none are."""
    layers, dense = range(len(sparse)), next((i for i, is_sparse in enumerate(sparse) if is_sparse), len(sparse))
    for every in range(1, len(sparse) + 1):
        for first in (0, dense):
            if list(sparse) == [i >= first and (i + count_from) % every == 0 for i in layers]:
                return first, every
    return None


# transformers adds coefficient x E x sum(share of tokens x mean probability) once, both means being over all sparse
# layers together and the shares adding up to top_k. Ours is 1 at perfect balance, and the layers' losses add up. The
# factor between the two is rounded off, so that a coefficient survives the way there and back.
def _read_coefficient(coefficient: float, top_k: int, layers: int) -> dict[str, Any]:
    weight = _rounded(coefficient * top_k / max(layers, 1))
    return {"balance": "batch", "aux_weight": weight} if weight else {}


def _write_coefficient(config: Architecture) -> float:
    layers = config.per_layer("ffn").count("moe")
    return _rounded(config.moe.loss_weight * max(layers, 1) / config.moe.top_k)


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")
