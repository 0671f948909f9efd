"""The model of a stage as a folder in the Hub's layout, with its tokenizer."""

from __future__ import annotations

import shutil

from model import hf
from model.lm import parameter_count
from store.objects import is_object
from train.console import Interrupt
from train.jobs.base import Job
from train.setup import Setup


def run(setup: Setup, interrupt: Interrupt) -> dict[str, float]:
    """Writes `model`, config.json and weights and tokenizer, into the stage's directory."""
    del interrupt
    folder = setup.workdir / "model"
    shutil.rmtree(folder, ignore_errors=True)  # what a broken stage left: this stage's own
    params = setup.make_params()
    hf.save(folder, setup.model, params, setup.config.export.shard_gb * 1e9)
    setup.tokenizer.save(folder)
    return {"parameters": float(parameter_count(params))}


def check(setup: Setup) -> None:
    """Raises ValueError where there is nothing trained to export, for buckets, and for what a family cannot express."""
    if not setup.config.init_from:
        raise ValueError("algorithm=export writes a trained model: name it by init_from (in a pipeline, `from`)")
    if is_object(setup.workdir):
        raise ValueError(f"{setup.workdir}: a Hub folder is written to a disk; copy it to the bucket afterwards")
    setup.model.config.to_hf()


JOB = Job(run, check)
