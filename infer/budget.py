"""How long a sample thinks: budget forcing, as data (s1, 2501.19393, section 3.1).

A sample first thinks and then answers. Where its thought comes to a maximum, the end of thinking is forced; where it
would end its thought too early, "Wait" takes the place of the end. infer/forcing.py does this in the compiled loop;
here is what is asked and what the loop reads.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, cast

import flax.struct
import numpy as np

from data.names import unknown_name
from data.tokenizers.base import Tokenizer
from data.tokenizers.decoding import Decoder, encode_after, some_visible, text_of, vocabulary_texts
from model.block import RUNNING_STATE
from model.config import ModelConfig

NO_LIMIT = 2**30
UNITS = ("tokens", "iterations")
PARTS = ("newline", "end", "final", "rest", "wait")  # of the forced tokens, in the order in which they lie


@dataclass(frozen=True)
class Delimiters:
    """The texts around a thought.

    `start` closes the prompt ("": the prompt opens the thought itself). `stop` is what the model writes where it ends
    its thought by itself; what `end` holds beyond `stop` is then forced. Where a thought is cut, `end` and `final` are,
    with `newline` on a line of their own. Raises ValueError unless `end` begins with `stop`.
    """

    start: str = "<think>"
    stop: str = "</think>"
    end: str = "</think>"
    final: str = ""
    newline: bool = False

    def __post_init__(self) -> None:
        if not self.stop or not self.end.startswith(self.stop):
            raise ValueError(f"end={self.end!r} must begin with stop={self.stop!r}, which must not be empty")


# Of s1: the delimiters are a token of the chat format and a word (data of simplescaling/s1).
DELIMITERS = {
    "think": Delimiters(),
    "opened": Delimiters(start=""),
    "s1": Delimiters("<|im_start|>think", "<|im_start|>", "<|im_start|>answer", "\nFinal Answer:", newline=True),
}


def delimiters_of(name: str, task: object = None) -> Delimiters:
    """The delimiters of a name in DELIMITERS, or the `delimiters` of a task ("task"); ValueError for neither."""
    if name == "task":
        own = getattr(task, "delimiters", None)
        if own is None:
            raise ValueError(f"the task has no delimiters of its own: name one of {', '.join(DELIMITERS)}")
        return Delimiters(**own)
    if name not in DELIMITERS:
        raise unknown_name("delimiters", name, (*DELIMITERS, "task"))
    return DELIMITERS[name]


MOST = 1 << 30  # of a number of a budget: they are 32 bits wide in the compiled sampler


@dataclass(frozen=True)
class Budget:
    """How long samples think, each of them a number, or one for every sample.

    `max_thinking`: own tokens of a thought after which its end is forced (0: no limit; what a "Wait" adds counts on).
    `waits`: how many times `wait` takes the place of the end of a thought. `unit` "iterations" counts those of a
    recurrent model in the place of tokens. Forced tokens and delimiters count as no thought. Raises ValueError for
    values out of range.
    """

    max_thinking: int | tuple[int, ...] = 0
    waits: int | tuple[int, ...] = 0
    delimiters: Delimiters = Delimiters()
    wait: str = "Wait"
    unit: str = "tokens"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise unknown_name("unit of a budget", self.unit, UNITS)
        for name in ("max_thinking", "waits"):
            value = getattr(self, name)
            numbers = np.asarray(value)
            if numbers.ndim > 1 or not np.issubdtype(numbers.dtype, np.integer) or numbers.min(initial=0) < 0:
                raise ValueError(f"{name} must be a whole number >= 0, or one for each sample; found {value!r}")
            if numbers.max(initial=0) > MOST:
                raise ValueError(f"{name} must be at most {MOST}, found {numbers.max()}")
            object.__setattr__(self, name, tuple(numbers.tolist()) if numbers.ndim else int(numbers))
        if isinstance(self.max_thinking, tuple) and 0 in self.max_thinking:
            raise ValueError("max_thinking is a budget of at least 1 for each sample; found 0 among them")
        if np.any(self.waits) and not self.wait:
            raise ValueError("waits needs a text to force: wait is empty")

    def by_sample(self, name: str, samples: int) -> np.ndarray:
        """`max_thinking` or `waits` of each sample [N] int32; ValueError where they are given for another number."""
        numbers = np.asarray(getattr(self, name), np.int32)
        if numbers.ndim and len(numbers) != samples:
            raise ValueError(f"budget.{name} has {len(numbers)} entries for {samples} samples; give one, or one each")
        return np.broadcast_to(numbers, (samples,))


@flax.struct.dataclass
class Forcing:
    """A budget as the compiled sampler reads it.

    `most`, `waits` [N] by sample; `script` [Q] all forced tokens, its parts in the order of PARTS, which begin at
    `at` [6] (the last entry is where they end). `progress` [m, V]: of the m characters of `stop`, how many have been
    read after a token that comes where a given number had been; m + b where that completes it, b of them in tokens
    before. `width` [V] characters of each token, `newline` [V] whether it ends a line.
    """

    most: Any
    waits: Any
    script: Any
    at: Any
    progress: Any
    width: Any
    newline: Any


def start_tokens(budget: Budget | None, tokenizer: Decoder | None) -> list[int]:
    """What every prompt is closed with."""
    if budget is None or not budget.delimiters.start:
        return []
    return _encoded("start", budget.delimiters.start, _needed(tokenizer))


def check_budget(budget: Budget, min_complete_groups: int, continuation: Any, recurrence: Any) -> None:
    """Raises ValueError where a budget is asked for with what it does not go with."""
    begun = continuation is not None and bool(np.any(continuation.lengths) or np.any(continuation.forced))
    if begun or min_complete_groups:
        other = "a continuation that has begun" if begun else f"min_complete_groups={min_complete_groups}"
        raise ValueError(f"a thinking budget is of whole samples: it does not go with {other}")
    if recurrence is not None and recurrence.warm_start and np.any(budget.waits):
        raise ValueError("a wait takes tokens back, and warm_start begins a token where the one before ended")


def forcing_of(sampling: Any, tokenizer: Decoder | None, samples: int, config: ModelConfig, *, drafts: bool) -> Forcing:
    """The budget of so many samples, of SamplingParams that have one, in arrays.

    Raises ValueError for delimiters that the tokenizer cannot produce, for budgets that leave no room for an answer
    within `max_new_tokens`, and for those that a model or its drafts cannot keep.
    """
    known, budget, max_new_tokens = _needed(tokenizer), sampling.budget, sampling.max_new_tokens
    marks = budget.delimiters
    texts = {
        "newline": "\n" if marks.newline else "",
        "end": marks.end,
        "final": marks.final,
        "rest": marks.end[len(marks.stop) :],
        "wait": budget.wait if np.any(budget.waits) else "",
    }
    parts = {name: _encoded(name, texts[name], known) if texts[name] else [] for name in PARTS}
    stop = _encoded("stop", marks.stop, known)
    check_kind(budget, len(stop), config, drafts=drafts)
    most, waits = budget.by_sample("max_thinking", samples), budget.by_sample("waits", samples)
    added = len(parts["newline"]) + len(parts["end"]) + len(parts["final"])
    added += int(waits.max()) * (len(parts["wait"]) + len(stop) - 1)
    if budget.unit == "tokens" and most.any() and int(most.max()) + added >= max_new_tokens:
        raise ValueError(
            f"a thought of up to {int(most.max())} tokens and {added} forced ones leave no room for an answer within"
            f" max_new_tokens={max_new_tokens}: raise that, or lower the budget"
        )
    tables = vocabulary(known, marks.stop, config.vocab_size)
    script = [token for name in PARTS for token in parts[name]]
    return Forcing(
        most=np.where(most > 0, most, NO_LIMIT).astype(np.int32),
        waits=waits.astype(np.int32),
        # Few lengths, each a program.
        script=np.pad(np.asarray(script, np.int32), (0, -len(script) % 16)),
        at=np.cumsum([0, *(len(parts[name]) for name in PARTS)]).astype(np.int32),
        **tables,
    )


def check_kind(budget: Budget, stop_tokens: int, config: ModelConfig, *, drafts: bool) -> None:
    """Raises ValueError where the model, or its drafts, cannot be held to such a budget."""
    if budget.unit == "iterations" and config.depth != "recurrent":
        raise ValueError("a budget of iterations is for recurrent models, and this one is a plain stack")
    running = sorted(set(config.per_layer("mixer")) & set(RUNNING_STATE))
    kept = f"the running state of mixer {running[0]!r}" if running else "a draft" if drafts else ""
    if stop_tokens > 1 and kept and np.any(budget.waits):
        raise ValueError(
            f"stop={budget.delimiters.stop!r} is {stop_tokens} tokens, which a wait takes back, and {kept} does not:"
            " make it one token (tokenizer.specials)"
        )


def _needed(tokenizer: Decoder | None) -> Tokenizer:
    if not hasattr(tokenizer, "encode"):
        raise ValueError("a budget's delimiters are texts: give generate(..., tokenizer=...) one that encodes")
    return cast(Tokenizer, tokenizer)


def _encoded(name: str, text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a delimiter inside a text; ValueError unless they have that very text."""
    anchor = some_visible(tokenizer)
    try:
        ids = encode_after(text, tokenizer, anchor)
        made = text_of(ids, tokenizer, anchor)
    except ValueError as error:
        raise ValueError(f"the tokenizer cannot produce {name}={text!r}: {error}") from None
    if made != text:
        raise ValueError(f"the tokenizer cannot produce {name}={text!r}: its tokens read {made!r}")
    return ids


