"""Which way a metric is good, which ones a table shows by itself, and which rows of a column are best."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence

MORE, LESS, NEITHER = 1, -1, 0

# From a metric's name (evaluations without `eval/`) to its direction: the first pattern that fits. What is not here,
# such as entropy, kl, lr, grad_norm, lengths, depths and counts, is neither good nor bad.
DIRECTIONS: dict[str, int] = {
    # Names that hold the words of others and mean something else.
    "time/*": NEITHER,  # a part of a step's time is short where another one is long
    "*_std": NEITHER,
    "*/std": NEITHER,
    "*/errors": LESS,
    "*_correlation": NEITHER,
    "policy_loss": NEITHER,  # of advantages that are renewed each step: it measures no progress
    "*balance_loss": NEITHER,  # weighted, as the objective adds it; moe/max_violation is the measure
    "*router_z_loss": NEITHER,
    # What is right, finished, rewarded, used.
    "*accuracy*": MORE,
    "score*": MORE,
    "pass@*": MORE,
    "reward": MORE,
    "rewards/*/mean": MORE,
    "*finished*": MORE,
    "*readable*": MORE,
    "peer/usage": MORE,
    # Losses, and how uneven the load of experts is.
    "loss": LESS,  # not of GRPO: `direction`
    "loss_*": LESS,
    "*_loss": LESS,
    "*_loss_*": LESS,
    "*/loss_*": LESS,
    "moe/max_violation*": LESS,
    "moe/dropped": LESS,
    "peer/unevenness": LESS,
    "verify/timeouts": LESS,
}
# Shares of the examples of an evaluation, whose error is binomial.
SHARES = ("eval/accuracy", "eval/pass@*", "eval/finished", "eval/readable")
REINFORCED = ("grpo",)  # algorithms whose `loss` is that of a policy, the like of policy_loss
# Of the metrics of training, those in a table where nothing is asked for; `loss` where something is not reinforced.
SHOWN = ("reward", "loss", "moe/max_violation", "peer/usage", "peer/unevenness")

NOTE = (
    "Bold: the best of a column and what lies within its noise, that is where mean ± standard error over seeds overlap;"
    " of a single seed equal figures, and shares of an evaluation's examples by their binomial error."
)


def direction(metric: str, algorithms: Sequence[str] = ()) -> int:
    """MORE, LESS or NEITHER; `algorithms` are those of the runs that are compared."""
    if metric == "loss" and set(algorithms) & set(REINFORCED):
        return NEITHER
    name = metric.removeprefix("eval/")
    return next((sign for pattern, sign in DIRECTIONS.items() if fnmatch.fnmatchcase(name, pattern)), NEITHER)


def shown(algorithms: Sequence[str], evaluated: Sequence[str] = ()) -> list[str]:
    """Of `SHOWN`, what says something of runs of these algorithms; of policies whose accuracy was not `evaluated` also
    their scores in training.
    """
    policies = bool(algorithms) and set(algorithms) <= set(REINFORCED)
    more = ["score"] if policies and "eval/accuracy" not in evaluated else []
    return [*more, *(name for name in SHOWN if not (name == "loss" and policies))]


def is_share(metric: str) -> bool:
    """Whether it is the share of an evaluation's examples of which something holds."""
    return any(fnmatch.fnmatchcase(metric, pattern) for pattern in SHARES)


def binomial_error(share: float, examples: int) -> float:
    """The standard error of a share of so many independent examples; 0 of none, or of what is no share."""
    return math.sqrt(share * (1 - share) / examples) if examples and 0 <= share <= 1 else 0.0


def best(sign: int, means: Sequence[float | None], errors: Sequence[float]) -> list[int]:
    """The rows with the best mean and those within noise of it: mean ± error overlaps with that of a best one.

    Nothing where there is no direction, or fewer than two finite means to compare.
    """
    rows = [row for row, mean in enumerate(means) if mean is not None and math.isfinite(mean)]
    if not sign or len(rows) < 2:
        return []
    signed = {row: sign * mean for row in rows if (mean := means[row]) is not None}
    top = max(signed.values())
    least = min(value - _finite(errors[row]) for row, value in signed.items() if value == top)
    return [row for row, value in signed.items() if value == top or value + _finite(errors[row]) >= least]


def _finite(error: float) -> float:
    return error if math.isfinite(error) else 0.0
