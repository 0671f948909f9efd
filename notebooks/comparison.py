"""What a notebook claims, and where two runs of it differ in that."""

from __future__ import annotations

import math
import re

from nbformat import NotebookNode

NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
RELATIVE, ABSOLUTE = 1e-2, 1e-4
# Tags of cells whose outputs come from training, where rounding decides: of `measured` the words are compared, of
# `sampled` that something of the kind is shown. What is claimed of them stands in the notebook's last cell.
MEASURED, SAMPLED = "measured", "sampled"


def differences(committed: NotebookNode, executed: NotebookNode) -> list[str]:
    """Where outputs of the two differ in what they claim: a sentence a cell, with both texts."""
    told = []
    for number, (old, new) in enumerate(zip(committed.cells, executed.cells, strict=True), 1):
        if old.cell_type != "code":
            continue
        (was, is_now), tags = (_shown(old), _shown(new)), old.metadata.get("tags", [])
        if [kind for kind, _ in was] != [kind for kind, _ in is_now]:
            told.append(f"cell {number} showed {[kind for kind, _ in was]}, now {[kind for kind, _ in is_now]}")
        elif SAMPLED not in tags:
            pairs = zip(was, is_now, strict=True)
            told += [
                f"cell {number} said\n{before}\nnow\n{after}"
                for (_, before), (_, after) in pairs
                if not same_claim(before, after, numbers=MEASURED not in tags)
            ]
    return told


def same_claim(before: str, after: str, numbers: bool = True) -> bool:
    """Whether two texts have the same words and, unless only these are to be compared, numbers that are close."""
    if NUMBER.sub("#", before).split() != NUMBER.sub("#", after).split():
        return False
    pairs = zip(NUMBER.findall(before), NUMBER.findall(after), strict=True)
    return not numbers or all(_close(a, b) for a, b in pairs)


def _close(before: str, after: str) -> bool:
    return before == after or math.isclose(float(before), float(after), rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _shown(cell: NotebookNode) -> list[tuple[str, str]]:
    """The kinds and texts of a cell's outputs; of a picture the kind alone."""
    shown = []
    for output in cell.outputs:
        if output.output_type == "stream":
            shown.append(("text", output.text))
        elif "image/png" in output.data:
            shown.append(("picture", ""))
        else:
            shown.append(("text", output.data.get("text/plain", "")))
    return shown
