"""Which tests `make test` runs, and what a test may cost.

Marked `more`: left to `make test-more`. Marked `more_but("fsdp8", ...)`: of a parametrised test every case but these. A
program is what XLA compiles, or reads from the compilation cache: the count is the same cold and warm. Un-jitted code
makes one of every operation and shape, which is what the budget finds.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import jax
import pytest

# The first test of a process also compiles the small operations that others then share, some thirty of them.
BUDGET = 150
COMPILE = "/jax/core/compile/backend_compile_duration"
TRACE = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")


@dataclass
class Costs:
    """What this process has spent so far; CPU seconds include ended children, the others are seconds of the clock."""

    programs: int = 0
    compile_s: float = 0.0
    trace_s: float = 0.0
    cpu_s: float = 0.0

    def __sub__(self, earlier: Costs) -> Costs:
        return Costs(*(now - then for now, then in zip(asdict(self).values(), asdict(earlier).values(), strict=True)))


SPENT = Costs()


def listen(event: str, duration_secs: float, **_: str | int) -> None:
    """Adds one event of JAX to what is spent."""
    if event == COMPILE:
        SPENT.programs += 1
        SPENT.compile_s += duration_secs
    elif event in TRACE:
        SPENT.trace_s += duration_secs


jax.monitoring.register_event_duration_secs_listener(listen)


def spent() -> Costs:
    """A copy of what is spent, with the CPU seconds of this process and of its children."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Costs(SPENT.programs, SPENT.compile_s, SPENT.trace_s, sum(use.ru_utime + use.ru_stime for use in uses))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks `more` the cases that `more_but` does not name, before `-m` chooses among them."""
    missing: dict[str, set[str]] = {}
    for item in items:
        if kept := item.get_closest_marker("more_but"):
            case = item.callspec.id if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
            missing.setdefault(item.nodeid.split("[")[0], set(kept.args)).discard(case)
            if case not in kept.args:
                item.add_marker("more")
    chosen = any("::" in argument for argument in config.args)
    for test, cases in missing.items():
        if cases and not chosen:
            raise pytest.UsageError(f"{test} has no case {', '.join(sorted(cases))}, which its mark `more_but` names")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Appends one line to the file TEST_COSTS names: the test's id and what it cost, its fixtures included."""
    before, start = spent(), time.monotonic()
    result = yield
    if path := os.environ.get("TEST_COSTS"):
        record = {"test": item.nodeid, "wall_s": time.monotonic() - start, **asdict(spent() - before)}
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fails a test that compiles more programs than its budget, unless it is marked `more`."""
    before = SPENT.programs
    result = yield
    allowed = item.get_closest_marker("programs")
    budget = allowed.args[0] if allowed else BUDGET
    programs = SPENT.programs - before
    if programs > budget and not item.get_closest_marker("more") and not os.environ.get("TEST_COSTS"):
        pytest.fail(
            f"compiled {programs} programs, of which a test may have {budget}: put its body into one jitted function,"
            " or mark it `programs(n)` or `more` (docs/testing.md)",
            pytrace=False,
        )
    return result
