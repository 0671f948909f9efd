"""Saving a folder in the Hub's layout: shards, their index, and config.json last."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from model.hf.config import to_hf
from model.hf.files import CONFIG, INDEX, SINGLE
from model.hf.layout import write_whole
from model.hf.tables import RULE_STATE, Rule, flat_leaves, table_for
from model.hf.values import listed
from model.lm import Model, Params


def save(path: str | os.PathLike[str], model: Model, params: Params, max_shard_bytes: float = 5e9) -> None:
    """Writes `config.json` and the weights, in shards of at most `max_shard_bytes` (one tensor is never
    split).

    The family of the config chooses the names; a config its family cannot express raises ValueError, and so
    do parameters that are not the model's. Everything is written beside `path` and moved there at the end,
    `config.json` last; a folder that already holds a model raises FileExistsError, other files in it stay.
    """
    folder = Path(path).absolute()
    _check_free(folder)
    leaves = _checked_leaves(model, params)
    stored = next(leaf.dtype.name for name, leaf in leaves.items() if not name.startswith(RULE_STATE))
    config = model.config.replace(param_dtype=stored)
    table = table_for(config, leaves)
    description = to_hf(config)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        _write_shards(temporary, (*table.rules, *table.copies), leaves, max_shard_bytes)
        _write_json(temporary / CONFIG, description)
        for file in temporary.iterdir():  # some releases of safetensors leave files that only the owner may read
            shutil.copymode(temporary / CONFIG, file)
        _move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a folder is needed")
    taken = [p.name for p in folder.glob("*") if p.name in (CONFIG, INDEX) or p.suffix == ".safetensors"]
    if taken:
        raise FileExistsError(f"{folder} already holds {listed(sorted(taken))}; choose another folder or remove it")


def _checked_leaves(model: Model, params: Params) -> dict[str, Any]:
    expected, actual = flat_leaves(model.abstract()), flat_leaves(params)
    missing, left = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    if missing or left:
        raise ValueError(
            f"the parameters are not this model's; missing: [{listed(map(repr, missing))}], left over:"
            f" [{listed(map(repr, left))}]"
        )
    for path, leaf in expected.items():
        if actual[path].shape != leaf.shape:
            raise ValueError(f"{path} has shape {actual[path].shape}, the model asks for {leaf.shape}")
    dtypes = sorted({leaf.dtype.name for path, leaf in actual.items() if not path.startswith(RULE_STATE)})
    if len(dtypes) != 1:
        raise ValueError(f"the parameters mix {', '.join(dtypes)}: cast them to one dtype before saving")
    return {path: actual[path] for path in expected}


class _Entry(NamedTuple):
    """One tensor to write: its name, the rule that makes it, and its expert where there are several."""

    name: str
    rule: Rule
    expert: int

    def bytes(self, leaves: Mapping[str, Any]) -> int:
        whole = sum(leaves[path].nbytes for path in self.rule.paths)
        return whole // leaves[self.rule.paths[0]].shape[0] if self.rule.stacked else whole

    def value(self, leaves: Mapping[str, Any]) -> np.ndarray:
        arrays = [leaves[path] for path in self.rule.paths]
        if self.rule.stacked:
            return write_whole(np.asarray(arrays[0][self.expert]), self.rule.pattern)
        whole = np.asarray(arrays[0]) if len(arrays) == 1 else np.stack([np.asarray(array) for array in arrays])
        return write_whole(whole, self.rule.pattern)


def _shards(rules: Sequence[Rule], leaves: Mapping[str, Any], limit: float) -> list[list[_Entry]]:
    """Cuts the tensors, in order, into groups of at most `limit` bytes."""
    if limit <= 0:
        raise ValueError(f"max_shard_bytes must be positive, found {limit}")
    groups: list[list[_Entry]] = [[]]
    used = 0
    for entry in (_Entry(name, rule, e) for rule in rules for e, name in enumerate(rule.names(leaves))):
        size = entry.bytes(leaves)
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(entry)
        used += size
    return groups


def _write_shards(folder: Path, rules: Sequence[Rule], leaves: Mapping[str, Any], limit: float) -> None:
    groups = _shards(rules, leaves, limit)
    many = len(groups) > 1
    weight_map = {}
    for i, group in enumerate(groups):
        name = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" if many else SINGLE
        save_file({entry.name: entry.value(leaves) for entry in group}, folder / name, metadata={"format": "pt"})
        weight_map.update({entry.name: name for entry in group})
    if many:
        total = sum(entry.bytes(leaves) for group in groups for entry in group)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _move(temporary: Path, folder: Path) -> None:
    """Renames the finished folder into place; into a folder that exists, file by file, the one that makes it
    valid last.
    """
    if not folder.exists():
        os.rename(temporary, folder)
        return
    for entry in sorted(temporary.iterdir(), key=lambda entry: entry.name == CONFIG):
        os.rename(entry, folder / entry.name)
