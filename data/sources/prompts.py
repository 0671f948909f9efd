"""Prompts of examples: an endless source for rollouts, a fixed list for evaluation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from data.chat import prompt_tokens
from data.sources.examples import Example
from data.sources.reading import Dropped, Length, Reading, place_of
from data.sources.rows import PromptRows
from data.sources.source import NOTHING, Source, check_not_empty, in_order, prefetched, shuffled_numbers
from data.tasks.base import Task, examples_of
from data.tokenizers.base import Tokenizer


def prompt_source(task: Task, tokenizer: Tokenizer, rows: PromptRows) -> Source:
    """Returns a source of lists of `{"example": dict, "tokens": list[int]}`, `batch_size` long.

    Prompts that are too long raise ValueError, here as far as data/sources/reading.py looks, else where they are met,
    or are left out and counted. Raises ValueError for empty data.
    """
    examples = examples_of(task, rows.split)
    encode = _encoder(task, tokenizer, examples, rows)
    remedy = (
        "raise max_prompt_length (or model.max_length) to leave room for {tokens} tokens, or choose too_long='drop'"
    )
    reading = Reading(examples, encode, task.prompt, rows.too_long == "drop", remedy)
    shuffled = shuffled_numbers(rows.split, len(examples), rows.seed)
    if rows.max_prompt_length is not None:
        reading.check()
    prompts, whole = shuffled.map_with_index(partial(reading.take, Dropped(len(examples)))), rows.global_batch_size
    if rows.too_long == "drop":
        lists = in_order(prompts).batch(whole, batch_fn=list)
        batches = lists.map(partial(_counted_list, rows.share.of_list))
    else:
        mine = rows.share.of_elements(prompts).batch(rows.batch_size, batch_fn=list)
        batches = in_order(mine.map(partial(_counted_list, list, times=rows.process_count)))
    return Source(prefetched(batches, rows.prefetch), rows.identity(len(examples)))


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
    check_not_empty(split, len(examples))
    rows = PromptRows(batch_size=1, split=split, template=template, system=system, max_prompt_length=max_prompt_length)
    encode = _encoder(task, tokenizer, examples, rows)
    encoded = [encode(number) for number in range(min(n, len(examples)))]
    kept = [element for element, length in encoded if length.fits]
    wrong = len(encoded) - len(kept)
    if wrong and (too_long != "drop" or not kept):
        longest, others = max(length for _, length in encoded), " or leave them out by too_long='drop'"
        raise ValueError(
            f"{longest.what}; {wrong} of {len(encoded)} are too long: make room (model.max_length, or fewer new tokens)"
            f"{others if kept else ', for none is left'}"
        )
    return kept


def _encoder(
    task: Task, tokenizer: Tokenizer, examples: Sequence[Example], rows: PromptRows
) -> Callable[[int], tuple[dict[str, Any], Length]]:
    """From an example's number to the example with its prompt's ids, and their length beside its limit."""
    limit = rows.max_prompt_length

    def encode(number: int) -> tuple[dict[str, Any], Length]:
        example = examples[number]
        tokens = prompt_tokens(tokenizer, task.prompt(example), rows.template, rows.system)
        place = place_of(rows.split, number)
        what = f"the prompt of {place} has {len(tokens)} tokens, max_prompt_length is {limit}"
        return {"example": example, "tokens": tokens}, Length(len(tokens), limit, what)

    return encode


def _counted_list(mine: Callable[[list[Any]], list[Any]], batch: list[Any], times: int = 1) -> tuple[list[Any], Any]:
    """The like for lists."""
    dropped = sum(int(element["dropped"][0]) for element in batch)
    batch = [{name: element[name] for name in ("example", "tokens")} for element in batch]
    return mine(batch), NOTHING | {"read": (len(batch) + dropped) * times, "dropped": dropped}
