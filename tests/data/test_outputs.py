"""What programs answer: outputs that can be compared, and hostile ones that harm nothing but themselves."""

import time
from typing import Any

import pytest

from data.verify.confined import Limits, unavailable
from data.verify.outputs import function_outputs, program_outputs

pytestmark = pytest.mark.skipif(bool(unavailable("namespaces")), reason=f"no sandbox: {unavailable('namespaces')}")
LIMITS, PATIENT = Limits(seconds=1.5), Limits(seconds=20.0)


def answers(code: str, *calls: Any, limits: Limits = PATIENT) -> list[str | None]:
    return function_outputs(code, "f", [(call,) for call in calls], limits, "namespaces")


def test_equal_values_are_equal_outputs() -> None:
    same = "[1, 2.0], [1, 2], (1, 2), {'b': 1, 'a': True}, {'a': 1, 'b': 1.0}, {3, 1}, frozenset((1, 3)), 0.1 + 0.2, .3"
    found = answers(f"def f(i): return [{same}][i]", *range(9))
    assert None not in found
    equal = [[found[i] == found[j] for j in range(9)] for i in range(9)]
    pairs = {(0, 1), (3, 4), (5, 6), (7, 8)}
    assert equal == [[i == j or (min(i, j), max(i, j)) in pairs for j in range(9)] for i in range(9)]


def test_a_failure_is_that_of_its_call() -> None:
    code = "class C: pass\ndef f(x):\n    return {1: 1 // (x - 1) if x == 1 else 0}.get(x, C() if x == 2 else x)"
    assert answers(code, 0, 1, 2, 3) == ["0", None, None, "3"]


def test_what_comes_after_the_time_is_none() -> None:
    start = time.perf_counter()
    assert answers("def f(x):\n    while x == 1: pass\n    return x", 0, 1, 2, limits=LIMITS) == ["0", None, None]
    assert time.perf_counter() - start < 2 * LIMITS.seconds + 2


@pytest.mark.parametrize(
    "code",
    [
        "",
        "def f(",
        "def g(x): return x",
        "import os\nos._exit(0)",
        "import os\nfor n in (3, 4): os.write(n, b'\\x00\\x00\\x00\\x02r[' * 9)",
        "def f(x):\n    x = []\n    x.append(x)\n    return x",
        "def f(x): return 'a' * 1_000_000",
    ],
)
def test_hostile_code_answers_nothing(code: str) -> None:
    assert answers(code, 1, 2, limits=LIMITS) == [None, None]


def test_programs_answer_by_what_they_write() -> None:
    code = "n = int(input())\nprint(n, ' ')\nprint(10 // n)"
    assert program_outputs(code, ["5", "0", "x"], PATIENT, "namespaces") == ["5\n2", None, None]
    assert program_outputs(" \n", ["5"], PATIENT, "namespaces") == [None]
