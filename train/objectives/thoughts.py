"""Models that think in states: the objectives of Coconut (2412.06769) and CODI (2502.21074), and their algorithm."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from data.sources.batch import TokenRows
from data.sources.rows import ThoughtRows
from data.sources.thoughts import ThoughtSource, check_reasoning, encode_chain, markers_of
from data.tasks.base import examples_of
from data.thoughts import Chain, Curriculum, Ending, check_fit, ending_of, sizes
from infer.feedback import feedback_of
from model.latent import THOUGHTS, mapped, mean_cosine
from model.lm import Model, Output, Params
from settings.data import SoftConfig, ThoughtsConfig
from settings.run import RunConfig
from settings.setting import from_mapping
from train.accumulate import UpdatePlan
from train.objectives.losses import Loss, Objective, add_auxiliary_losses, cross_entropy, target_logps
from train.objectives.sft import token_rows
from train.setup import Algorithm, EvaluationSpec, Setup, Update

Project = Callable[[Params, jax.Array], jax.Array]

# So many chains of a split are looked at for the size of rows; if there are more and they differ, an eighth is added.
SURVEY = 4096


def build(setup: Setup) -> Algorithm:
    """What a run needs whose chain of thought is shortened stage by stage, thoughts in its place or not.

    Raises ValueError for settings that do not go together, and for data that do not fit.
    """
    config, rules = setup.config, setup.config.thoughts
    curriculum = from_mapping(Curriculum, vars(rules))
    _check_rules(config, curriculum)
    check_reasoning(setup.task)
    markers, (first, length) = markers_of(setup.tokenizer), row_sizes(setup, curriculum)

    soft = from_mapping(SoftConfig, vars(rules)) if rules.soft else None

    def ending(step: int, thoughts: int | None = None) -> Ending:
        return ending_of(curriculum, markers, curriculum.stage(step), thoughts)._replace(soft=soft)

    def held_out(split: str) -> ThoughtSource:
        return _rows(setup, curriculum, first, length, split=split, mixed=False)

    told = _step_length(setup)
    source = _rows(setup, curriculum, first, length, split=config.data.split, seed=config.seed, step_length=told)
    if rules.objective == "codi":
        objective = codi_objective(setup.model, teacher_weight=rules.teacher_weight, gamma=rules.gamma)
    else:
        objective = coconut_objective(setup.model, soft=soft, step_weight=rules.step_weight)
    # Rows of later stages hold more thoughts: each stage is a program of its own.
    thoughts = curriculum.thoughts(curriculum.stage(0))
    shapes = thought_shapes(config.data.batch_size, thoughts, curriculum.thoughts_per_step, told)
    batch = token_rows(config.data.batch_size, length, first=first if thoughts else 0, **shapes)
    update = Update(objective, batch, UpdatePlan(micro_batch=config.micro_batch or None))
    restarts, evaluation = _restarts(setup, curriculum), EvaluationSpec(ending, held_out)
    return Algorithm(update, source, restarts=restarts, evaluation=evaluation)


def thought_shapes(rows: int, thoughts: int, per_step: int, step_length: int) -> dict[str, Any]:
    """The shapes of what rows with so many thoughts hold besides tokens."""
    if not thoughts:
        return {}
    array = jax.ShapeDtypeStruct
    latent, steps = array((rows, thoughts), bool), (rows, thoughts // per_step, step_length)
    told = {"steps": array(steps, jnp.int32), "step_mask": array(steps, jnp.float32)} if step_length else {}
    return {"latent": latent, **told}


def row_sizes(setup: Setup, curriculum: Curriculum) -> tuple[int, int]:
    """The column of first thoughts and the length of rows: those of `config.thoughts`, or what the data need."""
    rules, room = setup.config.thoughts, setup.model.config.max_length
    splits = [setup.config.data.split, *([setup.config.eval.split] if setup.config.eval.loss_batches else [])]
    chains = [chain for split in splits for chain in _survey(setup, split)]
    check_fit(curriculum, chains, rules.length or room)
    needed, length = sizes(curriculum, chains)
    if rules.objective == "codi":
        length = max(length, sizes(Curriculum("cot"), chains)[1])
    unseen = any(len(examples_of(setup.task, split)) > SURVEY for split in splits)
    if unseen and len({len(chain.question) for chain in chains}) > 1:
        needed, length = needed + needed // 8, length + length // 8
    first = rules.first or needed
    length = rules.length or min(length + max(first - needed, 0), room)
    if not needed <= first < length <= room:
        raise ValueError(
            f"thoughts.first={first} and thoughts.length={length}: questions need first={needed} or more, and rows must"
            f" fit the model's context of {room}; change them, or leave them 0"
        )
    return first, length


def _survey(setup: Setup, split: str) -> list[Chain]:
    """The chains of a split, or about SURVEY of them at even distances."""
    data, examples = setup.config.data, examples_of(setup.task, split)
    rendering = (data.template, data.system or None)
    numbers = range(0, len(examples), max(1, len(examples) // SURVEY))
    return [encode_chain(setup.task, setup.tokenizer, examples[i], *rendering) for i in numbers]  # type: ignore[arg-type]


def _rows(setup: Setup, curriculum: Curriculum, first: int, length: int, **options: Any) -> ThoughtSource:
    """Batches of `data.batch_size` rows of this curriculum, this host's share of them."""
    data, hosts = setup.config.data, jax.process_count()
    if data.batch_size % hosts:
        raise ValueError(f"data.batch_size={data.batch_size} cannot be shared evenly by {hosts} hosts")
    rows = ThoughtRows(
        first=first,
        length=length,
        batch_size=data.batch_size // hosts,
        paired=setup.config.thoughts.objective == "codi",
        template=data.template,
        system=data.system or None,
        process_index=jax.process_index(),
        process_count=hosts,
        prefetch=data.prefetch,
        **options,
    )
    return ThoughtSource(setup.task, setup.tokenizer, curriculum, rows)  # type: ignore[arg-type]


