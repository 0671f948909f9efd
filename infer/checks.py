"""What `generate` is asked, checked before anything is compiled, and as the compiled half wants it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from infer.sampling import SamplingParams, at_least
from model.checks import check_ids
from model.config import ModelConfig
from model.lm import Model

EXPECTED = "{0}s must be lists of token ids, one for each {0} (or an array of integers, [{0}s, length])"


def prompt_rows(prompts: Any, what: str = "prompt") -> list[np.ndarray]:
    """Prompts (or `what` they are) as arrays of token ids; raises ValueError with what was found for anything else."""
    shape, expected = getattr(prompts, "shape", None), EXPECTED.format(what)
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable) or (shape is not None and len(shape) != 2):
        found = repr(prompts)[:60] if shape is None else f"an array of shape {list(shape)}"
        raise ValueError(f"{expected}; found {found}")
    rows = [_prompt(n, prompt, what) for n, prompt in enumerate(prompts if shape is None else np.asarray(prompts))]
    if not rows:
        raise ValueError(f"{expected}, with at least one token each; found no {what}")
    return rows


def known_prompts(config: ModelConfig, prompts: Any, what: str = "prompt") -> list[np.ndarray]:
    """The like for prompts of which the model must know every id."""
    rows = prompt_rows(prompts, what)
    for n, ids in enumerate(rows):
        check_ids(config, ids, f"{what}s[{n}]")
    return rows


def _prompt(number: int, prompt: Any, what: str) -> np.ndarray:
    expected = EXPECTED.format(what)
    if isinstance(prompt, str | bytes):
        raise ValueError(f"{expected}; {what} {number} is the text {prompt[:40]!r}: encode it with the tokenizer")
    try:
        ids = np.asarray(prompt)
    except ValueError:  # rows of different lengths inside
        ids = np.asarray(prompt, object)
    if not ids.ndim:
        raise ValueError(
            f"{expected}; found {prompt!r} as {what} {number} (a single {what} is [ids], a list in a list)"
        )
    if not ids.size:
        raise ValueError(f"every {what} needs at least one token; {what} {number} has none")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{expected}; {what} {number} is of dtype {ids.dtype} and shape {list(ids.shape)}")
    return ids


def check_room(model: Model, longest: int, max_new_tokens: int) -> None:
    """Raises ValueError unless the longest prompt and the new tokens fit into the model's context."""
    room = model.config.max_length
    at_least("max_new_tokens", max_new_tokens, 1)
    if longest + max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the model's context of {room};"
            " shorten the prompt, ask for fewer tokens or raise model.max_length"
        )


def check_stops(config: ModelConfig, sampling: SamplingParams, tokenizer: object | None) -> None:
    """Raises ValueError for what can stop no sample."""
    unknown_ids = [s for s in sampling.stop_ids if not 0 <= s < config.vocab_size]
    if unknown_ids:
        raise ValueError(f"stop holds the id {unknown_ids[0]}, but the model predicts ids 0..{config.vocab_size - 1}")
    if sampling.stop_strings and tokenizer is None:
        raise ValueError(f"stop strings {sampling.stop_strings} are matched on text: give generate(..., tokenizer=...)")
