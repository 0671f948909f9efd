"""Runs notebooks in clean kernels and compares their outputs with the committed ones: python -m notebooks [name ...]

--write puts the new outputs in the place of the old. Exit code 1 where a notebook raises or claims something else.
"""

from __future__ import annotations

import argparse
import sys
import time

from settings.setting import unknown

try:
    import nbformat
    from nbclient.exceptions import CellExecutionError
except ImportError as missing:
    sys.exit(f"error: {missing}; notebooks are run with: pip install -c constraints.txt -e '.[notebooks]'")

from notebooks.comparison import differences
from notebooks.execution import execute, names, path_of, read


def run(name: str, write: bool) -> bool:
    """Runs one notebook and says what came of it; True where it claims what it claimed, or was written."""
    started = time.perf_counter()
    try:
        executed = execute(read(name))
    except CellExecutionError as error:
        print(f"{name}: {error}", flush=True)
        return False
    told = [] if write else differences(read(name), executed)
    if write:
        nbformat.write(executed, path_of(name))
    print(f"{name}: {time.perf_counter() - started:.1f} s", *told, sep="\n", flush=True)
    return not told


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m notebooks`."""
    flags = argparse.ArgumentParser("python -m notebooks", description="Runs notebooks in clean kernels.")
    flags.add_argument("names", nargs="*", help="such as 01_tour, or 01; without any, all of them")
    flags.add_argument("--write", action="store_true", help="keep the new outputs")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    flags = parser()
    options = flags.parse_args(arguments)
    present = names()
    chosen = [name for name in present if not options.names or any(name.startswith(n) for n in options.names)]
    for asked in options.names:
        if not any(name.startswith(asked) for name in present):
            flags.error(unknown("notebook", asked, present))
    fine = [run(name, options.write) for name in chosen]
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
