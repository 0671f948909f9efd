"""Compiled programs as text, read: what is in them, and how often their loops turn.

The text is that of `jax.stages.Compiled.as_text`. It is what will run, so it knows what no other source knows: which
collectives the partitioner put in, which axes they go over, and which arrays never leave the chip.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "f4e2m1fn": 4, "c64": 64, "c128": 128, "token": 0}
HBM, HOST = 0, 5  # memory spaces, written S(n) in a layout; the others are on the chip

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")


class Shape(NamedTuple):
    """An array's element type, sizes, and the memory it lies in."""

    dtype: str
    sizes: tuple[int, ...]
    space: int = HBM

    @property
    def bytes(self) -> int:
        """How many it takes, padding left out."""
        match = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype) if self.dtype in BITS else int(match.group()) if match else 32
        return math.prod(self.sizes) * (bits or 0) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `shapes` are those of the result, a tuple's in order; `rest` is what follows the operands."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    value: str = ""

    def called(self, kind: str) -> str:
        """The computation it names as `kind` ("calls", "body", ...); "" where it names none."""
        match = re.search(rf"\b{kind}=%([\w.\-]+)", self.rest)
        return match.group(1) if match else ""

    def attribute(self, name: str) -> str:
        """The value of `name=`, up to the next comma outside of brackets; "" where there is none."""
        match = re.search(rf"(?:^|[\s,]){name}=", self.rest)
        return _until_comma(self.rest[match.end() :]) if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Its instructions by name, in order, and the name of its result."""

    name: str
    lines: dict[str, Instruction]
    root: str

    @functools.cached_property
    def parameters(self) -> list[str]:
        """Names of the parameters, by number."""
        lines = [line for line in self.lines.values() if line.opcode == "parameter"]
        return [line.name for line in sorted(lines, key=lambda line: int(line.value))]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads each result."""
        readers: dict[str, list[Instruction]] = {}
        for line in self.lines.values():
            for name in line.operands:
                readers.setdefault(name, []).append(line)
        return readers


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations by name, and the name of the one that runs."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Reads a module; ValueError where it has no entry."""
    computations: dict[str, Computation] = {}
    entry, name, root, lines = "", "", "", dict[str, Instruction]()
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, root, lines = head.group(2), "", {}
            entry = name if head.group(1) else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, lines, root)
            name = ""
        elif name and (match := _LINE.match(line)):
            root = match.group(2) if match.group(1) else root
            lines[match.group(2)] = _instruction(match.group(2), match.group(3))
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    split = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", split)
    closing = _closing(text, opening)
    inside = text[opening + 1 : closing]
    shapes = tuple(_shape(*match) for match in _SHAPE.findall(text[:split]))
    opcode = text[split:opening].strip()
    operands = () if opcode in ("parameter", "constant") else tuple(_NAME.findall(inside))
    return Instruction(name, shapes, opcode, operands, text[closing + 1 :], inside)


def _shape(dtype: str, sizes: str, layout: str) -> Shape:
    space = re.search(r"S\((\d+)\)", layout)
    numbers = tuple(int(size.strip("<=")) for size in sizes.split(",") if size)
    return Shape(dtype, numbers, int(space.group(1)) if space else HBM)


def _closing(text: str, opening: int) -> int:
    """Where the bracket that opens at `opening` closes."""
    depth = 0
    for bracket in re.finditer(r"[()]", text[opening:]):
        depth += 1 if bracket.group() == "(" else -1
        if not depth:
            return opening + bracket.start()
    raise ValueError(f"a bracket is never closed in {text[:80]!r}")


