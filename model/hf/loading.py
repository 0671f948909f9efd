"""Loading a folder in the Hub's layout, one tensor (or one shard of it) at a time."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, Sharding

from model.config import DTYPES, ModelConfig, unknown
from model.hf.checks import quantisation
from model.hf.config import stated_dtype
from model.hf.files import CONFIG, STORED, Tensor, open_tensors, read_json, tensor_names
from model.hf.layout import read_part
from model.hf.matching import match_tensors
from model.hf.quantised import joined
from model.hf.sizes import all_finite, check_counts, check_sizes
from model.hf.tables import RULE_STATE, Rule, Table, flat_leaves, table_for
from model.hf.values import listed
from model.lm import Model, Params, build


def load(
    path: str | os.PathLike[str], mesh: Mesh | None = None, dtype: Any = None, mtp: int | None = None
) -> tuple[Model, Params]:
    """Loads a folder with `config.json` and `*.safetensors` (single or sharded): (model, parameters).

    Each tensor goes from the file straight to its devices; with `mesh`, each device reads only its own part.
    `dtype` is what the parameters are stored as (None: as in the files; where those mix dtypes, what config.json names,
    else the widest, and a warning says which); the computation stays in float32 until `config.dtype` is replaced. FP8
    weights with a scale per block, and MXFP4, are multiplied out. `mtp`: how many modules of multi-token prediction
    are loaded (None: those that config.json promises; where the files hold fewer, as transformers saves them, a warning
    says so). A warning names tensors with NaN or infinite values. Raises FileNotFoundError for a missing file, and
    ValueError that names the file that cannot be read, lists missing and left-over tensors, or gives both shapes of one
    that does not fit.
    """
    folder = Path(path)
    wanted = None if dtype is None else _dtype_name(dtype)
    described, promised = _described(folder)
    with open_tensors(folder) as stored_tensors:
        file_tensors = joined(stored_tensors, described)
        config = _with_modules(promised, file_tensors, mtp)
        check_sizes(folder / CONFIG, config, file_tensors)
        leaves = flat_leaves(build(config).abstract())
        table = table_for(config, leaves)
        left = range(config.mtp.depth, promised.mtp.depth)
        kept = {name: tensor for name, tensor in file_tensors.items() if _module_of(name, promised) not in left}
        tensors = match_tensors(kept, table, leaves, config)
        stored = wanted or _common_dtype(tensors, table, leaves, described)
        model = build(config.replace(param_dtype=stored))
        shardings = flat_leaves(model.shardings(mesh)) if mesh is not None else {}
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
        quantisation(described)
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
    match = re.match(r"(?:state\.)?mtp_(\d+)\." if own else r"(?:model\.)?layers\.(\d+)\.", name)
    return -1 if match is None else int(match[1]) - (0 if own else config.n_layers)


def _common_dtype(
    tensors: Mapping[str, Tensor], table: Table, leaves: Mapping[str, Any], described: Mapping[str, Any]
) -> str:
    """The dtype of the files; of several the one that config.json names, or else the widest, with a warning."""
    weights = [rule for rule in table.rules if not rule.paths[0].startswith(RULE_STATE)]
    dtypes = sorted(
        {STORED[d] for d in {tensors[name].dtype for rule in weights for name in rule.names(leaves)} & set(STORED)}
    )
    if len(dtypes) == 1:
        return dtypes[0]
    named = stated_dtype(described)
    chosen = named or (jnp.result_type(*dtypes).name if dtypes else "float32")
    why = f"as {CONFIG} says" if named else "the widest"
    warnings.warn(
        f"the files hold {', '.join(dtypes) or 'no floats'}: stored as {chosen}, {why}; dtype= chooses another",
        stacklevel=3,
    )
    return chosen


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
