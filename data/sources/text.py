"""Rows of demonstrations, padded or packed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np

from data.chat import prompt_tokens
from data.sources.batch import TokenRows
from data.sources.examples import Example
from data.sources.packing import pack_rows, pad_row
from data.sources.reading import Dropped, Length, Reading, place_of
from data.sources.rows import TextRows
from data.sources.source import Source, in_order, prefetched, shuffled_numbers
from data.tasks.base import Task, demonstration, examples_of
from data.tokenizers.base import Tokenizer
from data.tokenizers.decoding import encode_after

Arrays = dict[str, np.ndarray]


def text_source(task: Task, tokenizer: Tokenizer, rows: TextRows) -> Source:
    """Returns a source of demonstrations: `tokens`, `positions`, `segments`, `mask`, all [B, length].

    An example is its prompt (mask 0, or 1 with `loss_on="all"`) and its target with eos (mask 1). Raises ValueError for
    empty data and for examples that do not fit, as far as data/sources/reading.py looks at them.
    """
    examples = examples_of(task, rows.split)
    encode = partial(sft_tokens, task, tokenizer, template=rows.template, system=rows.system)
    remedy = (
        "raise length to {tokens} or more (data.length, and model.max_length if that is smaller), or choose too_long="
    )
    reading = Reading(
        examples,
        partial(_row, examples, encode, rows, task),
        lambda example: task.prompt(example) + demonstration(task, example),
        rows.too_long == "drop",
        remedy + ("'drop'" if rows.too_long == "truncate" else "'drop' or 'truncate'"),
    )
    shuffled = shuffled_numbers(rows.split, len(examples), rows.seed)
    reading.check()
    batches = _batches(shuffled.map_with_index(partial(reading.take, Dropped(len(examples)))), rows, tokenizer.pad_id)
    return Source(prefetched(batches, rows.prefetch), rows.identity(len(examples)))


def _batches(examples: grain.MapDataset, rows: TextRows, pad_id: int) -> grain.IterDataset:
    """Pairs of this process's rows of a batch and the counts of what was read for it."""
    whole, share = rows.global_batch_size, rows.share
    pad = partial(pad_row, length=rows.length, pad_id=pad_id)
    # Where examples may be dropped or packed, every process reads them all.
    if rows.pack:
        packed = pack_rows(in_order(examples), rows.length, pad_id, whole)
        return packed.batch(whole).map(partial(_counted_rows, share.of_rows))
    if rows.too_long == "drop":
        padded = in_order(examples).map(pad).batch(whole)
        return padded.map(partial(_counted_rows, share.of_rows))
    mine = share.of_elements(examples).map(pad).batch(rows.batch_size)
    return in_order(mine.map(partial(_counted_rows, dict, times=rows.process_count)))


def sft_tokens(
    task: Task, tokenizer: Tokenizer, example: Example, template: str = "none", system: str | None = None
) -> tuple[list[int], list[int]]:
    """Returns the ids of an example's prompt, and of its target, as it goes on there, with eos."""
    prompt = prompt_tokens(tokenizer, task.prompt(example), template, system)
    return prompt, [*encode_after(demonstration(task, example), tokenizer, prompt), tokenizer.eos_id]


def _row(
    examples: Sequence[Example],
    encode: Callable[[Example], tuple[list[int], list[int]]],
    rows: TextRows,
    task: Task,
    number: int,
) -> tuple[dict[str, Any], Length]:
    """An example's tokens and mask, whether it was `truncated` [1], and where rows have depths its `depth` []."""
    prompt, target = encode(examples[number])
    total, length = len(prompt) + len(target), rows.length
    tokens = np.array((prompt + target)[:length], np.int32)
    mask = np.zeros(len(tokens), np.float32)
    mask[len(prompt) if rows.loss_on == "answer" else 0 :] = 1.0
    place = place_of(rows.split, number)
    what = f"{place} has {len(prompt)} prompt + {len(target)} target tokens = {total}, the rows hold {length}"
    needed = total
    if rows.too_long == "truncate":
        what, needed = f"{what}: cut there, nothing is left to predict", len(prompt) + 1
    row: dict[str, Any] = {"tokens": tokens, "mask": mask, "truncated": np.array([total > length], np.int32)}
    if rows.depths:
        row["depth"] = np.int32(rows.depths.training_depth(task, examples, number))
    return row, Length(needed, length, what)


def _counted_rows(mine: Callable[[Arrays], Arrays], batch: Arrays, times: int = 1) -> tuple[TokenRows, dict[str, int]]:
    """This process's rows of a batch, and the counts of what it took; `times` processes read as much."""
    batch = dict(batch)
    dropped, truncated = (int(batch.pop(name).sum()) for name in ("dropped", "truncated"))
    read = int(batch["segments"].max(1).sum()) + dropped
    arrays: dict[str, Any] = mine(batch)
    if "depth" in arrays:
        order = np.argsort(arrays["depth"], kind="stable")
        arrays = {name: array[order] for name, array in arrays.items()}
    return TokenRows(**arrays), {"read": read * times, "dropped": dropped, "truncated": truncated}
