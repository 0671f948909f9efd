"""The end of a command line: what was raised as one paragraph, and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from store.json_files import forgive_output
from store.terminal import one_line

USAGE_ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, NotADirectoryError)


def exit_code(
    action: Callable[[], None],
    interrupted: str = "interrupted",
    advice: Callable[[Exception], str] = lambda error: "",
) -> int:
    """Runs an action; 0, or one paragraph on stderr and 2 for wrong use, 1 for a fault, 130 for Ctrl-C.

    `interrupted`: what is said of Ctrl-C; `advice`: what is said before a fault. SAGAX_TRACEBACK=1 shows the stack.
    """
    forgive_output()
    try:
        action()
    except KeyboardInterrupt:
        return _complain(interrupted, 130)
    except USAGE_ERRORS as error:
        return _complain(words_of(error), 2)
    except Exception as error:  # a fault: still one paragraph, never a wall of frames
        return _complain(f"{advice(error)}{type(error).__name__}: {words_of(error)}", 1)
    return 0


def words_of(error: BaseException) -> str:
    """What an error says, as one paragraph."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split())


def _complain(text: str, code: int) -> int:
    if os.environ.get("SAGAX_TRACEBACK"):
        traceback.print_exc()
    # In one write: a thread that failed with it may write, too.
    print(f"error: {one_line(text)}\n", end="", file=sys.stderr, flush=True)
    return code
