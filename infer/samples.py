"""What a run's model wrote, in the terminal: the records of samples.jsonl, chosen and in order.

python -m infer.samples runs/quickstart/grpo --wrong --order=tokens --number=5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from store.json_files import forgive_output, read_json_lines
from store.terminal import one_line, visible

Record = dict[str, Any]
SHOWN = ("score", "reward", "rewards", "advantage", "tokens", "depth", "finished", "reason")
ORDERS = ("reward", "advantage", "tokens", "depth")


def read(path: Path) -> list[Record]:
    """The records of a run directory, a pipeline's directory or a samples.jsonl; FileNotFoundError without any.

    Raises ValueError for lines that are no samples. A last line that a killed run left half written is passed over.
    """
    file = path if path.is_file() else path / "samples.jsonl"
    if not file.is_file():
        inside = sorted(str(found.parent) for found in path.glob("*/samples.jsonl"))
        near = f"; there are some in {', '.join(inside)}" if inside else ""
        raise FileNotFoundError(f"no {file}: give a run directory with samples{near}")
    records = read_json_lines(file, {"step": int, "prompt": str, "completion": str})
    if not records:
        raise ValueError(f"{file} is empty: samples are written when a run evaluates")
    return records


def earned(record: Record) -> float:
    """What a sample earned: its reward, or the score of an answer in an evaluation."""
    return float(record["reward"] if "reward" in record else record["score"])


def chosen(
    records: Sequence[Record],
    *,
    step: int | None = None,
    kind: str = "",
    right: bool | None = None,
    text: str = "",
    order: str = "",
    number: int = 0,
) -> list[Record]:
    """Records of a step (the last one), by kind and outcome, holding a text, in an order, so many of them.

    right=True: earned 1 or more. order: a name of ORDERS, largest first. Raises ValueError where nothing is left.
    """
    last = max(record["step"] for record in records) if step is None else step
    tests: list[Callable[[Record], bool]] = [lambda r: r["step"] == last]
    tests += [lambda r: r.get("kind") == kind] if kind else []
    tests += [lambda r: (earned(r) >= 1) == right] if right is not None else []
    tests += [lambda r: text in r["prompt"] or text in r["completion"] or text in str(r["reason"])] if text else []
    found = [record for record in records if all(test(record) for test in tests)]
    if not found:
        steps = sorted({record["step"] for record in records})
        raise ValueError(f"no sample of step {last} is like that; there are samples of steps {steps}")
    if order:
        size = earned if order == "reward" else lambda record: record.get(order, 0)
        found = sorted(found, key=size, reverse=True)
    return found[:number] if number else found


def shown(record: Record) -> Panel:
    """A record as a panel: the prompt dim, the completion plain, what it earned below. Control characters are escaped,
    for a model may write sequences that a terminal obeys.
    """
    body = Text(visible(record["prompt"]), style="dim")
    body.append(visible(record["completion"]), style="not dim")
    facts = [f"{name} {compact(record[name])}" for name in SHOWN if name in record]
    good = earned(record) >= 1
    title = f"step {record['step']} {record.get('kind', '')}".strip()
    return Panel(
        Group(body, Text("  ".join(facts), style="cyan")),
        title=Text(one_line(title)),
        border_style="green" if good else "red",
    )


def compact(value: Any) -> str:
    """A fact in few characters."""
    if isinstance(value, dict):
        return " ".join(f"{one_line(str(name))}={compact(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else one_line(str(value))


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m infer.samples`."""
    flags = argparse.ArgumentParser("python -m infer.samples", description="Shows what a run's model wrote.")
    flags.add_argument("run", help="a run directory, or a samples.jsonl")
    flags.add_argument("--step", type=int, help="samples of this step; default: the last")
    flags.add_argument("--kind", default="", choices=("", "rollout", "eval"))
    flags.add_argument("--right", action="store_const", const=True, help="only what earned 1 or more")
    flags.add_argument("--wrong", action="store_const", const=False, dest="right", help="only what earned less")
    flags.add_argument("--text", default="", help="only those whose prompt, completion or reason holds this")
    flags.add_argument("--order", default="", choices=("", *ORDERS), help="largest first")
    flags.add_argument("--number", type=int, default=0, help="at most so many; 0: all")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 2 for wrong use; pages through the samples where there is a terminal."""
    options = vars(parser().parse_args(arguments))
    forgive_output()
    console = Console()
    try:
        found = chosen(read(Path(options.pop("run"))), **options)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    if not console.is_terminal:
        console.print(*map(shown, found), sep="\n")
        return 0
    with console.pager(styles=True):
        console.print(*map(shown, found), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
