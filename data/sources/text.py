"""Sources of batches: shuffled each epoch, sharded by host, padded or packed, resumable exactly.

The stream is one endless sequence of shuffled epochs; host h of n takes its elements h, h + n, h + 2n, ...,
so that the hosts' shares are disjoint and cover every epoch whatever its length.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grain
import numpy as np
from grain import experimental

from data.chat import prompt_tokens
from data.names import unknown_name
from data.sources.examples import Example
from data.sources.packing import pack_rows, pad_row
from data.sources.reading import Dropped, Length, Reading, place_of
from data.tasks.base import Task, examples_of
from data.tokenizers.base import Tokenizer
from data.tokenizers.decoding import encode_after

TOO_LONG = ("error", "drop", "truncate")
FOREVER = 2**48  # elements; without a number grain's length overflows once they are batched
LOSS_ON = ("answer", "all")
NOTHING = {"read": 0, "dropped": 0, "truncated": 0}

Batch = dict[str, np.ndarray]


class Source:
    """An endless iterator of batches with a JSON-able state."""

    def __init__(self, batches: grain.IterDataset, identity: dict[str, Any]) -> None:
        """`batches`: pairs of a batch and its counts; `identity`: what must be equal for a state to fit."""
        self._held = [iter(batches)]
        self._identity = identity
        self._counts = dict(NOTHING)
        # An iterator with a thread must be gone before the interpreter takes its modules apart.
        weakref.finalize(self, _release, self._held)

    @property
    def _iterator(self) -> grain.DatasetIterator:
        return self._held[0]

    def next(self, params: Any = None, step: int | None = None) -> Any:
        """Returns the next batch; `params` and `step` are there for sources that need them."""
        batch, counts = next(self._iterator)
        self._counts = {name: count + counts[name] for name, count in self._counts.items()}
        return batch

    def state(self) -> dict[str, Any]:
        """Returns the JSON-able position after the last batch."""
        position, counts = self._iterator.get_state(), dict(self._counts)
        return {"iterator": position, "identity": dict(self._identity), "counts": counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position; ValueError when it was taken from a source that makes other batches."""
        found = dict(state["identity"])
        different = [key for key in self._identity if found.get(key) != self._identity[key]]
        if different:
            pairs = ", ".join(f"{key}: saved {found.get(key)!r}, now {self._identity[key]!r}" for key in different)
            raise ValueError(f"this state belongs to another input pipeline ({pairs}); restore with the same settings")
        self._iterator.set_state(state["iterator"])
        # States of earlier versions hold no counts: such a run counts from where it is resumed.
        self._counts = NOTHING | state.get("counts", {})

    def stats(self) -> dict[str, int]:
        """Returns how many examples all batches up to the last took: `read`, the `dropped` among them, and `truncated`.

        They are those of all processes, but for the truncated where each process reads its own rows alone.
        """
        return dict(self._counts)


def _release(held: list[grain.DatasetIterator]) -> None:
    held.pop().close()


def text_source(
    task: Task,
    tokenizer: Tokenizer,
    *,
    split: str = "train",
    batch_size: int,
    length: int,
    pack: bool = False,
    seed: int = 0,
    template: str = "none",
    system: str | None = None,
    too_long: str = "error",
    loss_on: str = "answer",
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 0,
) -> Source:
    """Returns a source of demonstrations: `tokens`, `positions`, `segments`, `mask`, all [B, length].

    An example is its prompt (mask 0, or 1 with `loss_on="all"`) and its target with eos (mask 1).
    `batch_size`: rows of this process;
    `pack`: several whole examples per row; `too_long`: `error`, `drop` or `truncate` for examples of more
    than `length` tokens; `prefetch`: batches made ahead by a thread, 0 for none. Raises ValueError for empty
    data and for examples that do not fit, as far as data/sources/reading.py looks at them.
    """
    _check_at_least_one(batch_size=batch_size, length=length)
    if too_long not in TOO_LONG:
        raise unknown_name("too_long policy", too_long, TOO_LONG)
    if loss_on not in LOSS_ON:
        raise unknown_name("loss_on", loss_on, LOSS_ON)
    examples = examples_of(task, split)
    encode = partial(sft_tokens, task, tokenizer, template=template, system=system)
    remedy = (
        "raise length to {tokens} or more (data.length, and model.max_length if that is smaller), or choose too_long="
    )
    reading = Reading(
        examples,
        partial(_row, examples, partial(place_of, split), encode, length, too_long, loss_on),
        lambda example: task.prompt(example) + task.target(example),
        too_long == "drop",
        remedy + ("'drop'" if too_long == "truncate" else "'drop' or 'truncate'"),
    )
    take = partial(reading.take, Dropped(len(examples)))
    whole, share = batch_size * process_count, Share(process_index, process_count)
    shuffled = _shuffled(split, len(examples), seed, share)
    reading.check()
    pad = partial(pad_row, length=length, pad_id=tokenizer.pad_id)
    if pack:
        rows = pack_rows(_in_order(shuffled.map_with_index(take)), length, tokenizer.pad_id, whole)
        batches = rows.batch(whole).map(partial(_counted_rows, share.of_rows))
    elif too_long == "drop":
        rows = _in_order(shuffled.map_with_index(take)).map(pad).batch(whole)
        batches = rows.map(partial(_counted_rows, share.of_rows))
    else:
        mine = share.of_elements(shuffled).map_with_index(take).map(pad).batch(batch_size)
        batches = _in_order(mine.map(partial(_counted_rows, dict, times=process_count)))
    identity = _identity(split, len(examples), whole, seed, length=length, pack=pack, loss_on=loss_on)
    return Source(_prefetched(batches, prefetch), identity)


