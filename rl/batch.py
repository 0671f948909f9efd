"""Rows of a rollout as a training batch."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from infer.sampler import Rollout
from model.prefix import Prompts
from rl.soft_density import soft_density
from train.completions import CompletionRows


class RolloutRows(CompletionRows, kw_only=True):
    """Completions that a policy sampled; of a row's tokens `mask` has the policy's own: forced ones are not learnt
    from.

    `old_logps` [N, T] float32 of the policy that sampled, at the temperature it sampled with; `advantages` [N], or of
    each token [N, T]; where a run has them: `ref_logps` [N, T] of the reference, `weights` [N, T] of tokens in the
    loss, `entropy_coef` [N] of the bonus. To replay thoughts that differ: `thought_seeds` [N] of their noise, or of
    soft ones `soft_ids`, `soft_scores` [N, thoughts, K]; of these `soft_density` [N, thoughts] under the policy that
    sampled, and `soft_mask` [N, thoughts], 1 on those that are learnt from (rl/soft_thoughts.py). `depth_logps` [N] of
    the depths that samples drew from the exit gate, under the policy that sampled (rl/gate_actions.py).
    """

    BY_COLUMN: ClassVar[tuple[str, ...]] = (
        *CompletionRows.BY_COLUMN,
        *("old_logps", "advantages", "ref_logps", "weights"),
    )

    old_logps: Any
    advantages: Any
    ref_logps: Any = None
    weights: Any = None
    entropy_coef: Any = None
    thought_seeds: Any = None
    soft_ids: Any = None
    soft_scores: Any = None
    soft_density: Any = None
    soft_mask: Any = None
    depth_logps: Any = None


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
        **thought_arrays(rollout),
    )


def thought_arrays(rollout: Rollout) -> dict[str, np.ndarray]:
    """What an update replays the thoughts of samples by, where they differ."""
    if rollout.soft_ids is None:
        return {} if rollout.thought_seeds is None else {"thought_seeds": rollout.thought_seeds}
    assert rollout.soft_scores is not None and rollout.soft_logps is not None
    density = np.asarray(soft_density(jnp.asarray(rollout.soft_scores), jnp.asarray(rollout.soft_logps)))
    kept = {"soft_ids": rollout.soft_ids, "soft_scores": rollout.soft_scores}
    return kept | {"soft_density": density, "soft_mask": np.ones_like(density)}


def without_routes(batch: RolloutRows) -> RolloutRows:
    """The batch for another model, whose routers choose for themselves."""
    return batch.replace(routes=None, shared=batch.shared.replace(routes=None))


@jax.jit
def take(batch: RolloutRows, rows: Any) -> RolloutRows:
    """Some rows of a batch; the prompts stay."""
    return jax.tree.map(lambda x: x[rows], batch.replace(shared=None)).replace(shared=batch.shared)


def in_order(lengths: np.ndarray, advantages: np.ndarray, depth: np.ndarray | None = None) -> np.ndarray:
    """The order of rows in which micro-batches are of a kind: those without advantage last, the others by length, or
    first by their `depth` where that is given.
    """
    idle = np.abs(advantages).reshape(len(lengths), -1).max(1) == 0
    return np.lexsort((lengths, idle) if depth is None else (lengths, depth, idle))


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
