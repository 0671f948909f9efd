"""A mean depth that rises over the first steps of training, for a core that was a stack before (2511.07384)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data.sources.batch import Batch
from model.depth import draw_depth
from model.lm import Params
from settings.model_parts import RecurrentConfig
from train.setup import Setup, Source
from train.state import step_key

RAMP = 7  # folded into a step's key for the depth of its rows


def ramp_mean(config: RecurrentConfig, step: int) -> float:
    """The mean depth of a step of training: from 1 it rises to `mean` in equal parts over `ramp` steps, then stays."""
    return 1 + (config.mean - 1) * min(step / config.ramp, 1.0) if config.ramp else float(config.mean)


class RampedDepths:
    """A source whose rows bring their depth, drawn at the mean of the step; its position is that of the source."""

    def __init__(self, source: Source, config: RecurrentConfig, seed: int) -> None:
        """All hosts draw the same, from (seed, step)."""
        self._source, self._config, self._seed = source, config, seed
        self._mean = 1.0

    def next(self, params: Params, step: int) -> Batch:
        """The source's batch with `depth` [B]."""
        batch: Any = self._source.next(params, step)
        self._mean = ramp_mean(self._config, step)
        hosts, key = jax.process_count(), jax.random.fold_in(step_key(self._seed, step), RAMP)
        drawn = np.asarray(draw_depth(self._config, key, batch.rows * hosts, self._mean), np.int32)
        depth = np.broadcast_to(drawn, batch.rows * hosts).reshape(hosts, batch.rows)[jax.process_index()]
        return batch.replace(depth=depth)

    def state(self) -> dict[str, Any]:
        """That of the source."""
        return self._source.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a position of the source."""
        self._source.restore(state)

    def stats(self) -> Mapping[str, float]:
        """Those of the source, and the mean of the last batch's draw."""
        return {**self._source.stats(), "depth/ramp": self._mean}


def with_ramp(setup: Setup, source: Source) -> Source:
    """The source, with depths of its rows where `recurrent.ramp` asks for them."""
    return RampedDepths(source, setup.model.config.recurrent, setup.config.seed) if setup.depth_ramp else source
