"""Growing a PEER model while it keeps what it knows: a new bank of experts beside frozen ones (2407.04153, section 6).

Why a bank and not a larger grid: new sub-keys in an old grid compete in its two top-k. Wherever one of them scores
higher it displaces old experts, and the softmax over the chosen is spread anew, so the old function changes at once,
even while the new rows are zero. A bank has queries, keys, tables and a top-k of its own, and only adds its output.
"""

from __future__ import annotations

import dataclasses

import flax.traverse_util
import jax

from model.lm import Model, Params, build
from model.peer.banks import bank_leaves, bank_name


def grow_experts(params: Params, n: int, *, model: Model, key: jax.Array) -> tuple[Model, Params]:
    """A model with a bank of `n` new experts in every PEER layer, and its parameters.

    Outputs stay as they were (with the running statistics of a batch norm, which older banks now always use): the
    `up` rows of the new bank are zero, and have a gradient at once. Older banks move from the parameters to
    `params["state"]`, where neither gradients, weight decay nor momentum reach them; what lies outside the PEER layers
    stays trainable. The optimiser's state does not carry over. Raises ValueError for a model without PEER layers and
    where `n` is no square or too small.
    """
    peer = model.config.peer
    if "peer" not in model.config.per_layer("ffn"):
        raise ValueError(f"only a model with ffn='peer' can grow experts, found {model.config.ffn!r}")
    grown = build(model.config.replace(peer=dataclasses.replace(peer, banks=(*peer.banks, n))))
    newest = len(grown.config.peer.banks)
    made = {bank_name(name, newest): leaf[0] for name, leaf in bank_leaves(grown.config, newest).items()}
    old, new = flax.traverse_util.flatten_dict(params), {}
    for i, (path, leaf) in enumerate(sorted(flax.traverse_util.flatten_dict(grown.abstract()).items())):
        where = path if path in old else path[1:]
        fresh = where not in old
        new[path] = made[path[-1]](jax.random.fold_in(key, i), leaf.shape, leaf.dtype) if fresh else old[where]
    return grown, flax.traverse_util.unflatten_dict(new)
