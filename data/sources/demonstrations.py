"""Demonstrations by number, all of them encoded: for what is measured once of each and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from data.sources.batch import TokenRows
from data.sources.packing import pad_row
from data.sources.reading import place_of
from data.sources.rows import TextRows
from data.sources.source import NOTHING, Source, in_order, prefetched, shuffled_numbers
from data.sources.text import sft_tokens
from data.tasks.base import Task, examples_of
from data.tokenizers.base import Tokenizer


class Demonstrations:
    """The tokens and mask of every demonstration that fits; `numbers` is an endless source of this process's batches
    of them, `digest` the SHA-256 of all, `lengths` [n] their tokens.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, rows: TextRows) -> None:
        """Raises ValueError for demonstrations that are too long unless they are dropped, and where none is left."""
        examples = examples_of(task, rows.split)
        self._rows, self._pad, self._found = rows, tokenizer.pad_id, list[tuple[np.ndarray, np.ndarray]]()
        for number, example in enumerate(examples):
            prompt, target = sft_tokens(task, tokenizer, example, rows.template, rows.system)
            ids = np.array(prompt + target, np.int32)
            if len(ids) > rows.length and rows.too_long != "drop":
                raise ValueError(
                    f"{place_of(rows.split, number)} has {len(ids)} tokens, the rows hold {rows.length}: raise"
                    f" data.length, or choose data.too_long='drop' (found {rows.too_long!r})"
                )
            if len(ids) <= rows.length:
                learnt = np.arange(len(ids)) >= (len(prompt) if rows.loss_on == "answer" else 0)
                self._found.append((ids, learnt.astype(np.float32)))
        self.dropped = len(examples) - len(self._found)
        self.lengths = np.array([len(ids) for ids, _ in self._found])
        shuffled = shuffled_numbers(rows.split, len(self._found), rows.seed)
        mine = rows.share.of_elements(shuffled).batch(rows.batch_size)
        counted = mine.map(partial(_counted, rows.process_count))
        self.numbers = Source(prefetched(in_order(counted), rows.prefetch), rows.identity(len(self._found)))

    @property
    def digest(self) -> str:
        """The SHA-256 of all ids and masks."""
        whole = hashlib.sha256()
        for ids, mask in self._found:
            whole.update(len(ids).to_bytes(8) + ids.tobytes() + mask.tobytes())
        return whole.hexdigest()

    def __len__(self) -> int:
        return len(self._found)

    def batch(self, numbers: Sequence[int] | np.ndarray) -> TokenRows:
        """Some of them as rows."""
        pairs = [self._found[int(number)] for number in numbers]
        rows = [pad_row({"tokens": ids, "mask": mask}, self._rows.length, self._pad) for ids, mask in pairs]
        arrays: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return TokenRows(**arrays)


def _counted(times: int, numbers: object) -> tuple[np.ndarray, dict[str, int]]:
    found = np.asarray(numbers)
    return found, NOTHING | {"read": len(found) * times}
