"""What `generate` is asked, checked before anything is compiled, and as the compiled half wants it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from infer.draft import Drafting
from infer.prefill import RecurrenceSpec
from model.checks import check_ids
from model.config import ModelConfig
from model.exit import Exit
from model.lm import Model, check_replay
from model.parts import unknown

RECURRENT = ("mingru", "minlstm")
WARM_STARTS = ("", "raw", "normed")
EXPECTED = "prompts must be lists of token ids, one for each prompt (or an array of integers, [prompts, length])"


def prompt_rows(prompts: Any) -> list[np.ndarray]:
    """Prompts as arrays of token ids; raises ValueError, saying what was found, for anything else."""
    shape = getattr(prompts, "shape", None)
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable) or (shape is not None and len(shape) != 2):
        found = repr(prompts)[:60] if shape is None else f"an array of shape {list(shape)}"
        raise ValueError(f"{EXPECTED}; found {found}")
    rows = [_prompt(n, prompt) for n, prompt in enumerate(prompts if shape is None else np.asarray(prompts))]
    if not rows:
        raise ValueError(f"{EXPECTED}, with at least one token each; found no prompt")
    return rows


def known_prompts(config: ModelConfig, prompts: Any) -> list[np.ndarray]:
    """The like for prompts of which the model must know every id."""
    rows = prompt_rows(prompts)
    for n, ids in enumerate(rows):
        check_ids(config, ids, f"prompts[{n}]")
    return rows


def _prompt(number: int, prompt: Any) -> np.ndarray:
    if isinstance(prompt, str | bytes):
        raise ValueError(f"{EXPECTED}; prompt {number} is the text {prompt[:40]!r}: encode it with the tokenizer")
    try:
        ids = np.asarray(prompt)
    except ValueError:  # rows of different lengths inside
        ids = np.asarray(prompt, object)
    if not ids.ndim:
        raise ValueError(
            f"{EXPECTED}; found {prompt!r} as prompt {number} (a single prompt is [ids], a list in a list)"
        )
    if not ids.size:
        raise ValueError(f"every prompt needs at least one token; prompt {number} has none")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{EXPECTED}; prompt {number} is of dtype {ids.dtype} and shape {list(ids.shape)}")
    return ids


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


def resolve_recurrence(
    model: Model,
    samples: int,
    depth: Any,
    max_depth: int,
    exit: Exit | str | None,
    warm_start: str,
    drafting: Drafting | None = None,
) -> tuple[RecurrenceSpec | None, np.ndarray | None]:
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
    whole = np.issubdtype(found.dtype, np.integer)
    if not whole or found.ndim > 1 or (found.ndim and len(found) != samples) or found.min() < 1:
        raise ValueError(f"depth is a number from 1 up, or one for each of {samples} samples; found {depth}")
    if max_depth and (not found.ndim or found.max() > max_depth):
        raise ValueError(f"max_depth={max_depth} bounds depths that differ by sample; found depth={depth}")
    recurrence = RecurrenceSpec(max_depth or int(found.max()), bool(found.ndim), exit, warm_start)
    return recurrence, found.astype(np.int32) if found.ndim else None


def what_stops(config: ModelConfig, stop: Any, tokenizer: object | None) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The ids and the strings among what stops a sample; raises ValueError for those that nothing could match."""
    if isinstance(stop, str) or not isinstance(stop, Iterable):
        raise ValueError(f"stop is a sequence of token ids and strings, found {stop!r}: write ({stop!r},)")
    strings = tuple(s for s in stop if isinstance(s, str))
    others = [s for s in stop if not isinstance(s, str)]
    wrong = [s for s in others if np.ndim(s) or not np.issubdtype(np.asarray(s).dtype, np.integer)]
    if wrong:
        raise ValueError(f"stop holds token ids and strings, found {wrong[0]!r} among them")
    ids = tuple(int(s) for s in others)
    unknown_ids = [s for s in ids if not 0 <= s < config.vocab_size]
    if unknown_ids:
        raise ValueError(f"stop holds the id {unknown_ids[0]}, but the model predicts ids 0..{config.vocab_size - 1}")
    if strings and tokenizer is None:
        raise ValueError(f"stop strings {strings} are matched on text: give generate(..., tokenizer=...)")
    if "" in strings:
        raise ValueError("an empty stop string would stop every text at once; leave it out")
    return ids, strings
