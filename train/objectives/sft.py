"""Supervised fine-tuning: demonstrations in, cross entropy on their answers."""

from __future__ import annotations

import jax

from data.sources.text import text_source
from model.lm import Model
from train.objectives.exit_gate import loop_objective
from train.objectives.losses import Objective, sft_objective
from train.setup import Algorithm, Setup, Source


def build(setup: Setup) -> Algorithm:
    """The objective and the source of an SFT run."""
    data = setup.config.data
    source = demonstrations(setup, data.split, setup.config.seed, data.loss_on)
    return Algorithm(supervised(setup.model), source, data.batch_size)


def supervised(model: Model) -> Objective:
    """What a model learns from demonstrations by: with an exit gate, after every iteration."""
    gated = model.config.depth == "recurrent" and model.config.recurrent.exit_gate
    return loop_objective(model) if gated else sft_objective(model)


def demonstrations(setup: Setup, split: str, seed: int, loss_on: str = "answer") -> Source:
    """Batches of demonstrations of a split, this host's share of `data.batch_size` rows."""
    data, hosts = setup.config.data, jax.process_count()
    if data.batch_size % hosts:
        raise ValueError(f"data.batch_size={data.batch_size} cannot be shared evenly by {hosts} hosts")
    return text_source(
        setup.task,
        setup.tokenizer,
        split=split,
        batch_size=data.batch_size // hosts,
        length=min(data.length, setup.model.config.max_length),
        pack=data.pack,
        seed=seed,
        template=data.template,
        system=data.system or None,
        too_long=data.too_long,
        loss_on=loss_on,
        process_index=jax.process_index(),
        process_count=hosts,
        prefetch=data.prefetch,
    )
