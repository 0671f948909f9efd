"""What each `model_type` of the Hub means by the keys of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# What a key means when the file does not name it: the defaults of transformers, which differ from family to
# family.
LLAMA_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": None,
    "head_dim": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10_000.0,
}
QWEN2_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
QWEN_MOE_DEFAULTS: dict[str, Any] = QWEN2_DEFAULTS | {
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
}
DEEPSEEK_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_layer_freq": 1,
    "aux_loss_alpha": None,
    "seq_aux": True,
}
QWEN3_NEXT_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "layer_types": None,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.001,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
}
GEMMA3_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "layer_types": None,
}
GPT_OSS_DEFAULTS: dict[str, Any] = LLAMA_DEFAULTS | {
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "attention_bias": True,
    "rope_theta": 150_000.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "sliding_window": 128,
    "layer_types": None,
    "num_experts": 128,
    "num_experts_per_tok": 4,
    "router_aux_loss_coef": 0.9,
    "swiglu_limit": 7.0,
}
# Of families whose layers all have experts, as wide as intermediate_size says.
ALL_EXPERTS: dict[str, Any] = {
    "norm_topk_prob": True,
    "moe_intermediate_size": 0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": (),
}
GPT2_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
HUGINN_DEFAULTS: dict[str, Any] = {
    "block_size": 4096,
    "norm_eps": 1e-6,
    "rope_base": 50_000,
    "qk_bias": True,
    "tie_word_embeddings": True,
    "mean_backprop_depth": 8,
    "sampling_scheme": "poisson-lognormal-filling",
    "state_init": "like-init",
    "init_values": None,
}
OURO_DEFAULTS: dict[str, Any] = QWEN2_DEFAULTS | {
    "num_key_value_heads": None,
    "total_ut_steps": None,
    "early_exit_threshold": 1.0,
    "early_exit_step": None,
}
LLAMA_FIXED: dict[str, Any] = {"partial_rotary_factor": 1.0, "is_causal": True}
DEEPSEEK_FIXED: dict[str, Any] = LLAMA_FIXED | {"attention_bias": False, "mlp_bias": False}
NUMBER_OF_EXPERTS = {"num_local_experts": "num_experts"}
NUMBER_OF_ROUTED = {"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"}


class Family(NamedTuple):
    """How one `model_type` is read: its class, defaults, the settings that must have one value (or be absent), those
    that always do, other spellings of a key (theirs -> the one read and written here), further keys that null does
    not set back to their default, and a word: a key that holds it changes what is computed, and must be known.
    """

    architecture: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = LLAMA_FIXED
    constants: Mapping[str, Any] = {}
    aliases: Mapping[str, str] = {}
    nullable: tuple[str, ...] = ()
    closed: str = ""


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", LLAMA_DEFAULTS),
    "mistral": Family(
        "MistralForCausalLM",
        LLAMA_DEFAULTS
        | {
            "max_position_embeddings": 4096 * 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "layer_types": None,
        },
        constants={"attention_bias": False, "mlp_bias": False},
    ),
    "qwen2": Family("Qwen2ForCausalLM", QWEN2_DEFAULTS, constants={"qkv_bias": True, "mlp_bias": False}),
    "qwen3": Family("Qwen3ForCausalLM", QWEN2_DEFAULTS | {"head_dim": 128}, constants={"mlp_bias": False}),
    "mixtral": Family(
        "MixtralForCausalLM",
        LLAMA_DEFAULTS
        | {
            "max_position_embeddings": 4096 * 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "sliding_window": None,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.001,
        },
        fixed=LLAMA_FIXED | {"router_jitter_noise": 0.0},
        constants=ALL_EXPERTS | {"attention_bias": False, "mlp_bias": False},
        aliases=NUMBER_OF_EXPERTS,
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        QWEN_MOE_DEFAULTS
        | {
            "num_key_value_heads": 16,
            "qkv_bias": True,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        constants={"mlp_bias": False},
        aliases=NUMBER_OF_EXPERTS,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        QWEN_MOE_DEFAULTS
        | {
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        constants={"mlp_bias": False},
        aliases=NUMBER_OF_EXPERTS,
    ),
    # With norm_topk_prob the code released with V2 and transformers compute different things.
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM",
        DEEPSEEK_DEFAULTS
        | {
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": None,
            "moe_intermediate_size": 1407,
            "n_group": None,
            "topk_group": None,
            "topk_method": "greedy",
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 0,
        },
        fixed=DEEPSEEK_FIXED | {"scoring_func": "softmax", "norm_topk_prob": False},
        constants={"rope_interleave": True, "norm_topk_prob": False},
        aliases=NUMBER_OF_ROUTED,
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        DEEPSEEK_DEFAULTS
        | {
            "max_position_embeddings": 4096,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 3,
            "rope_interleave": True,
            "num_nextn_predict_layers": 1,
        },
        fixed=DEEPSEEK_FIXED | {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        aliases=NUMBER_OF_ROUTED | {"num_mtp_layers": "num_nextn_predict_layers"},
        nullable=("num_experts_per_tok",),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        GEMMA3_DEFAULTS,
        fixed=LLAMA_FIXED
        | {
            "use_bidirectional_attention": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        constants={"mlp_bias": False},
        aliases={"hidden_activation": "hidden_act", "_sliding_window_pattern": "sliding_window_pattern"},
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        GPT_OSS_DEFAULTS,
        fixed=LLAMA_FIXED | {"hidden_act": "silu", "swiglu_alpha": 1.702},
        constants=ALL_EXPERTS | {"mlp_bias": True},
        aliases=NUMBER_OF_EXPERTS | {"experts_per_token": "num_experts_per_tok"},
    ),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        QWEN3_NEXT_DEFAULTS,
        fixed={"is_causal": True},
        constants={"mlp_bias": False},
        aliases=NUMBER_OF_EXPERTS,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        GPT2_DEFAULTS,
        fixed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "is_causal": True,
        },
    ),
}
FAMILIES["huginn_raven"] = Family(
    "RavenForCausalLM",
    HUGINN_DEFAULTS,
    fixed={"injection_type": "linear", "block_class_name": "SandwichBlock", "bias": False},
    aliases={
        "n_heads": "num_attention_heads",
        "hidden_size": "n_embd",
        "tie_embeddings": "tie_word_embeddings",
        "max_position_embeddings": "block_size",
    },
)
FAMILIES["ouro"] = Family(
    "OuroForCausalLM",
    OURO_DEFAULTS,
    fixed=LLAMA_FIXED | {"use_sliding_window": False, "use_weighted_exit": False},
    constants={"attention_bias": False, "mlp_bias": False},
    closed="exit",
)
MODEL_TYPES = (*FAMILIES, "sagax")
# Near enough to a family we have to be taken for it.
UNSUPPORTED = {
    "gemma3": "it sees images; the text model in it is a gemma3_text, with a config.json of its own",
    "deepseek_v32": "its layers choose their keys with an indexer (DeepSeek sparse attention)",
    "hrm_text": "its two stacks call each other in turn (hierarchical reasoning)",
}
