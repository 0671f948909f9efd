"""Python solutions judged by running them, in a sandbox: programs by their whole output, functions by their values.

The expected output or values never enter the sandbox of the solution. docs/security.md says what is contained.
"""

import json
import select
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from data.verify.confined import FAILED, Confined, Limits, run
from data.verify.verdict import TIMEOUT, Verdict

EXCHANGE = Path(__file__).resolve().with_name("exchange.py")
MAX_CODE = 65_536
LENGTH = 4
MOST_MESSAGE = 16 << 20


def code_of(text: str) -> str:
    """Returns the last fenced block of a text, up to its end where it is not closed, or all of it without a fence."""
    blocks: list[list[str]] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("```"):
            inside = not inside
            blocks += [[]] if inside else []
        elif inside:
            blocks[-1].append(line)
    return "".join(blocks[-1]) if blocks else text


def judge_program(code: str, cases: Sequence[tuple[str, str]], limits: Limits, isolation: str) -> Verdict:
    """Scores 1 when the program's whole output is the expected one in every case (standard input, output).

    Spaces at line ends and empty lines at the end do not count. `limits.seconds` is for each case. ValueError without
    cases.
    """
    if not cases:
        raise ValueError("a program cannot be judged without a case of input and output")
    if refused := refusal(code):
        return refused
    for number, (stdin, expected) in enumerate(cases, start=1):
        outcome = run(code, stdin.encode(errors="replace"), limits, isolation)
        wrong = _fault(outcome.stopped, outcome.status)
        if not wrong and lines(outcome.stdout.decode(errors="replace")) != lines(expected):
            wrong = "another output"
        if wrong:
            return Verdict(0.0, None, f"case {number} of {len(cases)}: {wrong}")
    return Verdict(1.0, None, "all cases passed")


def judge_functions(code: str, tests: str, names: Sequence[str], limits: Limits, isolation: str) -> Verdict:
    """Scores 1 when `tests`, a program of assertions, runs to its end against the solution's functions `names`.

    Solution and tests run in two sandboxes: calls of `names` travel to the solution with their arguments, their values
    travel back, as plain data (numbers, texts, lists, tuples, sets, dicts, iterators); all comparing happens on the
    side of the tests. Arguments are copies. `limits.seconds` is for all of it. ValueError without names.
    """
    if not names:
        raise ValueError("functions cannot be judged without the names of those that the tests call")
    if refused := refusal(code):
        return refused
    program = exchange_program()
    with (
        Confined(program, limits, isolation, ("solution",)) as solution,
        Confined(program, limits, isolation, ("tests",)) as tester,
    ):
        solution.unsent += framed("s", code)
        tester.unsent += framed("s", {"tests": tests, "names": list(names)})
        return _relay(solution, tester)


def refusal(code: str) -> Verdict | None:
    """Returns the verdict on code that is not run at all."""
    if not code.strip():
        return Verdict(0.0, None, "no code in the answer")
    if len(code) > MAX_CODE:
        return Verdict(0.0, None, f"the code has more than {MAX_CODE} characters")
    return None


def lines(output: str) -> list[str]:
    """Returns the lines of an output, without spaces at their ends and empty lines at the end."""
    return [line.rstrip() for line in output.rstrip().split("\n")]


def _relay(solution: Confined, tester: Confined) -> Verdict:
    """Carries messages between the two until the tests have said how they ended."""
    calls, replies = bytearray(), bytearray()
    owed = 1  # the solution reports once that it is loaded, then once for each call
    while tester.left():
        ended = {side: take(side, inbox) for side, inbox in ((tester, calls), (solution, replies))}
        while call := message(calls):
            if call[:1] != b"c":
                return _told(call)
            _pass_on(solution, call)
            owed += 1
        while owed and (reply := message(replies)):
            _pass_on(tester, reply)
            owed -= 1
        if ended[solution] and owed and not _whole(replies):
            return broken(solution, "the solution")
        if ended[tester]:
            return broken(tester, "the test")
        if max(len(calls), len(replies)) > 2 * MOST_MESSAGE:
            return Verdict(0.0, None, "too much was sent at once")
        wait_for([side for side in (solution, tester) if not ended[side]])
    return Verdict(0.0, None, TIMEOUT)


def take(side: Confined, inbox: bytearray) -> bool:
    """Reads what a side has sent; returns whether it has ended."""
    side.write()
    while len(inbox) <= 2 * MOST_MESSAGE:
        part = side.read()
        if part is None:
            return False
        if not part:
            return True
        inbox += part
    return False


def _whole(inbox: bytearray) -> bool:
    return len(inbox) > LENGTH and len(inbox) >= LENGTH + int.from_bytes(inbox[:LENGTH], "big")


def message(inbox: bytearray) -> bytes:
    """Takes the first whole message out of an inbox; empty where there is none."""
    if not _whole(inbox):
        return b""
    end = LENGTH + int.from_bytes(inbox[:LENGTH], "big")
    message = bytes(inbox[LENGTH:end])
    del inbox[:end]
    return message


def _pass_on(side: Confined, message: bytes) -> None:
    side.unsent += len(message).to_bytes(LENGTH, "big") + message
    side.write()


def _told(message: bytes) -> Verdict:
    if message[:1] == b"d":
        return Verdict(1.0, None, "all tests passed")
    return Verdict(0.0, None, f"a test failed: {json.loads(message[1:])}"[:400])


def broken(side: Confined, who: str) -> Verdict:
    """Returns the verdict on a side that ended too early; RuntimeError where the sandbox itself did not start."""
    status = side.end(grace=0.5)
    if status == FAILED and side.complaint():
        raise RuntimeError(f"the sandbox does not start: {side.complaint()}")
    return Verdict(0.0, None, f"{who} ended before the tests did (status {status})")


def wait_for(sides: Sequence[Confined]) -> None:
    """Waits until one of the sides has something to read, takes more to write, or has no time left."""
    poll = select.poll()
    for side in sides:
        poll.register(side.output, select.POLLIN)
        if side.unsent:
            poll.register(side.input, select.POLLOUT)
    poll.poll(min(side.left() for side in sides) * 1000 + 1)


def framed(kind: str, content: object) -> bytes:
    """Returns a message to an end of the exchange: its length, its kind, a letter, and its content as JSON."""
    payload = kind.encode() + json.dumps(content).encode()
    return len(payload).to_bytes(LENGTH, "big") + payload


def _fault(stopped: str, status: int) -> str:
    if stopped:
        return "timeout" if stopped == "timeout" else "too much output"
    return f"exit status {status}" if status else ""


@cache
def exchange_program() -> str:
    """Returns the program that runs at both ends of the exchange."""
    return EXCHANGE.read_text(encoding="utf-8")
