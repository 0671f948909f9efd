"""A pipeline that is killed at random moments beside an undisturbed one, compared bit for bit:

python -m tests.train.killed_pipeline FOLDER KILLS SEED --config=configs/pipelines/r1.py [flags of train]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from store.records import read_metrics
from store.run_directory import read_result
from tests.train.lives import complete, repeatable, saved, start
from tests.trunk import trees_equal

LINES = ("samples.jsonl", "kept.jsonl", "pairs.jsonl", "held_out.jsonl")
LONGEST = 1800.0  # seconds of an undisturbed pipeline


def told(path: Path, root: Path) -> str:
    """A file's text, without where it lies."""
    return path.read_text().replace(str(root), "") if path.is_file() else ""


def differences(found: Path, want: Path) -> list[str]:
    """What of two complete pipelines is not the same: parameters, numbers, files."""
    wrong = []
    for row in read_result(want)["stages"]:
        name = row["name"]
        one, other = found / name, want / name
        if (other / "checkpoints").is_dir() and not trees_equal(saved(one, "params"), saved(other, "params")):
            wrong.append(f"{name}: parameters")
        if (other / "metrics.jsonl").is_file():
            records = [[repeatable(record) for record in read_metrics(folder)] for folder in (one, other)]
            if records[0] != records[1]:
                wrong.append(f"{name}: metrics")
        wrong += [f"{name}/{file}" for file in LINES if told(one / file, found) != told(other / file, want)]
    left, right = ([row | {"seconds": 0.0} for row in read_result(folder)["stages"]] for folder in (found, want))
    return wrong + ([f"result: {left} {right}"] if left != right else [])


def progress(folder: Path) -> int:
    """Lines that the stages of a pipeline have written so far."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*/*.jsonl"))


def killed(flags: list[str], folder: Path, lines: int, delay: float) -> dict[str, Any] | None:
    """Runs the pipeline until so many lines are there and `delay` seconds more, and kills it; None if it ended."""
    process = start("-m", "train", *flags, f"--workdir={folder}")
    while process.poll() is None and progress(folder) < lines:
        time.sleep(0.05)
    time.sleep(delay)
    ended = process.poll() is not None
    process.kill()
    process.communicate()
    begun = sorted((path.parent for path in folder.glob("*/config.json")), key=lambda path: path.stat().st_mtime)
    return None if ended else {"lines": progress(folder), "stages": [path.name for path in begun]}


def main(folder: Path, kills: int, seed: int, flags: list[str]) -> dict[str, Any]:
    """Runs both; the second is killed at moments drawn from `seed`, spread over what the first one wrote."""
    draw = random.Random(seed)
    began = time.monotonic()
    complete(*flags, f"--workdir={folder / 'undisturbed'}", longest=LONGEST)
    took = time.monotonic() - began
    whole = progress(folder / "undisturbed")
    moments = sorted(draw.randrange(whole) for _ in range(kills))
    deaths = [killed(flags, folder / "killed", lines, draw.uniform(0.0, 1.0)) for lines in moments]
    complete(*flags, f"--workdir={folder / 'killed'}", longest=LONGEST)
    return {
        "seconds": round(took, 1),
        "lines": whole,
        "kills": [death for death in deaths if death is not None],
        "differences": differences(folder / "killed", folder / "undisturbed"),
    }


def parser() -> argparse.ArgumentParser:
    """The arguments of `python -m tests.train.killed_pipeline`."""
    found = argparse.ArgumentParser("python -m tests.train.killed_pipeline", description=__doc__)
    found.add_argument("folder", type=Path, help="where both pipelines run")
    found.add_argument("kills", type=int)
    found.add_argument("seed", type=int, help="of the moments")
    found.add_argument("flags", nargs=argparse.REMAINDER, help="of python -m train, all but --workdir")
    return found


if __name__ == "__main__":
    options = parser().parse_args()
    print(json.dumps(main(options.folder, options.kills, options.seed, options.flags), indent=2))
