"""Where the answer stands in a text: after a marker, or in the last `\\boxed{...}`; linear time."""

BOXED = "\\boxed{"


def after_marker(text: str, marker: str = "####") -> str | None:
    """Returns the rest of the line after the last marker, stripped, or None without a marker."""
    _, found, rest = text.rpartition(marker)
    return rest.partition("\n")[0].strip() if found else None


def last_boxed(text: str) -> str | None:
    """Returns the inside of the last `\\boxed{...}` with its braces balanced, or None."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    begin = start + len(BOXED)
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def answer_place(text: str) -> str:
    """Returns the last `\\boxed{...}`'s inside, else what follows the last `####` on its line, else the whole text."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    marked = after_marker(text)
    return text.strip() if marked is None else marked
