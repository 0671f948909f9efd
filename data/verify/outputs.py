"""What programs that nobody trusts answer to inputs, from the sandbox: outputs to compare, not to judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from data.verify.code import MOST_MESSAGE, broken, exchange_program, framed, lines, message, refusal, take, wait_for
from data.verify.confined import Confined, Limits, run
from data.verify.exchange import pack

MOST_OUTPUT = 65_536  # characters of one output
DIGITS = 9  # of a number that is not whole: programs that are both right may differ in the last ones


def program_outputs(code: str, inputs: Sequence[str], limits: Limits, isolation: str) -> list[str | None]:
    """Returns what a program writes for each standard input, without spaces at line ends and empty lines at the end.

    None where it fails, writes too much or takes more than `limits.seconds`, which is for each input.
    """
    if refusal(code):
        return [None] * len(inputs)
    outputs: list[str | None] = []
    for text in inputs:
        outcome = run(code, text.encode(errors="replace"), limits, isolation)
        written = "\n".join(lines(outcome.stdout.decode(errors="replace")))
        fails = outcome.stopped or outcome.status or len(written) > MOST_OUTPUT
        outputs.append(None if fails else written)
    return outputs


def function_outputs(
    code: str, name: str, calls: Sequence[tuple[Any, ...]], limits: Limits, isolation: str
) -> list[str | None]:
    """Returns what a function of the code returns for each call's arguments, as text: the same for values that Python
    calls equal, with floats to DIGITS digits.

    None where it raises, returns what is not plain data or more than MOST_OUTPUT characters, and for all calls that are
    not answered within `limits.seconds`. All calls run in one process, one after the other. RuntimeError when the
    sandbox itself fails.
    """
    if refusal(code):
        return [None] * len(calls)
    with Confined(exchange_program(), limits, isolation, ("solution",)) as solution:
        solution.unsent += framed("s", code)
        for arguments in calls:
            solution.unsent += framed("c", [pack(name), pack(arguments), pack({})])
        replies = _replies(solution, len(calls) + 1)
    # The first reply says how loading the code ended.
    outputs = [_read(reply) for reply in replies[1:]]
    return outputs + [None] * (len(calls) - len(outputs))


def _replies(solution: Confined, wanted: int) -> list[bytes]:
    inbox, replies = bytearray(), list[bytes]()
    while len(replies) < wanted and solution.left() and len(inbox) <= 2 * MOST_MESSAGE:
        ended = take(solution, inbox)
        while len(replies) < wanted and (reply := message(inbox)):
            replies.append(reply)
        if ended:
            if not replies:
                broken(solution, "the solution")
            break
        if len(replies) < wanted:
            wait_for([solution])
    return replies


def _read(reply: bytes) -> str | None:
    """Returns the value in a reply as text, or None; whatever the solution has sent, it does not raise."""
    try:
        said, *values = json.loads(reply[1:])
        text = json.dumps(_canonical(values[0]), sort_keys=True) if said == "value" else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        return None
    return text if text is not None and len(text) <= MOST_OUTPUT else None


def _canonical(packed: Any) -> Any:
    """Returns a packed value such that equal values are the same; ValueError for an object that does not travel."""
    if isinstance(packed, bool | int):
        return int(packed)
    if isinstance(packed, float):
        rounded = float(f"{packed:.{DIGITS}g}")
        return int(rounded) if rounded.is_integer() else rounded
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "object":
        raise ValueError("an object that is no plain data")
    if kind == "dict":
        keys, values = ([_canonical(item) for item in part] for part in content)
        return {kind: _sorted([list(pair) for pair in zip(keys, values, strict=True)])}
    if kind in ("type", "bytes"):
        return packed
    items = [_canonical(item) for item in content]
    return {"set": _sorted(items)} if kind in ("set", "frozenset") else {kind: items}


def _sorted(items: list[Any]) -> list[Any]:
    return sorted(items, key=json.dumps)
