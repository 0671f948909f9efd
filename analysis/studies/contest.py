"""Simulated problems with subtasks, and a proposer of programs that is right with a known probability.

A problem is an expression in pieces: subtask t holds the x up to its limit, and every further piece is needed for one
subtask more. A sample for a subtask writes its pieces one by one, each right with the probability of its difficulty;
a wrong one is the right one with a few places changed. Beyond its subtask's limit a sample says whatever it likes, so
inputs that break the limit tell right samples apart, and validators have to find these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from itertools import count

import numpy as np

from data.expressions import Expression, change, choose, draw, evaluate
from infer.strategies.clusters import FAILED, kept_inputs
from infer.strategies.submissions import Evidence

MOST_TRIES = 100
LARGEST_TAIL = 1000  # what a sample says beyond its limit is a number up to this


@dataclasses.dataclass(frozen=True)
class Contest:
    """What problems are like, subtasks from the easiest on.

    `limits`: the largest x of each. `depths`: of the pieces' expressions. `right`: the probability that a sample has a
    piece right; of a whole sample it is the product. `changes`: the mean number of changed places in a wrong piece.
    `popular`: the share of wrong pieces that are the same wrong one. `samples`, `inputs`: for each subtask. `invalid`:
    the share of generated inputs beyond the limit. `public`: tests that are shown, all of the easiest subtask. `noise`:
    the deviation of the scorer from 1 for right and 0 for wrong, drawn for each sample, and for each distinct program.
    """

    limits: tuple[int, ...] = (10, 100, 1000)
    depths: tuple[int, ...] = (2, 2, 2)
    right: tuple[float, ...] = (0.5, 0.25, 0.12)
    changes: float = 2.0
    popular: float = 0.0
    samples: int = 200
    inputs: int = 64
    invalid: float = 0.2
    validators: int = 4
    public: int = 3
    noise: tuple[float, float] = (1.0, 0.5)

    @property
    def subtasks(self) -> int:
        """How many there are."""
        return len(self.limits)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem with its samples: the right program's `pieces` [T], the samples' `programs`, what each was written for
    (`subtask_of` [S]) and solves (`solved` [S, T]), inputs `x` [I] and which of them validators accept (`accepted`
    [T, V, I]), what the `scorer` says [S], and the x of `public` tests.
    """

    contest: Contest
    pieces: tuple[Expression, ...]
    programs: tuple[Expression, ...]
    subtask_of: np.ndarray
    solved: np.ndarray
    x: np.ndarray
    accepted: np.ndarray
    scorer: np.ndarray
    public: np.ndarray

    @cached_property
    def program(self) -> Expression:
        """The right program."""
        return assembled(self.contest, self.pieces, 0)

    def judge(self, sample: int) -> np.ndarray:
        """Which subtasks [T] a sample solves."""
        return self.solved[sample]

    def evidence(self, validated: bool = True) -> Evidence:
        """What is known of the samples; without validation every input counts that was generated for a subtask."""
        subtasks = self.contest.subtasks
        values, exist = evaluated(self.programs, self.x)
        numbers = np.unique(values, return_inverse=True)[1].reshape(values.shape)
        own = np.arange(subtasks)[:, None] == np.arange(len(self.x)) // self.contest.inputs
        kept = np.stack([kept_inputs(each) for each in self.accepted])
        shown, shown_exist = evaluated(self.programs, self.public)
        right = shown_exist & (shown == evaluate(self.program, self.public)[0])
        inside = np.arange(subtasks)[:, None] < np.arange(subtasks)
        outputs = np.where(exist, numbers, FAILED)
        return Evidence(outputs, self.subtask_of, kept if validated else own, inside, self.scorer, 1 - right.mean(1))


