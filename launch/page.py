"""One page that opens from disk without a network: a sweep's table, curves, settings, samples and pictures."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from configs.common import base
from launch.directions import NOTE, direction
from launch.results import Group, Result, View, algorithms_of, best_rows, curve, flat, notes, over_seeds
from store.records import read_lines
from store.run_directory import DERIVED
from store.terminal import one_line

TEMPLATE = Path(__file__).with_name("page.html")
POINTS = 300  # of a curve, at most: a page of a long sweep stays small
SAMPLES = 200  # of a run, the last ones
PICTURES = 4_000_000  # bytes of pictures, at most


def page(
    workdir: Path,
    groups: Sequence[Group],
    metrics: Sequence[str],
    missing: Sequence[str],
    bands: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]],
    view: View,
) -> str:
    """The page as text; `bands` holds every metric's places, means and deviations, group by group."""
    runs, title = [run for group in groups for run in group.runs], one_line(workdir.resolve().name)
    algorithms = algorithms_of(runs)
    data = {
        "title": title,
        "over": view.over or "step",
        "notes": notes(groups, metrics, missing, view),
        "groups": [group_data(group, metrics, view) for group in groups],
        "metrics": [
            {"name": name, "best": best_rows(groups, name, view), "sign": direction(name, algorithms)}
            for name in metrics
        ],
        "curves": {name: [thin(*found) for found in per_group] for name, per_group in bands.items()},
        "samples": [record for run in runs for record in samples(run)],
        "pictures": pictures(workdir, runs),
    }
    # A "</script>" in what a model wrote must not end the element that holds it; lone surrogates are no UTF-8.
    text = json.dumps(finite(data), ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    held = {"__TITLE__": escaped(title), "__NOTE__": escaped(NOTE), "__DATA__": text}
    # All at once: what is put in may itself hold one of these.
    return re.sub("|".join(held), lambda found: held[found[0]], TEMPLATE.read_text(encoding="utf-8"))


def group_data(group: Group, metrics: Sequence[str], view: View) -> dict[str, Any]:
    """A row of the table: label, settings, figures, and what each run was made of."""
    return {
        "label": group.label,
        "settings": dict(group.settings),
        "cells": [over_seeds(group, name, view) for name in metrics],
        "runs": [run_data(run) for run in group.runs],
    }


def run_data(run: Result) -> dict[str, Any]:
    """Where a run lies, how it was made, and its settings that are not the defaults."""
    default = {name: json.dumps(value) for name, value in flat(base().to_dict())}
    changed = {name: value for name, value in run.settings.items() if default.get(name) != json.dumps(value)}
    made = {name: run.result[name] for name in ("command", "commit", "seconds", "versions") if name in run.result}
    kept = {name: value for name, value in changed.items() if name.partition(".")[0] not in DERIVED}
    return {"name": run.folder.name, "made": made, "settings": kept}


def samples(run: Result) -> list[dict[str, Any]]:
    """The last samples of a run, or of the last stage of a pipeline, with the run's name."""
    return [{"run": run.folder.name, **record} for record in read_lines(run.folder / "samples.jsonl")[-SAMPLES:]]


def pictures(workdir: Path, runs: Sequence[Result]) -> list[dict[str, str]]:
    """The PNGs of a directory and of its runs, inside the page, as many as fit."""
    folders = dict.fromkeys((workdir, *(run.folder for run in runs)))
    found, room = [], PICTURES
    for path in (path for folder in folders for path in sorted(folder.glob("*.png")) if path.name != "plot.png"):
        content = path.read_bytes()
        room -= len(content)
        if room < 0:
            found.append({"name": f"{path} is left out: the page holds {PICTURES // 10**6} MB of pictures"})
            break
        name = path.name if path.parent == workdir else f"{path.parent.name}/{path.name}"
        found.append({"name": name, "src": f"data:image/png;base64,{base64.b64encode(content).decode()}"})
    return found


def thin(places: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> list[list[float]]:
    """Places, means and deviations of at most POINTS points, the last one among them."""
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), POINTS)).round().astype(int))
    return [np.asarray(values, float)[chosen].tolist() for values in (places, mean, deviation)]


def drawable(groups: Sequence[Group]) -> list[str]:
    """The metrics that every run has as a curve, evaluations first."""
    runs = [run for group in groups for run in group.runs]
    names = dict.fromkeys(name for run in runs for record in islice(run.records, 50) for name in record)
    names |= dict.fromkeys(name for run in runs for record in run.records[-3:] for name in record)
    found = [name for name in names if name != "step" and all(len(curve(run, name)[0]) > 1 for run in runs)]
    return sorted(found, key=lambda name: not name.startswith("eval/"))


def finite(tree: Any) -> Any:
    """Numbers that JSON cannot hold as null, tuples as lists."""
    if isinstance(tree, Mapping):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def escaped(text: str) -> str:
    """Text for HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
