"""Loading and saving a folder in the Hub's layout, one tensor (or one shard of it) at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding
from safetensors.numpy import save_file

from model.config import DTYPES, ModelConfig, unknown
from model.hf.checks import fp8_block
from model.hf.config import stated_dtype, to_hf
from model.hf.files import CONFIG, INDEX, READABLE, SINGLE, STORED, Tensor, open_tensors, read_json, tensor_names
from model.hf.layout import read_part, write_whole
from model.hf.sizes import all_finite, check_counts, check_sizes
from model.hf.tables import Rule, Table, table_for
from model.hf.values import listed
from model.lm import Model, Params, build

# Rows of a repeated embedding compared at once: enough to stream, few enough to hold.
ROWS = 4096
RULE_STATE = "state/"  # what is learnt by rule is float32, whatever the parameters are stored as


def load(
    path: str | os.PathLike[str], mesh: Mesh | None = None, dtype: Any = None, mtp: int | None = None
) -> tuple[Model, Params]:
    """Loads a folder with `config.json` and `*.safetensors` (single or sharded): (model, parameters).

    Each tensor goes from the file straight to its devices; with `mesh`, each device reads only its own part.
    `dtype` is what the parameters are stored as (None: as in the files; where those mix dtypes, what config.json names,
    else the widest, and a warning says which); the computation stays in float32 until `config.dtype` is replaced. FP8
    weights with a scale per block are multiplied out. `mtp` leaves all but so many modules of multi-token prediction in
    the files (None: those that config.json promises; where the files hold fewer, as transformers saves them, a warning
    says so). A warning names tensors with NaN or infinite values. Raises FileNotFoundError for a missing file, and
    ValueError that names the file that cannot be read, lists missing and left-over tensors, or gives both shapes of one
    that does not fit.
    """
    folder = Path(path)
    wanted = None if dtype is None else _dtype_name(dtype)
    described, promised = _described(folder)
    with open_tensors(folder, fp8_block(described)) as found:
        config = _with_modules(promised, found, mtp)
        check_sizes(folder / CONFIG, config, found)
        leaves = _flat(build(config).abstract())
        table = table_for(config, leaves)
        left = range(config.mtp.depth, promised.mtp.depth)
        kept = {name: tensor for name, tensor in found.items() if _module_of(name, promised) not in left}
        tensors = _match(kept, table, leaves, config)
        stored = wanted or _common_dtype(tensors, table, leaves, described)
        model = build(config.replace(param_dtype=stored))
        shardings = _flat(model.shardings(mesh)) if mesh is not None else {}
        params, bad = {}, dict[str, None]()
        with np.errstate(over="ignore"):  # what a cast makes infinite is told by name
            for rule in table.rules:
                sources = [tensors[name] for name in rule.names(leaves)]
                params.update(_load_rule(rule, sources, leaves, stored, shardings, bad))
    if bad:
        warnings.warn(f"{folder} has NaN or infinite values in {listed(bad)}", stacklevel=2)
    return model, unflatten_dict({path: params[path] for path in leaves}, sep="/")


def describe(path: str | os.PathLike[str]) -> Model:
    """The model of a folder in the Hub's layout, of which no tensor is read: the one `load` gives, but for its
    `param_dtype`, which is config.json's. A folder without weights is taken at the word of its config.json.
    """
    folder = Path(path)
    config, names = _described(folder)[1], tensor_names(folder)
    return build(_with_modules(config, names, None) if names else config)


def _described(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """config.json as it stands and as a config, its counts compared with the tensors' names; errors name the file."""
    described = read_json(folder / CONFIG)
    if "algorithm" in described and "model_type" not in described:
        raise ValueError(f"{folder / CONFIG} is a training run's: infer.load.load_run reads run directories")
    names = tensor_names(folder)
    try:
        check_counts(described, names)
        fp8_block(described)
        return described, ModelConfig.from_hf(described)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def _dtype_name(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ValueError(unknown("dtype", name, DTYPES))
    return name


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


def _with_modules(promised: ModelConfig, names: Iterable[str], wanted: int | None) -> ModelConfig:
    """The config with the `wanted` modules of multi-token prediction (None: all), of those that the files hold."""
    depth = promised.mtp.depth
    held = min(max((_module_of(name, promised) for name in names), default=-1) + 1, depth)
    if wanted is not None and wanted > held:
        raise ValueError(f"mtp={wanted} modules of multi-token prediction were asked for, the files hold {held}")
    if wanted is None and held < depth:
        warnings.warn(
            f"{CONFIG} promises {depth} multi-token prediction layer(s) after layer {promised.n_layers - 1}, but "
            f"the files hold {held or 'none'}: loaded with mtp.depth={held}",
            stacklevel=3,
        )
    return promised.replace(mtp=dataclasses.replace(promised.mtp, depth=held if wanted is None else wanted))


def _module_of(name: str, config: ModelConfig) -> int:
    """The number of the module of multi-token prediction that a tensor belongs to, below 0 where to none."""
    own = config.family == "sagax"
    found = re.match(r"(?:state\.)?mtp_(\d+)\." if own else r"(?:model\.)?layers\.(\d+)\.", name)
    return -1 if found is None else int(found[1]) - (0 if own else config.n_layers)


def _common_dtype(
    tensors: Mapping[str, Tensor], table: Table, leaves: Mapping[str, Any], described: Mapping[str, Any]
) -> str:
    """The dtype of the files; of several the one that config.json names, or else the widest, with a warning."""
    weights = [rule for rule in table.rules if not rule.paths[0].startswith(RULE_STATE)]
    found = sorted(
        {STORED[d] for d in {tensors[name].dtype for rule in weights for name in rule.names(leaves)} & set(STORED)}
    )
    if len(found) == 1:
        return found[0]
    named = stated_dtype(described)
    chosen = named or (jnp.result_type(*found).name if found else "float32")
    why = f"as {CONFIG} says" if named else "the widest"
    warnings.warn(
        f"the files hold {', '.join(found) or 'no floats'}: stored as {chosen}, {why}; dtype= chooses another",
        stacklevel=3,
    )
    return chosen


def _match(
    tensors: Mapping[str, Tensor], table: Table, leaves: Mapping[str, Any], config: ModelConfig
) -> dict[str, Tensor]:
    """The tensors under the table's names; raises ValueError unless the two lists are the same."""
    wanted = {name for rule in table.rules for name in rule.names(leaves)}
    named = {_full_name(name, wanted, table): tensor for name, tensor in tensors.items()}
    named = {name: t for name, t in named.items() if not any(re.fullmatch(rule, name) for rule in table.ignored)}
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
        found = "is not there" if original is None else f"has shape {original.shape}"
        raise ValueError(f"{name} of shape {copy.shape} must repeat {first}, which {found}")
    for row in range(0, copy.shape[0], ROWS):
        part = (slice(row, min(row + ROWS, copy.shape[0])), slice(0, copy.shape[1]))
        mine, theirs = copy[part], original[part]
        if not (np.array_equal(mine, theirs) or mine.tobytes() == theirs.tobytes()):  # NaN equals nothing, but its bits
            tied = ": the embeddings are tied; set tie_word_embeddings to false" if name == "lm_head.weight" else ""
            raise ValueError(f"{name} differs from {first}, which it must repeat{tied}")


def _load_rule(
    rule: Rule,
    sources: Sequence[Tensor],
    leaves: Mapping[str, Any],
    stored: str,
    shardings: Mapping[str, Sharding],
    bad: dict[str, None],
) -> Params:
    """The parameters that one rule's tensors hold, {path: array}; adds to `bad` the names of those not finite."""
    expected, shape, names = rule.file_shape(leaves), rule.shape(leaves), rule.names(leaves)
    for name, source in zip(names, sources, strict=True):
        if source.shape != expected:
            raise ValueError(f"{name} has shape {source.shape}, {CONFIG} asks for {expected}")
    dtype = jnp.dtype("float32" if rule.paths[0].startswith(RULE_STATE) else stored)

    def read(which: int, part: Sequence[slice]) -> np.ndarray:
        if not rule.stacked:
            first = (slice(which, which + 1),) if len(rule.paths) > 1 else ()
            block = read_part(sources[0], rule.pattern, shape, (*first, *part)).astype(dtype)
            if not all_finite(block):
                bad[names[0]] = None
            return block[0] if first else block
        # Filled expert by expert, so that one expert at most is held beside the whole.
        whole = np.empty([cut.stop - cut.start for cut in part], dtype)
        for row, source, name in zip(whole, sources[part[0]], names[part[0]], strict=True):
            row[...] = read_part(source, rule.pattern, shape, part[1:])
            if not all_finite(row):
                bad[name] = None
        return whole

    return {
        path: _place(lambda part, i=i: read(i, part), leaves[path].shape, shardings.get(path))
        for i, path in enumerate(rule.paths)
    }


def _place(read: Callable[..., np.ndarray], shape: tuple[int, ...], sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        return jnp.asarray(read([slice(0, size) for size in shape]))
    owners: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}  # replicas share one read
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index or (), shape, strict=True))
        owners.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in owners.items():
        block = read([slice(*bound) for bound in bounds])
        shards += [jax.device_put(block, device) for device in devices]
        del block  # a shard's own memory is all that stays
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _flat(tree: Params) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a folder is needed")
    taken = [p.name for p in folder.glob("*") if p.name in (CONFIG, INDEX) or p.suffix == ".safetensors"]
    if taken:
        raise FileExistsError(f"{folder} already holds {listed(sorted(taken))}; choose another folder or remove it")


def _checked_leaves(model: Model, params: Params) -> dict[str, Any]:
    expected, found = _flat(model.abstract()), _flat(params)
    missing, left = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or left:
        raise ValueError(
            f"the parameters are not this model's; missing: [{listed(map(repr, missing))}], left over:"
            f" [{listed(map(repr, left))}]"
        )
    for path, leaf in expected.items():
        if found[path].shape != leaf.shape:
            raise ValueError(f"{path} has shape {found[path].shape}, the model asks for {leaf.shape}")
    dtypes = sorted({leaf.dtype.name for path, leaf in found.items() if not path.startswith(RULE_STATE)})
    if len(dtypes) != 1:
        raise ValueError(f"the parameters mix {', '.join(dtypes)}: cast them to one dtype before saving")
    return {path: found[path] for path in expected}


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
