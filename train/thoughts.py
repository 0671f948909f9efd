"""Objectives of models that think in states: Coconut (2412.06769) and CODI (2502.21074)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from model.latent import think
from model.lm import Model, Output, Params
from train.losses import Batch, Loss, Objective, batch_logps, next_token_mask, token_logps, with_reports

Project = Callable[[Params, jax.Array], jax.Array]


def coconut_objective(
    model: Model, thoughts: int, first: int | None = None, project: Project | None = None
) -> Objective:
    """Cross entropy of what follows the thoughts, as `sft_objective`, in batches of `data.thoughts`.

    `thoughts` and `first`: `Curriculum.thoughts(stage)` and the column of first latents (see `model.latent.think`);
    both are static, so a stage with another number is another objective. `project(params, states)` alters what is fed
    back. Serves the baselines as well: with `thoughts=0` it is SFT. Raises ValueError for multi-token prediction.
    """
    _check(model)

    def objective(params: Params, batch: Batch, key: jax.Array) -> Loss:
        loss, out = _thinking(model, params, batch, key, thoughts, first, project)
        return with_reports(loss, out.aux)

    return objective


def codi_objective(
    model: Model,
    thoughts: int,
    first: int | None = None,
    project: Project | None = None,
    *,
    teacher_weight: float = 1.0,
    gamma: float = 1.0,
) -> Objective:
    """CODI (section 3): cross entropies of a student that thinks and of a teacher that writes, and their distance.

    Batches are those of `data.thoughts.paired_batch`. The distance is the smooth L1 between the two final states in the
    column before the answer, over the standard deviation of the teacher's, whose gradient is stopped; one model plays
    both. The published loss takes the states of all layers and one deviation for the batch; here it is each row's own,
    so that rows add up. The count is that of the student's tokens; teacher and distance enter as means times it.
    """
    _check(model)

    def objective(params: Params, batch: Batch, key: jax.Array) -> Loss:
        loss, out = _thinking(model, params, batch, key, thoughts, first, project)
        view = {name.removeprefix("teacher_"): x for name, x in batch.items() if name.startswith("teacher_")}
        taught, taught_out = cross_entropy(model, params, view, key)
        total, count, metrics = with_reports(loss, out.aux)
        apart = state_distance(before_answer(out, batch), before_answer(taught_out, view))
        rows = jnp.float32(apart.size)
        teacher, written, theirs = with_reports(taught, taught_out.aux)
        total = total + count * (teacher_weight * teacher / jnp.maximum(written, 1) + gamma * apart.mean())
        metrics |= {"codi/teacher_loss": taught[:2], "codi/distance": (apart.sum(), rows)}
        if "sums" in metrics:
            metrics["sums"] = {name: value + theirs["sums"][name] for name, value in metrics["sums"].items()}
        return total, count, metrics

    return objective


def cross_entropy(model: Model, params: Params, batch: Batch, key: jax.Array) -> tuple[Loss, Output]:
    """The sum over wanted tokens of rows without thoughts, and the model's output."""
    logps, entropies, out = batch_logps(model, params, batch, train=True, key=key)
    return _loss(logps, entropies, batch), out


def before_answer(out: Output, batch: Batch) -> jax.Array:
    """The final state [B, D] that predicts the answer's first token."""
    return jnp.take_along_axis(out.hidden, batch["answer"][:, None, None] - 1, 1)[:, 0]


def state_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Smooth L1 of states [B, D], a mean over D, in units of the (fixed) teacher's standard deviation: [B] fp32."""
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    off = jnp.abs(student.astype(jnp.float32) - teacher)
    smooth = jnp.where(off < 1, 0.5 * off**2, off - 0.5)
    return smooth.mean(-1) / jnp.maximum(teacher.std(-1), 1e-6)


def _thinking(
    model: Model,
    params: Params,
    batch: Batch,
    key: jax.Array,
    thoughts: int,
    first: int | None,
    project: Project | None,
) -> tuple[Loss, Output]:
    feedback = None if project is None else lambda hidden: project(params, hidden)
    # The loop of a recurrent core over a cache has no gradient.
    column = None if model.config.depth == "recurrent" else first
    out = think(model, params, batch, thoughts=thoughts, first=column, feedback=feedback, train=True, key=key)
    scale, targets = model.config.logit_scale, batch["tokens"][:, 1:]
    logps, entropies = token_logps(out.hidden[:, :-1], model.head(params), targets, scale)
    return _loss(logps, entropies, batch), out


def _loss(logps: jax.Array, entropies: jax.Array, batch: Batch) -> Loss:
    mask = next_token_mask(batch)
    count, total = mask.sum(), -(logps * mask).sum()
    return total, count, {"loss": (total, count), "entropy": ((entropies * mask).sum(), count)}


def _check(model: Model) -> None:
    if model.config.mtp.depth:
        raise ValueError(
            f"model.mtp.depth={model.config.mtp.depth}: a module that predicts further ahead would read the tokens in"
            " the place of thoughts; set it to 0"
        )
