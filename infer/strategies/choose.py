"""Strategies that sample an example several times and choose: plain sampling, majority votes, the best of n."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from data.verify.pool import Judge
from data.verify.verdict import Verdict
from infer.asking import Asker, Candidates, asked_of, joined, prompts_of
from infer.sampler import Rollout
from infer.scoring import score
from infer.strategies.base import Answers, Strategy, judging, plain_answers
from infer.strategies.votes import best_of, decided, label_answers, majority, or_first, softmax_weights, tally
from infer.thoughts import thoughts_of
from settings.strategies import BestOfN, Majority

Examples = Sequence[dict[str, Any]]


def sample(strategy: Strategy, asker: Asker, examples: Examples, key: jax.Array) -> Answers:
    """Every sample is an answer; of an example with several, the first is chosen."""
    candidates = asker.candidates(asker.rollout(prompts_of(examples), key))
    return dataclasses.replace(plain_answers(candidates), every=True)


def best(strategy: Strategy, asker: Asker, examples: Examples, key: jax.Array) -> Answers:
    """The candidate with the best score answers; of several the first."""
    options = strategy.options
    assert isinstance(options, BestOfN)
    rollout = asker.rollout(prompts_of(examples), key)
    candidates = asker.candidates(rollout)
    scores, verdicts, calls = scored(strategy, asker, examples, candidates, rollout, options.scorer)
    chosen = best_of(scores, candidates.example_of)
    return Answers(candidates, chosen, scores, scores[chosen], verdicts, calls)


def vote(strategy: Strategy, asker: Asker, examples: Examples, key: jax.Array) -> Answers:
    """The answer of most candidates; two that the task takes for one count together.

    With `at_once`, so many are drawn of each example at a time, and none of those whose vote can no longer change. A
    sample's noise is that of its number, so the candidates are among those of a vote that was not stopped.
    """
    options, spec = strategy.options, strategy.spec
    assert isinstance(options, Majority)
    weights, calls = None, 0
    with judging(spec) as judge:
        if options.weights:
            rollout = asker.rollout(prompts_of(examples), key)
            candidates = asker.candidates(rollout)
            scores, _, calls = scored(strategy, asker, examples, candidates, rollout, options.weights)
            weights = softmax_weights(scores, candidates.example_of)
            ballot = read(strategy, judge, examples, candidates)
        else:
            candidates, ballot = counted(strategy, judge, asker, examples, key)
    chosen, share = majority(ballot.labels, candidates.example_of, weights)
    chosen, notes = or_first(chosen, candidates.example_of)
    votes = np.ones(len(ballot.labels)) if weights is None else weights
    return Answers(candidates, chosen, votes, share, ballot.verdicts, calls, notes, voted=True)


class Ballot(NamedTuple):
    """Which candidates of an example gave the same answer, `labels` [N], -1 for none, and the verdicts they were read
    from.
    """

    labels: np.ndarray
    verdicts: tuple[Verdict, ...]


def read(
    strategy: Strategy, judge: Judge, examples: Examples, candidates: Candidates, known: tuple[Verdict, ...] = ()
) -> Ballot:
    """The ballot of all candidates, of which the first are `known`."""
    new = slice(len(known), None)
    verdicts = (*known, *judge(asked_of(examples, candidates)[new], candidates.texts[new]))
    parsed = [verdict.parsed for verdict in verdicts]
    return Ballot(label_answers(strategy.spec.task, judge, parsed, candidates.example_of).labels, verdicts)


def counted(
    strategy: Strategy, judge: Judge, asker: Asker, examples: Examples, key: jax.Array
) -> tuple[Candidates, Ballot]:
    """Candidates of equal votes, drawn round by round until no vote can change."""
    assert isinstance(strategy.options, Majority)
    n, prompts = strategy.sampling.n, prompts_of(examples)
    each, drawn = strategy.options.at_once or n, 0
    contested, parts, ballot = np.arange(len(examples)), list[Candidates](), Ballot(np.zeros(0, int), ())
    while len(contested) and drawn < n:
        count = min(each, n - drawn)
        numbers = None if count == n else (contested[:, None] * n + drawn + np.arange(count)).reshape(-1)
        sampling = dataclasses.replace(strategy.sampling, n=count)
        rollout = asker.rollout([prompts[e] for e in contested], key, sampling, numbers=numbers)
        parts.append(asker.candidates(rollout, contested))
        candidates, drawn = joined(parts), drawn + count
        ballot = read(strategy, judge, examples, candidates, ballot.verdicts)
        of = candidates.example_of
        open_ = [e for e in contested if not decided(tally(ballot.labels[of == e]).values(), n - drawn)]
        contested = np.array(open_, int)
    return candidates, ballot


def scored(
    strategy: Strategy, asker: Asker, examples: Examples, candidates: Candidates, rollout: Rollout, scorer: str
) -> tuple[np.ndarray, tuple[Verdict, ...] | None, int]:
    """Scores of the candidates [N] by a name in SCORERS, the verdicts where those are they, and how many were asked."""
    if scorer in ("logp", "mean_logp"):
        return candidates.logps / (np.maximum(candidates.own, 1) if scorer == "mean_logp" else 1), None, 0
    if scorer == "self_certainty":
        return certainty(asker, rollout), None, 0
    asked = asked_of(examples, candidates)
    if scorer == "verifier":
        with judging(strategy.spec) as judge:
            verdicts = tuple(judge(asked, candidates.texts))
        return np.array([verdict.score for verdict in verdicts]), verdicts, len(verdicts)
    assert strategy.reward is not None
    scores = np.asarray(strategy.reward(asked, candidates.texts), np.float64)
    if scores.shape != (len(asked),):
        raise ValueError(f"the reward model gave scores of shape {scores.shape} for {len(asked)} candidates")
    if np.isnan(scores).any():
        raise ValueError(
            f"the reward model gave NaN for the answer {candidates.texts[int(np.isnan(scores).argmax())]!r}"
        )
    return scores, None, len(asked)


def certainty(asker: Asker, rollout: Rollout) -> np.ndarray:
    """The mean self-certainty of each sample's tokens [N] (2502.18581)."""
    prompts = [row[mask.astype(bool)] for row, mask in zip(rollout.prompts, rollout.prompt_mask, strict=True)]
    completions = [row[:length] for row, length in zip(rollout.tokens, rollout.lengths, strict=True)]
    found = score(
        asker.model,
        asker.params,
        [prompts[group] for group in rollout.group_of],
        completions,
        recurrence=asker.recurrence,
        thoughts=thoughts_of(asker.spec.ending),
    )
    return found.self_certainty.sum(1) / np.maximum(found.lengths, 1)
