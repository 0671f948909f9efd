"""Stages: runs of the one loop that hand their parameters on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from model.config import unknown
from train.metrics import plot_curves, replace_text, write_json
from train.run_directory import claim, provenance


def stage_config(config: ConfigDict, name: str, previous: Path | None) -> ConfigDict:
    """The whole config of one stage: the pipeline's, changed by `config.stage.<name>`; unknown keys raise."""
    if name not in config.stage:
        raise ValueError(unknown("stage", name, config.stage))
    stage = ConfigDict(config.to_dict())
    stage.stages, stage.stage = (), ConfigDict()
    stage.name = f"{config.name}/{name}"
    _change(stage, config.stage[name], f"stage.{name}")
    if previous is not None:
        stage.init_from = str(previous)
    return stage.lock()


def _change(target: ConfigDict, changes: ConfigDict, at: str) -> None:
    for key, value in changes.items():
        if key not in target:
            raise ValueError(unknown(f"setting of {at}", key, target))
        if isinstance(value, ConfigDict) and key != "options":
            _change(target[key], value, f"{at}.{key}")
        else:
            target[key] = value


def run_stages(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs the stages in order, each in its own folder and from the parameters before it.

    Finished stages are not run again; a pipeline whose first stage cannot even be built leaves nothing behind.
    """
    from train.loop import run

    started = time.perf_counter()
    folders = [workdir / name for name in config.stages]
    plans = [stage_config(config, name, before) for name, before in zip(config.stages, [None, *folders], strict=False)]
    claim(workdir, config)
    results = []
    for plan, folder in zip(plans, folders, strict=True):
        try:
            result = run(plan, folder)
        except Exception:
            if not (folders[0] / "config.json").is_file():
                (workdir / "config.json").unlink(missing_ok=True)
            raise
        if result["status"] != "complete":
            return {**result, "workdir": str(workdir)}
        results.append(result)
    rows = [{**result["stages"][0], "name": name} for name, result in zip(config.stages, results, strict=True)]
    result = {
        "status": "complete",
        "name": config.name,
        "stages": rows,
        "evaluation": results[-1]["evaluation"],
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "compilations": sum(result["compilations"] for result in results),
        "wall_seconds": round(time.perf_counter() - started, 2),
        **provenance(config),
    }
    _gather(folders, workdir)
    write_json(workdir / "result.json", result)
    return result


def _gather(folders: list[Path], workdir: Path) -> None:
    """One samples.jsonl and one curves.png over all stages."""
    # Whole files: what models write may hold what `splitlines` takes for the end of a line.
    replace_text(workdir / "samples.jsonl", "".join((folder / "samples.jsonl").read_text() for folder in folders))
    plot_curves(folders, workdir / "curves.png")