def _until_comma(text: str) -> str:
    depth = 0
    for place, char in enumerate(text):
        depth += (char in "{[(") - (char in "}])")
        if char == "," and not depth:
            return text[:place]
    return text


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where a computation runs: as the body (or condition) of the loop `loop` of the frame `outside`."""

    computation: Computation
    loop: Instruction | None = None
    outside: Frame | None = None


def trip_count(module: Module, loop: Instruction, frame: Frame) -> int | None:
    """How often a loop of `frame` turns: as the text says, or as its counter tells; None where that is not known.

    A counter is an element of the state that the condition compares with a number and the body adds a number to.
    """
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(told.group(1))
    inside = Frame(module.computations[loop.called("body")], loop, frame)
    asks = Frame(module.computations[loop.called("condition")], loop, frame)
    compared = _comparison(module, asks)
    if compared is None:
        return None
    direction, left, right = compared
    if direction in ("GT", "GE"):
        direction, left, right = {"GT": "LT", "GE": "LE"}[direction], right, left
    place, limit = _element(asks, left), _number(module, asks, right)
    if place is None or limit is None or direction not in ("LT", "LE"):
        return None
    start, step = _number_of_element(module, loop, frame, place), _increment(module, inside, place)
    if start is None or not step:
        return None
    return max(0, math.ceil((limit + (direction == "LE") - start) / step))


def _comparison(module: Module, frame: Frame) -> tuple[str, str, str] | None:
    """(direction, left, right) of the comparison that a condition ends in, names of its own computation."""
    line = frame.computation.lines[frame.computation.root]
    if line.opcode == "compare":
        return line.attribute("direction"), line.operands[0], line.operands[1]
    if line.opcode == "fusion":
        inner = module.computations[line.called("calls")]
        root = inner.lines[inner.root]
        outer = dict(zip(inner.parameters, line.operands, strict=True))
        if root.opcode == "compare" and all(name in outer for name in root.operands):
            return root.attribute("direction"), outer[root.operands[0]], outer[root.operands[1]]
    return None


def _element(frame: Frame, name: str) -> int | None:
    """Which element of the loop's state a name of its body or condition is."""
    line = frame.computation.lines[name]
    if line.opcode in ("copy", "bitcast"):
        return _element(frame, line.operands[0])
    if line.opcode == "get-tuple-element" and line.operands[0] in frame.computation.parameters:
        return int(line.attribute("index"))
    return None


def _increment(module: Module, frame: Frame, place: int) -> int | None:
    """What a turn adds to an element of the loop's state."""
    lines = frame.computation.lines
    root = lines[frame.computation.root]
    if root.opcode != "tuple":
        return None
    line = lines[root.operands[place]]
    while line.opcode in ("copy", "bitcast"):
        line = lines[line.operands[0]]
    names = line.operands
    if line.opcode == "fusion":
        inner = module.computations[line.called("calls")]
        line, outer = inner.lines[inner.root], dict(zip(inner.parameters, names, strict=True))
        constants = [inner.lines[name] for name in line.operands if inner.lines[name].opcode == "constant"]
        if line.opcode == "add" and constants and any(name in outer for name in line.operands):
            return int(constants[0].value)
        names = tuple(outer.get(name, "") for name in line.operands)
    if line.opcode != "add" or "" in names:
        return None
    added = [name for name in names if _element(frame, name) != place]
    return _number(module, frame, added[0]) if len(added) == 1 else None


def _number(module: Module, frame: Frame, name: str) -> int | None:
    """The number that a name of a frame always is."""
    line = frame.computation.lines[name]
    if line.opcode == "constant":
        return int(line.value) if re.fullmatch(r"-?\d+", line.value) else None
    if line.opcode in ("copy", "bitcast", "convert", "reshape", "broadcast"):
        return _number(module, frame, line.operands[0])
    if line.opcode != "get-tuple-element":
        return None
    place, source = int(line.attribute("index")), line.operands[0]
    if source in frame.computation.parameters:
        if frame.loop is None or frame.outside is None or not _stays(module, frame.loop, place):
            return None
        return _number_of_element(module, frame.loop, frame.outside, place)
    made = frame.computation.lines[source]
    if made.opcode == "while":
        return _number_of_element(module, made, frame, place) if _stays(module, made, place) else None
    return _number(module, frame, made.operands[place]) if made.opcode == "tuple" else None


def _number_of_element(module: Module, loop: Instruction, frame: Frame, place: int) -> int | None:
    """The number that an element of a loop's state starts as."""
    made = frame.computation.lines[loop.operands[0]]
    if made.opcode == "tuple":
        return _number(module, frame, made.operands[place])
    return None


def _stays(module: Module, loop: Instruction, place: int) -> bool:
    """Whether a turn leaves an element of the loop's state as it was."""
    body = module.computations[loop.called("body")]
    root = body.lines[body.root]
    return root.opcode == "tuple" and _element(Frame(body), root.operands[place]) == place