@functools.lru_cache(maxsize=8)
def _tables(tokenizer: Any, stop: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    texts = [*vocabulary_texts(tokenizer)[:size], *[""] * max(size - tokenizer.vocab_size, 0)]
    inside = [i for i, text in enumerate(texts) if set(text) & set(stop)]
    table = np.zeros((len(stop), size), np.int16)
    for read in range(len(stop)):
        for i in inside:
            table[read, i] = _after(stop, read, texts[i])
    # A token without a text (half a character) leaves what was read as it is.
    empty = [i for i, text in enumerate(texts) if not text]
    table[:, empty] = np.arange(len(stop), dtype=np.int16)[:, None]
    width = np.array([len(text) for text in texts], np.int32)
    return table, width, np.array([text.endswith("\n") for text in texts])


def _after(stop: str, read: int, text: str) -> int:
    """Characters of `stop` read after `text`, of which `read` had been; len(stop) + b where it is complete."""
    whole = stop[:read] + text
    at = whole.find(stop)
    if at >= 0:
        return len(stop) + max(read - at, 0)
    longest = min(len(whole), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if whole.endswith(stop[:n]))


def vocabulary(tokenizer: Tokenizer, stop: str, size: int) -> dict[str, np.ndarray]:
    """The tables of `Forcing` over a model's vocabulary: `progress`, `width`, `newline`."""
    return dict(zip(("progress", "width", "newline"), _tables(cast(Any, tokenizer), stop, size), strict=True))


def of_samples(forcing: Forcing, samples: np.ndarray) -> Forcing:
    """The forcing of some samples, by their numbers [S]."""
    return replace(forcing, most=forcing.most[samples], waits=forcing.waits[samples])
