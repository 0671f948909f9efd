"""What a compiled program costs one chip: products, memory traffic and messages, loops taken as often as they turn."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from launch.hlo import HBM, Computation, Frame, Instruction, Module, Shape, trip_count

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# Names for parts of what is there already, and orders to wait: no bytes move.
FREE = (
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "domain", "add-dependency",
)  # fmt: skip
FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "Sharding")
PASSED = ("bitcast", "convert", "copy", "reshape")


class Message(NamedTuple):
    """A collective: its kind, and one group of the devices that take part (of a permutation, one pair)."""

    kind: str
    group: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """`flops` of products, `bytes` to and from HBM, and per message how often it is sent and what a chip receives.

    `unknown` loops were taken to turn as often as the caller said.
    """

    flops: float = 0.0
    bytes: float = 0.0
    messages: dict[Message, tuple[float, float]] = dataclasses.field(default_factory=dict)
    unknown: int = 0

    def __add__(self, other: Cost) -> Cost:
        both = dict(self.messages)
        for message, (count, size) in other.messages.items():
            before = both.get(message, (0.0, 0.0))
            both[message] = (before[0] + count, before[1] + size)
        return Cost(self.flops + other.flops, self.bytes + other.bytes, both, self.unknown + other.unknown)

    def __mul__(self, times: float) -> Cost:
        sent = {message: (count * times, size * times) for message, (count, size) in self.messages.items()}
        return Cost(self.flops * times, self.bytes * times, sent, self.unknown)


def cost(module: Module, turns: Sequence[int] = ()) -> Cost:
    """The cost of a run of the program on each chip.

    `turns`: how often loops turn that do not say it themselves, by how many such loops they are in; beyond these, once.
    """
    return _computation(module, Frame(module.computations[module.entry]), tuple(turns), fused=False)


def step_of(module: Module, turns: Sequence[int] = ()) -> Cost:
    """The cost of one turn of the loop within a loop, where both run for as long as there is something to do.

    This is how a sampler runs: seats are given now and then, and tokens drawn in between.
    """
    frame = Frame(module.computations[module.entry])
    for _ in range(2):
        waiting = [line for line in _loops(frame.computation) if trip_count(module, line, frame) is None]
        if not waiting:
            break
        frame = max((_inside(module, frame, line) for line in waiting), key=lambda f: _flops(module, f, turns[2:]))
    return _computation(module, frame, tuple(turns[2:]), fused=False)


def _loops(computation: Computation) -> list[Instruction]:
    return [line for line in computation.lines.values() if line.opcode == "while"]


def _inside(module: Module, frame: Frame, loop: Instruction) -> Frame:
    return Frame(module.computations[loop.called("body")], loop, frame)


def _flops(module: Module, frame: Frame, turns: Sequence[int]) -> float:
    return _computation(module, frame, tuple(turns), fused=False).flops


def _computation(module: Module, frame: Frame, turns: tuple[int, ...], fused: bool) -> Cost:
    total = Cost()
    for line in frame.computation.lines.values():
        total += _line(module, frame, line, turns, fused)
    return total


def _line(module: Module, frame: Frame, line: Instruction, turns: tuple[int, ...], fused: bool) -> Cost:
    computation = frame.computation
    if line.opcode == "while":
        known = trip_count(module, line, frame)
        rest = turns if known is not None else turns[1:]
        times = known if known is not None else (turns or (1,))[0]
        turned = _computation(module, _inside(module, frame, line), rest, fused) * times
        return dataclasses.replace(turned, unknown=turned.unknown + (known is None))
    if line.opcode == "conditional":
        branches = [_computation(module, Frame(module.computations[name]), turns, fused) for name in _branches(line)]
        return max(branches, key=lambda branch: (branch.flops, branch.bytes), default=Cost())
    kind = line.opcode.removesuffix("-start")
    if kind in KINDS:
        return Cost(bytes=0 if fused else _moved(computation, line), messages=_message(computation, line, kind))
    if line.opcode == "fusion" and line.called("calls").startswith("all-reduce-scatter"):
        return _reduced_and_scattered(module, computation, line)
    if line.opcode in ("fusion", "call", "async-start"):
        called = Frame(module.computations[line.called("calls") or line.called("to_apply")])
        own = _fused_bytes(module, computation, line) if line.opcode == "fusion" and not fused else 0
        within = _computation(module, called, turns, fused or line.opcode == "fusion")
        return dataclasses.replace(within, bytes=within.bytes + own)
    return Cost(flops=products(computation, line), bytes=0 if fused else _moved(computation, line))


def _branches(line: Instruction) -> list[str]:
    named = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
    if named:
        return re.findall(r"%([\w.\-]+)", named.group(1))
    return [line.called("true_computation"), line.called("false_computation")]


def products(computation: Computation, line: Instruction) -> float:
    """Floating-point operations of a matrix product, in the forms that compilers write one; else 0.

    Rows sorted by expert count as if each row of their buffer were filled.
    """
    if line.opcode == "dot":
        left = _shape_of(computation, line.operands[0])
        contracted = [int(axis) for axis in re.findall(r"\d+", line.attribute("lhs_contracting_dims"))]
        return 2.0 * math.prod(line.shapes[0].sizes) * math.prod(left.sizes[axis] for axis in contracted)
    if line.opcode == "convolution":
        return _convolution(computation, line)
    if line.opcode == "ragged-dot" or line.name.startswith("ragged-dot"):  # on TPUs a kernel, given vectors besides
        operands = [_shape_of(computation, name) for name in line.operands]
        matrices = [shape.sizes for shape in operands if len(shape.sizes) > 1]
        return 2.0 * math.prod(matrices[0]) * matrices[1][-1] if len(matrices) > 1 else 0.0
    return 0.0


def _convolution(computation: Computation, line: Instruction) -> float:
    """A product as a convolution: batches may stand in its window, where only places inside of the input count."""
    left, kernel = (_shape_of(computation, name) for name in line.operands[:2])
    inputs, weights, outputs = re.split(r"_|->", line.attribute("dim_labels"))
    out = line.shapes[0]
    window = _window(line.attribute("window"), sum(label.isdigit() for label in weights))
    pairs = 1
    for label in filter(str.isdigit, weights):
        sizes = (left.sizes[inputs.index(label)], kernel.sizes[weights.index(label)], out.sizes[outputs.index(label)])
        pairs *= _valid(*sizes, *(values[int(label)] for values in window))
    groups = int(line.attribute("batch_group_count") or 1)
    batch = out.sizes[outputs.index("b")] * out.sizes[outputs.index("f")]
    return 2.0 * batch * pairs * kernel.sizes[weights.index("i")] / groups


def _window(text: str, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Per axis: stride, padding before, dilation of the input, dilation of the kernel."""
    settings = dict(re.findall(r"(\w+)=(\S+)", text.strip("{}")))
    axes = lambda name, usual: settings.get(name, "x".join([usual] * rank)).split("x") if rank else []  # noqa: E731
    before = [int(pad.split("_")[0]) for pad in axes("pad", "0_0")]
    stride, left, right = ([int(x) for x in axes(name, "1")] for name in ("stride", "lhs_dilate", "rhs_dilate"))
    return stride, before, left, right


