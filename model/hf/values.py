"""What each key of a config.json may hold, and which keys say nothing of what the network computes."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

LARGEST = 2**31 - 1  # what an axis, a token id or a position can be
MOST_LAYERS, MOST_EXPERTS = 10_000, 65_536  # far above what was ever published: lists of either must fit in memory


class Kind(NamedTuple):
    """What a key may hold: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def integer(least: int, most: int = LARGEST) -> Kind:
    """Integers within bounds; neither true nor 2.0 is one."""
    return Kind(f"an integer from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _list_of(kind: Kind, words: str) -> Kind:
    return Kind(words, lambda value: isinstance(value, (list, tuple)) and all(map(kind.holds, value)))


def _either(*kinds: Kind) -> Kind:
    return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.holds(value) for kind in kinds))


NUMBER = Kind("a finite number", _number)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
SHARE = Kind("a number above 0 and at most 1", lambda value: _number(value) and 0 < value <= 1)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))
NUMBERS = _list_of(NUMBER, "a list of finite numbers")
SIZE, COUNT, LAYERS = integer(1), integer(0), integer(1, MOST_LAYERS)
TOKEN = integer(0)
TOKENS = _either(TOKEN, _list_of(TOKEN, "a list of such"))

KINDS: dict[str, Kind] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "n_layers_in_recurrent_block"), LAYERS),
    **dict.fromkeys(("n_layers_in_prelude", "n_layers_in_coda", "max_window_layers"), COUNT),
    **dict.fromkeys(("first_k_dense_replace", "num_nextn_predict_layers", "num_mtp_layers"), integer(0, MOST_LAYERS)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), integer(1, MOST_EXPERTS)),
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "n_embd", "n_inner", "head_dim"), SIZE),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads"), SIZE),
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings", "n_positions", "block_size"), SIZE),
    "sliding_window_pattern": SIZE,
    "_sliding_window_pattern": SIZE,
    **dict.fromkeys(("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), SIZE),
    "experts_per_token": SIZE,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim"), SIZE),
    **dict.fromkeys(("linear_value_head_dim", "linear_conv_kernel_dim", "full_attention_interval"), SIZE),
    **dict.fromkeys(("num_experts_per_tok", "decoder_sparse_step", "moe_layer_freq", "n_group", "topk_group"), SIZE),
    **dict.fromkeys(("q_lora_rank", "n_shared_experts", "sliding_window"), COUNT),
    **dict.fromkeys(("mean_recurrence", "mean_backprop_depth", "early_exit_step"), COUNT),
    "total_ut_steps": integer(1, MOST_LAYERS),
    "early_exit_threshold": Kind("a number in (0, 1]", lambda value: _number(value) and 0 < value <= 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), COUNT),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta", "rope_base"), POSITIVE),
    **dict.fromkeys(("rope_local_base_freq", "query_pre_attn_scalar", "swiglu_limit"), POSITIVE),
    **dict.fromkeys(("initializer_range", "router_aux_loss_coef", "aux_loss_alpha", "routed_scaling_factor"), NUMBER),
    **dict.fromkeys(("tie_word_embeddings", "tie_embeddings", "attention_bias", "mlp_bias", "qkv_bias"), SWITCH),
    **dict.fromkeys(
        (
            "qk_bias",
            "use_sliding_window",
            "use_bidirectional_attention",
            "norm_topk_prob",
            "rope_interleave",
            "seq_aux",
        ),
        SWITCH,
    ),
    **dict.fromkeys(
        ("hidden_act", "hidden_activation", "activation_function", "topk_method", "sampling_scheme", "state_init"), TEXT
    ),
    **dict.fromkeys(("dtype", "torch_dtype"), TEXT),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "quantization_config", "init_values"), OBJECT),
    "layer_types": _list_of(TEXT, "a list of texts"),
    "mlp_only_layers": _list_of(COUNT, "a list of layers, counted from 0"),
    "eos_token_id": TOKENS,
}
# Where null has a meaning of its own, which the default of an absent key need not share.
NULLABLE = (
    *("num_key_value_heads", "head_dim", "n_inner", "sliding_window", "q_lora_rank", "n_shared_experts", "n_group"),
    *("topk_group", "num_nextn_predict_layers"),
)
# Keys that any config.json may have and that change nothing of what a forward pass computes.
SILENT = frozenset(
    [
        *("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path", "name_or_path"),
        *("_commit_hash", "tokenizer_class", "torch_dtype", "dtype", "use_cache", "return_dict", "output_attentions"),
        *("output_hidden_states", "output_router_logits", "torchscript", "use_bfloat16", "gradient_checkpointing"),
        *("chunk_size_feed_forward", "is_decoder", "is_encoder_decoder", "tie_encoder_decoder", "pruned_heads"),
        *("problem_type", "id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params"),
        *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "attn_impl", "use_flash_attn"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id"),
        *("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
        *("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
        *("return_dict_in_generate", "remove_invalid_values", "exponential_decay_length_penalty", "prefix"),
        *("pretraining_tp", "ep_size", "n_ctx", "qk_head_dim", "reorder_and_upcast_attn", "summary_type"),
        *("summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "rope_scaling"),
        *("rope_parameters", "rope_theta", "original_max_position_embeddings", "quantization_config"),
        *("partial_rotary_factor", "max_window_layers", "n_layers", "num_key_value_heads", "layer_types"),
        *("cache_implementation", "initial_context_length"),
        "initializer_range",
    ]
)


def without_nulls(config: Mapping[str, Any], more: Iterable[str] = ()) -> dict[str, Any]:
    """The keys that say something: null counts as absent but in NULLABLE and `more`."""
    kept = {*NULLABLE, *more}
    return {key: value for key, value in config.items() if value is not None or key in kept}


def check_values(family: str, config: Mapping[str, Any], kinds: Mapping[str, Kind] = KINDS) -> None:
    """Raises ValueError for a key that holds what it cannot mean."""
    for key, value in config.items():
        if key in kinds and value is not None and not kinds[key].holds(value):
            raise ValueError(f"{family}: {key}={reprlib.repr(value)}, expected {kinds[key].words}")


def without_effect(config: Mapping[str, Any], known: Iterable[str], same: Mapping[str, Any]) -> list[str]:
    """The keys, each with its value, that are switched on and nothing reads; `same`: values that change nothing."""
    read = {*known, *SILENT}
    return [
        f"{key}={reprlib.repr(value)}"
        for key, value in config.items()
        if key not in read and value not in (None, False, "", [], {}) and same.get(key, config) != value
    ]


def listed(names: Iterable[str], most: int = 12) -> str:
    """The names with commas between them, of very many only the first."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