def prompt_source(
    task: Task,
    tokenizer: Tokenizer,
    *,
    split: str = "train",
    batch_size: int,
    seed: int = 0,
    max_prompt_length: int | None = None,
    template: str = "none",
    system: str | None = None,
    too_long: str = "error",
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 0,
) -> Source:
    """Returns a source of lists of `{"example": dict, "tokens": list[int]}`, `batch_size` long.

    `too_long`: `error` raises ValueError for a prompt of more than `max_prompt_length` tokens, here as far as
    data/sources/reading.py looks, else where it is met; `drop` leaves it out and counts it. Raises ValueError for
    empty data.
    """
    if too_long not in ("error", "drop"):
        raise unknown_name("too_long policy of prompts", too_long, ("error", "drop"))
    _check_at_least_one(batch_size=batch_size)
    examples = examples_of(task, split)
    encode = partial(_prompt, task, tokenizer, examples, partial(place_of, split), template, system, max_prompt_length)
    remedy = (
        "raise max_prompt_length (or model.max_length) to leave room for {tokens} tokens, or choose too_long='drop'"
    )
    reading = Reading(examples, encode, task.prompt, too_long == "drop", remedy)
    take = partial(reading.take, Dropped(len(examples)))
    whole, share = batch_size * process_count, Share(process_index, process_count)
    shuffled = _shuffled(split, len(examples), seed, share)
    if max_prompt_length is not None:
        reading.check()
    if too_long == "drop":
        lists = _in_order(shuffled.map_with_index(take)).batch(whole, batch_fn=list)
        batches = lists.map(partial(_counted_list, share.of_list))
    else:
        mine = share.of_elements(shuffled).map_with_index(take).batch(batch_size, batch_fn=list)
        batches = _in_order(mine.map(partial(_counted_list, list, times=process_count)))
    return Source(_prefetched(batches, prefetch), _identity(split, len(examples), whole, seed))


def fixed_examples(
    task: Task,
    tokenizer: Tokenizer,
    split: str,
    n: int,
    *,
    max_prompt_length: int | None = None,
    template: str = "none",
    system: str | None = None,
    too_long: str = "error",
) -> list[dict[str, Any]]:
    """Returns the first n examples of a split (or all, if fewer) as `prompt_source` gives them.

    `too_long`: `error` raises ValueError for a prompt of more than `max_prompt_length` tokens, `drop` leaves it out, so
    that there are fewer; ValueError where none is left.
    """
    examples = examples_of(task, split)
    _check_size(split, len(examples))
    encode = partial(_prompt, task, tokenizer, examples, partial(place_of, split), template, system, max_prompt_length)
    found = [encode(number) for number in range(min(n, len(examples)))]
    kept = [element for element, length in found if length.fits]
    wrong = len(found) - len(kept)
    if wrong and (too_long != "drop" or not kept):
        longest, others = max(length for _, length in found), " or leave them out by too_long='drop'"
        raise ValueError(
            f"{longest.what}; {wrong} of {len(found)} are too long: make room (model.max_length, or fewer new tokens)"
            f"{others if kept else ', for none is left'}"
        )
    return kept


def sft_tokens(
    task: Task, tokenizer: Tokenizer, example: Example, template: str = "none", system: str | None = None
) -> tuple[list[int], list[int]]:
    """Returns the ids of an example's prompt, and of its target, as it goes on there, with eos."""
    prompt = prompt_tokens(tokenizer, task.prompt(example), template, system)
    return prompt, [*encode_after(task.target(example), tokenizer, prompt), tokenizer.eos_id]


