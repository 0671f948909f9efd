"""Checks per second of the verifiers in worker processes, with one of two workers stuck and without."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

from data.tasks.math import Math
from data.verify.code import judge_functions
from data.verify.confined import Limits, unavailable
from data.verify.pool import Judge, Pool

SECONDS = 1.0
# Nothing but the wall clock ends this one.
BOMB = r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}"
CODE, TESTS = "def f(n):\n    return n * n + 1", "assert f(3) == 10\nassert f(4) == 17"


def answers(count: int, first: int) -> tuple[list[dict[str, str]], list[str]]:
    """Reference fractions and answers that only a symbolic comparison finds equal, none of them twice."""
    numbers = range(first, first + count)
    return [{"answer": rf"\frac{{{n}}}{{7}}"} for n in numbers], [rf"\boxed{{\frac{{{2 * n}}}{{14}}}}" for n in numbers]


def rate(judge: Judge, count: int, first: int, bombs: Sequence[str] = ()) -> float:
    """Right answers judged per second, in one call that holds the bombs first."""
    examples, texts = answers(count, first)
    started = time.perf_counter()
    verdicts = judge([*([{"answer": "1"}] * len(bombs)), *examples], [*bombs, *texts])
    seconds = time.perf_counter() - started
    assert sum(verdict.score for verdict in verdicts) == count, "a right answer was not recognised"
    return count / seconds


def bench_pool(repeats: int) -> dict[str, Any]:
    """The rates of one worker, of two, and of two of which one is stuck for SECONDS; the calls in turns."""
    found: dict[str, list[float]] = {"one_worker": [], "two_workers": [], "two_workers_one_stuck": []}
    with (
        Pool(Math("-"), workers=1, seconds=SECONDS) as one,
        Pool(Math("-"), workers=2, seconds=SECONDS) as two,
    ):
        one.wait()
        count = max(50, int(1.5 * SECONDS * rate(one, 50, 1)))  # long enough that the stuck one is not waited for
        for repeat in range(repeats):
            two.wait()
            first = 1000 + 10 * count * repeat
            found["one_worker"].append(rate(one, count, first))
            found["two_workers"].append(rate(two, count, first + count))
            found["two_workers_one_stuck"].append(rate(two, count, first + 2 * count, [BOMB]))
        timeouts = two.timeouts
    rates = {name: round(statistics.median(rates), 1) for name, rates in found.items()}
    return {"checks_per_second": rates, "checks_per_call": count, "seconds_limit": SECONDS, "timeouts": timeouts}


def bench_code(repeats: int) -> dict[str, Any]:
    """Milliseconds to judge one function in its two sandboxes, or why there is no sandbox."""
    if unavailable("namespaces"):
        return {"no_sandbox": unavailable("namespaces")}
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        assert judge_functions(CODE, TESTS, ["f"], Limits(), "namespaces").score == 1.0
        times.append(time.perf_counter() - started)
    return {"milliseconds": round(1000 * statistics.median(times), 1)}


def bench_verify(repeats: int) -> dict[str, Any]:
    """Mathematical answers through the pool, and functions in the sandbox."""
    load = round(os.getloadavg()[0], 2)
    return {"math": bench_pool(repeats), "code": bench_code(repeats), "load": [load, round(os.getloadavg()[0], 2)]}
