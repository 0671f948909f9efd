"""Depth by example: how many iterations of a recurrent core an example is given, as its task says (2409.15647)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.sources.examples import Example
from data.tasks.base import Task, stable_hash


@dataclass(frozen=True)
class ExampleDepths:
    """Iterations by example: the depth that the task names, `offset` more, and in training up to `jitter` more.

    The jitter of an example is drawn by its number and `seed`. `permuted` gives each example the depth of another one,
    a control.
    """

    offset: int = 0
    jitter: int = 0
    permuted: bool = False
    seed: int = 0

    def answer_depth(self, task: Task, example: Example) -> int:
        """The iterations that a question is answered with."""
        return example_depth(task, example) + self.offset

    def training_depth(self, task: Task, examples: Sequence[Example], number: int) -> int:
        """The iterations that an example of a split is learnt with."""
        source = (number + 1) % len(examples) if self.permuted else number
        more = stable_hash("depth", self.seed, number) % (self.jitter + 1)
        return self.answer_depth(task, examples[source]) + more


AS_NAMED = ExampleDepths()


def example_depth(task: Task, example: Example) -> int:
    """What a task says of an example's depth; ValueError where it says nothing, or no number from 1 up."""
    check_has_depth(task, "its depth")
    depth: Any = task.depth(example)  # type: ignore[attr-defined]
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(
            f"{type(task).__name__}.depth gave {depth!r} for {example}; it must be a whole number from 1 up"
        )
    return depth


def check_has_depth(task: object, asked: str) -> None:
    """Raises ValueError where a task names no depth of its examples; `asked`: what takes it from there."""
    if not hasattr(task, "depth"):
        raise ValueError(
            f"{asked} should come from the task, and {type(task).__name__} names no depth: take a task with"
            " depth(example), such as automaton, or ask for a number"
        )
