"""What the tasks of Python functions share: the consent to run code, prompts, verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.chat import after_thinking
from data.sources.examples import Example
from data.tasks.base import Verdict
from data.verify.code import code_of, judge_functions
from data.verify.confined import Limits, check_isolation
from data.verify.inputs import arguments_like, first_call
from data.verify.outputs import function_outputs
from data.verify.pool import inside_worker, judge_alone


@dataclass(frozen=True)
class CodingTask:
    """A task whose answers are Python functions, judged by running them.

    `path`: the data set's folder. `allow_code` must be given: the model's code is run on this machine (docs/security.md
    says what is contained). `isolation`: "namespaces", or "none" to go without. `seconds`: of wall clock, and `memory`:
    MiB of address space, for one answer.
    """

    path: str = ""
    allow_code: bool = False
    isolation: str = "namespaces"
    seconds: float = 5.0
    memory: int = 512

    alphabet = None
    isolated = True
    name = ""

    def __post_init__(self) -> None:
        if not self.path:
            raise FileNotFoundError(f"{self.name} needs path=<folder> of its JSON-lines files")
        if not self.allow_code:
            raise PermissionError(
                f"{self.name} runs code that a model wrote: give allow_code=True if that is meant (docs/security.md)"
            )
        check_isolation(self.isolation)

    @property
    def limits(self) -> Limits:
        """What an answer may use."""
        return Limits(seconds=self.seconds, memory=self.memory << 20)

    def target(self, example: Example) -> str:
        """Returns the reference solution in a fenced block."""
        return f"```python\n{example['code'].strip()}\n```"

    def solution(self, example: Example, text: str) -> str:
        """Returns the code of an answer: its last fenced block, or all of it."""
        return code_of(text)

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when all tests of the example pass with the code after the last `</think>`.

        Outside a worker the answer goes to one; give many answers to `data.verify.pool.judge_of(task)` instead.
        """
        if not inside_worker():
            return judge_alone(self, example, text)
        code = self.solution(example, after_thinking(text))
        return judge_functions(code, example["tests"], example["names"], self.limits, self.isolation)

    def public(self, example: Example) -> Example | None:
        """Returns the example with those tests alone that its prompt shows; None where it shows none."""
        raise NotImplementedError

    def inputs(self, example: Example, rng: np.random.Generator, count: int) -> list[Any]:
        """Returns so many inputs like the one of the first test, which answers can be run on; none where its test calls
        no function with plain data.
        """
        call = first_call(example["tests"], example["names"])
        return [] if call is None else [(call[0], given) for given in arguments_like(rng, call[1], count)]

    def outputs(self, example: Example, text: str, inputs: Sequence[Any]) -> list[str | None]:
        """Returns what an answer gives for each of these inputs, in the sandbox; None where it gives nothing."""
        code, name = self.solution(example, after_thinking(text)), inputs[0][0]
        return function_outputs(code, name, [given for _, given in inputs], self.limits, self.isolation)


def plain_text(code: str) -> str:
    """Returns code with the line ends that Python writes."""
    return code.replace("\r\n", "\n").replace("\r", "\n")


def text_field(row: dict[str, Any], *names: str) -> str:
    """Returns the first of the fields that a row has as text; KeyError, naming them, when there is none."""
    for name in names:
        if isinstance(row.get(name), str):
            return plain_text(row[name])
    raise KeyError(f"no text under {' or '.join(names)}; the row has {', '.join(row) or 'nothing'}")
