"""GRPO and its kin (2402.03300): the trunk's loop fed by rollouts, with a clipped policy loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data.sources.text import prompt_source
from data.sources.thoughts import markers_of
from data.thoughts import Ending, with_places
from model.lm import Model, Params, check_replay
from model.prefix import Prefix, can_share, layer_terms, prefill
from rl.checks import Record, diagnose, remember
from rl.experience import completion_start, truncate
from rl.history import AccuracyLog
from rl.objectives import policy_loss, sampler_metrics
from rl.rewards import build_rewards
from rl.rollout import RolloutWorker
from rl.rules import RolloutRules, check_rules
from rl.source import RolloutSource
from train.accumulate import WHOLE, UpdatePlan
from train.objectives.losses import Batch, Loss, Objective, add_auxiliary_losses, batch_logps
from train.setup import Algorithm, EvaluationSpec, Setup

LOSS_ARGUMENTS = (
    "clip_low",
    "clip_high",
    "level",
    "aggregate",
    "surrogate",
    "beta",
    "kl_kind",
    "unbiased_kl",
    "entropy_coef",
    "policy_coef",
    "ratio_cap",
    "dual_clip",
    "delta",
    "off_policy_threshold",
    "empty_rows",
)


def build(setup: Setup) -> Algorithm:
    """The objective and the rollout source of a GRPO run; the reference is the model it starts from."""
    config, rl = setup.config, setup.config.rl
    if rl.overlap and jax.process_count() > 1:
        raise ValueError(
            "rl.overlap=True samples in a thread of its own, and the threads of several hosts would wait for each other"
            " in different orders; set rl.overlap=False"
        )
    objective, rules, plan = learning(setup)
    room = setup.model.config.max_length - rl.max_new_tokens - len(setup.ending.tokens)
    prompts = prompt_source(
        setup.task,
        setup.tokenizer,
        split=config.data.split,
        batch_size=rl.prompts,
        seed=config.seed,
        max_prompt_length=rl.max_prompt_length or room,
        template=config.data.template,
        system=config.data.system or None,
        too_long="drop" if config.data.too_long == "drop" else "error",
        prefetch=config.data.prefetch,
    )
    reference = setup.make_params() if has_reference(config) else None
    asked = {name: entry for name, entry in rl.rewards.to_dict().items() if entry is not None}
    worker = RolloutWorker(
        setup.model,
        prompts,
        setup.task,
        setup.tokenizer,
        rules,
        seed=config.seed,
        reference=reference,
        ending=setup.ending,
        scorer=build_rewards(asked, how=rl.compose, gate=rl.gate),
        judge=setup.judge,
        say=setup.say,
        quiet=rl.overlap,
        micro_batch=config.micro_batch or None,
        plan=plan,
        mesh=setup.mesh,
    )
    source = RolloutSource(worker, rules, seed=config.seed, steps=config.steps, log=AccuracyLog(setup.workdir))
    return Algorithm(
        objective,
        source,
        rl.prompts * rl.samples // rl.minibatches,
        source.samples,
        whole_batches=True,
        waits=True,
        evaluation=evaluation(setup),
        watch=watcher(setup.say),
        arrays=source.arrays,
        restore_arrays=source.restore_arrays,
        plan=plan,
    )


def learning(setup: Setup) -> tuple[Objective, RolloutRules, UpdatePlan]:
    """What an update minimises, how its rollout is made, and what it leaves out: all that its shapes depend on."""
    config, rl = setup.config, setup.config.rl
    options = {name: rl[name] for name in LOSS_ARGUMENTS}
    fixed: dict[str, Any] = {"max_length": rl.max_new_tokens, "after": setup.ending.after}
    check(setup, options)
    if rl.kl_in == "reward":
        options["beta"] = 0.0
    objective = grpo_objective(setup.model, temperature=rl.temperature, **fixed, **options)
    rules = RolloutRules(
        **{name: rl[name] for name in RolloutRules.__dataclass_fields__ if name != "stop"},
        stop=tuple(config.data.stop),
    )
    shared = rl.share_prompts and setup.rows is None and can_share(setup.model)
    rules = dataclasses.replace(rules, share_prompts=shared)
    return objective, rules, update_plan_of(setup, rules)


def update_plan_of(setup: Setup, rules: RolloutRules) -> UpdatePlan:
    """What an update leaves out: further readings of a prompt, empty columns, gradients where all terms are zero.

    Tables trained by rows allow nothing of it: their taps are of one pass, over rows of one length.
    """
    model, rl = setup.model, setup.config.rl
    if setup.rows is not None:
        return WHOLE
    other_terms = rl.beta or rl.entropy_coef or rl.entropy_target or layer_terms(model)
    return UpdatePlan(
        read=reader(model, setup.ending.after) if rules.share_prompts else None,
        no_gradient=None if other_terms else without_advantage,
        widths=widths_of(rules.max_new_tokens, rules.widths),
        length=longest,
        truncate=truncate,
    )


def widths_of(length: int, most: int) -> tuple[int, ...]:
    """At most so many widths of completions of `length` tokens, rising; narrower steps than 32 columns do not pay."""
    n = min(most, length // 32)
    return tuple(-(-length * k // n) for k in range(1, n + 1)) if n > 1 else ()


def reader(model: Model, after: int = 1) -> Callable[[Params, Batch, int], Prefix]:
    """`UpdatePlan.read` of a model: reads prompts for so many micro-batches."""
    return lambda params, prompts, parts: prefill(model, params, prompts, after=after).share(parts)


def without_advantage(part: Batch) -> jax.Array:
    """Whether nothing in a part has an advantage."""
    return ~jnp.any(part["advantages"])


def longest(part: Batch) -> jax.Array:
    """Columns of completions up to the last that holds a token."""
    used = jnp.any(part["mask"] > 0, 0)
    return part["old_logps"].shape[1] - jnp.argmax(used[::-1])


def has_reference(config: ConfigDict) -> bool:
    """Whether a run keeps the model it starts from: for a KL, weighed or only measured."""
    return bool(config.rl.beta or config.rl.track_kl)


def check(setup: Setup, options: dict[str, Any]) -> None:
    """Raises ValueError for rules that cannot be meant."""
    rl = setup.config.rl
    if rl.temperature <= 0:
        raise ValueError(
            f"rl.temperature must be positive, found {rl.temperature}: greedy samples have no policy gradient"
        )
    if min(rl.epochs, rl.minibatches) < 1 or rl.prompts * rl.samples % rl.minibatches:
        raise ValueError(
            f"a rollout of {rl.prompts} prompts x {rl.samples} samples is learnt from in rl.epochs={rl.epochs} x"
            f" rl.minibatches={rl.minibatches} updates: both must be at least 1, and its rows divide evenly"
        )
    if rl.refill < 0:
        raise ValueError(f"rl.refill is a number of further rounds, or 0 for none; found {rl.refill}")
    check_carry(setup)
    if not (rl.policy_coef or rl.beta or rl.entropy_coef or rl.entropy_target):
        raise ValueError(
            "rl.policy_coef=0 leaves nothing to learn from: give rl.entropy_coef, rl.entropy_target or rl.beta a weight"
        )
    if rl.entropy_target and rl.entropy_coef:
        raise ValueError(
            f"rl.entropy_target={rl.entropy_target} finds the weight of the entropy bonus by itself: leave"
            f" rl.entropy_coef={rl.entropy_coef} out"
        )
    if rl.replay_routes:
        check_replay(setup.model.config)
    named: tuple[str, ...] = ("samples", "baseline", "scale", "ddof", "sync_every", "sync_alpha", "entropy_share")
    named += ("estimator", "gamma", "kl_in", "importance_level", "importance_cap", "importance_low", "importance_high")
    check_rules(
        singleton=rl.singleton or None,
        max_length=rl.max_new_tokens,
        has_reference=has_reference(setup.config),
        **{name: rl[name] for name in named},
        **{name: value for name, value in options.items() if name != "entropy_coef"},
    )


def check_carry(setup: Setup) -> None:
    """Raises ValueError for groups in flight that no run can have."""
    rl = setup.config.rl
    if not 0 <= rl.carry <= rl.prompts:
        raise ValueError(f"rl.carry is a number of groups from 0 to rl.prompts={rl.prompts}; found {rl.carry}")
    others = {"rl.refill": rl.refill, "rl.replay_routes": rl.replay_routes, "thoughts": setup.ending.thoughts}
    others |= {"rl.depth=drawn": rl.depth == "drawn"}
    for name in (name for name, value in others.items() if rl.carry and value):
        raise ValueError(
            f"rl.carry={rl.carry} interrupts samples, which does not go with {name}: leave one of them out"
        )
    if rl.carry and rl.slots and 4 * rl.slots < (rl.prompts + rl.carry) * rl.samples:
        raise ValueError(
            f"rl.carry={rl.carry} needs all prompts at once: rl.slots={rl.slots} must be at least a quarter of"
            f" {(rl.prompts + rl.carry) * rl.samples} samples, or 0"
        )


def watcher(say: Callable[[str], None]) -> Callable[[int, Mapping[str, float]], None]:
    """Called with each step's metrics, says once in words what would make the run learn nothing.

    It looks at a rollout's first update alone: the others have no metrics of it, and the model has moved since. Of a
    rollout sampled ahead the gap between sampler and trainer holds that move, too, and is left out.
    """
    history: list[Record] = []
    said: set[str] = set()

    def watch(step: int, record: Mapping[str, float]) -> None:
        if "rollout/update" in record:
            return
        moved = record.get("rollout/staleness", 0) > 0
        history[:] = remember(history, {k: v for k, v in record.items() if not (moved and k.startswith("sampling/"))})
        found = diagnose(history, said)
        said.update(found)
        for sentence in found.values():
            say(f"step {step}: {sentence}")

    return watch


def evaluation(setup: Setup) -> EvaluationSpec:
    """Questions end as in the run that this one starts from, if that one taught thoughts."""
    if not setup.ending.tokens:
        return EvaluationSpec()

    def ending(step: int, thoughts: int | None = None) -> Ending:
        return setup.ending if thoughts is None else with_places(setup.ending, markers_of(setup.tokenizer), thoughts)

    return EvaluationSpec(ending)


def grpo_objective(
    model: Model, *, temperature: float = 1.0, max_length: int | None = None, after: int = 1, **arguments: object
) -> Objective:
    """`policy_loss` over the completion tokens of a rollout batch, log-probs taken at the sampling temperature.

    `after`: how many tokens of a prompt follow its thoughts, where it has any.
    """

    def objective(params: Params, batch: Batch, key: jax.Array) -> Loss:
        del key
        start = completion_start(batch)
        logps, entropies, out = batch_logps(model, params, batch, temperature=temperature, start=start, after=after)
        mask = batch["mask"][:, start + 1 :]
        carried = {name: batch[name] for name in ("entropy_coef",) if name in batch}
        loss = policy_loss(
            logps,
            batch["old_logps"],
            batch["advantages"],
            mask,
            ref_logps=batch.get("ref_logps"),
            entropies=entropies,
            max_length=max_length,
            weights=batch.get("weights"),
            **arguments | carried,  # type: ignore[arg-type]
        )
        total, count, metrics = loss
        gap = sampler_metrics(logps, batch["old_logps"], mask)
        return add_auxiliary_losses((total, count, metrics | gap), out.aux)

    return objective
