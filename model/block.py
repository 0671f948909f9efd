"""One block: norm placement x mixer slot x feed-forward slot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from model.attention import GQA, gqa_rotary, gqa_state
from model.config import ModelConfig, unknown
from model.context import Context
from model.ffn import FeedForward
from model.hooks import hook_point
from model.mingru import MinGRU, MinLSTM, rnn_rotary, rnn_state
from model.mla import MLA, check_supported, mla_rotary, mla_state
from model.moe import MoE
from model.norms import Norm
from model.peer.layer import PEER
from model.reports import Reports
from model.sharding import constrain


class Mixer(NamedTuple):
    """A mixer slot: its module, the function that makes one layer's empty decode state, and its rotary width."""

    module: Callable[..., Any]
    state: Callable[[ModelConfig, int, int, Any], Any]
    rotary: Callable[[ModelConfig], int]


MIXERS: dict[str, Mixer] = {
    "gqa": Mixer(GQA, gqa_state, gqa_rotary),
    "mla": Mixer(MLA, mla_state, mla_rotary),
    "mingru": Mixer(MinGRU, rnn_state, rnn_rotary),
    "minlstm": Mixer(MinLSTM, rnn_state, rnn_rotary),
}
RUNNING_STATE = ("mingru", "minlstm")  # mixers whose state takes nothing back
FEED_FORWARDS: dict[str, Callable[..., nn.Module]] = {
    "glu": functools.partial(FeedForward, gated=True),
    "mlp": functools.partial(FeedForward, gated=False),
    "moe": MoE,
    "peer": PEER,
}


def rotary_widths(config: ModelConfig) -> list[int]:
    """How many dimensions of a head are rotated, of every mixer that rotates any."""
    if config.positions != "rope":
        return []
    return sorted({MIXERS[name].rotary(config) for name in config.per_layer("mixer")} - {0})


def check_slots(config: ModelConfig) -> None:
    """Raises ValueError for a slot name that no table holds, naming the nearest one."""
    for name, table in (("mixer", MIXERS), ("ffn", FEED_FORWARDS)):
        for value in config.per_layer(name):
            if value not in table:
                raise ValueError(unknown(name, value, table))
    if "mla" in config.per_layer("mixer"):
        check_supported(config)


class Block(nn.Module):
    """x + mixer, x + feed-forward; norms before (pre), after the sum (post), both (sandwich, 2502.05171), or before and
    on what is added (peri, 2502.02732).
    """

    config: ModelConfig
    layer: int
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: Context, state: Any) -> tuple[jax.Array, Any, Reports]:
        """x [B, S, D], state of this layer or None -> (x, new state, what the layer reports)."""
        c = self.config
        before, after = c.norm != "post", c.norm in ("post", "sandwich")

        def norm(name: str, y: jax.Array, on: bool) -> jax.Array:
            return Norm(c.norm_type, c.norm_eps, "norm", c.param_dtype, name=name)(y) if on else y

        def added(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
            return x + norm(name, y, True) if c.norm == "peri" else norm(name, x + y, after)

        x = hook_point(self, "residual.pre", x)
        mixer = MIXERS[c.per_layer("mixer")[self.layer]].module(c, name="mixer")
        y, state = mixer(norm("mixer_norm", x, before), context, c.per_layer("window")[self.layer], state)
        x = added("mixer_post_norm", x, hook_point(self, "mixer.out", y))
        x = hook_point(self, "residual.mid", x)
        kind = c.per_layer("ffn")[self.layer]
        ffn = FEED_FORWARDS[kind](c, name="ffn")
        options = {"routes": context.routes} if context.routes is not None and kind == "moe" else {}
        y, reports = ffn(norm("ffn_norm", x, before), context.segments, self.train, **options)
        x = added("ffn_post_norm", x, hook_point(self, "ffn.out", y))
        return hook_point(self, "residual", constrain(x, "batch", "length", "act_embed")), state, reports
