"""Sources of batches: shuffled each epoch, sharded by host, padded or packed, resumable exactly.

The stream is one endless sequence of shuffled epochs; host h of n takes its elements h, h + n, h + 2n, ...,
so that the hosts' shares are disjoint and cover every epoch whatever its length.
"""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grain
import numpy as np
from grain import experimental

from data.chat import prompt_tokens
from data.decoding import encode_after
from data.names import unknown_name
from data.packing import Row, pack_rows, pad_row
from data.sources import Example
from data.tasks.base import Task, examples_of
from data.tokenizer import Tokenizer

TOO_LONG = ("error", "drop", "truncate")
FOREVER = 2**48  # elements; without a number grain's length overflows once they are batched
LOSS_ON = ("answer", "all")


@dataclass
class Tally:
    """Counts of the examples this process has read (read-ahead included), dropped and truncated."""

    size: int
    read: int = 0
    dropped: int = 0
    truncated: int = 0
    dropped_in_a_row: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def keep(self, truncated: bool) -> None:
        """Counts an example that is used."""
        with self.lock:
            self.read, self.truncated, self.dropped_in_a_row = self.read + 1, self.truncated + truncated, 0

    def drop(self, reason: str) -> None:
        """Counts an example that is left out; ValueError once a whole epoch was."""
        with self.lock:
            self.read, self.dropped = self.read + 1, self.dropped + 1
            self.dropped_in_a_row += 1
        if self.dropped_in_a_row >= self.size:
            raise ValueError(f"every one of {self.size} examples was dropped; the last: {reason}")


