"""Gradients of single examples with respect to a part of the parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from model.lm import Params


def chosen(params: Params, patterns: Sequence[str]) -> Params:
    """The part of the parameters whose names (`layer_0/mixer/q`) match one of the regular expressions, as a tree.

    Raises ValueError for a pattern that matches no name.
    """
    flat = flatten_dict(params, sep="/")
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in flat):
            raise ValueError(f"no parameter matches {pattern!r}; there are, for one, {', '.join(sorted(flat)[:5])}")
    kept = {name: leaf for name, leaf in flat.items() if any(re.search(pattern, name) for pattern in patterns)}
    return unflatten_dict(kept, sep="/")


def merged(params: Params, part: Params) -> Params:
    """The parameters with those of `part` in the place of their own."""
    return unflatten_dict({**flatten_dict(params, sep="/"), **flatten_dict(part, sep="/")}, sep="/")


def per_example_gradients(
    loss: Callable[[Params, Any], jax.Array], params: Params, examples: Any, patterns: Sequence[str] = (".*",)
) -> Params:
    """d loss(params, example) / d part for each example, leaves [N, ...]; `examples` is a tree of arrays [N, ...].

    `part` are the parameters that `patterns` match (`chosen`). Their memory is N times the part's: choose few, or call
    it for few examples at a time.
    """
    part = chosen(params, patterns)

    def one(part: Params, example: Any) -> jax.Array:
        return loss(merged(params, part), example)

    return jax.vmap(jax.grad(one), (None, 0))(part, examples)
