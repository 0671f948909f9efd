"""What sampling took: the tokens that a rollout's passes read, and the iterations of a recurrent core on them."""

from __future__ import annotations

import numpy as np

from infer.continuation import Continuation
from infer.sampler import Rollout
from model.reports import Work


def sampling_work(rollout: Rollout, before: Continuation | None = None, by_sample: bool = False) -> Work:
    """The tokens that were drawn, and those read for it: each prompt once for all samples that start from it, and again
    with the prefix of each that goes on from one (`before`), or for each sample where all have depths of their own
    (`by_sample`).

    It is what these samples take however they are spread over slots, waves and devices: padding, idle slots and guesses
    of a draft that were not kept are no part of it.
    """
    start = np.zeros_like(rollout.lengths) if before is None else np.asarray(before.lengths)
    going = rollout.lengths > start
    apart = going & (by_sample | (start > 0))
    # A sample that reads its prompt for all that share it, or for itself.
    _, first = np.unique(np.where(going & ~apart, rollout.group_of, -1), return_index=True)
    reads = apart.copy()
    reads[first] |= (going & ~apart)[first]
    read = np.where(reads, rollout.prompt_mask.sum(1)[rollout.group_of] + start, 0)
    tokens = int((rollout.lengths - start).sum() + read.sum())
    if rollout.depth is None:
        return Work(tokens)
    columns = np.arange(rollout.depth.shape[1])
    drawn = (columns >= start[:, None]) & (columns < rollout.lengths[:, None])
    # The prefill's depth is that at which the first token after it was drawn.
    deep = rollout.depth[np.arange(len(start)), np.minimum(start, len(columns) - 1)]
    return Work(tokens, int((rollout.depth * drawn).sum() + (read * deep).sum()))
