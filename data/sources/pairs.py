"""Pairs of a better and a worse completion of one prompt, encoded; and an endless source of their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data.chat import prompt_tokens
from data.sources.examples import Example
from data.sources.reading import Length, place_of
from data.sources.rows import Rows, check_at_least
from data.sources.source import NOTHING, Source, in_order, prefetched, shuffled_numbers
from data.tasks.base import Task, examples_of
from data.tokenizers.base import Tokenizer
from data.tokenizers.decoding import encode_after

SIDES = ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class PairRows(Rows):
    """Pairs, `batch_size` of them: prompts of at most `prompt_length` tokens, sides of at most `length` with their end
    token; `too_long`: `error` or `drop` for longer ones.
    """

    prompt_length: int
    length: int
    too_long: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, prompt_length=self.prompt_length, length=self.length)


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of both sides, with eos; by how much the chosen side is better (None: not said)."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float | None = None


@dataclass(frozen=True)
class Pairs(Sequence[Pair]):
    """All pairs of a split that fit, and how many did not."""

    found: list[Pair]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, number: Any) -> Any:
        return self.found[number]

    @property
    def digest(self) -> str:
        """The SHA-256 of all ids and margins."""
        whole = hashlib.sha256()
        for pair in self.found:
            whole.update(repr((pair.prompt, pair.chosen, pair.rejected, pair.margin)).encode())
        return whole.hexdigest()


def read_pairs(task: Task, tokenizer: Tokenizer, rows: PairRows) -> Pairs:
    """The pairs of a JSON-lines file whose lines are the task's examples with texts `chosen` and `rejected`, and
    perhaps a number `margin`.

    Raises ValueError, naming file and line, for lines that are no pairs, for pairs whose sides are equal, and for those
    that are too long unless they are dropped; and where none is left.
    """
    if not rows.split.endswith(".jsonl"):
        raise ValueError(
            f"data.split={rows.split!r}: pairs come from a JSON-lines file of examples with `chosen` and `rejected`,"
            " such as the stage `pairs` of a pipeline writes"
        )
    examples = examples_of(task, rows.split)
    found, long = [], list[Length]()
    for number, example in enumerate(examples):
        pair = _encoded(task, tokenizer, example, rows, place_of(rows.split, number))
        wrong = next((length for length in _lengths(pair, rows, number) if not length.fits), None)
        if wrong is None:
            found.append(pair)
        else:
            long.append(wrong)
    if long and (rows.too_long != "drop" or not found):
        remedy = "raise data.length or reward.prompt_length / preference.prompt_length"
        others = ", or leave them out by data.too_long=drop" if found else ""
        raise ValueError(f"{max(long).what}; {len(long)} of {len(examples)} pairs are too long: {remedy}{others}")
    return Pairs(found, len(long))


def pair_numbers(pairs: Pairs, rows: PairRows) -> Source:
    """An endless source of this process's numbers of pairs [B], every epoch in an order of its own."""
    shuffled = shuffled_numbers(rows.split, len(pairs), rows.seed)
    if len(pairs) < rows.global_batch_size:
        raise ValueError(
            f"{rows.split} holds {len(pairs)} pairs that fit, and a batch takes {rows.global_batch_size}: lower"
            " data.batch_size"
        )
    mine = rows.share.of_elements(shuffled).batch(rows.batch_size)
    counted = partial(_counted, times=rows.process_count)
    return Source(prefetched(in_order(mine.map(counted)), rows.prefetch), rows.identity(len(pairs)))


def _counted(numbers: Any, times: int) -> tuple[np.ndarray, dict[str, int]]:
    found = np.asarray(numbers)
    return found, NOTHING | {"read": len(found) * times}


def _encoded(task: Task, tokenizer: Tokenizer, example: Example, rows: PairRows, place: str) -> Pair:
    wrong = [side for side in SIDES if not isinstance(example.get(side), str)]
    if wrong:
        raise ValueError(f"{place} has no text under {', '.join(wrong)}; it holds {', '.join(example)}")
    if example["chosen"] == example["rejected"]:
        raise ValueError(
            f"{place}: chosen and rejected are the same text, {example['chosen'][:80]!r}: take the line out"
        )
    margin = example.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise ValueError(f"{place}: margin is a number, found {margin!r}")
    prompt = prompt_tokens(tokenizer, task.prompt(example), rows.template, rows.system)
    chosen, rejected = ([*encode_after(example[side], tokenizer, prompt), tokenizer.eos_id] for side in SIDES)
    return Pair(prompt, chosen, rejected, None if margin is None else float(margin))


def _lengths(pair: Pair, rows: PairRows, number: int) -> list[Length]:
    place = place_of(rows.split, number)
    parts = (("prompt", pair.prompt, rows.prompt_length), ("chosen side", pair.chosen, rows.length))
    return [
        Length(len(ids), limit, f"the {name} of {place} has {len(ids)} tokens, and rows hold {limit}")
        for name, ids, limit in (*parts, ("rejected side", pair.rejected, rows.length))
    ]