def _valid(size: int, kernel: int, out: int, stride: int, before: int, spread: int, reach: int) -> int:
    """How many pairs of an output's place and a kernel's meet a number of the input, not its padding or gaps."""
    places = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * reach - before
    return int(((places >= 0) & (places < (size - 1) * spread + 1) & (places % spread == 0)).sum())


def _shape_of(computation: Computation, name: str) -> Shape:
    return computation.lines[name].shapes[0]


def in_hbm(shapes: Sequence[Shape]) -> int:
    """Bytes of the arrays that lie in the chip's large memory."""
    return sum(shape.bytes for shape in shapes if shape.space == HBM)


def _moved(computation: Computation, line: Instruction) -> float:
    """Bytes to and from HBM of an instruction that stands by itself."""
    if line.opcode in FREE or line.opcode.endswith("-start"):
        return 0
    if line.opcode == "custom-call" and any(f'"{name}"' in line.rest for name in FREE_CALLS):
        return 0
    if line.opcode.endswith("-done"):
        begun = computation.lines[line.operands[0]]
        return in_hbm(line.shapes) + _read(computation, begun, line.shapes)
    if line.opcode == "dynamic-update-slice":
        return 2 * in_hbm(computation.lines[line.operands[1]].shapes)
    if line.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * in_hbm(line.shapes)
    if line.opcode == "scatter":
        return 3 * in_hbm(computation.lines[line.operands[-1]].shapes)
    return in_hbm(line.shapes) + sum(in_hbm(computation.lines[name].shapes) for name in line.operands)


def _read(computation: Computation, begun: Instruction, result: Sequence[Shape]) -> int:
    """Bytes that a copy reads from HBM: as many as it makes, where its source lies there."""
    sources = [shape for name in begun.operands for shape in computation.lines[name].shapes]
    return sum(shape.bytes for shape in result) if any(shape.space == HBM for shape in sources) else 0


def _fused_bytes(module: Module, computation: Computation, line: Instruction) -> float:
    """Bytes of a fusion: what it reads of its operands, which may be a slice, and what it writes, likewise."""
    inner = module.computations[line.called("calls")]
    total = 0.0
    for parameter, name in zip(inner.parameters, line.operands, strict=True):
        total += _part_read(module, inner, parameter, computation.lines[name].shapes)
    root = inner.lines[inner.root]
    names = root.operands if root.opcode == "tuple" else (inner.root,)
    shapes = line.shapes if len(line.shapes) == len(names) else (None,) * len(names)
    for name, shape in zip(names, shapes, strict=True):
        total += 0 if shape is None else _part_written(inner, name, shape)
    return total


