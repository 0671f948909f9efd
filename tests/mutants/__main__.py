"""Applies each break to a copy of the code and runs the tests that must fail: python -m tests.mutants [text ...]

With texts only the breaks whose file or code holds one of them. --all_tests runs all of `make test`'s tests against
each instead of those that the table names; --workers sets how many breaks are tried at a time. First the named tests
run without any break, and must pass. Exit code 1 where a break is not noticed, or its code is no longer there.
"""

from __future__ import annotations

import argparse
import functools
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import ROOT
from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS

LONGEST = 900.0  # seconds for the tests of one break; a break that makes them hang is noticed, too
PASSED, FAILED = 0, 1  # pytest's exit codes
CAUGHT, SURVIVED, BROKEN = "caught", "SURVIVED", "BROKEN"


def copied(folder: Path) -> Path:
    """A copy of the working tree, of what git does not ignore, below `folder`; the reference data stand beside it."""
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, folder / "clone" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
    return folder / "clone"


def run_tests(clone: Path, tests: Sequence[str], *options: str, longest: float | None = None) -> tuple[int, str]:
    """pytest's exit code on those tests of a copy that `make test` runs, up to the first failure, and its output."""
    command = [sys.executable, "-m", "pytest", "-m", "not more", "-x", "-p", "no:cacheprovider", *options, *tests]
    # Several breaks are tried at a time, each on a core of its own.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    try:
        told = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=longest)
    except subprocess.TimeoutExpired:
        return FAILED, f"timed out after {longest} s"
    return told.returncode, told.stdout + told.stderr


def judge(mutant: Mutant, clone: Path, tests: Sequence[str]) -> tuple[str, str]:
    """What became of one break in a copy, which is whole again afterwards, and why in a line."""
    path = clone / mutant.file
    text = path.read_text() if path.is_file() else ""
    if (found := text.count(mutant.old)) != 1:
        return BROKEN, f"its code occurs {found} times: change tests/mutants/table.py"
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        code, output = run_tests(clone, tests, longest=LONGEST)
    finally:
        path.write_text(text)
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "timed out"))]
    told = lines[0] if lines else (output.strip().splitlines() or [""])[-1]
    return {PASSED: SURVIVED, FAILED: CAUGHT}.get(code, BROKEN), told


def one(mutant: Mutant, clones: queue.Queue[Path], every: bool) -> str:
    """Tries a break in a copy that is free, prints a line of the table and returns the verdict."""
    clone, start = clones.get(), time.monotonic()
    try:
        verdict, told = judge(mutant, clone, [] if every else mutant.tests.split())
    finally:
        clones.put(clone)
    change = " ".join(f"{mutant.old} -> {mutant.new}".split())
    print(f"{verdict:9}{time.monotonic() - start:5.0f} s  {mutant.file}: {change}\n{'':18}{told[:160]}", flush=True)
    return verdict


def check_unbroken(clone: Path, chosen: Sequence[Mutant], workers: int) -> None:
    """Raises SystemExit unless the tests pass where nothing is broken."""
    tests = sorted({test for mutant in chosen for test in mutant.tests.split()})
    code, output = run_tests(clone, tests, "-n", str(workers), "--dist", "worksteal")
    if code != PASSED:
        raise SystemExit(f"{output[-4000:]}\nthese tests fail without any break: nothing can be said of the breaks")


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m tests.mutants`."""
    flags = argparse.ArgumentParser("python -m tests.mutants", description="Breaks the code; the tests must notice.")
    flags.add_argument("texts", nargs="*", help="only breaks whose file or code holds one of these")
    flags.add_argument("--workers", type=int, default=2, help="breaks tried at a time")
    flags.add_argument("--all_tests", action="store_true", help="all tests against each, not those that are named")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    options = parser().parse_args(arguments)
    chosen = [m for m in MUTANTS if not options.texts or any(t in f"{m.file}: {m.old}" for t in options.texts)]
    with tempfile.TemporaryDirectory() as folder:
        clones: queue.Queue[Path] = queue.Queue()
        for number in range(options.workers):
            clones.put(copied(Path(folder, str(number))))
        check_unbroken(clones.queue[0], chosen, options.workers)
        with ThreadPoolExecutor(options.workers) as pool:
            verdicts = list(pool.map(functools.partial(one, clones=clones, every=options.all_tests), chosen))
    counts = {verdict: verdicts.count(verdict) for verdict in (CAUGHT, SURVIVED, BROKEN)}
    print(", ".join(f"{count} {verdict.lower()}" for verdict, count in counts.items()))
    return int(counts[CAUGHT] != len(chosen) or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
