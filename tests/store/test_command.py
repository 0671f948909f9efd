"""How a command line ends: exit codes, and one paragraph of what was raised."""

from __future__ import annotations

import pytest

from store.command import exit_code, words_of


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no\n such  thing"), 2, "error: no such thing\n"),
        (KeyError("a name"), 2, "error: a name\n"),
        (FileNotFoundError("no file x"), 2, "error: no file x\n"),
        (RuntimeError("\x1b[2J broken"), 1, "error: RuntimeError: \\x1b[2J broken\n"),
        (PermissionError("x"), 1, "error: PermissionError: x\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_what_is_raised_becomes_a_code_and_a_paragraph(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: raising(error)) == code
    assert capsys.readouterr().err == said


def test_the_words_of_interrupts_and_faults_may_be_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: raising(KeyboardInterrupt()), "later") == 130
    assert exit_code(lambda: raising(OSError("x")), advice=lambda error: f"{type(error).__name__} is a pity. ") == 1
    assert capsys.readouterr().err == "error: later\nerror: OSError is a pity. OSError: x\n"


def test_a_stack_is_shown_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: print("done")) == 0
    monkeypatch.setenv("SAGAX_TRACEBACK", "1")
    assert exit_code(lambda: raising(ValueError("x"))) == 2
    found = capsys.readouterr()
    assert found.out == "done\n" and "Traceback" in found.err and found.err.endswith("error: x\n")
    assert words_of(KeyError()) == ""
