"""Pools of rows to choose from: columns by what they are for, checked where they are read; and what a choice leaves."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data.sources.examples import Example, read_jsonl
from data.tasks.base import example_key, stable_hash
from store.files import read_json, read_text

T = TypeVar("T")


@dataclass(frozen=True)
class Pool:
    """Rows, and which column is which: `columns` maps a role to its column's name; one left out is called as its role.

    `source`: the file, for messages; `unit`: what a row is there, a line or an item.
    """

    rows: Sequence[Example]
    columns: Mapping[str, str] = field(default_factory=dict)
    source: str = "pool"
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.rows)

    def line(self, row: int) -> str:
        """Where a row stands."""
        return f"{self.source}, {self.unit} {row + 1}"

    def raw(self, role: str, row: int) -> Any:
        """The value of a row under the column of a role, None included; ValueError where the row lacks the column."""
        name, found = self.columns.get(role, role), self.rows[row]
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{self.line(row)} has no column {name!r} for the {role}; it has {', '.join(found) or 'nothing'}."
                f"{hint} --columns={role}=<column> names another"
            )
        return found[name]

    def values(self, role: str, rows: Iterable[int], kind: Callable[[Any], T]) -> dict[int, T]:
        """What rows have under a role, by row; ValueError, with the first line that `kind` refuses."""
        order = list(rows)
        found = {row: self.value(role, row, kind) for row in sorted(order)}
        return {row: found[row] for row in order}

    def value(self, role: str, row: int, kind: Callable[[Any], T]) -> T:
        """What one row has under a role; ValueError, with the line, where `kind` refuses it."""
        found = self.raw(role, row)
        try:
            return kind(found)
        except ValueError as error:
            name = self.columns.get(role, role)
            raise ValueError(f"{self.line(row)}: {name!r} must be {error}, found {found!r:.80}") from None

    def in_own_order(self, rows: Iterable[int]) -> list[int]:
        """Rows in an order that is theirs alone, whatever their order in the pool: by hashes of question and content.

        Draws are made from it, so that a choice depends on the rows and the seed.
        """
        asked = self.values("question", rows, text)
        return sorted(asked, key=lambda row: (stable_hash(asked[row]), example_key(self.rows[row])))


def read_pool(path: str | Path, columns: Mapping[str, str] | None = None) -> Pool:
    """The rows of a file of JSON lines, or of one JSON list of objects.

    FileNotFoundError for a missing file; ValueError, naming the line, for what is no such file or holds no row.
    """
    named = (dict(columns or {}), str(path))
    if not (Path(path).is_file() and read_text(path).lstrip().startswith("[")):
        return Pool(read_jsonl(path), *named)
    rows = read_json(path)
    if wrong := [n for n, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise ValueError(f"{path}: item {wrong[0]} of the list is no object")
    if not rows:
        raise ValueError(f"{path} is an empty list; expected one object per example")
    return Pool(rows, *named, unit="item")


def text(value: Any) -> str:
    """A text, or what is said in a list of chat messages, one below the other."""
    messages = value if isinstance(value, list) else []
    if messages and all(isinstance(each, dict) and isinstance(each.get("content"), str) for each in messages):
        return "\n".join(each["content"] for each in messages)
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def flag(value: Any) -> bool:
    """True or false, also as 1 and 0. Words are refused: "No" would be true."""
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise ValueError("true or false")
    return bool(value)


def length(value: Any) -> float:
    """A length: a number from 0 up, or a text, whose words are counted."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError("a length: a number from 0 up, or a text whose words are counted")
    return value


def accuracies(value: Any) -> list[float]:
    """A list of numbers from 0 to 1, at least one."""
    right = isinstance(value, list) and value and all(isinstance(x, int | float) and 0 <= x <= 1 for x in value)
    if not right:
        raise ValueError("a list of accuracies from 0 to 1")
    return [float(x) for x in value]


class Stage(NamedTuple):
    """A step of a choice: how many rows were there, and those it dropped, each with a reason and perhaps a detail."""

    name: str
    before: int
    dropped: Mapping[int, str]
    details: Mapping[int, str] = {}

    @property
    def after(self) -> int:
        """How many rows are left."""
        return self.before - len(self.dropped)


class Selection(NamedTuple):
    """What was chosen: rows of the pool in its order, or rows made of them; how it came about, and what else to say."""

    rows: list[Example]
    chosen: list[int]
    stages: list[Stage]
    notes: list[str]


def selection(pool: Pool, chosen: Iterable[int], stages: Sequence[Stage] = (), notes: Sequence[str] = ()) -> Selection:
    """Chosen rows as they stand in the pool, in its order."""
    rows = sorted(chosen)
    return Selection([dict(pool.rows[row]) for row in rows], rows, [*stages], [*notes])


def sift(name: str, rows: Sequence[int], why: Callable[[int], str]) -> tuple[list[int], Stage]:
    """The rows that there is no reason to drop, and the stage; `why`: a row -> the reason, "" for none."""
    reasons = {row: reason for row in rows if (reason := why(row))}
    return [row for row in rows if row not in reasons], Stage(name, len(rows), reasons)


def keep(name: str, rows: Sequence[int], kept: Iterable[int], reason: str) -> tuple[list[int], Stage]:
    """The rows that are among `kept`, and the stage that dropped the others for one reason."""
    left = set(kept)
    return sift(name, rows, lambda row: "" if row in left else reason)


def check_number(number: int, rows: Sequence[int], what: str = "rows", stages: Sequence[Stage] = ()) -> None:
    """Raises ValueError where more are asked for than the stages have left."""
    if number > len(rows):
        told = ", ".join(f"{stage.name} {stage.before} -> {stage.after}" for stage in stages)
        raise ValueError(
            f"asked for {number} of {len(rows)} {what} that are left{told and f' ({told})'}: give a smaller --number"
        )
