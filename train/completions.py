"""Rows that continue prompts: completions of one prompt or several, read apart from what they continue."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from data.sources.batch import Batch, TokenRows
from model.lm import Model, Output, Params
from model.prefix import Prefix, Prompts, continue_from
from train.objectives.losses import read_rows, target_logps


class CompletionRows(Batch, kw_only=True):
    """N completions of T columns; row n continues prompt `prompt_of[n]` of `shared` by its first `lengths[n]` tokens,
    of which `mask` has those that are learnt from.

    `shared` are P prompts (model/prefix.py), or what is left of them once they were read; where a run has them `depth`
    [N] are iterations of a recurrent core, `routes` [N, T, layers, k] experts taken.
    """

    BY_COLUMN: ClassVar[tuple[str, ...]] = ("tokens", "mask", "routes")

    lengths: Any
    prompt_of: Any
    depth: Any = None
    routes: Any = None

    @property
    def present(self) -> Any:
        """Which columns hold tokens [N, T] bool."""
        return jnp.arange(self.columns) < self.lengths[:, None]

    @property
    def forward_tokens(self) -> int:
        """Each row with its prompt in front, unless the prompts were read apart."""
        width = self.shared.tokens.shape[1] if isinstance(self.shared, Prompts) else 0
        return self.rows * (width + self.columns)


def joined_rows(batch: CompletionRows) -> TokenRows:
    """Rows [prompt | completion], prompts left-padded."""
    prompts: Prompts = jax.tree.map(lambda x: x[batch.prompt_of], batch.shared)
    segments = jnp.concatenate([prompts.segments, batch.present.astype(jnp.int32)], 1)
    return TokenRows(
        tokens=jnp.concatenate([prompts.tokens, batch.tokens], 1),
        mask=jnp.concatenate([jnp.zeros(prompts.tokens.shape, jnp.float32), batch.mask], 1),
        positions=jnp.maximum(jnp.cumsum(segments, 1) - 1, 0),
        segments=segments,
        latent=prompts.latent,
        first=prompts.first,
        depth=batch.depth,
        routes=None if batch.routes is None else jnp.concatenate([prompts.routes, batch.routes], 1),
    )


def completion_states(model: Model, params: Params, batch: CompletionRows, **options: Any) -> tuple[jax.Array, Output]:
    """The states [N, T, D] that predict the completions' tokens, and the model's output; `options` of `read_rows` for
    rows whose prompts have not been read.
    """
    if isinstance(batch.shared, Prefix):
        rows = (batch.tokens, batch.present, batch.prompt_of, batch.routes)
        out = continue_from(model, params, batch.shared, *rows)
        return out.hidden, out
    out = read_rows(model, params, joined_rows(batch), **options)
    return out.hidden[:, batch.shared.tokens.shape[1] - 1 : -1], out


def completion_logps(
    model: Model, params: Params, batch: CompletionRows, temperature: float = 1.0, **options: Any
) -> tuple[jax.Array, jax.Array, Output]:
    """Log-probs and entropies [N, T] of the completions' tokens at a temperature, and the model's output; `options`:
    see `completion_states`.
    """
    hidden, out = completion_states(model, params, batch, **options)
    return *target_logps(model, params, hidden, batch.tokens, temperature), out


def end_states(model: Model, params: Params, batch: CompletionRows) -> tuple[jax.Array, Output]:
    """The states [N, D] after each completion's last token, and the model's output."""
    # A token is read for the one after it, so there is one more column, in which nothing stands.
    wide = {name: getattr(batch, name) for name in batch.BY_COLUMN if getattr(batch, name) is not None}
    more = {name: jnp.pad(x, ((0, 0), (0, 1), *[(0, 0)] * (x.ndim - 2))) for name, x in wide.items()}
    hidden, out = completion_states(model, params, batch.replace(**more, lengths=batch.lengths + 1))
    return jnp.take_along_axis(hidden, batch.lengths[:, None, None], 1)[:, 0], out


def longest(part: CompletionRows) -> jax.Array:
    """Columns of completions up to the last that holds a token."""
    return part.lengths.max()


def truncate(part: CompletionRows, columns: int) -> CompletionRows:
    """The completions without their columns from `columns` on."""
    wide = {name: getattr(part, name) for name in part.BY_COLUMN}
    cut = {name: x[:, :columns] for name, x in wide.items() if x is not None and x.ndim > 1}
    return part.replace(**cut)


def widths_of(length: int, most: int) -> tuple[int, ...]:
    """At most so many widths of completions of `length` tokens, rising; narrower steps than 32 columns do not pay."""
    n = min(most, length // 32)
    return tuple(-(-length * k // n) for k in range(1, n + 1)) if n > 1 else ()
