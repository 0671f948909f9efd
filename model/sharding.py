"""The one place that touches a mesh: logical axis names, the table that maps them, and the errors when they
do not fit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from model.config import unknown

MESH_AXES = ("data", "fsdp", "expert", "tensor", "context")

P = ParamSpec("P")
R = TypeVar("R")
Rule = str | tuple[str, ...] | None
RULES: dict[str, Rule] = {
    # parameters
    "vocab": "tensor",
    "embed": ("fsdp", "expert"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "expert_embed": "fsdp",
    "choices": None,
    "learned_positions": None,
    "norm": None,
    "rank": None,
    "latent": "fsdp",
    "rows": None,
    "row_width": ("fsdp", "expert"),
    "peer_heads": None,
    "halves": None,
    "keys": None,
    "key_dim": None,
    "gates": None,
    "conv": None,
    "channels": None,
    "scores": None,
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
        raise ValueError(
            f"mesh {shape} does not multiply to the {len(devices)} devices present{_instead(shape, len(devices))}"
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(sizes))


def _instead(shape: Mapping[str, int], devices: int) -> str:
    """What would do: one axis changed to what the others leave, or beside a -1 to the nearest size that divides."""
    fits = []
    for axis, size in shape.items():
        others = math.prod(other for name, other in shape.items() if name != axis and other > 0)
        if size > 1 and devices % others == 0:
            left = devices // others
            fits += [
                f"{axis}={near}" for near in (nearest_divisors(left, size)[:1] if -1 in shape.values() else [left])
            ]
    return f"; {' or '.join(fits) or 'one axis of size -1 (what is left)'} would do"


def nearest_divisors(number: int, wanted: int) -> list[int]:
    """The divisors of a number next to `wanted`, the lower one first."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below, above = [d for d in divisors if d <= wanted], [d for d in divisors if d > wanted]
    return below[-1:] + above[:1]


def parse_rules(text: str) -> dict[str, Rule]:
    """`embed=fsdp+data,mlp=none` -> what those logical axes are split over instead of what RULES says."""
    changes: dict[str, Rule] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, axes = (word.strip() for word in part.partition("="))
        if name not in RULES:
            raise ValueError(unknown("sharding: logical axis", name, RULES))
        chosen = [axis.strip() for axis in axes.split("+") if axis.strip() not in ("", "none")]
        for axis in chosen:
            if axis not in MESH_AXES:
                raise ValueError(unknown(f"sharding: mesh axis of {name}", axis, (*MESH_AXES, "none")))
        changes[name] = tuple(chosen) or None
    return changes


# Part of the key under which JAX keeps traced programs: under other rules a function is traced anew.
_changed = jax.make_user_context(())


def using(changes: Mapping[str, Rule]) -> Any:
    """A context in which these rules stand instead of those of RULES; for this thread alone."""
    return _changed(tuple(sorted(changes.items())))


def current_rules() -> dict[str, Rule]:
    """What logical axes are split over, here and now."""
    return RULES | dict(_changed.value)


def on_mesh(mesh: Mesh | None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function run on `mesh`, under the rules in force now, in whatever thread it is called; None: as it is."""
    changes = dict(_changed.value)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def placed(*args: P.args, **kwargs: P.kwargs) -> R:
            with using(changes), jax.set_mesh(mesh):
                return function(*args, **kwargs)

        return function if mesh is None else placed

    return decorate


def partition_spec(names: Sequence[str | None], rules: Mapping[str, Rule] | None = None) -> PartitionSpec:
    """Maps logical names, one per array axis, to a PartitionSpec; `rules` None: those in force.

    Raises ValueError for a name that is not in the table and for two names that land on one mesh axis.
    """
    rules = current_rules() if rules is None else rules
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

    def of(path: Any, names: Any, leaf: Any) -> NamedSharding:
        try:
            return named_sharding(mesh, names, leaf.shape)
        except ValueError as error:
            raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {error}") from error

    return jax.tree_util.tree_map_with_path(of, axes, abstract, is_leaf=lambda x: isinstance(x, tuple))


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


def whole_rows(tree: Any) -> Any:
    """Every device of the current mesh gets all rows (axis 0) of these arrays, whose other axes stay split as they are.

    For rows that are then picked by number, across which XLA cannot split the picking.
    """
    return _rows_on(tree, lambda x: PartitionSpec(None))


def split_rows(tree: Any) -> Any:
    """These arrays with their rows (axis 0) split like those of a batch, and other axes as they are."""
    return _rows_on(tree, lambda x: activation_spec(("batch",), x.shape[:1]))


def _rows_on(tree: Any, rows: Callable[[jax.Array], PartitionSpec]) -> Any:
    """Constrains axis 0 of every array alone."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    spec = lambda x: PartitionSpec(*rows(x), *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))  # noqa: E731
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec(x)) if x.ndim else x, tree)


def replicate(tree: Any) -> Any:
    """Every device of the current mesh gets these arrays whole."""
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of something every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Over how many devices the rows of a batch are spread; 1 on no mesh."""
    return math.prod(dict(mesh.shape).get(axis, 1) for axis in _axes(current_rules()["batch"]))


def _axes(entry: Rule) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _check_divisible(mesh: Mesh, names: Sequence[str | None], spec: PartitionSpec, shape: Sequence[int]) -> None:
    for name, entry, size in zip(names, spec, shape, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in _axes(entry))
        if size % parts:
            near = " or ".join(map(str, nearest_divisors(size, parts)))
            raise ValueError(
                f"axis {name!r} of size {size} cannot be split evenly over {' x '.join(_axes(entry))} = {parts}"
                f" devices; the nearest sizes that divide {size} are {near}"
            )


def _even(mesh: Any, spec: PartitionSpec, shape: Sequence[int]) -> PartitionSpec:
    """Leaves an activation axis whole where its size (one row of a batch, say) cannot be split."""
    sizes = dict(mesh.shape)
    fits = [size % math.prod(sizes[a] for a in _axes(entry)) == 0 for entry, size in zip(spec, shape, strict=True)]
    return PartitionSpec(*(entry if ok else None for entry, ok in zip(spec, fits, strict=True)))
