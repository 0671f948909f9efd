"""A folder's tensors matched with the names that a family's table expects."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.hf.files import CONFIG, STORED, Tensor
from model.hf.quantised import READABLE
from model.hf.tables import Table
from model.hf.values import listed

# Rows of a repeated embedding compared at once: enough to stream, few enough to hold.
ROWS = 4096


def match_tensors(
    tensors: Mapping[str, Tensor], table: Table, leaves: Mapping[str, Any], config: ModelConfig
) -> dict[str, Tensor]:
    """The tensors under the table's names; raises ValueError unless the two lists are the same."""
    wanted = {name for rule in table.rules for name in rule.names(leaves)}
    named = {_full_name(name, wanted, table): tensor for name, tensor in tensors.items()}
    named = {name: t for name, t in named.items() if not any(re.fullmatch(rule, name) for rule in table.ignored)}
    unread = sorted(name for name in named if any(re.fullmatch(rule, name) for rule in table.unread))
    if unread:
        warnings.warn(f"weights that stay in the files, unread: {_grouped(unread)}", stacklevel=3)
    named = {name: tensor for name, tensor in named.items() if name not in unread}
    original = {rule.paths: rule.name for rule in table.rules}
    copies = {rule.name: original[rule.paths] for rule in table.copies}
    if config.tied and config.family != "sagax":
        copies["lm_head.weight"] = original["embed",]
    for name in copies.keys() & named.keys():
        _check_copy(name, named.pop(name), copies[name], named.get(copies[name]))
    missing, left = sorted(wanted - set(named)), sorted(set(named) - wanted)
    if missing or left:
        parts = [f"{what}: {_grouped(names)}" for what, names in (("missing", missing), ("left over", left)) if names]
        raise ValueError(f"the tensors do not fit the {config.family!r} model of {CONFIG}; {'; '.join(parts)}")
    wrong = sorted(name for name in wanted if named[name].dtype not in READABLE)
    if wrong:
        raise ValueError(f"unsupported dtype {named[wrong[0]].dtype} of {listed(wrong)}; supported: {STORED}")
    return named


def _grouped(names: Sequence[str]) -> str:
    """The first names, those that differ by their expert alone as one: a model may have tens of thousands."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.*.", name), []).append(name)
    return listed(same[0] if len(same) == 1 else f"{name} ({len(same)})" for name, same in groups.items())


def _full_name(name: str, wanted: set[str], table: Table) -> str:
    """Files saved from the bare decoder leave out the prefix (GPT-2's releases do)."""
    full = table.prefix + name
    return full if name not in wanted and (full in wanted or _is_ignored(full, table)) else name


def _is_ignored(name: str, table: Table) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in table.ignored)


def _check_copy(name: str, copy: Tensor, first: str, original: Tensor | None) -> None:
    """Raises ValueError unless a tensor that must repeat another does."""
    if original is None or copy.shape != original.shape:
        problem = "is not there" if original is None else f"has shape {original.shape}"
        raise ValueError(f"{name} of shape {copy.shape} must repeat {first}, which {problem}")
    for row in range(0, copy.shape[0], ROWS):
        part = (slice(row, min(row + ROWS, copy.shape[0])), slice(0, copy.shape[1]))
        mine, theirs = copy[part], original[part]
        if not (np.array_equal(mine, theirs) or mine.tobytes() == theirs.tobytes()):  # NaN equals nothing, but its bits
            tied = ": the embeddings are tied; set tie_word_embeddings to false" if name == "lm_head.weight" else ""
            raise ValueError(f"{name} differs from {first}, which it must repeat{tied}")