def _part_read(module: Module, inner: Computation, name: str, shapes: Sequence[Shape]) -> float:
    """Bytes of an array in HBM that a fused computation reads: where all that look at it cut it, what they cut out."""
    whole = in_hbm(shapes)
    parts = (_looked_at(module, inner, name, user, shapes) for user in inner.users.get(name, []))
    return min(whole, sum(parts)) if whole else 0


def _looked_at(module: Module, inner: Computation, name: str, user: Instruction, shapes: Sequence[Shape]) -> float:
    if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
        return sum(shape.bytes for shape in user.shapes)
    if user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        return 0
    if user.opcode in PASSED:
        return _part_read(module, inner, user.name, shapes)
    if user.opcode == "fusion":
        called = module.computations[user.called("calls")]
        pairs = zip(called.parameters, user.operands, strict=True)
        return sum(_part_read(module, called, parameter, shapes) for parameter, given in pairs if given == name)
    return in_hbm(shapes)


def _part_written(inner: Computation, name: str, shape: Shape) -> float:
    line = inner.lines[name]
    while line.opcode in PASSED:
        line = inner.lines[line.operands[0]]
    if line.opcode == "dynamic-update-slice" and shape.space == HBM:
        return inner.lines[line.operands[1]].shapes[0].bytes
    return in_hbm([shape])


def _message(computation: Computation, line: Instruction, kind: str) -> dict[Message, tuple[float, float]]:
    """What a chip receives by a collective; one that is spread over several fusions counts where it starts."""
    chained = "chain_id=" in line.rest
    if chained and not any("AsyncCollectiveStart" in other.rest for other in computation.lines.values()):
        return {}
    group = groups(line)
    n, shapes = len(group), line.shapes
    operands = [shape for name in line.operands for shape in computation.lines[name].shapes]
    size: float = sum(shape.bytes for shape in operands)
    if kind == "collective-permute":
        return {Message(kind, group): (1, size)} if n > 1 else {}
    if kind == "all-gather":
        size *= n
    if line.opcode == "all-gather" and not operands:
        size = sum(shape.bytes for shape in shapes)
    share = (n - 1) / max(n, 1)
    return {Message(kind, group): (1, size * share * (2 if kind == "all-reduce" else 1))} if n > 1 else {}


def _reduced_and_scattered(module: Module, computation: Computation, line: Instruction) -> Cost:
    """An all-reduce of which each chip keeps a part: the hardware moves no more than that."""
    inner = module.computations[line.called("calls")]
    reduces = [x for x in inner.lines.values() if x.opcode == "all-reduce"]
    messages: dict[Message, tuple[float, float]] = {}
    for reduce in reduces:
        group, size = groups(reduce), sum(shape.bytes for shape in reduce.shapes)
        messages[Message("reduce-scatter", group)] = (1, size * (len(group) - 1) / len(group))
    return Cost(bytes=_moved(computation, line), messages=messages)


def groups(line: Instruction) -> tuple[int, ...]:
    """The first group of devices that a collective joins, by their place in the mesh; of a permutation a pair."""
    if pairs := line.attribute("source_target_pairs"):
        listed = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs)]
        return next((pair for pair in listed if pair[0] != pair[1]), ())
    text = line.rest.partition("replica_groups=")[2]
    for pattern, read in FORMS:
        if match := re.match(pattern, text):
            return read(match)
    raise ValueError(f"replica groups of {line.opcode} {line.name} in an unknown form: {text[:120]!r}")


def _listed(match: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(x) for x in match.group(1).split(","))


def _iota(match: re.Match[str]) -> tuple[int, ...]:
    """[groups,size]<=[sizes]T(order): numbers from 0 in that shape, transposed, cut into groups."""
    shape, sizes, order = ([int(x) for x in part.split(",")] if part else [] for part in match.groups())
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return tuple(int(x) for x in (ids.transpose(order) if order else ids).reshape(shape)[0])


def _by_axes(match: re.Match[str]) -> tuple[int, ...]:
    """mesh['a'=4,'b'=2] {'b'}: the devices of a mesh that differ in these axes alone, or in a part 'b':(first)size.

    The mesh's devices are numbers from 0 on, or these in another shape and transposed: device_ids=([sizes]T(order)).
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match.group(1))}
    shape, order = ([int(x) for x in part.split(",")] if part else [] for part in match.groups()[1:3])
    ids = np.arange(math.prod(sizes.values()))
    ids = ids.reshape(shape).transpose(order or range(len(shape))) if shape else ids
    names, place = list(sizes), [slice(0, 1)] * len(sizes)
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match.group(4)):
        step = sizes[name] // (int(before) * int(size)) if size else 1
        place[names.index(name)] = slice(0, int(size) * step if size else sizes[name], step)
    return tuple(int(x) for x in ids.reshape(list(sizes.values()))[tuple(place)].reshape(-1))


FORMS: tuple[tuple[str, Callable[[re.Match[str]], tuple[int, ...]]], ...] = (
    (r"\{\{([\d,]+)\}", _listed),
    (r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", _iota),
    (r"mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", _by_axes),
)
