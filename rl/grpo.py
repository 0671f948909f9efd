"""GRPO and its kin (2402.03300): the trunk's loop fed by rollouts, with a clipped policy loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from data.sources.thoughts import markers_of
from data.thoughts import Ending, with_places
from infer.feedback import feedback_of
from infer.reward_model import open_reward_model
from infer.sampler import bucket
from infer.thoughts import Thoughts
from model.checks import check_replay
from model.lm import Model, Output, Params
from model.prefix import Prefix, Prompts, can_share, layer_terms, prefill
from rl.actions import Actions, with_actions
from rl.batch import RolloutRows
from rl.checks import Record, diagnose, remember
from rl.costs import check_depth_rules
from rl.gate_actions import depth_actions
from rl.history import AccuracyLog
from rl.loops import check_loops, read_loops
from rl.objectives import policy_loss, sampler_metrics
from rl.rewards import build_rewards
from rl.rollout import RolloutOptions, RolloutWorker
from rl.rules import RolloutRules
from rl.sampling import rollout_thoughts
from rl.soft_thoughts import replay_options, thought_actions
from rl.source import RolloutSource
from rl.teaching import rollout_teacher
from settings.data import BY_GATE, SoftConfig
from settings.rl import LoopConfig, PolicyLossConfig
from settings.run import RunConfig
from settings.setting import from_mapping
from train.accumulate import UpdatePlan
from train.completions import completion_logps, longest, truncate, widths_of
from train.objectives.exit_gate import held, learnt_from
from train.objectives.losses import Loss, Objective, add_auxiliary_losses
from train.setup import Algorithm, EvaluationSpec, Setup, Update

LAST = LoopConfig()


def build(setup: Setup) -> Algorithm:
    """The objective and the rollout source of a GRPO run; the reference is the model it starts from."""
    config, rl = setup.config, setup.config.rl
    if rl.overlap and jax.process_count() > 1:
        raise ValueError(
            "rl.overlap=True samples in a thread of its own, and the threads of several hosts would wait for each other"
            " in different orders; set rl.overlap=False"
        )
    rules = rollout_rules(setup)
    room = setup.model.config.max_length - rl.max_new_tokens - len(setup.ending.tokens)
    prompts = prompt_source(
        setup.task,
        setup.tokenizer,
        PromptRows(
            split=config.data.split,
            batch_size=rl.prompts,
            seed=config.seed,
            max_prompt_length=rl.max_prompt_length or room,
            template=config.data.template,
            system=config.data.system or None,
            too_long="drop" if config.data.too_long == "drop" else "error",
            prefetch=config.data.prefetch,
        ),
    )
    reference = setup.make_params() if has_reference(config) else None
    open_model = functools.partial(open_reward_model, mesh=setup.mesh, opened=setup.open)
    asked = {name: entry for name, entry in rl.rewards.items() if entry is not None}
    worker = RolloutWorker(
        setup.model,
        prompts,
        setup.task,
        setup.tokenizer,
        rules,
        RolloutOptions(
            seed=config.seed,
            reference=reference,
            ending=setup.ending,
            scorer=build_rewards(asked, how=rl.compose, gate=rl.gate, open_model=open_model),
            teacher=rollout_teacher(setup),
            judge=setup.judge,
            say=setup.say,
            quiet=rl.overlap,
            plan=update_plan_of(setup, rules),
            mesh=setup.mesh,
            depths=setup.depths,
        ),
    )
    source = RolloutSource(worker, rules, seed=config.seed, steps=config.steps, log=AccuracyLog(setup.workdir))
    return Algorithm(
        update(setup),
        source,
        source.samples,
        whole_batches=True,
        waits=True,
        evaluation=evaluation(setup),
        watch=watcher(setup.say),
        sampled=source.sampled,
        arrays=source.arrays,
        restore_arrays=source.restore_arrays,
    )


def update(setup: Setup) -> Update:
    """What an update minimises, how, and on what: rows of rollouts as long as they may be."""
    rl = setup.config.rl
    check(setup)
    in_reward = {"beta": 0.0} if rl.kl_in == "reward" else {}
    loss = vars(from_mapping(PolicyLossConfig, vars(rl), **in_reward))
    loops = from_mapping(LoopConfig, vars(rl))
    check_loops(setup.model, loops)
    rules = rollout_rules(setup)
    thoughts = rollout_thoughts(rules, setup.ending)
    objective = grpo_objective(
        setup.model,
        temperature=rl.temperature,
        max_length=rl.max_new_tokens,
        loops=loops,
        thoughts=thoughts,
        **loss,
    )
    check_depth_rules(setup.model, rules)
    return Update(objective, rollout_rows(setup, rules), update_plan_of(setup, rules))


def rollout_rules(setup: Setup) -> RolloutRules:
    """How rollouts are made; prompts are read apart from completions where the model allows it."""
    rl = setup.config.rl
    shared = rl.share_prompts and setup.rows is None and can_share(setup.model) and not rl.thoughts_differ
    return from_mapping(RolloutRules, vars(rl), share_prompts=shared, stop=tuple(setup.config.data.stop))


def longest_prompt(setup: Setup) -> int:
    """The most tokens that a prompt of a rollout is planned for: `rl.max_prompt_length`, or `data.length`."""
    rl, room = setup.config.rl, setup.model.config.max_length - setup.config.rl.max_new_tokens
    return rl.max_prompt_length or max(min(setup.config.data.length, room), 1)


def rollout_rows(setup: Setup, rules: RolloutRules) -> RolloutRows:
    """The shapes of an update's rows, prompts and completions as long as they may be."""
    config, ending = setup.model.config, setup.ending
    rows, columns = rules.prompts * rules.samples // rules.minibatches, rules.max_new_tokens
    width = bucket(longest_prompt(setup))
    chosen = (config.per_layer("ffn").count("moe"), config.moe.top_k)
    array, f32, i32 = jax.ShapeDtypeStruct, jnp.float32, jnp.int32

    def routes(*shape: int) -> Any:
        return array((*shape, *chosen), jnp.int16) if rules.replay_routes else None

    def where(asked: Any, *shape: int) -> Any:
        return array(shape, f32) if asked else None

    prompts = Prompts(
        tokens=array((rules.prompts, width), i32),
        segments=array((rules.prompts, width), i32),
        latent=array((rules.prompts, ending.thoughts), bool) if ending.thoughts else None,
        first=width - ending.after - ending.thoughts if ending.thoughts else 0,
        routes=routes(rules.prompts, width),
    )
    return RolloutRows(
        tokens=array((rows, columns), i32),
        mask=array((rows, columns), f32),
        shared=prompts,
        lengths=array((rows,), i32),
        prompt_of=array((rows,), i32),
        old_logps=array((rows, columns), f32),
        advantages=array((rows, columns) if rules.by_token else (rows,), f32),
        ref_logps=where(has_reference(setup.config), rows, columns),
        weights=where(rules.entropy_share < 1 or rules.weighs_tokens, rows, columns),
        entropy_coef=where(rules.entropy_target, rows),
        depth=array((rows,), i32) if config.depth == "recurrent" else None,
        depth_logps=where(rules.depth == BY_GATE, rows),
        routes=routes(rows, columns),
        **thought_rows(rules, ending, rows),
    )


