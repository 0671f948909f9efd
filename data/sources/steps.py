"""Solutions in steps, each with a label: what a process reward model learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grain
import numpy as np

from data.chat import prompt_tokens
from data.sources.batch import TokenRows
from data.sources.examples import Example
from data.sources.packing import pad_row
from data.sources.reading import Dropped, Length, Reading, place_of
from data.sources.rows import TextRows
from data.sources.source import NOTHING, Source, in_order, prefetched, shuffled_numbers
from data.tasks.base import Task, examples_of
from data.tokenizers.base import Tokenizer
from data.tokenizers.decoding import encode_after

IGNORED = -100  # the label of a token that ends no step


class StepRows(TokenRows, kw_only=True):
    """Rows of solutions in steps: `labels` [B, S] int32, IGNORED but on the last token of each step's separator."""

    labels: Any


@dataclass(frozen=True, kw_only=True)
class StepRules(TextRows):
    """How solutions become rows: what ends a step, and whether the last step's label alone is learnt from."""

    separator: str = "\n"
    last_step_only: bool = False

    def identity(self, examples: int) -> dict[str, Any]:
        """That of all rows, and which labels they hold."""
        return super().identity(examples) | {"separator": self.separator, "last_step_only": self.last_step_only}


def step_source(task: Task, tokenizer: Tokenizer, rules: StepRules) -> Source:
    """An endless source of `StepRows`, a solution in each; ValueError for rows without steps, and for too long ones
    unless they are dropped.
    """
    examples = examples_of(task, rules.split)
    remedy = "raise data.length to {tokens} or more, or choose data.too_long='drop'"
    encode = partial(_row, task, tokenizer, examples, rules)
    reading = Reading(examples, encode, task.prompt, rules.too_long == "drop", remedy)
    shuffled = shuffled_numbers(rules.split, len(examples), rules.seed)
    reading.check()
    elements = shuffled.map_with_index(partial(reading.take, Dropped(len(examples))))
    padded = partial(_padded, length=rules.length, pad_id=tokenizer.pad_id)
    if rules.too_long == "drop":
        batches = (
            in_order(elements).map(padded).batch(rules.global_batch_size).map(partial(_counted, rules.share.of_rows))
        )
    else:
        mine: grain.MapDataset = rules.share.of_elements(elements).map(padded).batch(rules.batch_size)
        batches = in_order(mine.map(partial(_counted, dict, times=rules.process_count)))
    return Source(prefetched(batches, rules.prefetch), rules.identity(len(examples)))


def _row(
    task: Task, tokenizer: Tokenizer, examples: Sequence[Example], rules: StepRules, number: int
) -> tuple[dict[str, Any], Length]:
    """An example's tokens and labels."""
    place = place_of(rules.split, number)
    try:
        ids, labels = encode_steps(task, tokenizer, examples[number], rules)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    arrays = {"tokens": np.array(ids, np.int32), "labels": np.array(labels, np.int32)}
    return arrays, Length(len(ids), rules.length, f"{place} has {len(ids)} tokens, and rows hold {rules.length}")


def _padded(element: dict[str, Any], length: int, pad_id: int) -> dict[str, np.ndarray]:
    labels = np.full(length, IGNORED, np.int32)
    labels[: len(element["labels"])] = element["labels"]
    mask = (element["labels"] != IGNORED).astype(np.float32)
    row = pad_row({"tokens": element["tokens"], "mask": mask}, length, pad_id)
    return row | {"labels": labels, "dropped": element["dropped"]}


def _counted(mine: Any, batch: dict[str, np.ndarray], times: int = 1) -> tuple[StepRows, dict[str, int]]:
    """This process's rows of a batch, and the counts of what it took."""
    batch = dict(batch)
    dropped = int(batch.pop("dropped").sum())
    read = len(batch["tokens"]) + dropped
    return StepRows(**mine(batch)), NOTHING | {"read": read * times, "dropped": dropped}


def labelled_tokens(
    prompt: Sequence[int],
    steps: Sequence[Sequence[int]],
    labels: Sequence[int],
    separator: Sequence[int],
    *,
    last_step_only: bool = False,
) -> tuple[list[int], list[int]]:
    """The ids of a prompt and its steps, each followed by the separator, and a label for every id.

    A step's label stands on the last token of its separator and on no other; nothing is shifted (TRL's PRMTrainer).
    Raises ValueError where there is not one label for each step.
    """
    if len(steps) != len(labels) or not steps:
        raise ValueError(f"{len(steps)} steps and {len(labels)} labels: give at least one step, and a label for each")
    ids, told = list(prompt), [IGNORED] * len(prompt)
    for number, (step, label) in enumerate(zip(steps, labels, strict=True)):
        whole = [*step, *separator]
        counts = not last_step_only or number == len(steps) - 1
        ids += whole
        told += [IGNORED] * (len(whole) - 1) + [int(label) if counts else IGNORED]
    return ids, told


def encode_steps(
    task: Task,
    tokenizer: Tokenizer,
    example: Example,
    rules: StepRules,
) -> tuple[list[int], list[int]]:
    """The like of an example with texts `steps` and their `labels` (true, false or numbers of classes).

    Raises ValueError for an example without them.
    """
    steps, labels = example.get("steps"), example.get("labels")
    if not _are(steps, str) or not _are(labels, bool, int) or len(steps) != len(labels):  # type: ignore[arg-type]
        raise ValueError(
            "a row for process_reward has a list of texts under `steps` and as many labels under `labels`; found"
            f" steps={steps!r}, labels={labels!r}"[:400]
        )
    prompt = prompt_tokens(tokenizer, task.prompt(example), rules.template, rules.system)
    mark, so_far, encoded = tokenizer.encode(rules.separator), list(prompt), list[list[int]]()
    for step in steps:  # type: ignore[union-attr]
        encoded.append(encode_after(step, tokenizer, so_far))
        so_far += [*encoded[-1], *mark]
    return labelled_tokens(prompt, encoded, labels, mark, last_step_only=rules.last_step_only)  # type: ignore[arg-type]


def _are(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) in kinds for value in values)
