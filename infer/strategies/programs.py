"""Programs chosen by what they answer to generated inputs (o1-ioi, 2502.06807, with one submission)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import jax
import numpy as np

from data.sources.examples import Example
from data.tasks.base import Task
from data.verify.pool import Judge
from infer.asking import Asker, Candidates, asked_of, prompts_of
from infer.strategies.base import Answers, Strategy, judging
from infer.strategies.choose import scored
from infer.strategies.clusters import Weights, clusters, numbered
from infer.strategies.submissions import Evidence, Rule, submit
from infer.strategies.votes import members
from settings.strategies import Clusters


class Programs(Task, Protocol):
    """A task whose answers are programs (data/tasks/coding.py)."""

    def public(self, example: Example) -> Example | None:
        """The example with those tests alone that its prompt shows; None where it shows none."""

    def inputs(self, example: Example, rng: np.random.Generator, count: int) -> list[Any]:
        """So many generated inputs, or none."""

    def outputs(self, example: Example, text: str, inputs: Sequence[Any]) -> list[str | None]:
        """What an answer gives for each input, None where it fails."""


def cluster(strategy: Strategy, asker: Asker, examples: Sequence[dict[str, Any]], key: jax.Array) -> Answers:
    """The top sample of the top cluster: of the programs that give the same outputs on all inputs.

    Raises ValueError for a task whose answers are no programs.
    """
    options, task = strategy.options, _programs(strategy)
    assert isinstance(options, Clusters)
    rollout = asker.rollout(prompts_of(examples), key)
    candidates = asker.candidates(rollout)
    scores, _, calls = (
        scored(strategy, asker, examples, candidates, rollout, options.scorer)
        if options.scorer
        else (np.zeros(len(candidates.texts)), None, 0)
    )
    with judging(strategy.spec) as judge:
        failed, judged = failed_public(task, judge, asked_of(examples, candidates), candidates)
    rule = Rule(Weights(errors=options.errors, public=options.public, size=options.size))
    chosen, support, notes = list[int](), list[float](), dict[int, str]()
    for number, rows in enumerate(members(candidates.example_of, len(candidates.texts))):
        example = examples[number]["example"]
        outputs = run_all(task, example, [candidates.texts[row] for row in rows], options.inputs, number)
        if not outputs.shape[1]:
            notes[number] = "no inputs could be made from its tests: all programs are one cluster"
        best = _top(outputs, scores[rows], failed[rows], rule)
        cluster_of = clusters(outputs)
        chosen.append(int(rows[best]))
        support.append(float((cluster_of == cluster_of[best]).mean()))
    return Answers(candidates, np.array(chosen), scores, np.array(support), None, calls + judged, notes, voted=True)


def failed_public(
    task: Programs, judge: Judge, asked: Sequence[Example], candidates: Candidates
) -> tuple[np.ndarray, int]:
    """Which candidates [N] fail the tests that their prompt shows (0.0 or 1.0), and how many were judged."""
    shown = [task.public(example) for example in asked]
    rows = [row for row, example in enumerate(shown) if example is not None]
    failed = np.zeros(len(asked))
    verdicts = judge([cast(Example, shown[row]) for row in rows], [candidates.texts[row] for row in rows])
    failed[rows] = [1.0 - verdict.score for verdict in verdicts]
    return failed, len(rows)


def run_all(task: Programs, example: Example, texts: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Numbers of the outputs of all answers to an example [S, I] on generated inputs; each text is run once."""
    inputs = task.inputs(example, np.random.default_rng(seed), count)
    if not inputs:
        return np.zeros((len(texts), 0), np.int64)
    known = {text: task.outputs(example, text, inputs) for text in dict.fromkeys(texts)}
    return numbered([known[text] for text in texts])


def _top(outputs: np.ndarray, scores: np.ndarray, failed: np.ndarray, rule: Rule) -> int:
    samples, inputs = outputs.shape
    one = np.zeros(samples, np.int64)
    evidence = Evidence(outputs, one, np.ones((1, inputs), bool), np.zeros((1, 1), bool), scores, failed)
    return submit(evidence, lambda _: np.zeros(1, bool), rule, 1)[0].sample


def _programs(strategy: Strategy) -> Programs:
    task = strategy.spec.task
    if not hasattr(task, "outputs"):
        kind = type(task).__name__
        raise ValueError(
            f"strategy clusters runs answers that are programs (mbpp, humaneval, contest), {kind}'s are not"
        )
    return cast(Programs, task)
