"""Supervised fine-tuning: demonstrations in, cross entropy on their answers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from data.depths import ExampleDepths
from data.sources.batch import TokenRows
from data.sources.rows import TextRows
from data.sources.text import text_source
from model.lm import Model
from train.accumulate import UpdatePlan
from train.depth_ramp import with_ramp
from train.objectives.exit_gate import loop_objective
from train.objectives.losses import Objective, sft_objective
from train.setup import Algorithm, Setup, Source, Update


def build(setup: Setup) -> Algorithm:
    """The update and the source of an SFT run."""
    data = setup.config.data
    depths = setup.depths if setup.depth_by_example else None
    source = demonstrations(setup, data.split, setup.config.seed, data.loss_on, depths)
    return Algorithm(update(setup), with_ramp(setup, source))


def update(setup: Setup) -> Update:
    """What an SFT run minimises, on rows of demonstrations."""
    config, model = setup.config, setup.model
    rows, length = config.data.batch_size, min(config.data.length, model.config.max_length)
    given = setup.depth_by_example or setup.depth_ramp
    depth = {"depth": jax.ShapeDtypeStruct((rows,), jnp.int32)} if given else {}
    batch = token_rows(rows, length, **depth)
    return Update(supervised(model), batch, UpdatePlan(micro_batch=config.micro_batch or None))


def token_rows(rows: int, columns: int, **more: Any) -> TokenRows:
    """The shapes of rows."""
    integers, numbers = (jax.ShapeDtypeStruct((rows, columns), kind) for kind in (jnp.int32, jnp.float32))
    return TokenRows(tokens=integers, mask=numbers, positions=integers, segments=integers, **more)


def supervised(model: Model) -> Objective:
    """What a model learns from demonstrations by: with an exit gate, after every iteration."""
    gated = model.config.depth == "recurrent" and model.config.recurrent.exit_gate
    return loop_objective(model) if gated else sft_objective(model)


def demonstrations(
    setup: Setup, split: str, seed: int, loss_on: str = "answer", depths: ExampleDepths | None = None
) -> Source:
    """Batches of demonstrations of a split, this host's share of `data.batch_size` rows, with `depths` if asked for."""
    data = setup.config.data
    return text_source(
        setup.task,
        setup.tokenizer,
        TextRows(
            **rows_of_host(setup),
            split=split,
            pack=data.pack,
            seed=seed,
            template=data.template,
            system=data.system or None,
            too_long=data.too_long,
            loss_on=loss_on,
            depths=depths,
            prefetch=data.prefetch,
        ),
    )


def rows_of_host(setup: Setup) -> dict[str, Any]:
    """The size of this host's share of a batch; ValueError where batches cannot be shared evenly."""
    data, hosts = setup.config.data, jax.process_count()
    if data.batch_size % hosts:
        raise ValueError(f"data.batch_size={data.batch_size} cannot be shared evenly by {hosts} hosts")
    length = min(data.length, setup.model.config.max_length)
    return {
        "batch_size": data.batch_size // hosts,
        "length": length,
        "process_index": jax.process_index(),
        "process_count": hosts,
    }
