"""Samples that were begun elsewhere and go on here, and those that a run of the sampler leaves unfinished."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from model.checks import check_ids
from model.config import ModelConfig


@flax.struct.dataclass
class PartialSamples:
    """What N samples have already said: `tokens`, `logps` [N, T], `lengths` [N], and whether they ended, `finished`.

    `row` [N] is the row of the prefill that a sample goes on from: its prompt's, or one that holds its own beginning.
    """

    tokens: Any
    logps: Any
    lengths: Any
    finished: Any
    row: Any = None

    @property
    def done(self) -> Any:
        """Those that say no more: ended, or as long as they may be."""
        return self.finished | (self.lengths >= self.tokens.shape[1])


def check_partial(begun: PartialSamples, samples: int, length: int, config: ModelConfig) -> None:
    """Raises ValueError unless they are so many samples of at most so many tokens that the model knows."""
    if begun.tokens.shape != (samples, length) or begun.logps.shape != (samples, length):
        raise ValueError(
            f"begun holds tokens {begun.tokens.shape} and logps {begun.logps.shape}; {samples} samples of at most"
            f" {length} tokens need ({samples}, {length})"
        )
    lengths = np.asarray(begun.lengths)
    if lengths.shape != (samples,) or lengths.min() < 0 or lengths.max() > length:
        raise ValueError(f"begun.lengths must be {samples} numbers from 0 to {length}; found {begun.lengths}")
    check_ids(config, np.asarray(begun.tokens), "begun.tokens", np.arange(length) < lengths[:, None])


def with_beginnings(tokens: np.ndarray, mask: np.ndarray, begun: PartialSamples, group: int) -> tuple[np.ndarray, ...]:
    """The rows of the prefill: prompts [P, Lp], left-padded, and below them every unfinished beginning with its prompt.

    Returns tokens, mask and the row [N] of each sample. Lengths and numbers of rows are few, for each is a program.
    """
    rows = np.arange(len(begun.lengths)) // group
    going = np.flatnonzero((begun.lengths > 0) & ~begun.done)
    if not len(going):
        return tokens, mask, rows
    step = max(begun.tokens.shape[1] // 4, 1)
    more = -(-int(begun.lengths[going].max()) // step) * step
    width, count = tokens.shape[1] + more, 1 << (len(going) - 1).bit_length()
    found, seen = np.zeros((len(tokens) + count, width), np.int32), np.zeros((len(tokens) + count, width), bool)
    found[: len(tokens), more:], seen[: len(tokens), more:] = tokens, mask
    found[len(tokens) :, -1], seen[len(tokens) :, -1] = tokens[0, -1], True  # rows that nobody goes on from
    for i, n in enumerate(going, len(tokens)):
        whole = [*tokens[rows[n]][mask[rows[n]]], *begun.tokens[n, : begun.lengths[n]]]
        found[i, width - len(whole) :], seen[i, width - len(whole) :] = whole, True
        rows[n] = i
    return found, seen, rows


def on_device(begun: PartialSamples, rows: np.ndarray) -> PartialSamples:
    """What the compiled half needs to know."""
    return jax.tree.map(jnp.asarray, begun.replace(row=rows.astype(np.int32)))  # type: ignore[attr-defined]


def interrupted(state: Any, begun: PartialSamples | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of samples [N], of which some have not ended: lengths, and whether they are unfinished; and tokens never seated.

    The tokens of seated ones are in the output rows already; what nobody seated is still what it was when begun.
    """
    lengths = np.array(state.out_count)
    partial = lengths == 0
    untouched = partial.copy()
    for sample, count in zip(np.asarray(state.sample), np.asarray(state.count), strict=True):
        if sample < len(lengths) and partial[sample]:
            lengths[sample], untouched[sample] = count, False
    if begun is not None:
        lengths = np.where(untouched, begun.lengths, lengths)
        partial &= ~(untouched & np.asarray(begun.done))
    return lengths, partial, untouched
