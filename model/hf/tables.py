"""Where every tensor of a Hub file lives in our tree: one table per family, read by import and export alike.

A pattern such as `"(h k) d -> d h k"` reads: the file stores a matrix whose rows are heads x head dimension
and whose columns are the model dimension; we store [d, h, k]. Both directions follow from it, and so does the
part of the file that one shard needs.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Rule(NamedTuple):
    """One tensor of the file. Several `paths` share it along the first axis of the pattern's right side."""

    name: str
    paths: tuple[str, ...]
    pattern: str


class Table(NamedTuple):
    """A family's rules, the prefix that older files leave out, and names that hold no weights (regular
    expressions).
    """

    rules: tuple[Rule, ...]
    prefix: str
    ignored: tuple[str, ...]


DECODER = Table(
    rules=(
        Rule("model.embed_tokens.weight", ("embed",), "v d -> v d"),
        Rule("model.layers.{i}.input_layernorm.weight", ("layer_{i}/mixer_norm/scale",), "d -> d"),
        Rule("model.layers.{i}.self_attn.q_proj.weight", ("layer_{i}/mixer/q",), "(h k) d -> d h k"),
        Rule("model.layers.{i}.self_attn.k_proj.weight", ("layer_{i}/mixer/k",), "(h k) d -> d h k"),
        Rule("model.layers.{i}.self_attn.v_proj.weight", ("layer_{i}/mixer/v",), "(h k) d -> d h k"),
        Rule("model.layers.{i}.self_attn.q_proj.bias", ("layer_{i}/mixer/q_bias",), "(h k) -> h k"),
        Rule("model.layers.{i}.self_attn.k_proj.bias", ("layer_{i}/mixer/k_bias",), "(h k) -> h k"),
        Rule("model.layers.{i}.self_attn.v_proj.bias", ("layer_{i}/mixer/v_bias",), "(h k) -> h k"),
        Rule("model.layers.{i}.self_attn.q_norm.weight", ("layer_{i}/mixer/q_norm/scale",), "k -> k"),
        Rule("model.layers.{i}.self_attn.k_norm.weight", ("layer_{i}/mixer/k_norm/scale",), "k -> k"),
        Rule("model.layers.{i}.self_attn.o_proj.weight", ("layer_{i}/mixer/o",), "d (h k) -> h k d"),
        Rule("model.layers.{i}.self_attn.o_proj.bias", ("layer_{i}/mixer/o_bias",), "d -> d"),
        Rule("model.layers.{i}.post_attention_layernorm.weight", ("layer_{i}/ffn_norm/scale",), "d -> d"),
        Rule("model.layers.{i}.mlp.gate_proj.weight", ("layer_{i}/ffn/gate",), "f d -> d f"),
        Rule("model.layers.{i}.mlp.up_proj.weight", ("layer_{i}/ffn/up",), "f d -> d f"),
        Rule("model.layers.{i}.mlp.down_proj.weight", ("layer_{i}/ffn/down",), "d f -> f d"),
        Rule("model.layers.{i}.mlp.gate_proj.bias", ("layer_{i}/ffn/gate_bias",), "f -> f"),
        Rule("model.layers.{i}.mlp.up_proj.bias", ("layer_{i}/ffn/up_bias",), "f -> f"),
        Rule("model.layers.{i}.mlp.down_proj.bias", ("layer_{i}/ffn/down_bias",), "d -> d"),
        Rule("model.norm.weight", ("final_norm/scale",), "d -> d"),
        Rule("lm_head.weight", ("head",), "v d -> v d"),
    ),
    prefix="model.",
    ignored=(r".*rotary_emb\.inv_freq",),
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
TABLES: dict[str, Table] = {
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "gpt2": GPT2,
}


def table_for(family: str, layers: int, leaves: Mapping[str, Any]) -> Table:
    """The family's table written out for a model of `layers` layers with these parameters (path -> shape
    struct).

    Rules for parameters that the model lacks are left out; ValueError names the parameters that no rule
    covers.
    """
    if family == "sagax":
        return Table(tuple(_own_rule(path, leaf.ndim) for path, leaf in leaves.items()), "", ())
    table = TABLES[family]
    rules = [copy for rule in table.rules for copy in _copies(rule, layers)]
    rules = [rule for rule in rules if all(path in leaves for path in rule.paths)]
    homeless = sorted(set(leaves) - {path for rule in rules for path in rule.paths})
    if homeless:
        raise ValueError(f"family {family!r} has no tensor for {', '.join(homeless)}; family='sagax' has")
    return table._replace(rules=tuple(rules))


class Source(Protocol):
    """What `read_part` reads from: an array, or a lazy slice of a file."""

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


def file_shape(pattern: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in the file of a parameter that has this shape on the right side of the pattern."""
    groups, axes = _parse(pattern)
    sizes = dict(zip(axes, shape, strict=True))
    return tuple(math.prod(sizes[axis] for axis in group) for group in groups)


def read_part(source: Source, pattern: str, shape: Sequence[int], part: Sequence[slice]) -> np.ndarray:
    """Reads `part` of the right side (of full shape `shape`) from the file's tensor, touching no more than it
    must.
    """
    groups, axes = _parse(pattern)
    sizes, bounds = dict(zip(axes, shape, strict=True)), dict(zip(axes, part, strict=True))
    cuts = [_cut([sizes[axis] for axis in group], [bounds[axis] for axis in group]) for group in groups]
    block = source[tuple(cut.outer for cut in cuts)]
    block = block.reshape([size for cut in cuts for size in cut.sizes])
    block = block[tuple(inner for cut in cuts for inner in cut.inner)]
    order = [axis for group in groups for axis in group]
    return block.transpose([order.index(axis) for axis in axes])


def write_whole(value: np.ndarray, pattern: str) -> np.ndarray:
    """The tensor of the file for a whole right side: the inverse of `read_part`, contiguous."""
    groups, axes = _parse(pattern)
    order = [axis for group in groups for axis in group]
    value_in_order = value.transpose([axes.index(axis) for axis in order])
    return np.ascontiguousarray(value_in_order.reshape(file_shape(pattern, value.shape)))


class _Cut(NamedTuple):
    """A range of one file axis, the sizes it unfolds to, and what to keep of each."""

    outer: slice
    sizes: tuple[int, ...]
    inner: tuple[slice, ...]


def _cut(sizes: Sequence[int], bounds: Sequence[slice]) -> _Cut:
    """Finds the contiguous range of a merged axis that holds these bounds; the whole axis where there is
    none.
    """
    (start, stop), below = (bounds[0].start, bounds[0].stop), math.prod(sizes[1:])
    if all(b.start == 0 and b.stop == size for b, size in zip(bounds[1:], sizes[1:], strict=True)):
        kept = (stop - start, *sizes[1:])
        return _Cut(slice(start * below, stop * below), kept, (slice(None),) * len(kept))
    if stop - start == 1:
        inner = _cut(sizes[1:], bounds[1:])
        outer = slice(start * below + inner.outer.start, start * below + inner.outer.stop)
        return _Cut(outer, (1, *inner.sizes), (slice(None), *inner.inner))
    return _Cut(slice(0, math.prod(sizes)), tuple(sizes), tuple(bounds))


@functools.cache
def _parse(pattern: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    left, right = pattern.split(" -> ")
    groups = tuple(tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\w+", left))
    return groups, tuple(right.split())


def _copies(rule: Rule, layers: int) -> list[Rule]:
    if "{i}" not in rule.name:
        return [rule]
    fill = lambda text, i: text.replace("{i}", str(i))  # noqa: E731  (str.format would trip over other braces)
    return [Rule(fill(rule.name, i), tuple(fill(p, i) for p in rule.paths), rule.pattern) for i in range(layers)]


def _own_rule(path: str, ndim: int) -> Rule:
    axes = " ".join("abcdefgh"[:ndim])
    return Rule(path.replace("/", "."), (path,), f"{axes} -> {axes}")
