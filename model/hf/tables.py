"""Where every tensor of a Hub file lives in our tree: one table per family, read by import and export alike.

Patterns are those of model/hf/layout.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from model.config import ModelConfig
from model.hf.layout import file_shape, right_axes

RULE_STATE = "state/"  # what is learnt by rule is float32, whatever the parameters are stored as


class Rule(NamedTuple):
    """One tensor of the file, or one per expert where the name holds `{e}`: the first axis of the parameter, which the
    pattern leaves out. Several `paths` share a tensor along the first axis of the pattern's right side.
    """

    name: str
    paths: tuple[str, ...]
    pattern: str

    @property
    def stacked(self) -> bool:
        """Whether the file has a tensor of its own for every expert."""
        return "{e}" in self.name

    def names(self, leaves: Mapping[str, Any]) -> list[str]:
        """The names in the file, in the order of the experts."""
        count = leaves[self.paths[0]].shape[0] if self.stacked else 1
        return [self.name.replace("{e}", str(e)) for e in range(count)]

    def shape(self, leaves: Mapping[str, Any]) -> tuple[int, ...]:
        """The right side's full shape, of one expert where there are several."""
        shape = leaves[self.paths[0]].shape
        if self.stacked:
            return shape[1:]
        return shape if len(self.paths) == 1 else (len(self.paths), *shape)

    def file_shape(self, leaves: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of each tensor in the file."""
        return file_shape(self.pattern, self.shape(leaves))

    def fits(self, leaves: Mapping[str, Any]) -> bool:
        """Whether the model has these parameters, with as many axes: an expert's and a dense one's share a path."""
        axes = len(right_axes(self.pattern)) + self.stacked - (len(self.paths) > 1)
        return all(path in leaves and len(leaves[path].shape) == axes for path in self.paths)


class Table(NamedTuple):
    """A family's rules, the prefix that older files leave out, and names that hold no weights (regular expressions).

    `copies` repeat a parameter that another rule holds: written, and compared where a file has them. `unread` (regular
    expressions) are weights that stay in the files, which a warning says.
    """

    rules: tuple[Rule, ...]
    prefix: str
    ignored: tuple[str, ...]
    copies: tuple[Rule, ...] = ()
    unread: tuple[str, ...] = ()


def _layer(name: str, path: str, pattern: str) -> Rule:
    return Rule(f"model.layers.{{i}}.{name}", (f"layer_{{i}}/{path}",), pattern)


def _gated(name: str, path: str, *projections: str) -> tuple[Rule, ...]:
    """The three matrices of a gated feed-forward, whose projections have these names."""
    gate, up, down = projections or ("gate_proj", "up_proj", "down_proj")
    return (
        _layer(f"{name}.{gate}.weight", f"{path}/gate", "f d -> d f"),
        _layer(f"{name}.{up}.weight", f"{path}/up", "f d -> d f"),
        _layer(f"{name}.{down}.weight", f"{path}/down", "d f -> f d"),
    )


DECODER = Table(
    rules=(
        Rule("model.embed_tokens.weight", ("embed",), "v d -> v d"),
        _layer("input_layernorm.weight", "mixer_norm/scale", "d -> d"),
        _layer("self_attn.q_proj.weight", "mixer/q", "(h k) d -> d h k"),
        _layer("self_attn.k_proj.weight", "mixer/k", "(h k) d -> d h k"),
        _layer("self_attn.v_proj.weight", "mixer/v", "(h k) d -> d h k"),
        _layer("self_attn.q_proj.bias", "mixer/q_bias", "(h k) -> h k"),
        _layer("self_attn.k_proj.bias", "mixer/k_bias", "(h k) -> h k"),
        _layer("self_attn.v_proj.bias", "mixer/v_bias", "(h k) -> h k"),
        _layer("self_attn.q_norm.weight", "mixer/q_norm/scale", "k -> k"),
        _layer("self_attn.k_norm.weight", "mixer/k_norm/scale", "k -> k"),
        _layer("self_attn.o_proj.weight", "mixer/o", "d (h k) -> h k d"),
        _layer("self_attn.o_proj.bias", "mixer/o_bias", "d -> d"),
        _layer("post_attention_layernorm.weight", "ffn_norm/scale", "d -> d"),
        *_gated("mlp", "ffn"),
        _layer("mlp.gate_proj.bias", "ffn/gate_bias", "f -> f"),
        _layer("mlp.up_proj.bias", "ffn/up_bias", "f -> f"),
        _layer("mlp.down_proj.bias", "ffn/down_bias", "d -> d"),
        Rule("model.norm.weight", ("final_norm/scale",), "d -> d"),
        Rule("lm_head.weight", ("head",), "v d -> v d"),
        Rule("score.weight", ("score",), "n d -> n d"),
        Rule("score.bias", ("score_bias",), "n -> n"),
    ),
    prefix="model.",
    ignored=(r".*rotary_emb\.inv_freq",),
)
MIXTRAL = DECODER._replace(
    rules=(
        *DECODER.rules,
        _layer("block_sparse_moe.gate.weight", "ffn/router", "e d -> d e"),
        *_gated("block_sparse_moe.experts.{e}", "ffn", "w1", "w3", "w2"),
    )
)
QWEN_MOE = DECODER._replace(
    rules=(
        *DECODER.rules,
        _layer("mlp.gate.weight", "ffn/router", "e d -> d e"),
        *_gated("mlp.experts.{e}", "ffn"),
        *_gated("mlp.shared_expert", "ffn/shared"),
        _layer("mlp.shared_expert_gate.weight", "ffn/shared_gate", "() d -> d"),
    )
)
# Multi-token prediction modules follow the last layer and repeat the shared embedding and head.
DEEPSEEK = DECODER._replace(
    rules=(
        *(rule for rule in DECODER.rules if ".self_attn.q_norm" not in rule.name),
        _layer("self_attn.q_a_proj.weight", "mixer/q_down", "r d -> d r"),
        _layer("self_attn.q_a_layernorm.weight", "mixer/q_norm/scale", "r -> r"),
        _layer("self_attn.q_b_proj.weight", "mixer/q_up", "(h k) r -> r h k"),
        _layer("self_attn.kv_a_proj_with_mqa.weight", "mixer/kv_down", "r d -> d r"),
        _layer("self_attn.kv_a_layernorm.weight", "mixer/kv_norm/scale", "r -> r"),
        _layer("self_attn.kv_b_proj.weight", "mixer/kv_up", "(h k) r -> r h k"),
        _layer("mlp.gate.weight", "ffn/router", "e d -> d e"),
        Rule("model.layers.{i}.mlp.gate.e_score_correction_bias", ("state/layer_{i}/ffn/bias",), "e -> e"),
        *_gated("mlp.experts.{e}", "ffn"),
        *_gated("mlp.shared_experts", "ffn/shared"),
        Rule("model.layers.{i}.enorm.weight", ("mtp_{k}/embed_norm/scale",), "d -> d"),
        Rule("model.layers.{i}.hnorm.weight", ("mtp_{k}/hidden_norm/scale",), "d -> d"),
        Rule("model.layers.{i}.eh_proj.weight", ("mtp_{k}/proj",), "d m -> m d"),
        Rule("model.layers.{i}.shared_head.norm.weight", ("mtp_{k}/norm/scale",), "d -> d"),
    ),
    copies=(
        Rule("model.layers.{i}.embed_tokens.weight", ("embed",), "v d -> v d"),
        Rule("model.layers.{i}.shared_head.head.weight", ("head",), "v d -> v d"),
    ),
)
# A query and its gate head by head; modules of multi-token prediction, of which config.json says nothing.
QWEN3_NEXT = QWEN_MOE._replace(
    rules=(
        *(rule for rule in QWEN_MOE.rules if ".self_attn.q_proj" not in rule.name),
        Rule(
            "model.layers.{i}.self_attn.q_proj.weight",
            ("layer_{i}/mixer/q", "layer_{i}/mixer/gate"),
            "(h n k) d -> n d h k",
        ),
        Rule(
            "model.layers.{i}.self_attn.q_proj.bias",
            ("layer_{i}/mixer/q_bias", "layer_{i}/mixer/gate_bias"),
            "(h n k) -> n h k",
        ),
        _layer("linear_attn.in_proj_qkvz.weight", "mixer/qkvz", "(h k) d -> d h k"),
        _layer("linear_attn.in_proj_ba.weight", "mixer/ba", "(h k) d -> d h k"),
        _layer("linear_attn.conv1d.weight", "mixer/conv", "c () w -> w c"),
        _layer("linear_attn.dt_bias", "mixer/dt_bias", "h -> h"),
        _layer("linear_attn.A_log", "mixer/a_log", "h -> h"),
        _layer("linear_attn.norm.weight", "mixer/norm/scale", "v -> v"),
        _layer("linear_attn.out_proj.weight", "mixer/out", "d (h k) -> h k d"),
    ),
    unread=(r"mtp\..*",),
)
# All experts in one tensor, columns of gate and up in turn.
_GATE_UP = ("layer_{i}/ffn/gate", "layer_{i}/ffn/up")
GPT_OSS = DECODER._replace(
    rules=(
        *DECODER.rules,
        _layer("self_attn.sinks", "mixer/sinks", "h -> h"),
        _layer("mlp.router.weight", "ffn/router", "e d -> d e"),
        _layer("mlp.router.bias", "ffn/router_bias", "e -> e"),
        Rule("model.layers.{i}.mlp.experts.gate_up_proj", _GATE_UP, "e d (f n) -> n e d f"),
        Rule(
            "model.layers.{i}.mlp.experts.gate_up_proj_bias",
            tuple(f"{path}_bias" for path in _GATE_UP),
            "e (f n) -> n e f",
        ),
        _layer("mlp.experts.down_proj", "ffn/down", "e f d -> e f d"),
        _layer("mlp.experts.down_proj_bias", "ffn/down_bias", "e d -> e d"),
    )
)
# The norm that other decoders call post_attention_layernorm stands before the feed-forward.
GEMMA3 = DECODER._replace(
    rules=(
        *(rule for rule in DECODER.rules if ".post_attention_layernorm" not in rule.name),
        _layer("post_attention_layernorm.weight", "mixer_post_norm/scale", "d -> d"),
        _layer("pre_feedforward_layernorm.weight", "ffn_norm/scale", "d -> d"),
        _layer("post_feedforward_layernorm.weight", "ffn_post_norm/scale", "d -> d"),
    )
)
# Conv1D stores [in, out], and one matrix holds q, k and v side by side.
GPT2 = Table(
    rules=(
        Rule("transformer.wte.weight", ("embed",), "v d -> v d"),
        Rule("transformer.wpe.weight", ("position_embed",), "p d -> p d"),
        Rule("transformer.h.{i}.ln_1.weight", ("layer_{i}/mixer_norm/scale",), "d -> d"),
        Rule("transformer.h.{i}.ln_1.bias", ("layer_{i}/mixer_norm/bias",), "d -> d"),
        Rule(
            "transformer.h.{i}.attn.c_attn.weight",
            ("layer_{i}/mixer/q", "layer_{i}/mixer/k", "layer_{i}/mixer/v"),
            "d (n h k) -> n d h k",
        ),
        Rule(
            "transformer.h.{i}.attn.c_attn.bias",
            ("layer_{i}/mixer/q_bias", "layer_{i}/mixer/k_bias", "layer_{i}/mixer/v_bias"),
            "(n h k) -> n h k",
        ),
        Rule("transformer.h.{i}.attn.c_proj.weight", ("layer_{i}/mixer/o",), "(h k) d -> h k d"),
        Rule("transformer.h.{i}.attn.c_proj.bias", ("layer_{i}/mixer/o_bias",), "d -> d"),
        Rule("transformer.h.{i}.ln_2.weight", ("layer_{i}/ffn_norm/scale",), "d -> d"),
        Rule("transformer.h.{i}.ln_2.bias", ("layer_{i}/ffn_norm/bias",), "d -> d"),
        Rule("transformer.h.{i}.mlp.c_fc.weight", ("layer_{i}/ffn/up",), "d f -> d f"),
        Rule("transformer.h.{i}.mlp.c_fc.bias", ("layer_{i}/ffn/up_bias",), "f -> f"),
        Rule("transformer.h.{i}.mlp.c_proj.weight", ("layer_{i}/ffn/down",), "f d -> f d"),
        Rule("transformer.h.{i}.mlp.c_proj.bias", ("layer_{i}/ffn/down_bias",), "d -> d"),
        Rule("transformer.ln_f.weight", ("final_norm/scale",), "d -> d"),
        Rule("transformer.ln_f.bias", ("final_norm/bias",), "d -> d"),
        Rule("lm_head.weight", ("head",), "v d -> v d"),
    ),
    prefix="transformer.",
    # The causal mask, which the first releases stored as if it were a weight.
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
)
# The names count the layers of prelude, core and coda apart; fused matrices hold q, k, v and gate, up in turn.
_RAVEN = "transformer.{stage}"
HUGINN = Table(
    rules=(
        Rule("transformer.wte.weight", ("embed",), "v d -> v d"),
        Rule("transformer.adapter.weight", ("injection/kernel",), "d m -> m d"),
        Rule(f"{_RAVEN}.norm_1.weight", ("layer_{i}/mixer_norm/scale",), "d -> d"),
        Rule(f"{_RAVEN}.norm_2.weight", ("layer_{i}/mixer_post_norm/scale",), "d -> d"),
        Rule(f"{_RAVEN}.norm_3.weight", ("layer_{i}/ffn_norm/scale",), "d -> d"),
        Rule(f"{_RAVEN}.norm_4.weight", ("layer_{i}/ffn_post_norm/scale",), "d -> d"),
        Rule(
            f"{_RAVEN}.attn.Wqkv.weight",
            ("layer_{i}/mixer/q", "layer_{i}/mixer/k", "layer_{i}/mixer/v"),
            "(n h k) d -> n d h k",
        ),
        Rule(f"{_RAVEN}.attn.qk_bias", ("layer_{i}/mixer/q_bias", "layer_{i}/mixer/k_bias"), "n () h k -> n h k"),
        Rule(f"{_RAVEN}.attn.proj.weight", ("layer_{i}/mixer/o",), "d (h k) -> h k d"),
        Rule(f"{_RAVEN}.mlp.fc.weight", ("layer_{i}/ffn/gate", "layer_{i}/ffn/up"), "(n f) d -> n d f"),
        Rule(f"{_RAVEN}.mlp.proj.weight", ("layer_{i}/ffn/down",), "d f -> f d"),
        Rule("transformer.ln_f.weight", ("final_norm/scale",), "d -> d"),
        Rule("lm_head.weight", ("head",), "v d -> v d"),
    ),
    prefix="transformer.",
    ignored=(r"(transformer\.)?freqs_cis",),
)
# Four norms a layer, of which two stand behind its halves, and a gate beside the norm that ends every iteration.
_NORMS = {
    "input_layernorm": "mixer_norm",
    "input_layernorm_2": "mixer_post_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_attention_layernorm_2": "ffn_post_norm",
}
OURO = DECODER._replace(
    rules=(
        *(rule for rule in DECODER.rules if "_layernorm." not in rule.name),
        *(_layer(f"{name}.weight", f"{path}/scale", "d -> d") for name, path in _NORMS.items()),
        Rule("model.early_exit_gate.weight", ("exit_gate/kernel",), "() d -> d"),
        Rule("model.early_exit_gate.bias", ("exit_gate/bias",), "n -> n"),
    )
)
TABLES: dict[str, Table] = {
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN_MOE,
    "qwen3_moe": QWEN_MOE,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "gemma3_text": GEMMA3,
    "gpt_oss": GPT_OSS,
    "qwen3_next": QWEN3_NEXT,
    "gpt2": GPT2,
    "huginn_raven": HUGINN,
    "ouro": OURO,
}


def table_for(config: ModelConfig, leaves: Mapping[str, Any]) -> Table:
    """The family's table written out for a model with these parameters (path -> shape struct).

    Rules for parameters that the model lacks are left out; ValueError names the parameters that no rule
    covers.
    """
    family, layers = config.family, config.n_layers
    if family == "sagax":
        return Table(tuple(_own_rule(path, len(leaf.shape)) for path, leaf in leaves.items()), "", ())
    table = TABLES[family]
    modules = len({path.partition("/")[0] for path in leaves if path.startswith("mtp_")})
    copies = [_numbered(rule, layers + k, layers) for rule in table.copies for k in range(modules)]
    if "head" not in leaves:
        copies = [copy._replace(paths=("embed",)) for copy in copies]
    rules = [copy for rule in table.rules for copy in _written_out(rule, layers, modules, stages(config))]
    rules = [rule for rule in rules if rule.fits(leaves)]
    homeless = sorted(set(leaves) - {path for rule in rules for path in rule.paths})
    if homeless:
        raise ValueError(f"family {family!r} has no tensor for {', '.join(homeless)}; family='sagax' has")
    return table._replace(rules=tuple(rules), copies=tuple(copies))


def stages(config: ModelConfig) -> list[str]:
    """Where each layer of a recurrent model stands in Huginn's files: "prelude.0", "core_block.2"; none of a stack."""
    if config.depth != "recurrent":
        return []
    sizes = {"prelude": config.recurrent.prelude, "core_block": config.recurrent.core, "coda": config.recurrent.coda}
    return [f"{name}.{i}" for name, size in sizes.items() for i in range(size)]


def _written_out(rule: Rule, layers: int, modules: int, stages: list[str]) -> list[Rule]:
    """One rule for each layer, those of multi-token prediction after the others."""
    if "{stage}" in rule.name:
        named = [_numbered(rule, i, layers) for i in range(len(stages))]
        return [one._replace(name=one.name.replace("{stage}", stage)) for one, stage in zip(named, stages, strict=True)]
    if "{i}" not in rule.name:
        return [rule]
    first = layers if "{k}" in rule.paths[0] else 0
    return [_numbered(rule, i, layers) for i in range(first, layers + modules)]


def _numbered(rule: Rule, i: int, layers: int) -> Rule:
    """The rule of layer `i` of the file (not by str.format, which would trip over `{e}`)."""
    k, home = str(i - layers), f"layer_{i}" if i < layers else f"mtp_{i - layers}/block"
    paths = tuple(path.replace("layer_{i}", home).replace("{k}", k) for path in rule.paths)
    return Rule(rule.name.replace("{i}", str(i)), paths, rule.pattern)


def _own_rule(path: str, ndim: int) -> Rule:
    axes = " ".join("abcdefgh"[:ndim])
    return Rule(path.replace("/", "."), (path,), f"{axes} -> {axes}")


def flat_leaves(tree: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a tree of parameters by path, "layer_0/mixer/q"."""
    return flatten_dict(tree, sep="/")
