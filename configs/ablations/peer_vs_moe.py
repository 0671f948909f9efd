"""Dense, mixture of experts and PEER at the same active products (2407.04153, table 1 and figure 4, in miniature).

Every feed-forward multiplies 21,504 times per token (the mixture 21,376 times): dense 3 x 64 x 112; expert choice by a
router of 16 and, on average, two of 16 experts of width 53; PEER by 24 neurons of 1,024, 4,096 or 16,384, its queries
narrower where there are more keys to compare them with. A layer stores 21,504 parameters, 163,840, and 146,816 or
538,400 or 2,109,632. Expert choice sees the whole batch, later tokens included, in training and in evaluation: its loss
is that of a model that cannot generate.

Command:   python -m launch.sweep --config=configs/ablations/peer_vs_moe.py --workdir=runs/peer_vs_moe
           python -m launch.report runs/peer_vs_moe
Hardware:  two CPU cores
Expect:    excess_loss .35 dense, .18 expert choice, PEER .23 / .14 / .12 by N (docs/results.md)
Paper:     perplexity on C4 at equal FLOPs (6e18): dense 23.84, expert choice 21.41, PEER 20.63; PEER gains with N
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs.ablations.small import languages, over_seeds

# Keys per half, and the width of a query, so that 2 x width x (64 + keys) + 2 x 64 x 24 is the same for all.
PEER_SIZES = ((32, 96), (64, 72), (128, 48))


def get_config() -> ConfigDict:
    """The dense model, and for the others what they share."""
    config = languages("dense")
    config.model.d_ff = 112
    config.model.moe.update(n_experts=16, top_k=2, d_expert=53, router="expert_choice", normalize=False, scale=4.0)
    config.model.peer.update(heads=2, top_k=12)
    return config


def settings() -> Iterator[dict[str, Any]]:
    """The feed-forwards compared, by name."""
    yield {"name": "dense"}
    yield {"name": "expert-choice", "model.ffn": "moe"}
    for keys, width in PEER_SIZES:
        sizes = {"model.peer.n_experts": keys**2, "model.peer.key_dim": width}
        yield {"name": f"peer-{keys}x{keys}", "model.ffn": "peer", **sizes}


def sweep() -> Iterator[dict[str, Any]]:
    """Five feed-forwards, three seeds."""
    yield from over_seeds(settings())
