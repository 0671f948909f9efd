"""What every layer of one forward pass shares."""

from __future__ import annotations

import flax.struct
import jax

from model.hooks import Hooks
from model.rope import Rotation


@flax.struct.dataclass
class Context:
    """What every layer of one forward pass shares.

    `positions`, `segments` [B, S] of the queries; `key_positions`, `key_segments` [B, L] of the keys (the
    cache's when there is one); `rope` maps a rotation of R dimensions to the pair cos, sin [B, S, R/2], and is empty
    when positions are not rotary; `index` is the first cache column written, or None without a cache; `routes`
    [B, S, layers with experts, k] the experts that routers are to take, or None for their own choice; `hooks` what the
    pass captures and replaces, or None for nothing.
    """

    positions: jax.Array
    segments: jax.Array
    key_positions: jax.Array
    key_segments: jax.Array
    rope: dict[Rotation, tuple[jax.Array, jax.Array]]
    index: jax.Array | None
    routes: jax.Array | None = None
    hooks: Hooks | None = None
