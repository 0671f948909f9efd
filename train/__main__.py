"""Command line: python -m train --config=configs/quickstart.py --workdir=runs/q [--config.optimizer.lr=1e-3 ...]"""

from __future__ import annotations

import os
import sys
from typing import Any

from model.platform import restart_with_huge_pages

USAGE = "usage: python -m train --config=configs/quickstart.py --workdir=runs/q [--config.key=value ...]"


def main(arguments: list[str]) -> int:
    """Runs a config and returns the exit code: 0 done or stopped, 1 a fault, 2 wrong use."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from train.cli import guarded, help_text

    if {"--help", "-h", "--help_settings"} & set(arguments):
        return guarded(lambda: print(help_text(arguments, USAGE)))
    return guarded(lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    from train.cli import initialize, parse, report
    from train.hosts import hosts_of
    from train.loop import run
    from train.pipeline import dry_run

    hosts, arguments = hosts_of(arguments, os.environ)
    wanted = parse(arguments, USAGE)
    if wanted.dry_run:
        print(dry_run(wanted.config, wanted.workdir, wanted.choice))
        return
    initialize(hosts)
    result: dict[str, Any] = run(wanted.config, wanted.workdir, wanted.choice)
    report(result, wanted.workdir)


if __name__ == "__main__":
    restart_with_huge_pages(["-m", "train", *sys.argv[1:]])
    sys.exit(main(sys.argv))
