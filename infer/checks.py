"""What `generate` is asked, checked before anything is compiled, and as the compiled half wants it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from infer.draft import Drafting
from infer.prefill import Thinking
from model.exit import Exit
from model.lm import Model, check_replay
from model.parts import unknown

RECURRENT = ("mingru", "minlstm")
WARM_STARTS = ("", "raw", "normed")


def check_room(model: Model, longest: int, max_new_tokens: int) -> None:
    """Raises ValueError unless the longest prompt and the new tokens fit into the model's context."""
    room = model.config.max_length
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if longest + max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the model's context of {room};"
            " shorten the prompt, ask for fewer tokens or raise model.max_length"
        )


def check_ids(model: Model, tokens: np.ndarray) -> None:
    """Raises ValueError for token ids that the model has no embedding for."""
    size = model.config.vocab_size
    known = size + size * size if model.config.pairs else size
    wrong = tokens[(tokens < 0) | (tokens >= known)]
    if wrong.size:
        raise ValueError(f"the prompts hold the id {wrong[0]}, but the model's vocabulary has {known} ids")


def check_numbers(temperature: float, samples_per_prompt: int, slots: int | None) -> None:
    """Raises ValueError for numbers that no sampler can have."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a number from 0 (greedy) up, found {temperature}")
    if samples_per_prompt < 1:
        raise ValueError(f"samples_per_prompt must be at least 1, found {samples_per_prompt}")
    if slots is not None and slots < 0:
        raise ValueError(f"slots must be at least 1, or 0 for one per sample; found {slots}")


def check_thoughts(tokens: np.ndarray, mask: np.ndarray, thoughts: int, after: int) -> None:
    """Raises ValueError unless all prompts, left-padded, end in a token, `thoughts` latent tokens and `after` more."""
    if not thoughts:
        return
    width = tokens.shape[1]
    first = width - after - thoughts
    if min(thoughts, after) < 0 or first < 1 or not mask[:, first - 1].all():
        raise ValueError(f"thoughts={thoughts}, after={after}: every prompt needs a token before its thoughts")
    places = np.unique(tokens[:, first : first + thoughts])
    if len(places) > 1:
        raise ValueError(
            f"thoughts={thoughts}, but prompts do not end in so many latent tokens and {after} more: the tokens"
            f" there are {places[:5].tolist()}; append data.thoughts.Ending.tokens to each"
        )


def check_routes(model: Model, drafting: Drafting | None, thoughts: int) -> None:
    """Raises ValueError where choices of experts cannot be recorded."""
    check_replay(model.config)
    if drafting or thoughts:
        raise ValueError("routes are kept of tokens fed one by one: they go with neither drafts nor thoughts")


def check_pieces(drafting: Drafting | None, thoughts: int, routes: bool, budget: Any, waves: int) -> None:
    """Raises ValueError for what samples that are interrupted do not go with."""
    if drafting or thoughts or routes or budget is not None:
        raise ValueError(
            "begun and enough interrupt samples: they go with neither drafts, thoughts, routes nor depths of each"
        )
    if waves > 1:
        raise ValueError("begun and enough need all prompts at once: give slots for at least a quarter of the samples")


def drafting_of(model: Model, draft: bool, depth: int, length: int) -> Drafting | None:
    """How tokens are guessed ahead, or None; raises ValueError where the model cannot."""
    if not (draft or depth):
        return None
    if draft and depth:
        raise ValueError(f"draft=True and draft_depth={depth} are two ways of guessing: give one")
    if draft and not model.config.mtp.depth:
        raise ValueError("draft=True guesses with a module of multi-token prediction; this model has mtp.depth=0")
    if depth and (model.config.depth != "recurrent" or depth < 1 or length < 1):
        raise ValueError(
            f"draft_depth={depth}, draft_length={length}: guessing with few iterations takes a recurrent model and"
            " numbers of at least 1"
        )
    recurrent = set(model.config.per_layer("mixer")) & set(RECURRENT)
    if recurrent:
        raise ValueError(
            f"drafts take wrong guesses back, which the running state of mixer {sorted(recurrent)[0]!r} cannot"
        )
    return Drafting(length, depth) if depth else Drafting()


def how_to_think(
    model: Model,
    samples: int,
    depth: Any,
    max_depth: int,
    exit: Exit | str | None,
    warm_start: str,
    drafting: Drafting | None = None,
) -> tuple[Thinking | None, np.ndarray | None]:
    """How a recurrent model decodes, and the iterations of every sample [N] where they vary; None for a plain stack.

    Raises ValueError for what the model or the drafting cannot do.
    """
    if model.config.depth != "recurrent":
        for name, value in (("depth", depth), ("exit", exit), ("warm_start", warm_start or None)):
            if value is not None:
                raise ValueError(f"{name}={value} was given to a plain stack, which has no depth to choose")
        return None, None
    exit = Exit(exit) if isinstance(exit, str) else exit
    if warm_start not in WARM_STARTS:
        raise ValueError(unknown("warm_start", warm_start, WARM_STARTS))
    if drafting and (exit or warm_start):
        raise ValueError("a draft is checked several tokens at once: it goes with neither exit nor warm_start")
    recurrent = sorted(set(model.config.per_layer("mixer")) & set(RECURRENT))
    if exit and recurrent:
        raise ValueError(f"exit leaves iterations out, which the running state of mixer {recurrent[0]!r} needs")
    found = np.asarray(model.config.recurrent.mean if depth is None else depth)
    if found.min() < 1 or found.ndim > 1 or (found.ndim and len(found) != samples):
        raise ValueError(f"depth is a number from 1 up, or one for each of {samples} samples; found {depth}")
    if max_depth and (not found.ndim or found.max() > max_depth):
        raise ValueError(f"max_depth={max_depth} bounds depths that differ by sample; found depth={depth}")
    thinking = Thinking(max_depth or int(found.max()), bool(found.ndim), exit, warm_start)
    return thinking, found.astype(np.int32) if found.ndim else None


def stop_strings(stop: Sequence[int | str], tokenizer: object | None) -> tuple[str, ...]:
    """The strings among what stops a sample; raises ValueError for those that cannot be matched."""
    strings = tuple(s for s in stop if isinstance(s, str))
    if strings and tokenizer is None:
        raise ValueError(f"stop strings {strings} are matched on text: give generate(..., tokenizer=...)")
    if "" in strings:
        raise ValueError("an empty stop string would stop every text at once; leave it out")
    return strings