def thought_rows(rules: RolloutRules, ending: Ending, rows: int) -> dict[str, Any]:
    """The shapes of what an update replays thoughts by, where those of samples differ."""
    array, each = jax.ShapeDtypeStruct, (rows, ending.thoughts)
    if rules.thought_dropout:
        return {"thought_seeds": array((rows,), jnp.uint32)}
    if rules.thought_noise == "none" or ending.soft is None:
        return {}
    chosen = (*each, ending.soft.soft_tokens)
    kept = {"soft_ids": array(chosen, jnp.int32), "soft_scores": array(chosen, jnp.float32)}
    return kept | {name: array(each, jnp.float32) for name in ("soft_density", "soft_mask")}


def update_plan_of(setup: Setup, rules: RolloutRules) -> UpdatePlan:
    """What an update leaves out: further readings of a prompt, empty columns, gradients where all terms are zero.

    Tables trained by rows allow nothing of it: their taps are of one pass, over rows of one length.
    """
    model, rl, micro_batch = setup.model, setup.config.rl, setup.config.micro_batch or None
    if setup.rows is not None:
        return UpdatePlan(micro_batch)
    other_terms = rl.beta or rl.entropy_coef or rl.entropy_target or layer_terms(model)
    return UpdatePlan(
        micro_batch,
        read=reader(model, setup.ending.soft) if rules.share_prompts else None,
        no_gradient=None if other_terms else without_advantage,
        widths=widths_of(rules.max_new_tokens, rules.widths),
        length=longest,
        truncate=truncate,
    )


def reader(model: Model, soft: SoftConfig | None = None) -> Callable[[Params, Prompts, int], Prefix]:
    """`UpdatePlan.read` of a model: reads prompts for so many micro-batches; `soft`: how their thoughts are mixed."""

    def read(params: Params, prompts: Prompts, parts: int) -> Prefix:
        return prefill(model, params, prompts, feedback_of(model, params, soft)).share(parts)

    return read


