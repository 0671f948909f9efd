"""What to sample and how, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from infer.budget import Budget


def at_least(name: str, value: int, least: int) -> None:
    """Raises ValueError unless `value` is >= `least`."""
    if value < least:
        raise ValueError(f"{name} must be >= {least}, found {value}")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How samples are computed; what is sampled does not depend on it.

    `slots`: rows decoded at once (0: one per sample); further samples wait in a queue. `chunk`: decode steps between
    two polls of the host. `shrink`: where few samples are left and may take long, they go on in so many times fewer
    slots, a program of its own (0: they do not). `routes`: the rollout records which experts every token was sent to.
    `min_complete_groups`: sampling stops soon after so many prompts have all their samples (0: when all have); the
    others are returned as far as they are (`Rollout.partial`). `progress(finished, total)` is called every chunk.
    Raises ValueError for numbers out of range.
    """

    slots: int = 0
    chunk: int = 16
    shrink: int = 4
    routes: bool = False
    min_complete_groups: int = 0
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        for name, least in (("slots", 0), ("chunk", 1), ("shrink", 0), ("min_complete_groups", 0)):
            at_least(name, getattr(self, name), least)


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """What is sampled after each prompt: at most `max_new_tokens` tokens, `n` samples a prompt.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep all tokens, `min_p` those of at least that share of the
    likeliest token's probability. `stop` holds token ids and strings (which need a tokenizer); the token that
    completes one is the last of its sample. `budget`: how long samples think before they answer (it needs a tokenizer;
    stop strings and ids then end answers alone). `execution`: how this is computed. Hashable. Raises ValueError for
    values out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[int | str, ...] = ()
    n: int = 1
    execution: Execution = Execution()
    budget: Budget | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", stops_of(self.stop))
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("n", 1)):
            at_least(name, getattr(self, name), least)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be >= 0 and finite, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], found {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must be in [0, 1), found {self.min_p}")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token ids of `stop`."""
        return tuple(s for s in self.stop if not isinstance(s, str))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings of `stop`."""
        return tuple(s for s in self.stop if isinstance(s, str))

    @property
    def truncation(self) -> Truncation:
        """What of it a compiled program depends on."""
        return Truncation(self.temperature == 0, self.top_k, self.top_p, self.min_p)


def stops_of(stop: Any) -> tuple[int | str, ...]:
    """Token ids and strings as a tuple; raises ValueError for anything else."""
    if isinstance(stop, str) or not isinstance(stop, Iterable):
        raise ValueError(f"stop is a sequence of token ids and strings, found {stop!r}: write ({stop!r},)")
    entries = tuple(stop)
    ids = [s for s in entries if not isinstance(s, str)]
    wrong = [s for s in ids if np.ndim(s) or not np.issubdtype(np.asarray(s).dtype, np.integer)]
    if wrong:
        raise ValueError(f"stop holds token ids and strings, found {wrong[0]!r} among them")
    if "" in entries:
        raise ValueError("an empty stop string would stop every text at once; leave it out")
    return tuple(s if isinstance(s, str) else int(s) for s in entries)


@dataclasses.dataclass(frozen=True)
class Truncation:
    """Which tokens may be drawn: static, so that each combination compiles once. `greedy` is temperature 0."""

    greedy: bool = False
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
