"""The domains of a pool checked against a list of known ones, such as the Mathematics Subject Classification of s1K."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.names import unknown_name
from data.select.pool import Pool, text
from store.files import read_json


def read_domains(path: str | Path) -> dict[str, str]:
    """The titles of domains by their codes, from a JSON list of objects with `code` and `title`.

    FileNotFoundError for a missing file, ValueError for one of another form.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; --domains takes a JSON list of domains, each with code and title")
    rows = read_json(path)
    named = isinstance(rows, list) and all(isinstance(row, dict) and {"code", "title"} <= row.keys() for row in rows)
    if not named or not rows:
        raise ValueError(f"{path} is no JSON list of domains, each with code and title")
    return {str(row["code"]): str(row["title"]) for row in rows}


def check_domains(pool: Pool, rows: Sequence[int], titles: dict[str, str]) -> None:
    """Raises ValueError, with the line, for a domain that is neither a code nor a title, and where both are used.

    A domain of null is left to the rule.
    """
    seen: dict[str, int] = {}
    for row in rows:
        if pool.raw("domain", row) is not None:
            seen.setdefault(pool.value("domain", row, text), row)
    for name, row in seen.items():
        if name not in titles and name not in titles.values():
            raise ValueError(f"{pool.line(row)}: {unknown_name('domain', name, [*titles, *titles.values()])}")
    if both := [code for code, title in titles.items() if {code, title} <= seen.keys()]:
        raise ValueError(
            f"{pool.line(seen[both[0]])}: {both[0]!r} and {titles[both[0]]!r} are one domain; use codes or titles alone"
        )