def _prompt(
    task: Task,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    place: Callable[[int], str],
    template: str,
    system: str | None,
    limit: int | None,
    number: int,
) -> tuple[dict[str, Any], Length]:
    """An example with its prompt's ids."""
    example = examples[number]
    tokens = prompt_tokens(tokenizer, task.prompt(example), template, system)
    what = f"the prompt of {place(number)} has {len(tokens)} tokens, max_prompt_length is {limit}"
    return {"example": example, "tokens": tokens}, Length(len(tokens), limit, what)


def _row(
    examples: Sequence[Example],
    place: Callable[[int], str],
    encode: Callable[[Example], tuple[list[int], list[int]]],
    length: int,
    too_long: str,
    loss_on: str,
    number: int,
) -> tuple[dict[str, Any], Length]:
    """An example's tokens and mask, and whether it was `truncated` [1]."""
    prompt, target = encode(examples[number])
    total = len(prompt) + len(target)
    tokens = np.array((prompt + target)[:length], np.int32)
    mask = np.zeros(len(tokens), np.float32)
    mask[len(prompt) if loss_on == "answer" else 0 :] = 1.0
    what = f"{place(number)} has {len(prompt)} prompt + {len(target)} target tokens = {total}, the rows hold {length}"
    needed = total
    if too_long == "truncate":
        what, needed = f"{what}: cut there, nothing is left to predict", len(prompt) + 1
    row = {"tokens": tokens, "mask": mask, "truncated": np.array([total > length], np.int32)}
    return row, Length(needed, length, what)


def _counted_rows(mine: Callable[[Batch], Batch], batch: Batch, times: int = 1) -> tuple[Batch, dict[str, int]]:
    """This process's rows of a batch, and the counts of what it took; `times` processes read as much."""
    batch = dict(batch)
    dropped, truncated = (int(batch.pop(name).sum()) for name in ("dropped", "truncated"))
    read = int(batch["segments"].max(1).sum()) + dropped
    return mine(batch), {"read": read * times, "dropped": dropped, "truncated": truncated}


def _counted_list(mine: Callable[[list[Any]], list[Any]], batch: list[Any], times: int = 1) -> tuple[list[Any], Any]:
    """The like for lists."""
    dropped = sum(int(element["dropped"][0]) for element in batch)
    batch = [{name: element[name] for name in ("example", "tokens")} for element in batch]
    return mine(batch), NOTHING | {"read": (len(batch) + dropped) * times, "dropped": dropped}


@dataclass(frozen=True)
class Share:
    """What process `index` of `count` has of a batch: every count-th row.

    Each has as many rows, so that a position is a number of batches, the same in all processes and for any number of
    them. Where examples may be dropped or packed, a process has to read the others' as well to know which are its own.
    """

    index: int
    count: int

    def of_elements(self, data: grain.MapDataset) -> grain.MapDataset:
        """Of a data set in which every element is a row."""
        return data[self.index :: self.count]

    def of_rows(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of arrays with a leading axis of rows."""
        return {name: rows[self.index :: self.count] for name, rows in batch.items()}

    def of_list(self, batch: list[Any]) -> list[Any]:
        """Of a list of rows."""
        return batch[self.index :: self.count]


def _shuffled(split: str, size: int, seed: int, share: Share) -> grain.MapDataset:
    """The numbers of the examples, every epoch in an order of its own."""
    _check_size(split, size)
    if not 0 <= share.index < share.count:
        raise ValueError(f"process_index {share.index} is not in 0..{share.count - 1}")
    return grain.MapDataset.range(size).seed(seed).shuffle().repeat(FOREVER // size)


def _in_order(data: grain.MapDataset) -> grain.IterDataset:
    # No reader threads: making an example is cheaper than handing it over, and one thread keeps the order of
    # effects.
    return data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def _prefetched(batches: grain.IterDataset, prefetch: int) -> grain.IterDataset:
    if prefetch < 0:
        raise ValueError(f"prefetch must be at least 0, got {prefetch}")
    if prefetch == 0:
        return batches
    return experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)


def _check_at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_size(split: str, size: int) -> None:
    if size == 0:
        raise ValueError(f"split {split!r} has no examples; check the task's path and options")


def _identity(split: str, size: int, batch_size: int, seed: int, **more: Any) -> dict[str, Any]:
    return {"split": split, "examples": size, "batch_size": batch_size, "seed": seed, "unit": "batches", **more}
