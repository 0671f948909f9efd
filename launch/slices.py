"""Which slices of TPUs there are, and how their chips lie on hosts: one table, for plans and for runs alike."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import unknown

HOST = 4  # chips of a host where a slice spans several
CUBE = 4  # larger slices of three sides are made of cubes of so many chips a side
Sides = tuple[int, ...]

PAIRS = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclass(frozen=True)
class Generation:
    """`shapes` one by one, and of `cubes` all A <= B <= C in multiples of 4 with so many chips at most (0: none);
    `whole`: the largest slice that lies on a single host.
    """

    shapes: tuple[Sides, ...]
    cubes: int = 0
    whole: int = HOST

    @property
    def sides(self) -> int:
        """How many sides a slice has."""
        return len(self.shapes[0])

    def all(self) -> list[Sides]:
        """Every slice that there is."""
        return [*self.shapes, *cubes(self.cubes)]


# https://cloud.google.com/tpu/docs: the page of each generation, and "types and topologies" for the rule of cubes.
GENERATIONS: dict[str, Generation] = {
    "v2": Generation(((2, 2), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))),
    "v3": Generation(((2, 2), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32))),
    "v4": Generation(BELOW_A_CUBE, cubes=4096),
    "v5e": Generation(PAIRS, whole=8),
    "v5p": Generation(BELOW_A_CUBE, cubes=6144),
    "v6e": Generation(PAIRS, whole=8),
    "v7x": Generation(BELOW_A_CUBE, cubes=9216),
}


@dataclass(frozen=True)
class Slice:
    """A TPU slice: its generation, its topology such as 4x4, and how its chips lie on hosts."""

    generation: str
    topology: str
    hosts: int
    chips: int  # of a host


@functools.cache
def cubes(chips: int) -> tuple[Sides, ...]:
    """All A <= B <= C of so many chips at most, in multiples of the side of a cube."""
    most, sides = chips // CUBE**3, list[Sides]()
    for a in itertools.takewhile(lambda a: a**3 <= most, itertools.count(1)):
        for b in itertools.takewhile(lambda b, a=a: a * b * b <= most, itertools.count(a)):  # type: ignore[misc]
            sides += [(CUBE * a, CUBE * b, CUBE * c) for c in range(b, most // (a * b) + 1)]
    return tuple(sides)


def slice_of(text: str, setting: str = "launch.tpu") -> Slice:
    """Reads `v5e:4x4`, a generation and a topology; ValueError for a slice that does not exist, with the nearest.

    `setting` is what the error calls it.
    """
    generation, _, topology = text.partition(":")
    if generation not in GENERATIONS:
        raise ValueError(unknown(f"generation of {setting}", generation, GENERATIONS))
    kind = GENERATIONS[generation]
    like = f"{setting} is a generation and a topology such as '{named(generation, (4,) * kind.sides)}', found {text!r}"
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", topology, re.ASCII):
        raise ValueError(like)
    sides = tuple(int(side) for side in topology.split("x"))
    near = f"; the nearest that exists is {named(generation, nearest(sides, kind.all()))}"
    if len(sides) != kind.sides:
        raise ValueError(f"{like}: slices of {generation} have {kind.sides} sides{near}")
    if 0 in sides:
        raise ValueError(f"{like}, which has no chips{near}")
    chips = math.prod(sides)
    if sides not in kind.all():
        odd = f", with {chips} chips, which do not fill hosts of {HOST}" if chips > kind.whole and chips % HOST else ""
        raise ValueError(f"{setting}={text!r} is no slice that exists{odd}{near}")
    hosts, here = (1, chips) if chips <= kind.whole else (chips // HOST, HOST)
    return Slice(generation, "x".join(map(str, sides)), hosts, here)


def named(generation: str, sides: Sides) -> str:
    """Such as v5e:4x4."""
    return f"{generation}:{'x'.join(map(str, sides))}"


def nearest(asked: Sides, known: Sequence[Sides]) -> Sides:
    """The shape with the nearest number of chips; of several that with the likest sides, then that nearest a cube."""
    length = max(len(asked), len(known[0]))

    def logs(sides: Sides) -> list[float]:
        return sorted(math.log(max(side, 1)) for side in (*sides, *[1] * (length - len(sides))))

    wanted = logs(asked)

    def apart(sides: Sides) -> tuple[float, float, int]:
        own = logs(sides)
        by_side = sum(abs(a - b) for a, b in zip(own, wanted, strict=True))
        return round(abs(sum(own) - sum(wanted)), 9), round(by_side, 9), max(sides)

    return min(known, key=apart)
