"""Docstrings, which are plain Markdown, as the reStructuredText that autodoc reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

CODE = re.compile(r"(``.+?``|`[^`]+`)", re.S)
LITERAL = ("|", "    ")  # how the lines of tables and of code begin
SPECIAL = re.compile(r"([\\*_|<>:`])")


def as_rst(lines: Sequence[str]) -> list[str]:
    """Paragraphs as text, with their code spans; tables and what is indented as it stands."""
    result: list[str] = []
    for block in paragraphs(lines):
        if block[0].startswith(LITERAL):
            result += ["::", "", *(f"    {line}" for line in block), ""]
        else:
            result += [*text(block), ""]
    return result


def paragraphs(lines: Sequence[str]) -> Iterator[list[str]]:
    """Lines that follow one another without a blank one, or a change to or from an indented one, between them."""
    block: list[str] = []
    for line in [*lines, ""]:
        if block and (not line.strip() or line.startswith(LITERAL) != block[0].startswith(LITERAL)):
            yield block
            block = []
        if line.strip():
            block.append(line)


def text(block: Sequence[str]) -> list[str]:
    """A paragraph whose backticks mark code and whose other signs mean nothing, but for the dash of a list's items."""
    parts = CODE.split("\n".join(block))
    parts[1::2] = [f"``{code.strip('`').strip()}``" for code in parts[1::2]]
    parts[::2] = [SPECIAL.sub(r"\\\1", words) for words in parts[::2]]
    return "".join(
        # Markup ends at a letter only behind an escaped blank.
        f"{part}\\ " if number % 2 and parts[number + 1][:1].isalnum() else part
        for number, part in enumerate(parts)
    ).split("\n")


def plain_signature(signature: str | None) -> str | None:
    """A signature without the parent and the name that every flax module has, and with JAX's arrays by their name."""
    short = signature and signature.replace("jaxlib._jax.Array", "Array")
    return short and re.sub(r",? ?parent: .*\)$", ")", short)
