"""Loading and saving a folder in the Hub's layout, one tensor (or one shard of it) at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding
from safetensors import safe_open
from safetensors.numpy import save_file

from model.config import DTYPES, ModelConfig, unknown
from model.hf.config import from_hf, to_hf
from model.hf.tables import Rule, Table, file_shape, read_part, table_for, write_whole
from model.lm import Model, Params, build

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Rows of a tied head compared at once: enough to stream, few enough to hold.
ROWS = 4096


def load(path: str | os.PathLike[str], mesh: Mesh | None = None, dtype: Any = None) -> tuple[Model, Params]:
    """Loads a folder with `config.json` and `*.safetensors` (single or sharded): (model, parameters).

    Each tensor goes from the file straight to its devices; with `mesh`, each device reads only its own part.
    `dtype` is what the parameters are stored as (None: as in the file); the computation stays in float32
    until `config.dtype` is replaced. Raises FileNotFoundError for a missing file, and ValueError that lists
    missing and left-over tensors, both shapes of one that does not fit, or mixed dtypes.
    """
    folder = Path(path)
    config = from_hf(_read_json(folder / CONFIG))
    with _open_tensors(folder) as tensors:
        stored = jnp.dtype(dtype).name if dtype is not None else _common_dtype(tensors)
        if stored not in DTYPES:
            raise ValueError(unknown("dtype", stored, DTYPES))
        model = build(config.replace(param_dtype=stored))
        leaves = _flat(model.abstract())
        table = table_for(config.family, config.n_layers, leaves)
        tensors = _match(tensors, table, config)
        shardings = _flat(model.shardings(mesh)) if mesh is not None else {}
        params = {}
        for rule in table.rules:
            params.update(_load_rule(rule, tensors[rule.name], leaves, shardings))
    return model, unflatten_dict({path: params[path] for path in leaves}, sep="/")


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
    config = model.config.replace(param_dtype=next(iter(leaves.values())).dtype.name)
    rules = table_for(config.family, config.n_layers, leaves).rules
    description = to_hf(config)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        _write_shards(temporary, rules, leaves, max_shard_bytes)
        _write_json(temporary / CONFIG, description)
        for file in temporary.iterdir():  # some releases of safetensors leave files that only the owner may read
            shutil.copymode(temporary / CONFIG, file)
        _move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor still in its file."""

    file: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> str:
        return str(self.file.get_slice(self.name).get_dtype())

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.file.get_slice(self.name)[index]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a folder with {CONFIG} and {SINGLE} (or {INDEX})")
    return json.loads(path.read_text())


def _files(folder: Path) -> list[Path]:
    sharded = (folder / INDEX).is_file()
    names = sorted(set(_read_json(folder / INDEX)["weight_map"].values())) if sharded else [SINGLE]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        found = sorted(entry.name for entry in folder.iterdir())
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; found {', '.join(found)}. Convert or download them."
        )
    return [folder / name for name in names]


@contextlib.contextmanager
def _open_tensors(folder: Path) -> Iterator[dict[str, _Tensor]]:
    """Every tensor of the folder by name, none of them read."""
    tensors: dict[str, _Tensor] = {}
    with contextlib.ExitStack() as stack:
        for path in _files(folder):
            file = stack.enter_context(safe_open(path, framework="numpy"))
            for name in file.keys():  # noqa: SIM118  (not a dict)
                if name in tensors:
                    raise ValueError(f"tensor {name!r} is in two files of {folder}")
                tensors[name] = _Tensor(file, name)
        yield tensors


def _common_dtype(tensors: Mapping[str, _Tensor]) -> str:
    found = sorted({tensor.dtype for tensor in tensors.values()} & set(STORED))
    if len(found) != 1:
        raise ValueError(f"the files hold {', '.join(found) or 'no floats'}: choose one with dtype={'/'.join(DTYPES)}")
    return STORED[found[0]]


def _match(tensors: Mapping[str, _Tensor], table: Table, config: ModelConfig) -> dict[str, _Tensor]:
    """The tensors under the table's names; raises ValueError unless the two lists are the same."""
    wanted = {rule.name for rule in table.rules}
    named = {_full_name(name, wanted, table): tensor for name, tensor in tensors.items()}
    named = {name: t for name, t in named.items() if not any(re.fullmatch(rule, name) for rule in table.ignored)}
    if config.tied and "lm_head.weight" in named and config.family != "sagax":
        _check_tied(named.pop("lm_head.weight"), named.get(table.rules[0].name))
    missing, left = sorted(wanted - set(named)), sorted(set(named) - wanted)
    if missing or left:
        parts = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("left over", left)) if names]
        raise ValueError(f"the tensors do not fit the {config.family!r} model of {CONFIG}; {'; '.join(parts)}")
    wrong = [name for name in wanted if named[name].dtype not in STORED]
    if wrong:
        raise ValueError(
            f"unsupported dtype {named[wrong[0]].dtype} of {', '.join(sorted(wrong))}; supported: {STORED}"
        )
    return named


