"""What sources yield: batches of typed rows."""

from __future__ import annotations

from typing import Any

import flax.struct


class Batch(flax.struct.PyTreeNode, kw_only=True):
    """What a step learns from: rows, which may be cut into micro-batches, and what all of them share.

    `tokens` [B, S] int32; `mask` [B, S] float32, 1 on the tokens that are learnt from; `shared`: what the rows continue
    (prompts, or their caches), None where they stand alone.
    """

    tokens: Any
    mask: Any
    shared: Any = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.tokens.shape[0])

    @property
    def columns(self) -> int:
        """How many columns of a row are learnt from."""
        return int(self.tokens.shape[1])

    @property
    def forward_tokens(self) -> int:
        """How many tokens pass through the model in one forward pass."""
        return int(self.tokens.size)


class TokenRows(Batch, kw_only=True):
    """Rows of a language model, each with one text or several packed ones.

    `positions`, `segments` [B, S] int32; segment 0 is padding, and attention never crosses segments. Of models that
    think in states: `latent` [B, n] bool, where columns `first` .. `first` + n - 1 are thoughts; `answer` [B], the
    column of the answer's first token; `teacher`, the same examples with all steps written (CODI); `steps`, `step_mask`
    [B, k, L] the tokens of the steps that thoughts stand for. `depth` [B]
    iterations of a recurrent core and `routes` [B, S, layers, k] experts are taken as they are, where given.
    """

    positions: Any
    segments: Any
    latent: Any = None
    first: int = flax.struct.field(default=0, pytree_node=False)
    answer: Any = None
    teacher: TokenRows | None = None
    steps: Any = None
    step_mask: Any = None
    depth: Any = None
    routes: Any = None

    @property
    def thoughts(self) -> int:
        """How many columns may hold thoughts."""
        return 0 if self.latent is None else int(self.latent.shape[1])
