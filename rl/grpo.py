"""GRPO and its kin (2402.03300): the trunk's loop fed by rollouts, with a clipped policy loss."""

from __future__ import annotations

import jax

from data.pipeline import prompt_source
from data.thought_source import markers_of
from data.thoughts import Curriculum, Ending, ending_of
from model.lm import Model, Params
from rl.objectives import policy_loss
from rl.rollout import RolloutRules, RolloutSource, completion_start
from train.losses import Batch, Loss, Objective, batch_logps, with_reports
from train.setup import Algorithm, Exam, Setup

LOSS_ARGUMENTS = (
    "clip_low",
    "clip_high",
    "level",
    "aggregate",
    "surrogate",
    "beta",
    "kl_kind",
    "entropy_coef",
)


def build(setup: Setup) -> Algorithm:
    """The objective and the rollout source of a GRPO run; the reference is the model it starts from."""
    config, rl = setup.config, setup.config.rl
    options = {name: rl[name] for name in LOSS_ARGUMENTS}
    objective = grpo_objective(setup.model, temperature=rl.temperature, max_length=rl.max_new_tokens, **options)
    rules = RolloutRules(
        **{name: rl[name] for name in RolloutRules.__dataclass_fields__ if name != "stop"},
        stop=tuple(config.data.stop),
    )
    if rl.temperature <= 0:
        raise ValueError(
            f"rl.temperature must be positive, found {rl.temperature}: greedy samples have no policy gradient"
        )
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
    reference = setup.make_params() if rl.beta or rl.track_kl else None
    source = RolloutSource(
        setup.model,
        prompts,
        setup.task,
        setup.tokenizer,
        rules,
        seed=config.seed,
        reference=reference,
        ending=setup.ending,
        say=setup.say,
    )
    return Algorithm(objective, source, source.samples, whole_batches=True, exam=exam(setup))


def exam(setup: Setup) -> Exam:
    """Questions end as in the run that this one starts from, if that one taught thoughts."""
    if not setup.ending.tokens:
        return Exam()

    def ending(step: int, thoughts: int | None = None) -> Ending:
        if thoughts is None:
            return setup.ending
        return ending_of(Curriculum(), markers_of(setup.tokenizer), step, thoughts)

    return Exam(ending)


def grpo_objective(
    model: Model, *, temperature: float = 1.0, max_length: int | None = None, **arguments: object
) -> Objective:
    """`policy_loss` over the completion tokens of a rollout batch, log-probs taken at the sampling temperature."""

    def objective(params: Params, batch: Batch, key: jax.Array) -> Loss:
        del key
        start = completion_start(batch)
        logps, entropies, out = batch_logps(model, params, batch, temperature=temperature, start=start)
        loss = policy_loss(
            logps,
            batch["old_logps"],
            batch["advantages"],
            batch["mask"][:, start + 1 :],
            ref_logps=batch.get("ref_logps"),
            entropies=entropies,
            max_length=max_length,
            **arguments,  # type: ignore[arg-type]
        )
        return with_reports(loss, out.aux)

    return objective
