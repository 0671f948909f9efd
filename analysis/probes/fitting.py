"""Linear softmax heads with a group lasso, each fit one compiled loop: proximal steps with exact zeros, or Adam's.

Source: Head2Toe (2201.03529), section 3.2 and google-research/head2toe (penalty, Adam with cosine decay, batches in
order); FISTA: Beck and Teboulle (2009); its restarts: O'Donoghue and Candès (1204.3982), gradient scheme.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from settings.setting import unknown

SOLVERS = ("proximal", "adam")
ADAM_EPSILON = 1e-7  # TensorFlow's
POWER_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Plan:
    """How features are chosen and heads fitted; what `cross_validate` chooses among.

    share: F, of the features that are kept. coefficient: of the group lasso, in the head that ranks features; the fresh
    head has none. solver: "proximal" (all examples in each step, whose size follows from them; features are switched
    off exactly) or "adam" (as published; features only become small). steps: of each fit. lr, batch: Adam's alone.
    Raises ValueError for values that are none.
    """

    share: float = 1.0
    coefficient: float = 1e-4
    solver: str = "proximal"
    steps: int = 500
    lr: float = 0.01
    batch: int = 128

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(unknown("solver", self.solver, SOLVERS))
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of features kept must lie in (0, 1], found {self.share}")
        if not (self.coefficient >= 0 and np.isfinite(self.coefficient)):
            raise ValueError(f"the coefficient of the penalty must be at least 0, found {self.coefficient}")
        if self.steps < 1 or self.batch < 1 or not self.lr > 0:
            raise ValueError(f"steps {self.steps}, batch {self.batch} and lr {self.lr} must be positive")


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear softmax head: weights [F, C], bias [C]; losses [steps]: the objective where each gradient was taken."""

    weights: np.ndarray
    bias: np.ndarray
    losses: np.ndarray


Variables = tuple[jax.Array, jax.Array]  # weights [F, C], bias [C]