def without_advantage(part: RolloutRows) -> jax.Array:
    """Whether nothing in a part has an advantage."""
    return ~jnp.any(part.advantages)


def has_reference(config: RunConfig) -> bool:
    """Whether a run keeps the model it starts from: for a KL, weighed or only measured."""
    return config.rl.has_reference


def check(setup: Setup) -> None:
    """Raises ValueError for rules that this model, or what its questions end in, does not go with."""
    rl = setup.config.rl
    if rl.replay_routes:
        check_replay(setup.model.config)
    if rl.carry and setup.ending.thoughts:
        raise ValueError(
            f"rl.carry={rl.carry} interrupts samples, which does not go with thoughts: leave one of them out"
        )
    if rl.thoughts_differ and not setup.ending.thoughts:
        raise ValueError(
            f"rl.thought_dropout={rl.thought_dropout}, rl.thought_noise={rl.thought_noise!r}: the model has no thoughts"
            " to differ; start from one that was trained with algorithm=coconut"
        )
    if rl.depth == BY_GATE and setup.ending.thoughts:
        raise ValueError('rl.depth="gate" is read at the last token of a prompt, and these prompts end in thoughts')
    rollout_thoughts(rollout_rules(setup), setup.ending)


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
    model: Model,
    *,
    temperature: float = 1.0,
    max_length: int | None = None,
    loops: LoopConfig = LAST,
    thoughts: Thoughts | None = None,
    **arguments: Any,
) -> Objective:
    """`policy_loss` over the completion tokens of a rollout batch, log-probs taken at the sampling temperature.

    `thoughts`: what prompts end in, whose noise is replayed; soft ones that were drawn are learnt from like tokens.
    """

    def objective(params: Params, batch: RolloutRows, key: jax.Array) -> Loss:
        del key
        params = held(model.config, params)
        own = {} if batch.entropy_coef is None else {"entropy_coef": batch.entropy_coef}
        options: dict[str, Any] = arguments | own | {"max_length": max_length}
        learnt: dict[str, Any] = {"ref_logps": batch.ref_logps}
        if loops.loops == "last":
            replayed = replay_options(model, params, batch, thoughts)
            logps, learnt["entropies"], out = completion_logps(model, params, batch, temperature, **replayed)
            actions = actions_of(model, params, batch, out)
            loss = batch_loss(batch, logps, batch.old_logps, actions=actions, **learnt, **options)
        else:
            summed, logps, learnt["entropies"], out = read_loops(model, params, batch, loops, temperature)
            # Without a ratio: the sum over iterations is no log-prob of anything that was sampled.
            loss = batch_loss(batch, summed, summed, **options | {"beta": 0.0, "entropy_coef": 0.0})
            last = batch_loss(batch, logps, logps, **learnt, **options | {"policy_coef": 0.0})
            # Metrics are those of the last iteration, but for the loss that the sum over iterations had.
            loss = loss[0] + last[0], loss[1], last[2] | {"policy_loss": loss[2]["policy_loss"]}
        total, count, metrics = loss
        gap = sampler_metrics(logps, batch.old_logps, batch.mask)
        return add_auxiliary_losses((total, count, metrics | gap), learnt_from(model.config, out.reports))

    return objective


def actions_of(model: Model, params: Params, batch: RolloutRows, out: Output) -> Actions | None:
    """What the samples of a batch did before their completions and is learnt from; `out` of its whole rows."""
    if batch.soft_ids is not None:
        return thought_actions(model, params, batch, out)
    return None if batch.depth_logps is None else depth_actions(model, params, batch)


def batch_loss(
    batch: RolloutRows,
    logps: jax.Array,
    old_logps: jax.Array,
    *,
    actions: Actions | None = None,
    ref_logps: jax.Array | None = None,
    entropies: jax.Array | None = None,
    **options: Any,
) -> Loss:
    """`policy_loss` with the advantages and weights of a batch; `actions` before its completions."""
    arrays = {"ref_logps": ref_logps, "entropies": entropies, "weights": batch.weights}
    if actions is None:
        return policy_loss(logps, old_logps, batch.advantages, batch.mask, **arrays, **options)
    joined = with_actions(batch, actions, logps=logps, old_logps=old_logps, **arrays)
    total, count, metrics = policy_loss(**joined, **options)
    # What is measured of completions stays a mean over their tokens.
    measured: dict[str, Any] = {name: metrics[name] for name in ("kl", "entropy") if name in metrics}
    return total, count, metrics | {name: (value, batch.mask.sum()) for name, (value, _) in measured.items()}
