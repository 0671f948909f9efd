"""What passes of a model cost, counted by hand, and what the parameters of a core that runs again and again are worth.

flops(model, Work(tokens), trains=True)         # 6ND, and 2ND of passes without a gradient
equivalent_parameters(model.config)             # N_once + r^.46 N_rec
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
from flax.traverse_util import flatten_dict

from model.config import ModelConfig
from model.depth.core import layers_of
from model.lm import COLLECTIONS, Model, build
from model.reports import Work

RECURRENCE_EXPONENT = 0.46  # 2604.21106, of 116 runs; .38 where gradients flow through the last iterations alone

Path = tuple[str, ...]


class Weights(NamedTuple):
    """Numbers of weights: of a recurrent `core` and its injection, and of what a pass runs `once`."""

    once: int
    core: int


def flops(model: Model, work: Work, trains: bool) -> int:
    """The FLOPs of passes: 2 for every weight of a matrix that a token meets and, where it learns, twice that again
    backwards.

    The input embedding is left out, of experts those count that a token is sent to, and a recurrent core counts as
    often as it ran, backwards as often as it carried gradient. Attention's products with keys and values are not in it.
    """
    (once, core), read = weights_met(model, trains), round(float(work.tokens))
    ran, learnt = (round(float(times or 0)) for times in (work.iterations, work.gradients))
    forwards, backwards = once * read + core * ran, once * read + core * learnt
    return 2 * forwards + (4 * backwards if trains else 0)


@functools.lru_cache(maxsize=16)
def weights_met(model: Model, trains: bool) -> Weights:
    """The weights of matrices that a token meets, among them the output embedding and, where they are trained, modules
    that predict further ahead.
    """
    c, axes, met = model.config, flatten_dict(model.axes()), [0, 0]
    looked_up = ("pair_embed", "position_embed", *(() if c.tied else ("embed",)))
    for path, leaf in _parameters(model):
        if path[0] in looked_up or leaf.ndim < 2 or (path[0].startswith("mtp_") and not trains):
            continue
        size = leaf.size
        if axes[path][0] == "experts" and leaf.ndim == 3:
            size = size * c.moe.top_k // c.moe.n_experts
        if "rows" in axes[path]:
            size = size * c.peer.heads * c.peer.top_k // leaf.shape[0]
        heads = 1 + c.mtp.depth if trains and path[0] in ("embed", "head") else 1
        met[_in_core(c, path)] += size * heads
    return Weights(*met)


def parameters(config: ModelConfig) -> Weights:
    """How many parameters a model has, each once; what is learnt by rule does not count."""
    counts = [0, 0]
    for path, leaf in _parameters(build(config)):
        counts[_in_core(config, path)] += leaf.size
    return Weights(*counts)


def equivalent_parameters(config: ModelConfig, exponent: float = RECURRENCE_EXPONENT) -> float:
    """The parameters of a stack that would reach the same loss: N_once + r^exponent N_rec, r being `recurrent.mean`.

    Iso-depth laws (2604.21106): a core run 4 times is worth 1.89 cores, one run 8 times 2.60. Embeddings count as run
    once. Of a stack it is the number of its parameters.
    """
    once, core = parameters(config)
    return once + config.recurrent.mean**exponent * core


def _parameters(model: Model) -> Iterator[tuple[Path, jax.ShapeDtypeStruct]]:
    """(path, shape) of all that gradients move."""
    return ((path, leaf) for path, leaf in flatten_dict(model.abstract()).items() if path[0] not in COLLECTIONS)


def _in_core(config: ModelConfig, path: Path) -> bool:
    """Whether every iteration of a recurrent core meets these weights."""
    core = layers_of(config)[1] if config.depth == "recurrent" else ()
    return path[0] in {"injection", *(f"layer_{i}" for i in core)}
