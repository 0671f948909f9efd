"""Tokenising a corpus beforehand, and what its tokens cost a run: python -m benchmarks.prepare [--megabytes=100]

The text is that of the installed packages' Python files, of which every twentieth trains the tokenizers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.__main__ import MODEL

VOCAB = 8192
ROWS, LENGTH, READ = 16, 128, 2  # of the run that reads tokens: tokens a step, megabytes of text
WARM = 5  # first steps, whose times say nothing


def installed(megabytes: float) -> Iterator[str]:
    """So much text of the installed packages, a file each, in the order of their paths; less where there is less."""
    left = megabytes * 1e6
    for file in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        content = file.read_bytes()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        if text:
            yield text
            left -= len(content)
        if left <= 0:
            return


def write_lines(file: Path, texts: Sequence[str]) -> Path:
    """A file of JSON lines with these documents."""
    with file.open("w") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return file


def prepared(documents: Path, tokenizer: Path, out: Path, workers: int) -> dict[str, Any]:
    """What `python -m data.prepare` says of these documents."""
    from data.prepare import ALONE, prepare
    from data.sources.documents import open_documents

    os.environ.update(ALONE)
    return prepare(open_documents(documents), str(tokenizer), out, workers=workers)


def waiting(tokens: Path, tokenizer: Path, workdir: Path, steps: int, prefetch: int) -> dict[str, float]:
    """The share of a run's steps that waits for batches of prepared tokens, made `prefetch` ahead; medians in ms."""
    from ml_collections import ConfigDict

    from configs import common
    from train.loop import by_hand

    config = common.base()
    config.algorithm, config.steps = "pretrain", WARM + steps
    config.model.update({name: value for name, value in MODEL.items() if name != "vocab_size"})
    config.tokenizer.update(kind="hf", path=str(tokenizer))
    config.corpus.sources = ConfigDict({"installed": {"path": str(tokens)}})
    config.data.update(batch_size=ROWS, length=LENGTH, prefetch=prefetch)
    config.eval.update(examples=0, loss_batches=1)
    config.checkpoint.update(every=0, keep_best=0)
    waits, times = list[float](), list[float]()
    # What the run says of itself does not belong into the JSON.
    with contextlib.redirect_stdout(sys.stderr), by_hand(config, workdir) as trainer:
        for _ in range(config.steps):
            started = time.perf_counter()
            waits.append(trainer.step()["time/batch"])
            times.append(time.perf_counter() - started)
    waits, times = waits[WARM:], times[WARM:]
    return {
        "share": round(sum(waits) / sum(times), 5),
        "batch": round(1e3 * statistics.median(waits), 2),
        "step": round(1e3 * statistics.median(times), 1),
    }


def bench_loading(folder: Path, texts: Sequence[str], steps: int) -> dict[str, Any]:
    """What a run of the benchmarks' model waits for; with `prefetch_0` that is all that a batch costs."""
    from data.tokenizers.tokenizer_json import train_bpe

    tokenizer, tokens = folder / "small_bpe", folder / "small_tokens"
    train_bpe(texts, tokenizer, int(MODEL["vocab_size"]))
    prepared(write_lines(folder / "small.jsonl", texts), tokenizer, tokens, workers=1)
    kinds = {f"prefetch_{ahead}": ahead for ahead in (2, 0)}
    return {name: waiting(tokens, tokenizer, folder / name, steps, ahead) for name, ahead in kinds.items()}


def bench_prepare(repeats: int, megabytes: float = 100) -> dict[str, Any]:
    """MB/s, over a quarter as many preparations, start of the processes included; and what a run waits for tokens."""
    from data.tokenizers.tokenizer_json import train_bpe

    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        waits = bench_loading(folder, list(installed(min(megabytes, READ))), 5 * repeats)
        texts = list(installed(megabytes))
        documents, tokenizer = write_lines(folder / "installed.jsonl", texts), folder / "bpe"
        train_bpe(texts[::20], tokenizer, VOCAB)
        runs = range(max(repeats // 4, 1))
        told = [prepared(documents, tokenizer, folder / f"tokens_{n}", cores) for n in runs]
    rates = sorted(each["mb_per_second"] for each in told)
    return {
        "megabytes": round(told[0]["bytes"] / 1e6, 1),
        "documents": told[0]["documents"],
        "tokens": told[0]["tokens"],
        "processes": cores,
        "mb_per_second": statistics.median(rates),
        "spread": [rates[0], rates[-1]],
        "waiting_for_batches": waits,
    }


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.prepare`."""
    flags = argparse.ArgumentParser("python -m benchmarks.prepare", description=__doc__)
    flags.add_argument("--megabytes", type=float, default=100, help="of text")
    flags.add_argument("--repeats", type=int, default=8)
    return flags


def main() -> None:
    """Prints what was measured as one JSON object."""
    options = parser().parse_args()
    print(json.dumps(bench_prepare(options.repeats, options.megabytes), indent=2))


if __name__ == "__main__":
    main()
