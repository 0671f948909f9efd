"""Docstrings, which are written in plain Markdown, as the reStructuredText that autodoc reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

CODE = re.compile(r"(``.+?``|`[^`]+`)", re.S)
SPECIAL = re.compile(r"([\\*_|<>:`])")


def as_rst(lines: Sequence[str]) -> list[str]:
    """Paragraphs as text, with their code spans; tables and what is indented as it stands."""
    result: list[str] = []
    for block in paragraphs(lines):
        if all(line.startswith(("|", "  ")) for line in block):
            result += ["::", "", *(f"    {line}" for line in block), ""]
        else:
            result += [*text(block), ""]
    return result


def paragraphs(lines: Sequence[str]) -> Iterator[list[str]]:
    """Lines that follow one another without a blank one, or a change to or from an indented one, between them."""
    block: list[str] = []
    for line in [*lines, ""]:
        literal = line.startswith(("|", "  "))
        if block and (not line.strip() or literal != block[0].startswith(("|", "  "))):
            yield block
            block = []
        if line.strip():
            block.append(line)


def text(block: Sequence[str]) -> list[str]:
    """A paragraph whose backticks mark code and whose other signs mean nothing; items of a list stay apart."""
    parts = CODE.split("\n".join(block))
    parts[1::2] = [f"``{code.strip('`').strip()}``" for code in parts[1::2]]
    parts[::2] = [SPECIAL.sub(r"\\\1", words) for words in parts[::2]]
    return "".join(
        # Markup ends at a letter only behind an escaped blank.
        f"{part}\\ " if number % 2 and parts[number + 1][:1].isalnum() else part
        for number, part in enumerate(parts)
    ).split("\n")


def plain_signature(signature: str | None) -> str | None:
    """A signature without the parent and the name that every flax module has."""
    return signature and re.sub(r",? ?parent: .*\)$", ")", signature)
