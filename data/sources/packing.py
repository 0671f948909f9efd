"""From token ids to fixed rows: one example per row, or several packed first-fit with segments."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from grain import experimental

Row = dict[str, np.ndarray]
COUNTS = ("dropped", "truncated")  # of examples, one number for each


def pad_row(example: Row, length: int, pad_id: int) -> Row:
    """Returns one example `{"tokens": [n], "mask": [n]}` and what else it has, if anything, as a row, n <= length.

    `tokens`, `positions`, `segments` [length] int32 and `mask` [length] float32; segment 1 where there is
    text, else 0. What else there is stays as it is.
    """
    size = len(example["tokens"])
    tokens = np.full(length, pad_id, np.int32)
    tokens[:size] = example["tokens"]
    mask, segments, positions = (
        np.zeros(length, np.float32),
        np.zeros(length, np.int32),
        np.zeros(length, np.int32),
    )
    mask[:size] = example["mask"]
    segments[:size] = 1
    positions[:size] = np.arange(size)
    row = {"tokens": tokens, "positions": positions, "segments": segments, "mask": mask}
    return row | {name: value for name, value in example.items() if name not in row}


def pack_rows(
    examples: grain.IterDataset, length: int, pad_id: int, bins: int, more: Sequence[str] = COUNTS
) -> grain.IterDataset:
    """Returns the data set of rows that hold as many whole examples as fit, first-fit into `bins` open rows.

    The rows have the shape that `pad_row` gives; segments count from 1 within a row and positions restart
    with each. Of what examples hold besides, `more`, a row has what its examples have, and zeros up to `length`:
    of counts as many as examples.
    """
    sizes = dict.fromkeys(("tokens", "mask", *more), length)
    packed = experimental.FirstFitPackIterDataset(
        examples,
        length_struct=sizes,
        padding_struct={"tokens": pad_id, "mask": 0.0} | dict.fromkeys(more, 0),
        num_packing_bins=bins,
        shuffle_bins=False,
    )
    return packed.map(partial(_rename, more))


def _rename(more: Sequence[str], row: Mapping[str, Any]) -> Row:
    return {
        "tokens": row["tokens"],
        "positions": row["tokens_positions"],
        "segments": row["tokens_segment_ids"],
        "mask": row["mask"],
        **{name: row[name] for name in more},
    }
