"""Choosing rows of a file of examples by a published rule, and what a file has in common with test sets.

python -m data.select pool.jsonl --rule=s1 --against=test.jsonl --out=chosen.jsonl
python -m data.select pool.jsonl --rule=report --against=test.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.names import check_options, unknown_name
from data.select.domains import check_domains, read_domains
from data.select.overlap import contamination, decontaminate
from data.select.pool import Pool, Selection, Stage, read_pool, text
from data.select.rules import RULES, Options
from store.command import exit_code
from store.objects import place
from store.records import replace_text
from store.terminal import one_line

REPORT = "report"
NAMES = (*RULES, REPORT)
EXAMPLES = 2  # of each reason
WIDTH = 70  # characters of a question that are shown


def columns_of(words: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Roles and columns of `role=column,...`; ValueError for another form or an unknown role."""
    columns = {}
    for word in [part for each in words for part in each.split(",")]:
        role, given, column = word.partition("=")
        if not given or not column:
            raise ValueError(f"--columns takes role=column, found {word!r}")
        columns[role] = column
    check_options("--columns", columns, known)
    return columns


def questions(pool: Pool, rows: Sequence[int] | None = None) -> dict[int, str]:
    """The question of each row, or of some."""
    return pool.values("question", range(len(pool)) if rows is None else rows, text)


def shown(pool: Pool, row: int, detail: str = "") -> str:
    """A row in a line: its place, how it begins, and a detail."""
    asked = pool.value("question", row, text)
    cut = asked if len(asked) <= WIDTH else f"{asked[: WIDTH - 3]}..."
    return one_line(f"{pool.unit} {row + 1}: {cut!r}" + (f", {detail}" if detail else ""))


def stage_lines(pool: Pool, stage: Stage) -> list[str]:
    """What a stage dropped: reasons, the most frequent first, with counts and examples."""
    lines = [one_line(f"{stage.name}: {stage.before} -> {stage.after}")]
    reasons: dict[str, list[int]] = {}
    for row, reason in stage.dropped.items():
        reasons.setdefault(reason, []).append(row)
    for reason, rows in sorted(reasons.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        lines.append(one_line(f"{len(rows):8}  {reason}"))
        lines += [f"          {shown(pool, row, stage.details.get(row, ''))}" for row in sorted(rows)[:EXAMPLES]]
    return lines


def report_lines(pool: Pool, test: Pool, size: int) -> list[str]:
    """What a pool has in common with a test set, by kind of comparison: how many rows of either, and examples."""
    asked = questions(test)
    lines = [one_line(f"{pool.source} ({len(pool)} rows) and {test.source} ({len(test)} rows)")]
    for kind, found in contamination(questions(pool), asked, size).items():
        lines.append(f"  {kind:18} {len(found.rows):6} rows, {len(found.tests):6} of the tests")
        for row, (_, other) in sorted(found.rows.items())[:EXAMPLES]:
            lines.append(f"          {shown(pool, row, f'like {test.unit} {other + 1} there')}")
    return lines


def write(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines in one piece."""
    replace_text(place(path), "".join(f"{json.dumps(row)}\n" for row in rows))


def check_output(options: argparse.Namespace) -> None:
    """Raises ValueError for a file that must not or cannot be written."""
    if not options.out:
        return
    if options.rule == REPORT:
        raise ValueError(
            f"--rule={REPORT} chooses nothing, so there is nothing to write: leave out --out={options.out}"
        )
    if not options.out.endswith(".jsonl"):
        raise ValueError(f"--out={options.out} must end in .jsonl, by which data.split knows a file of examples")
    if place(options.out).exists() and not options.overwrite:
        raise ValueError(f"--out={options.out} is there already: give another name, or --overwrite")
    if any(Path(options.out).resolve() == Path(name).resolve() for name in (options.pool, *options.against)):
        raise ValueError(f"--out={options.out} is a file that is read: give another name")


def choose(pool: Pool, rule: str, asked: Options) -> Selection:
    """What a rule chooses of a pool that shares no run of words with the tests; all stages in order."""
    sets = {each.source: questions(each) for each in asked.tests}
    left, stages = decontaminate(questions(pool), sets, asked.gram)
    found = RULES[rule].choose(pool, left, asked) if left else Selection([], [], [], [])
    return found._replace(stages=[*stages, *found.stages])


def select(options: argparse.Namespace) -> None:
    """Reads, chooses, tells stage by stage what was dropped and why, and writes where that is asked for."""
    if options.rule not in NAMES:
        raise unknown_name("rule", options.rule, NAMES)
    if options.rule in (REPORT, "decontaminate") and not options.against:
        raise ValueError(f"--rule={options.rule} needs a test set to compare with: --against=<file>")
    check_output(options)
    roles = ("question", *(RULES[options.rule].roles if options.rule in RULES else ()))
    columns = columns_of(options.columns, roles)
    pool = read_pool(options.pool, columns)
    theirs = options.against_column or columns.get("question", "question")
    tests = [read_pool(name, {"question": theirs}) for name in options.against]
    asked = Options(options.number, options.seed, options.uniform, options.threshold, options.words, tests)
    if options.rule == REPORT:
        for test in tests:
            print("\n".join(report_lines(pool, test, asked.gram)))
        return
    if options.domains:
        check_domains(pool, range(len(pool)), read_domains(options.domains))
    found = choose(pool, options.rule, asked)
    print(one_line(f"{pool.source}: {len(pool)} rows"))
    for stage in found.stages:
        print("\n".join(stage_lines(pool, stage)))
    print(one_line(f"{options.rule} with seed {options.seed}: {len(found.rows)} rows"))
    print("".join(f"  {one_line(note)}\n" for note in found.notes), end="")
    if not found.rows:
        raise ValueError(f"no row of {pool.source} is left, so nothing is written; what dropped them stands above")
    if options.out:
        write(options.out, found.rows)
        print(one_line(f"written to {options.out}"))


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m data.select`."""
    rules = (f"  {name:14}{rule.says}: {', '.join(('question', *rule.roles))}" for name, rule in RULES.items())
    flags = argparse.ArgumentParser(
        "python -m data.select",
        description="Chooses examples by a published rule.",
        epilog="\n".join(["rules, and the columns that they read:", *rules, f"  {REPORT:14}what is in --against, too"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("pool", help="JSON lines, or one JSON list of objects")
    flags.add_argument("--rule", required=True, help=" | ".join(NAMES))
    flags.add_argument("--out", default="", help="a new .jsonl file for what is chosen; nothing is written without")
    flags.add_argument("--overwrite", action="store_true", help="--out may be there already")
    flags.add_argument("--against", action="extend", nargs="+", default=[], help="test sets that no row may share with")
    flags.add_argument("--against_column", default="", help="their column of questions; default: the pool's")
    flags.add_argument("--columns", action="append", default=[], help="role=column,... for columns of other names")
    flags.add_argument("--domains", default="", help="a JSON list of known domains (code, title), such as msc.json")
    flags.add_argument("--number", type=int, help="rows to choose; default: the paper's (s1 1000, limo 800)")
    flags.add_argument("--seed", type=int, default=0, help="of the draws")
    flags.add_argument("--uniform", type=float, default=Options.uniform, help="s1: share drawn from domains alike")
    flags.add_argument("--threshold", type=float, help="limr: least score (.6); near: least similarity (.8)")
    flags.add_argument("--words", type=int, help="of a run that is compared; default 8, of near-duplicates 5")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    return exit_code(lambda: select(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