def _full_name(name: str, wanted: set[str], table: Table) -> str:
    """Files saved from the bare decoder leave out the prefix (GPT-2's releases do)."""
    full = table.prefix + name
    return full if name not in wanted and (full in wanted or _is_ignored(full, table)) else name


def _is_ignored(name: str, table: Table) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in table.ignored)


def _check_tied(head: _Tensor, embed: _Tensor | None) -> None:
    if embed is None or head.shape != embed.shape:
        raise ValueError(f"the embeddings are tied, but lm_head.weight has shape {head.shape}, not the embedding's")
    for row in range(0, head.shape[0], ROWS):
        part = (slice(row, min(row + ROWS, head.shape[0])), slice(0, head.shape[1]))
        if not np.array_equal(head[part], embed[part]):
            raise ValueError("the embeddings are tied, but lm_head.weight differs: set tie_word_embeddings to false")


def _load_rule(rule: Rule, tensor: _Tensor, leaves: Mapping[str, Any], shardings: Mapping[str, Any]) -> Params:
    """The parameters that one tensor holds, {path: array}."""
    count, leaf = len(rule.paths), leaves[rule.paths[0]]
    shape = leaf.shape if count == 1 else (count, *leaf.shape)
    expected = file_shape(rule.pattern, shape)
    if tensor.shape != expected:
        raise ValueError(f"{rule.name} has shape {tensor.shape}, {CONFIG} asks for {expected}")

    def read(which: int, part: Sequence[slice]) -> np.ndarray:
        if count == 1:
            return read_part(tensor, rule.pattern, shape, part).astype(leaf.dtype)
        return read_part(tensor, rule.pattern, shape, (slice(which, which + 1), *part))[0].astype(leaf.dtype)

    return {
        path: _place(lambda part, i=i: read(i, part), leaf, shardings.get(path)) for i, path in enumerate(rule.paths)
    }


def _place(read: Any, leaf: Any, sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        return jnp.asarray(read([slice(0, size) for size in leaf.shape]))
    parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}  # replicas share one read

    def part(index: Any) -> np.ndarray:
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, leaf.shape, strict=True))
        if bounds not in parts:
            parts[bounds] = read([slice(*bound) for bound in bounds])
        return parts[bounds]

    return jax.make_array_from_callback(leaf.shape, sharding, part)


def _flat(tree: Params) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a folder is needed")
    taken = [p.name for p in folder.glob("*") if p.name in (CONFIG, INDEX) or p.suffix == ".safetensors"]
    if taken:
        raise FileExistsError(f"{folder} already holds {', '.join(sorted(taken))}; choose another folder or remove it")


def _checked_leaves(model: Model, params: Params) -> dict[str, Any]:
    expected, found = _flat(model.abstract()), _flat(params)
    missing, left = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or left:
        raise ValueError(f"the parameters are not this model's; missing: {missing}, left over: {left}")
    for path, leaf in expected.items():
        if found[path].shape != leaf.shape:
            raise ValueError(f"{path} has shape {found[path].shape}, the model asks for {leaf.shape}")
    dtypes = sorted({leaf.dtype.name for leaf in found.values()})
    if len(dtypes) != 1:
        raise ValueError(f"the parameters mix {', '.join(dtypes)}: cast them to one dtype before saving")
    return {path: found[path] for path in expected}


def _shards(rules: Sequence[Rule], leaves: Mapping[str, Any], limit: float) -> list[list[Rule]]:
    """Cuts the rules, in order, into groups of at most `limit` bytes."""
    if limit <= 0:
        raise ValueError(f"max_shard_bytes must be positive, found {limit}")
    groups: list[list[Rule]] = [[]]
    used = 0
    for rule in rules:
        size = sum(leaves[path].nbytes for path in rule.paths)
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(rule)
        used += size
    return groups


def _write_shards(folder: Path, rules: Sequence[Rule], leaves: Mapping[str, Any], limit: float) -> None:
    groups = _shards(rules, leaves, limit)
    many = len(groups) > 1
    weight_map = {}
    for i, group in enumerate(groups):
        name = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" if many else SINGLE
        save_file({rule.name: _to_file(rule, leaves) for rule in group}, folder / name, metadata={"format": "pt"})
        weight_map.update({rule.name: name for rule in group})
    if many:
        total = sum(leaf.nbytes for leaf in leaves.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _to_file(rule: Rule, leaves: Mapping[str, Any]) -> np.ndarray:
    arrays = [np.asarray(leaves[path]) for path in rule.paths]
    return write_whole(arrays[0] if len(arrays) == 1 else np.stack(arrays), rule.pattern)


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
