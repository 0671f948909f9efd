"""How samples fall into waves, slots and lanes before anything is compiled."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from model.sharding import batch_parts


@dataclass(frozen=True)
class Waves:
    """`count` waves of so many `prompts` each, decoded in `slots`; both divide by `lanes` (infer/prefill.py)."""

    count: int
    prompts: int
    slots: int
    lanes: int


def in_waves(prompts: int, group: int, slots: int | None, one_lane: bool = False) -> Waves:
    """Waves of `group` samples a prompt; `slots` None: one for every sample.

    The keys of at most four times as many samples as slots wait at a time. On a mesh every device with rows of its own
    is a lane, where there are prompts for all and slots divide; the prompts of a wave are then as many as lanes divide.
    """
    parts = 1 if one_lane else devices()
    lanes = parts if prompts >= parts and (slots or parts) % parts == 0 else 1
    count = -(-prompts // max(4 * slots // group if slots else prompts, lanes))
    wave = -(-prompts // (count * lanes)) * lanes
    return Waves(count, wave, min(slots or wave * group, wave * group), lanes)


def copies(prompts: int, group: int) -> int:
    """How many devices read each prompt, where they are fewer than devices: a divisor of the group, most often 1."""
    wanted = (n for n in range(1, group + 1) if group % n == 0 and prompts * n >= devices())
    return next(wanted, 1)


def devices() -> int:
    """Devices of the current mesh that hold rows of their own."""
    return batch_parts(jax.sharding.get_abstract_mesh())
