"""What a strategy is, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from data.sources.examples import Example
from data.verify.pool import Judge, judge_of
from data.verify.verdict import Verdict
from infer.asking import Asker, Candidates, TaskSpec
from infer.budget import Budget, delimiters_of
from infer.draft import Draft
from infer.recurrence import Recurrence
from infer.sampling import SamplingParams
from infer.strategies.votes import members
from settings.strategies import Sample, strategy_options

Reward = Callable[[Sequence[Example], Sequence[str]], np.ndarray]  # (examples [N], texts [N]) -> scores [N]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to answer with more compute: its `name` and `options` (settings/strategies.py), what is asked and who
    judges (`spec`), how is sampled (`sampling`, `n` candidates an example), and a `reward` model where it needs one.
    """

    name: str
    options: Sample
    spec: TaskSpec
    sampling: SamplingParams
    recurrence: Recurrence | None = None
    draft: Draft | None = None
    reward: Reward | None = None


def build_strategy(
    name: str,
    spec: TaskSpec,
    sampling: SamplingParams,
    *,
    recurrence: Recurrence | None = None,
    draft: Draft | None = None,
    reward: Reward | None = None,
    **options: Any,
) -> Strategy:
    """The strategy of a name in STRATEGIES; ValueError for unknown names and options, and for values out of range.

    What its options say of thinking becomes `sampling.budget`, unless that is given.
    """
    chosen = strategy_options(name, options)
    sampling = budgeted(sampling, chosen, spec.task)
    if getattr(chosen, "scorer", getattr(chosen, "weights", "")) == "reward" and reward is None:
        raise ValueError(
            f"strategy {name!r} scores by a reward model: give --reward_model (eval.reward_model; reward= in Python)"
        )
    return Strategy(name, chosen, spec, sampling, recurrence, draft, reward)


def budgeted(sampling: SamplingParams, options: Sample, task: object = None) -> SamplingParams:
    """The sampling with the thinking budget that options ask for, unless it has one."""
    if sampling.budget is not None or not (options.max_thinking or options.waits):
        return sampling
    marks = delimiters_of(options.delimiters, task)
    budget = Budget(options.max_thinking, options.waits, marks, options.wait, options.unit)
    return dataclasses.replace(sampling, budget=budget)


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers to E examples, each chosen among candidates.

    `candidates` N in all; `chosen` [E] the place of each answer among them; `scores` [N] that it was chosen by, NaN
    where nothing was scored; `support` [E] the share of the votes, or the score, of the chosen; `verdicts` [N] where
    they were needed; `calls` of the verifier or reward model; `notes` {example: what went otherwise than asked};
    `seconds`; `voted`: `support` is a share of votes; `every`: all candidates are answers of their own right; `pruned`
    [E] own tokens drawn for what is no candidate any more; `nodes` of a search.
    """

    candidates: Candidates
    chosen: np.ndarray
    scores: np.ndarray
    support: np.ndarray
    verdicts: tuple[Verdict, ...] | None = None
    calls: int = 0
    notes: dict[int, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    every: bool = False
    voted: bool = False
    pruned: np.ndarray | None = None
    nodes: int = 0

    @property
    def texts(self) -> list[str]:
        """The answers [E]."""
        return [self.candidates.texts[place] for place in self.chosen]

    @property
    def thought(self) -> np.ndarray:
        """Own tokens of thoughts spent on each example [E]."""
        return self._by_example(self.candidates.thought)

    @property
    def written(self) -> np.ndarray:
        """Other own tokens spent on each example [E], pruned ones included."""
        return self._by_example(self.candidates.written) + (0 if self.pruned is None else self.pruned)

    @property
    def forced(self) -> np.ndarray:
        """Forced tokens of each example [E]."""
        return self._by_example(self.candidates.forced)

    def _by_example(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.candidates.example_of, values, len(self.chosen)).astype(np.int64)


def plain_answers(candidates: Candidates, **more: Any) -> Answers:
    """The first candidate of each example answers; nothing is scored."""
    first = np.array([rows[0] for rows in members(candidates.example_of, len(candidates.texts))])
    count = len(candidates.texts)
    return Answers(candidates, first, np.full(count, np.nan), np.full(len(first), np.nan), **more)


def asker_of(strategy: Strategy, model: Any, params: Any) -> Asker:
    """A model that is asked as a strategy says."""
    return Asker(model, params, strategy.spec, strategy.sampling, strategy.recurrence, strategy.draft)


@contextmanager
def judging(spec: TaskSpec) -> Iterator[Judge]:
    """The judge of what is asked: its own, which stays open, or the task's."""
    if spec.judge:
        yield spec.judge
        return
    with judge_of(spec.task) as judge:
        yield judge