def problem(contest: Contest, rng: np.random.Generator) -> Problem:
    """Draws a problem and its samples, which come in random order."""
    ranges = np.split(np.arange(1, contest.limits[-1] + 1), contest.limits[:-1])
    pieces = tuple(piece(rng, depth, x) for depth, x in zip(contest.depths, ranges, strict=True))
    popular = [wrong(rng, contest, right, x) for right, x in zip(pieces, ranges, strict=True)]
    subtask_of = rng.permutation(np.repeat(np.arange(contest.subtasks), contest.samples))
    written, solved = list[tuple[Expression, ...]](), np.zeros((len(subtask_of), contest.subtasks), bool)
    for sample, subtask in enumerate(subtask_of):
        own = list[Expression]()
        for number in range(subtask + 1):
            is_right, is_popular = rng.random(2) < (contest.right[number], contest.popular)
            another = popular[number] if is_popular else wrong(rng, contest, pieces[number], ranges[number])
            own.append(pieces[number] if is_right else another)
            solved[sample, number] = is_right and (number == 0 or solved[sample, number - 1])
        written.append(tuple(own))
    tails = rng.integers(1, LARGEST_TAIL, len(written)).tolist()
    return Problem(
        contest,
        pieces,
        tuple(assembled(contest, own, tail) for own, tail in zip(written, tails, strict=True)),
        subtask_of,
        solved,
        *generated(rng, contest),
        scored(rng, contest, written, solved[np.arange(len(solved)), subtask_of]),
        rng.integers(1, contest.limits[0] + 1, contest.public),
    )


def problems(contest: Contest, seed: int) -> Iterator[Problem]:
    """Problems without end; number i depends on the seed and i alone."""
    return (problem(contest, np.random.default_rng((seed, number))) for number in count())


def piece(rng: np.random.Generator, depth: int, x: np.ndarray) -> Expression:
    """An expression that has at least three values over x, and one everywhere."""
    for _ in range(MOST_TRIES):
        values, exist = evaluate(found := draw(rng, depth), x)
        if exist.all() and len(np.unique(values)) > 2:
            return found
    raise RuntimeError(f"none of {MOST_TRIES} expressions of depth {depth} had three values: raise the depth")


def wrong(rng: np.random.Generator, contest: Contest, right: Expression, x: np.ndarray) -> Expression:
    """The right expression with a few places changed, whose values over x are not all the same."""
    values, exist = evaluate(right, x)
    for _ in range(MOST_TRIES):
        found = right
        for _ in range(int(rng.geometric(1 / contest.changes))):
            found = change(rng, found)
        others, others_exist = evaluate(found, x)
        if not np.array_equal(values, others) or not np.array_equal(exist, others_exist):
            return found
    raise RuntimeError(f"none of {MOST_TRIES} changed expressions had other values: raise the depth")


def assembled(contest: Contest, pieces: tuple[Expression, ...], tail: Expression) -> Expression:
    """The program of some pieces, from the easiest on; beyond the limit of the last it says `tail`."""
    program = tail
    for limit, each in reversed(list(zip(contest.limits, pieces, strict=False))):
        program = choose(limit, each, program)
    return program


def evaluated(programs: tuple[Expression, ...], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values [S, N] of programs at x [N], and where they have one."""
    known = {program: evaluate(program, x) for program in dict.fromkeys(programs)}
    values, exist = zip(*(known[program] for program in programs), strict=True)
    return np.stack(values), np.stack(exist)


def generated(rng: np.random.Generator, contest: Contest) -> tuple[np.ndarray, np.ndarray]:
    """Inputs for one subtask after the other [I], some beyond its limit, and what validators say, [T, V, I].

    The last validator of each subtask is wrong: it answers at random. The others accept what keeps the limit.
    """
    limits = np.repeat(contest.limits, contest.inputs)
    beyond = rng.random(len(limits)) < contest.invalid
    x = rng.integers(1, limits + 1) + np.where(beyond, limits, 0)
    keeps = x <= np.array(contest.limits)[:, None, None]
    accepted = np.broadcast_to(keeps, (contest.subtasks, contest.validators, len(x))).copy()
    accepted[:, -1] = rng.random((contest.subtasks, len(x))) < 0.5
    return x, accepted


def scored(
    rng: np.random.Generator, contest: Contest, written: list[tuple[Expression, ...]], right: np.ndarray
) -> np.ndarray:
    """What the learned scorer says of samples [S]: whether they are right, and noise of sample and program."""
    by_sample, by_program = contest.noise
    kinds = {pieces: rng.normal() for pieces in dict.fromkeys(written)}
    return right + by_sample * rng.normal(size=len(right)) + by_program * np.array([kinds[own] for own in written])