def _step_length(setup: Setup) -> int:
    """Columns in which thoughts tell a step, an eighth more than the longest seen takes; 0 where they tell none."""
    if not setup.config.thoughts.step_weight:
        return 0
    longest = max(len(step) for chain in _survey(setup, setup.config.data.split) for step in chain.steps)
    return longest + longest // 8


def _restarts(setup: Setup, curriculum: Curriculum) -> Callable[[int], bool]:
    """Before which steps the optimizer forgets: the paper says at new stages, its code does it at every epoch."""
    config = setup.config
    epoch = max(1, len(examples_of(setup.task, config.data.split)) // config.data.batch_size)
    rules: dict[str, Callable[[int], bool]] = {
        "never": lambda step: False,
        "stage": curriculum.starts_stage,
        "epoch": lambda step: step > 0 and step % epoch == 0,
    }
    return rules[config.thoughts.reset]


def _check_rules(config: RunConfig, curriculum: Curriculum) -> None:
    """Raises ValueError for settings that do not go together or would be passed over."""
    rules, data = config.thoughts, config.data
    if rules.objective == "codi" and curriculum.method != "no_curriculum":
        raise ValueError(
            f'thoughts.objective="codi" has all thoughts from the start: set thoughts.method to "no_curriculum", found'
            f" {curriculum.method!r}"
        )
    if rules.objective == "codi" and not curriculum.markers:
        raise ValueError('thoughts.objective="codi" compares states at markers: set thoughts.markers to True')
    if rules.soft and (rules.objective == "codi" or not curriculum.kind.fed_back):
        raise ValueError(
            f'thoughts.feedback="soft" is for methods that feed thoughts back, by the objective "coconut"; found method'
            f" {curriculum.method!r}, objective {rules.objective!r}"
        )
    if rules.step_weight and (rules.objective == "codi" or not curriculum.kind.fed_back):
        raise ValueError(
            f"thoughts.step_weight={rules.step_weight} has thoughts tell steps: it is for methods that feed thoughts"
            f' back, by the objective "coconut"; found method {curriculum.method!r}, objective {rules.objective!r}'
        )
    for name, usual in (("pack", False), ("loss_on", "answer"), ("too_long", "error")):
        if getattr(data, name) != usual:
            raise ValueError(f"data.{name}={getattr(data, name)!r}: rows with thoughts know {usual!r} alone")


def coconut_objective(
    model: Model, project: Project | None = None, soft: SoftConfig | None = None, step_weight: float = 0.0
) -> Objective:
    """Cross entropy of what follows the thoughts, as `sft_objective`, in batches of `data.sources.thoughts`.

    How many thoughts there are is the width of the batch's `latent` [B, n] (none: SFT), so a stage with more is
    compiled anew. `project(params, states)` alters what is fed back, by the rules `soft` it is a mixture of tokens.
    Serves the baselines as well. With `step_weight` thoughts also tell the steps that they stand for. Raises
    ValueError for multi-token prediction.
    """
    _check(model)

    def objective(params: Params, batch: TokenRows, key: jax.Array) -> Loss:
        loss, out = _thinking(model, params, batch, key, project, soft)
        if step_weight and batch.steps is not None:
            loss = with_steps(loss, model, params, batch, out.captured[THOUGHTS], step_weight)
        return add_auxiliary_losses(loss, out.reports)

    return objective


def codi_objective(
    model: Model,
    project: Project | None = None,
    *,
    teacher_weight: float = ThoughtsConfig.teacher_weight,
    gamma: float = ThoughtsConfig.gamma,
) -> Objective:
    """CODI (section 3): cross entropies of a student that thinks and of a teacher that writes, and their distance.

    Batches are those of `data.thoughts.paired_batch`. The distance is the smooth L1 between the two
    final states in the column before the answer, over the standard deviation of the teacher's, whose gradient is
    stopped; one model plays both. The published loss takes the states of all layers and one deviation for the batch;
    here it is each row's own, so that rows add up. The count is that of the student's tokens; teacher and distance
    enter as means times it.
    """
    _check(model)

    def objective(params: Params, batch: TokenRows, key: jax.Array) -> Loss:
        loss, out = _thinking(model, params, batch, key, project)
        assert batch.teacher is not None
        taught, taught_out = cross_entropy(model, params, batch.teacher, key)
        total, count, metrics = add_auxiliary_losses(loss, out.reports)
        apart = state_distance(before_answer(out, batch), before_answer(taught_out, batch.teacher))
        rows = jnp.float32(apart.size)
        teacher, written, theirs = add_auxiliary_losses(taught, taught_out.reports)
        total = total + count * (teacher_weight * teacher / jnp.maximum(written, 1) + gamma * apart.mean())
        metrics |= {"codi/teacher_loss": taught[:2], "codi/distance": (apart.sum(), rows)}
        if "sums" in metrics:
            metrics["sums"] = jax.tree.map(jnp.add, metrics["sums"], theirs["sums"])
        return total, count, metrics

    return objective


def with_steps(loss: Loss, model: Model, params: Params, batch: TokenRows, thoughts: jax.Array, weight: float) -> Loss:
    """Adds the cross entropy of steps read from the thoughts [B, n, D] in their place (SIM-CoT, 2509.20317).

    A decoder sees the thoughts of one step, then its tokens, and nothing else. In the paper it is a network of its own
    that is thrown away after training; here the model itself decodes. The loss enters as a mean, times the count.
    """
    rows, steps, length = batch.steps.shape
    each = thoughts.shape[1] // steps
    heads = thoughts.reshape(rows * steps, each, -1)
    tokens = jnp.pad(batch.steps.reshape(rows * steps, length), ((0, 0), (each, 0)))
    embeds = jnp.concatenate([heads, jnp.full((*tokens[:, each:].shape, heads.shape[-1]), jnp.nan, heads.dtype)], 1)
    columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    out = model.apply(params, tokens, columns, jnp.ones_like(tokens), embeds=embeds)
    logps, _ = target_logps(model, params, out.hidden[:, each - 1 : -1], tokens[:, each:])
    mask = batch.step_mask.reshape(rows * steps, length)
    missed, told = -(logps * mask).sum(), mask.sum()
    total, count, metrics = loss
    total = total + weight * count * missed / jnp.maximum(told, 1)
    return total, count, metrics | {"thoughts/step_loss": (missed, told)}


def before_answer(out: Output, batch: TokenRows) -> jax.Array:
    """The final state [B, D] that predicts the answer's first token."""
    return jnp.take_along_axis(out.hidden, batch.answer[:, None, None] - 1, 1)[:, 0]


def state_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Smooth L1 of states [B, D], a mean over D, in units of the (fixed) teacher's standard deviation: [B] fp32."""
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    off = jnp.abs(student.astype(jnp.float32) - teacher)
    smooth = jnp.where(off < 1, 0.5 * off**2, off - 0.5)
    return smooth.mean(-1) / jnp.maximum(teacher.std(-1), 1e-6)


def _thinking(
    model: Model,
    params: Params,
    batch: TokenRows,
    key: jax.Array,
    project: Project | None,
    soft: SoftConfig | None = None,
) -> tuple[Loss, Output]:
    feedback = feedback_of(model, params, soft) if project is None else mapped(functools.partial(project, params))
    captures = {"capture": (THOUGHTS,)} if batch.thoughts else {}
    (total, count, metrics), out = cross_entropy(model, params, batch, key, feedback, **captures)
    if batch.thoughts > 1:
        metrics = metrics | {"thoughts/cosine": jax.lax.stop_gradient(mean_cosine(out.captured[THOUGHTS]))}
    return (total, count, metrics), out


def _check(model: Model) -> None:
    if model.config.mtp.depth:
        raise ValueError(
            f"model.mtp.depth={model.config.mtp.depth}: a module that predicts further ahead would read the tokens in"
            " the place of thoughts; set it to 0"
        )
