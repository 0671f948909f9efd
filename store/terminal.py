"""Text that others wrote, as a terminal may be given it."""

from __future__ import annotations


def visible(text: str, kept: str = "\n") -> str:
    """The text with every character written out that a terminal would obey or hide, except those in `kept`.

    These are the controls of C0 and C1 with the escape character, marks that turn the direction of writing, spaces of
    no width, lone surrogates, separators of lines, and what Unicode has not assigned: all that is not `isprintable`.
    """
    return "".join(char if char.isprintable() or char in kept else repr(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    """The same where a line has to stay one: line breaks are written out, too."""
    return visible(text, kept="")
