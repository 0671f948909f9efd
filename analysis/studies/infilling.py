"""What models that were trained to fill in the middle know of it, and what that costs from left to right (2207.14255).

python -m analysis.studies.infilling "runs/fim/*"      -> infilling.json and .png in the folder of the runs

Held-out documents of the run's only source are cut at two characters, and the model is asked for the middle, greedily,
in the order of PSM and of SPM. As control the suffix is that of another document: what a model then still gets right it
does not have from the suffix.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from analysis.pictures import save
from analysis.studies.budget_forcing import folders
from data.sources.corpus import Corpus
from data.sources.fim import cut, sentinels_of
from infer.asking import completion_texts
from infer.load import Loaded, load_run
from infer.sampler import generate
from infer.sampling import SamplingParams
from settings.corpus import CorpusConfig
from settings.setting import from_mapping
from store.json_files import read_json
from store.records import read_metrics
from train.cli import guarded

LONGEST = 8  # characters of a middle that is asked for
ORDERS = ("PSM", "SPM", "PSM, another's suffix")


def measured(folder: Path, count: int) -> dict[str, Any]:
    """Of one run: its rate, its loss from left to right, and the share of middles filled in, by order."""
    run = load_run(folder)
    config = read_json(folder / "config.json")
    corpus = Corpus(from_mapping(CorpusConfig, config["corpus"]))
    losses = [record for record in read_metrics(folder) if "eval/loss" in record]
    rng = np.random.default_rng(0)
    (name,) = corpus.sources
    numbers = corpus.numbers(name, "held_out")[:count]
    parts = [short_cut(text, rng) for text in corpus.texts_of(name, numbers)]
    shares = {order: filled_in(run, parts, order) for order in ORDERS}
    return {"rate": round(config["corpus"]["fim"], 3), "loss": losses[-1]["eval/loss"], **shares}


def short_cut(text: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """Prefix, middle and suffix, with a middle of 1 to LONGEST characters and a suffix that is not empty."""
    while True:
        prefix, middle, suffix = cut(text, rng)
        if 1 <= len(middle) <= LONGEST and suffix:
            return prefix, middle, suffix


def filled_in(run: Loaded, parts: Sequence[tuple[str, str, str]], order: str) -> float:
    """The share of middles that are, up to the end token, the very ones."""
    pre, suf, mid = sentinels_of(run.tokenizer)
    encode, prompts = run.tokenizer.encode, []
    for number, (prefix, _, suffix) in enumerate(parts):
        shown = parts[(number + 1) % len(parts)][2] if order.endswith("suffix") else suffix
        first, last = encode(prefix), encode(shown)
        prompts.append([pre, suf, *last, mid, *first] if order == "SPM" else [pre, *first, suf, *last, mid])
    sampling = SamplingParams(LONGEST + 4, temperature=0.0, stop=tuple(run.tokenizer.eos_ids))
    rollout = generate(run.model, run.params, prompts, jax.random.key(0), sampling, tokenizer=run.tokenizer)
    texts = completion_texts(rollout, run.tokenizer)
    pairs = zip(texts, parts, rollout.finished, strict=True)
    return float(np.mean([done and text == middle for text, (_, middle, _), done in pairs]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: means and deviations over the runs of each rate."""
    lines = [f"| rate | runs | loss, left to right | {' | '.join(ORDERS)} |", "|---" * (3 + len(ORDERS)) + "|"]
    for rate in sorted({row["rate"] for row in rows}):
        mine = [row for row in rows if row["rate"] == rate]
        cells = [spread([row[name] for row in mine]) for name in ("loss", *ORDERS)]
        lines.append(f"| {rate:g} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean ± deviation."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.3f}"


def draw(rows: Sequence[dict[str, Any]]) -> Any:
    """The loss, and the shares of middles, against the rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.0), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = sorted({row["rate"] for row in rows})
    for axes, names in ((left, ("loss",)), (right, ORDERS)):
        for name in names:
            values = [[row[name] for row in rows if row["rate"] == rate] for rate in rates]
            axes.errorbar(rates, [np.mean(v) for v in values], [np.std(v) for v in values], marker="o", label=name)
        axes.set_xlabel("share of documents rearranged")
        axes.grid(color="0.92")
    left.set_title("loss from left to right", loc="left", fontsize=10, fontweight="bold")
    right.set_title("middles filled in", loc="left", fontsize=10, fontweight="bold")
    right.legend(frameon=False, fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.infilling`."""
    flags = argparse.ArgumentParser("python -m analysis.studies.infilling", description="Middles that are filled in.")
    flags.add_argument("runs", nargs="+", help="run directories of configs/ablations/fim.py, or patterns")
    flags.add_argument("--examples", type=int, default=256, help="held-out documents")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def study() -> None:
        runs = folders(options.runs)
        rows = [measured(folder, options.examples) for folder in runs]
        print(table(rows))
        place = runs[0].parent
        (place / "infilling.json").write_text(json.dumps(rows) + "\n")
        save(draw(rows), place / "infilling.png")

    return guarded(study)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