def row_lengths(weights: jax.Array) -> jax.Array:
    """The Euclidean length of each row of weights [F, C] -> [F]; its gradient at a row of zeros is 0, not NaN."""
    squares = jnp.square(weights).sum(1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def group_lasso(weights: ArrayLike, coefficient: ArrayLike) -> jax.Array:
    """The penalty `coefficient * sum_i ||W_i||_2` of weights [F, C]: a group is one feature across the classes."""
    return jnp.asarray(coefficient) * row_lengths(jnp.asarray(weights)).sum()


def relevance(weights: ArrayLike) -> np.ndarray:
    """The score `sum_c W_ic^2` of each feature of weights [F, C] -> [F]."""
    return np.asarray(jnp.square(jnp.asarray(weights)).sum(1))


def cross_entropy(variables: Variables, values: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss [N] of each example."""
    logits = values @ variables[0] + variables[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def largest_coefficient(values: ArrayLike, labels: ArrayLike, classes: int) -> float:
    """The coefficient from which on the group lasso keeps no feature of values [N, F]; below it keeps at least one.

    Coefficients are best chosen as shares of it. Values are those that a head is fitted to: normalised.
    """
    table, targets = jnp.asarray(values, jnp.float32), jax.nn.one_hot(jnp.asarray(labels), classes)
    # The best head without features predicts the shares of the classes.
    return float(row_lengths(table.T @ (targets - targets.mean(0)) / len(table)).max())


def fit(values: ArrayLike, labels: ArrayLike, classes: int, plan: Plan, coefficient: float = 0.0) -> Head:
    """Fits a head to values [N, F] and labels [N] from zeros, with the plan's solver and a penalty."""
    table, targets = jnp.asarray(values, jnp.float32), jnp.asarray(labels, jnp.int32)
    weights, bias, losses = _fitted(table, targets, coefficient, plan.lr, loop_of(plan, classes))
    return Head(np.asarray(weights), np.asarray(bias), np.asarray(losses))


@dataclasses.dataclass(frozen=True)
class Loop:
    """What a compiled fit depends on besides its arrays: plans that share it share a program."""

    solver: str
    steps: int
    batch: int
    classes: int


def loop_of(plan: Plan, classes: int) -> Loop:
    """The loop of a plan; only Adam has batches."""
    return Loop(plan.solver, plan.steps, plan.batch if plan.solver == "adam" else 0, classes)


def fitted(
    values: jax.Array, labels: jax.Array, coefficient: jax.Array, lr: jax.Array, loop: Loop
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`fit` for what is traced: weights, bias, losses."""
    start = jnp.zeros((values.shape[1], loop.classes)), jnp.zeros(loop.classes)
    if loop.solver == "proximal":
        return _proximal(start, values, labels, coefficient, loop.steps)
    return _adam(start, values, labels, coefficient, lr, loop)


_fitted = partial(jax.jit, static_argnames="loop")(fitted)


def shrink(weights: jax.Array, by: jax.Array) -> jax.Array:
    """Each row of weights [F, C] shorter by `by`, and 0 where it is no longer than that (group soft-thresholding)."""
    lengths = row_lengths(weights)
    return weights * jnp.where(lengths > by, 1 - by / jnp.where(lengths > by, lengths, 1), 0)[:, None]


def _steepness(values: jax.Array) -> jax.Array:
    """A Lipschitz constant of the mean loss's gradient: half the largest eigenvalue of X'X / N, the bias included.

    By the power method, which may fall short by a few percent; the tenth on top makes up for it.
    """
    full = jnp.concatenate([values, jnp.ones_like(values[:, :1])], 1)

    def turn(direction: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        product = full.T @ (full @ direction) / len(full)
        length = jnp.linalg.norm(product)
        return product / length, length

    start = jnp.full(full.shape[1], full.shape[1] ** -0.5)
    return 1.1 * 0.5 * jax.lax.scan(turn, start, None, POWER_STEPS)[1][-1]


def _proximal(
    start: Variables, values: jax.Array, labels: jax.Array, coefficient: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """FISTA: a gradient step of the smooth loss from a point ahead, then `shrink`; misleading momentum is dropped."""
    size = 1 / _steepness(values)
    gradient = jax.value_and_grad(lambda variables: cross_entropy(variables, values, labels).mean())

    def step(carry: tuple[Variables, Variables, jax.Array], _: None) -> tuple[Any, jax.Array]:
        here, ahead, t = carry
        loss, slope = gradient(ahead)
        loss = loss + group_lasso(ahead[0], coefficient)
        weights = shrink(ahead[0] - size * slope[0], size * coefficient)
        there = weights, ahead[1] - size * slope[1]
        moved = jax.tree.map(jnp.subtract, there, here)
        missed = jax.tree.map(jnp.subtract, ahead, there)
        against = sum(jnp.vdot(x, y) for x, y in zip(missed, moved, strict=True)) > 0
        t = jnp.where(against, 1.0, t)
        following = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        push = jnp.where(against, 0.0, (t - 1) / following)
        ahead = jax.tree.map(lambda x, y: x + push * y, there, moved)
        return (there, ahead, following), loss

    (last, _, _), losses = jax.lax.scan(step, (start, start, jnp.float32(1)), None, steps)
    return *last, losses


def _adam(
    start: Variables, values: jax.Array, labels: jax.Array, coefficient: jax.Array, lr: jax.Array, loop: Loop
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adam with cosine decay to 0 over batches in the order of the examples, again and again, never shuffled.

    The last batch may be shorter; as published, it then counts by its share, the penalty included.
    """
    size = min(loop.batch, len(values))
    count = -(-len(values) // size)
    adam = optax.scale_by_adam(eps=ADAM_EPSILON)

    def objective(variables: Variables, number: jax.Array) -> jax.Array:
        rows = number * size + jnp.arange(size)
        present = rows < len(values)
        rows = jnp.where(present, rows, 0)
        losses = cross_entropy(variables, values[rows], labels[rows]) + group_lasso(variables[0], coefficient)
        return (losses * present).sum() / size

    def step(carry: tuple[Variables, Any], i: jax.Array) -> tuple[Any, jax.Array]:
        variables, state = carry
        loss, slope = jax.value_and_grad(objective)(variables, i % count)
        change, state = adam.update(slope, state)
        rate = lr * 0.5 * (1 + jnp.cos(jnp.pi * i / loop.steps))
        return (jax.tree.map(lambda x, y: x - rate * y, variables, change), state), loss

    (last, _), losses = jax.lax.scan(step, (start, adam.init(start)), jnp.arange(loop.steps))
    return *last, losses
