"""The one place that touches a mesh: logical axis names, the table that maps them, and the errors when they
do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from model.config import unknown

MESH_AXES = ("data", "fsdp", "expert", "tensor", "context")

Rule = str | tuple[str, ...] | None
RULES: dict[str, Rule] = {
    # parameters
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "learned_positions": None,
    "norm": None,
    "rank": None,
    "rows": None,
    "row_width": ("fsdp", "expert"),
    "peer_heads": None,
    "halves": None,
    "keys": None,
    "key_dim": None,
    "gates": None,
    "conv": None,
    # activations
    "batch": ("data", "fsdp", "expert"),
    "length": "context",
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "cache_length": None,
}


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all axes of MESH_AXES; axes not named get size 1, one axis may be -1 (what is left).

    Raises ValueError for an unknown axis or sizes that do not multiply to the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    shape = dict(shape or {"fsdp": -1})
    for axis in shape:
        if axis not in MESH_AXES:
            raise ValueError(unknown("mesh axis", axis, MESH_AXES))
    sizes = [int(shape.get(axis, 1)) for axis in MESH_AXES]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh sizes must be positive, at most one -1; found {shape}")
    known = math.prod(size for size in sizes if size > 0)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise ValueError(f"mesh {shape} does not multiply to the {len(devices)} devices present")
    return jax.make_mesh(tuple(sizes), MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(sizes))


def partition_spec(names: Sequence[str | None], rules: Mapping[str, Rule] = RULES) -> PartitionSpec:
    """Maps logical names, one per array axis, to a PartitionSpec.

    Raises ValueError for a name that is not in the table and for two names that land on one mesh axis.
    """
    entries: list[Rule] = []
    taken: dict[str, str] = {}
    for name in names:
        if name is not None and name not in rules:
            raise ValueError(unknown("logical axis", name, rules))
        rule = None if name is None else rules[name]
        for axis in (rule,) if isinstance(rule, str) else rule or ():
            if axis in taken:
                both = f"{taken[axis]!r} and {name!r}"
                raise ValueError(f"logical axes {both} of {tuple(names)} both map to mesh axis {axis!r}")
            taken[axis] = str(name)
        entries.append(rule)
    return PartitionSpec(*entries)


def named_sharding(mesh: Mesh, names: Sequence[str | None], shape: Sequence[int] | None = None) -> NamedSharding:
    """The sharding of an array with these logical names; with `shape`, checks that every split is even."""
    spec = partition_spec(names)
    if shape is not None:
        _check_divisible(mesh, names, spec, shape)
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: Mesh, axes: Any, abstract: Any) -> Any:
    """Shardings for a pytree: `axes` holds tuples of logical names, `abstract` the shapes of the same tree."""
    return jax.tree.map(
        lambda names, leaf: named_sharding(mesh, names, leaf.shape),
        axes,
        abstract,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Names the axes of an activation; a no-op outside `jax.set_mesh`, a sharding constraint inside."""
    if jax.sharding.get_abstract_mesh().empty:
        partition_spec(names)
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(names, x.shape))


def activation_spec(names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """How an activation is split over the current mesh; an axis whose size does not allow it stays whole."""
    return _even(jax.sharding.get_abstract_mesh(), partition_spec(names), shape)


def size_of(name: str) -> int:
    """Over how many devices of the current mesh a logical axis is split."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes.get(axis, 1) for axis in axes_of(partition_spec((name,))))


def axes_of(spec: Iterable[Rule]) -> tuple[str, ...]:
    """All mesh axes in a PartitionSpec, or in some of its entries."""
    return tuple(axis for entry in spec for axis in _axes(entry))


def varying(tree: Any, axes: Sequence[str]) -> Any:
    """Inside `shard_map`: the tree marked as different on each device of `axes`, so that gradients are summed there."""
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, tuple(axes), to="varying"), tree) if axes else tree


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of something every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Over how many devices the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in _axes(RULES["batch"]))


def _axes(entry: Rule) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _check_divisible(mesh: Mesh, names: Sequence[str | None], spec: PartitionSpec, shape: Sequence[int]) -> None:
    for name, entry, size in zip(names, spec, shape, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in _axes(entry))
        if size % parts:
            raise ValueError(
                f"axis {name!r} of size {size} cannot be split evenly over {_axes(entry)} = {parts} devices;"
                f" choose a mesh whose {'/'.join(_axes(entry))} size divides {size}"
            )


def _even(mesh: Any, spec: PartitionSpec, shape: Sequence[int]) -> PartitionSpec:
    """Leaves an activation axis whole where its size (one row of a batch, say) cannot be split."""
    sizes = dict(mesh.shape)
    fits = [size % math.prod(sizes[a] for a in _axes(entry)) == 0 for entry, size in zip(spec, shape, strict=True)]
    return PartitionSpec(*(entry if ok else None for entry, ok in zip(spec, fits, strict=True)))
