"""Rows of a rollout as a training batch: completions that continue prompts, which stand apart from them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.sources.batch import Batch, TokenRows
from infer.sampler import Rollout
from model.lm import Model, Output, Params
from model.prefix import Prefix, Prompts, continue_from
from train.objectives.losses import batch_logps, target_logps


class RolloutRows(Batch, kw_only=True):
    """N completions of T columns; row n continues prompt `prompt_of[n]` of `shared` by its first `lengths[n]` tokens,
    of which `mask` has the policy's own: forced tokens are read and not learnt from.

    `shared` are P prompts (model/prefix.py), or what is left of them once they were read; `old_logps` [N, T] float32 of
    the policy that sampled, at the temperature it sampled with; `advantages` [N], or of each token [N, T]; where a run
    has them: `ref_logps` [N, T] of the reference, `weights` [N, T] of tokens in the loss, `entropy_coef` [N] of the
    bonus, `depth` [N] iterations of a recurrent core, `routes` [N, T, layers, k] experts taken.
    """

    lengths: Any
    prompt_of: Any
    old_logps: Any
    advantages: Any
    ref_logps: Any = None
    weights: Any = None
    entropy_coef: Any = None
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


BY_COLUMN = ("tokens", "mask", "old_logps", "advantages", "ref_logps", "weights", "routes")


def training_batch(rollout: Rollout, advantages: np.ndarray) -> RolloutRows:
    """The rows of a rollout's N samples, as numpy arrays."""
    thoughts = rollout.thoughts
    routed = rollout.routes is not None and rollout.prompt_routes is not None
    prompts = Prompts(
        tokens=rollout.prompts.astype(np.int32),
        segments=rollout.prompt_mask.astype(np.int32),
        latent=np.ones((len(rollout.prompts), thoughts), bool) if thoughts else None,
        first=rollout.prompts.shape[1] - rollout.after - thoughts if thoughts else 0,
        routes=rollout.prompt_routes if routed else None,
    )
    return RolloutRows(
        tokens=rollout.tokens.astype(np.int32),
        mask=rollout.mask.astype(np.float32),
        shared=prompts,
        lengths=rollout.lengths.astype(np.int32),
        prompt_of=rollout.group_of.astype(np.int32),
        old_logps=rollout.logps.astype(np.float32),
        advantages=advantages.astype(np.float32),
        # A sample that drew its own depth is learnt from at that depth: at another one the ratio is not 1.
        depth=None if rollout.depth is None else rollout.depth.max(1).astype(np.int32),
        routes=rollout.routes if routed else None,
    )


def joined_rows(batch: RolloutRows) -> TokenRows:
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


def completion_logps(
    model: Model, params: Params, batch: RolloutRows, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array, Output]:
    """Log-probs and entropies [N, T] of the completions' tokens at a temperature, and the model's output."""
    if isinstance(batch.shared, Prefix):
        rows = (batch.tokens, batch.present, batch.prompt_of, batch.routes)
        out = continue_from(model, params, batch.shared, *rows)
        return *target_logps(model, params, out.hidden, batch.tokens, temperature), out
    start = batch.shared.tokens.shape[1] - 1
    return batch_logps(model, params, joined_rows(batch), temperature=temperature, start=start)


def truncate(part: RolloutRows, columns: int) -> RolloutRows:
    """The completions without their columns from `columns` on."""
    wide = {name: getattr(part, name) for name in BY_COLUMN}
    cut = {name: x[:, :columns] for name, x in wide.items() if x is not None and x.ndim > 1}
    return part.replace(**cut)


def without_routes(batch: RolloutRows) -> RolloutRows:
    """The batch for another model, whose routers choose for themselves."""
    return batch.replace(routes=None, shared=batch.shared.replace(routes=None))


@jax.jit
def take(batch: RolloutRows, rows: Any) -> RolloutRows:
    """Some rows of a batch; the prompts stay."""
    return jax.tree.map(lambda x: x[rows], batch.replace(shared=None)).replace(shared=batch.shared)


def in_order(lengths: np.ndarray, advantages: np.ndarray) -> np.ndarray:
    """The order of rows in which micro-batches are of a kind: those without advantage last, the others by length."""
    return np.lexsort((lengths, np.abs(advantages).reshape(len(lengths), -1).max(1) == 0))


def to_tree(batch: RolloutRows) -> dict[str, Any]:
    """The batch as a checkpoint keeps it: arrays by name, without what is not there."""
    named = {field.name: getattr(batch, field.name) for field in fields(batch)}
    prompts = {field.name: getattr(batch.shared, field.name) for field in fields(batch.shared)}
    named |= {"shared": prompts | {"first": np.int32(batch.shared.first)}}
    return _present(named)


def from_tree(tree: dict[str, Any]) -> RolloutRows:
    """The batch that `to_tree` gave."""
    prompts: dict[str, Any] = {name: np.asarray(x) for name, x in tree["shared"].items()}
    shared = Prompts(**prompts | {"first": int(prompts["first"])})
    return RolloutRows(**{name: np.asarray(x) for name, x in tree.items() if name != "shared"}, shared=shared)


def _present(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: _present(x) if isinstance(x, dict) else x for name, x in tree.items() if x is not None}