class Source:
    """An endless iterator of batches with a JSON-able state."""

    def __init__(self, batches: grain.IterDataset, identity: dict[str, Any], tally: Tally) -> None:
        """`identity`: what must be equal for a state to fit; `tally`: the counts behind `stats`."""
        self._held = [iter(batches)]
        self._identity = identity
        self._tally = tally
        # An iterator with a thread must be gone before the interpreter takes its modules apart.
        weakref.finalize(self, _release, self._held)

    @property
    def _iterator(self) -> grain.DatasetIterator:
        return self._held[0]

    def next(self, params: Any = None, step: int | None = None) -> Any:
        """Returns the next batch; `params` and `step` are there for sources that need them."""
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """Returns the JSON-able position after the last batch."""
        return {"iterator": self._iterator.get_state(), "identity": dict(self._identity)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position; ValueError when it was taken from a source that makes other batches."""
        found = dict(state["identity"])
        different = [key for key in self._identity if found.get(key) != self._identity[key]]
        if different:
            pairs = ", ".join(f"{key}: saved {found.get(key)!r}, now {self._identity[key]!r}" for key in different)
            raise ValueError(f"this state belongs to another input pipeline ({pairs}); restore with the same settings")
        self._iterator.set_state(state["iterator"])

    def stats(self) -> dict[str, int]:
        """Returns how many examples were read, dropped and truncated here, prefetched ones included."""
        return {"read": self._tally.read, "dropped": self._tally.dropped, "truncated": self._tally.truncated}


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
    data and for an example that does not fit.
    """
    _check_at_least_one(batch_size=batch_size, length=length)
    if too_long not in TOO_LONG:
        raise unknown_name("too_long policy", too_long, TOO_LONG)
    if loss_on not in LOSS_ON:
        raise unknown_name("loss_on", loss_on, LOSS_ON)
    examples = examples_of(task, split)
    tally = Tally(len(examples))
    encode = partial(sft_tokens, task, tokenizer, template=template, system=system)
    fit = partial(_fit, examples, encode, length, too_long, loss_on, tally)
    whole, share = batch_size * process_count, Share(process_index, process_count)
    shuffled = _shuffled(split, len(examples), seed, share)
    pad = partial(pad_row, length=length, pad_id=tokenizer.pad_id)
    if pack:
        rows = pack_rows(_in_order(shuffled.map(fit)), length, tokenizer.pad_id, whole)
        batches = rows.batch(whole).map(share.of_rows)
    elif too_long == "drop":
        batches = _in_order(shuffled.map(fit)).map(pad).batch(whole).map(share.of_rows)
    else:
        batches = _in_order(share.of_elements(shuffled).map(fit).map(pad).batch(batch_size))
    identity = _identity(split, len(examples), whole, seed, length=length, pack=pack, loss_on=loss_on)
    return Source(_prefetched(batches, prefetch), identity, tally)


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

    `too_long`: `error` raises ValueError for a prompt of more than `max_prompt_length` tokens, `drop` leaves it out
    and counts it. Raises ValueError for empty data.
    """
    if too_long not in ("error", "drop"):
        raise unknown_name("too_long policy of prompts", too_long, ("error", "drop"))
    _check_at_least_one(batch_size=batch_size)
    examples = examples_of(task, split)
    tally, limit = Tally(len(examples)), None if too_long == "drop" else max_prompt_length
    encode = partial(prompt_element, task, tokenizer, examples, limit, template, system)
    make = lambda index: _keep_short(encode(index), max_prompt_length, tally)  # noqa: E731
    whole, share = batch_size * process_count, Share(process_index, process_count)
    shuffled = _shuffled(split, len(examples), seed, share)
    if too_long == "drop":
        batches = _in_order(shuffled.map(make)).batch(whole, batch_fn=list).map(share.of_list)
    else:
        batches = _in_order(share.of_elements(shuffled).map(make).batch(batch_size, batch_fn=list))
    return Source(_prefetched(batches, prefetch), _identity(split, len(examples), whole, seed), tally)


def _keep_short(element: dict[str, Any], limit: int | None, tally: Tally) -> dict[str, Any] | None:
    length = len(element["tokens"])
    if limit is not None and length > limit:
        tally.drop(f"a prompt of {length} tokens, max_prompt_length is {limit}")
        return None
    tally.keep(truncated=False)
    return element


def fixed_examples(task: Task, tokenizer: Tokenizer, split: str, n: int, **rendering: Any) -> list[dict[str, Any]]:
    """Returns the first n examples of a split (or all, if fewer) as `prompt_source` gives them.

    `rendering`: `template`, `system` and `max_prompt_length`.
    """
    examples = examples_of(task, split)
    _check_size(split, len(examples))
    options = {"max_prompt_length": None, "template": "none", "system": None, **rendering}
    return [prompt_element(task, tokenizer, examples, index=index, **options) for index in range(min(n, len(examples)))]


def sft_tokens(
    task: Task, tokenizer: Tokenizer, example: Example, template: str = "none", system: str | None = None
) -> tuple[list[int], list[int]]:
    """Returns the ids of an example's prompt, and of its target, as it goes on there, with eos."""
    prompt = prompt_tokens(tokenizer, task.prompt(example), template, system)
    return prompt, [*encode_after(task.target(example), tokenizer, prompt), tokenizer.eos_id]


def prompt_element(
    task: Task,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_prompt_length: int | None,
    template: str,
    system: str | None,
    index: int,
) -> dict[str, Any]:
    """Returns example `index` and its prompt's ids; ValueError when they are too many."""
    example = examples[index]
    tokens = prompt_tokens(tokenizer, task.prompt(example), template, system)
    if max_prompt_length is not None and len(tokens) > max_prompt_length:
        raise ValueError(
            f"the prompt of example {index} has {len(tokens)} tokens, max_prompt_length is "
            f"{max_prompt_length}; raise it or filter the task's examples"
        )
    return {"example": example, "tokens": tokens}


def _fit(
    examples: Sequence[Example],
    encode: Callable[[Example], tuple[list[int], list[int]]],
    length: int,
    too_long: str,
    loss_on: str,
    tally: Tally,
    index: int,
) -> Row | None:
    prompt, target = encode(examples[index])
    excess = len(prompt) + len(target) - length
    if excess > 0 and (too_long != "truncate" or len(prompt) >= length):
        _refuse(index, len(prompt), len(target), length, too_long, tally)
        return None
    tally.keep(truncated=excess > 0)
    tokens = np.array((prompt + target)[:length], np.int32)
    mask = np.zeros(len(tokens), np.float32)
    mask[len(prompt) if loss_on == "answer" else 0 :] = 1.0
    return {"tokens": tokens, "mask": mask}


def _refuse(index: int, prompt: int, target: int, length: int, too_long: str, tally: Tally) -> None:
    total = prompt + target
    what = f"example {index} has {prompt} prompt + {target} target tokens = {total}, the rows hold {length}"
    if too_long == "drop":
        return tally.drop(what)
    if too_long == "truncate":
        raise ValueError(f"{what}: cut there, nothing is left to predict; raise length or use too_long='drop'")
    raise ValueError(f"{what}; raise length, or choose too_long='drop' or 'truncate'")


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
