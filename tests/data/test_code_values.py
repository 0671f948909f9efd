"""Which values and errors of a solution reach the tests, and that what does not is told."""

import pytest

from data.verify.code import judge_functions, judge_program
from data.verify.confined import Limits, unavailable

# For what is right: a loaded machine must not fail it.
PATIENT = Limits(seconds=20.0)
TESTS = "assert f(3) == 10"
works = pytest.mark.skipif(bool(unavailable("namespaces")), reason=f"no sandbox here: {unavailable('namespaces')}")
CAUGHT = "try: f(1)\nexcept {} as error: assert error.args == {}, error.args\nelse: assert False"
RIGHT = {
    "a whole number of 80,000 digits": ("def f(n): return 7 ** n", "assert f(100_000) == 7 ** 100_000"),
    "digits of a number": ("def f(n): return len(str(7 ** n))", "assert f(20_000) == 16_902"),
    "a huge argument": ("def f(n): return n + 1", "assert f(10 ** 50_000) == 10 ** 50_000 + 1"),
    "huge numbers inside": (
        "def f(n): return {-(10**n): [(-(10**n),)]}",
        "assert f(5000) == {-10**5000: [(-10**5000,)]}",
    ),
    "a list of a million": ("def f(n): return list(range(n))", "assert f(10**6) == list(range(10**6))"),
    "a dict of 150,000": ("def f(n): return {i: str(i) for i in range(n)}", "assert f(150_000)[149_999] == '149999'"),
    "a text of 2 MB": ("def f(n): return 'x' * n", "assert f(2_000_000) == 'x' * 2_000_000"),
    "ninety lists deep": (
        "def f(n):\n    x = []\n    for _ in range(n): x = [x]\n    return x",
        "x = f(90)\nfor _ in range(90): x = x[0]\nassert x == []",
    ),
    "a class derived from an error": (
        "class E(ValueError): pass\ndef f(n): raise E('no')",
        CAUGHT.format("ValueError", "('no',)"),
    ),
    "an error by its base": ("def f(n): return 1 / 0", CAUGHT.format("ArithmeticError", "('division by zero',)")),
    "an error two classes below": (
        "class A(KeyError): pass\nclass B(A): pass\ndef f(n): raise B('k')",
        CAUGHT.format("LookupError", "('k',)"),
    ),
    "an exception of its own": (
        "class A(Exception): pass\ndef f(n): raise A('k', [2])",
        CAUGHT.format("Exception", "('k', [2])"),
    ),
    "an error of several arguments": (
        "def f(n): return b'\\xff'.decode()",
        CAUGHT.format("UnicodeDecodeError", "('utf-8', b'\\xff', 0, 1, 'invalid start byte')"),
    ),
    "an error with an object": (
        "class E(ValueError): pass\ndef f(n): raise E(E)",
        CAUGHT.format("ValueError", "(\"<class 'solution.E'>\",)"),
    ),
    "an error that cannot be told": (
        "class E(ValueError):\n    def __str__(self): raise KeyError\ndef f(n): raise E(E)",
        CAUGHT.format("ValueError", "()"),
    ),
    "a group of errors": (
        "def f(n): raise ExceptionGroup('x', [ValueError()])",
        "try: f(1)\nexcept Exception: pass\nelse: assert False",
    ),
    "a warning": ("def f(n): raise UserWarning('x')", CAUGHT.format("Warning", "('x',)")),
}


@works
@pytest.mark.parametrize("kind", RIGHT, ids=str)
def test_what_is_right_travels(kind: str) -> None:
    verdict = judge_functions(*RIGHT[kind], ["f"], PATIENT, "namespaces")
    assert verdict.score == 1.0, verdict.reason


@works
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(n): return list(range(1_000_001))", "more than 1000000 items"),
        ("def f(n): return 'x' * (17 << 20)", "too large"),
        ("def f(n):\n    x = []\n    for _ in range(200): x = [x]\n    return x", "deeper than 100"),
    ],
)
def test_what_does_not_travel_is_told(code: str, reason: str) -> None:
    verdict = judge_functions(code, TESTS, ["f"], PATIENT, "namespaces")
    assert verdict.score == 0.0 and reason in verdict.reason


@works
def test_programs_may_print_long_numbers() -> None:
    program = "n = int(input())\nprint(n + 1)"
    assert judge_program(program, [("9" * 6000, f"1{'0' * 6000}")], PATIENT, "namespaces").score == 1.0


@works
@pytest.mark.parametrize(
    "raised",
    ["ValueError('\\ud800')", "E('\\ud800\\udfff')", "KeyError('\\udc80')", "type('\\ud800', (Exception,), {})()"],
)
def test_reasons_can_be_written_as_utf_8(raised: str) -> None:
    code = f"class E(Exception): pass\ndef f(n): raise {raised}"
    verdict = judge_functions(code, TESTS, ["f"], PATIENT, "namespaces")
    assert verdict.score == 0.0 and verdict.reason.encode()
