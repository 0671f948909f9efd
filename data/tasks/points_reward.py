"""The graded reward of GeneralPoints (arXiv 2501.17161): an expression's faults and what each costs."""

from collections import Counter
from collections.abc import Sequence

from data.verify.arithmetic import evaluate

# `step_limit` is for a caller that gives several turns: the last one was used up.
REWARDS: dict[str, float] = {
    "correct": 5.0,
    "wrong_value": -1.0,
    "prefix_of_solution": 1.0,
    "invalid_number": -2.0,
    "missing_number": -2.0,
    "illegal": -3.0,
    "step_limit": -1.0,
}


def faults(formula: str, values: Sequence[int], target: int, solution: str) -> tuple[str, ...]:
    """Returns the names of what a formula is: `("correct",)`, or its faults, each kind once.

    `values`: the numbers to use exactly once; `solution`: an expression whose unfinished beginnings are worth
    something, or empty. Text after `=` is cut. A formula that cannot be evaluated is judged for that alone.
    """
    result = evaluate(formula)
    if result.value is None:
        return ("prefix_of_solution",) if _is_prefix(formula, solution) else ("illegal",)
    used, dealt = Counter(result.numbers), Counter(values)
    kinds = [name for name, excess in (("invalid_number", used - dealt), ("missing_number", dealt - used)) if excess]
    if kinds:
        return tuple(kinds)
    return ("correct",) if result.value == target else ("wrong_value",)


def _is_prefix(formula: str, solution: str) -> bool:
    stripped = formula.strip()
    return bool(stripped) and solution.startswith(stripped)
