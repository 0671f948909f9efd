"""One rollout: prompts -> samples -> verdicts -> rewards -> advantages -> a training batch."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.depths import AS_NAMED, ExampleDepths, check_has_depth
from data.sources.source import Source as PromptSource
from data.tasks.base import Task, Verdict
from data.thoughts import NO_ENDING, Ending
from data.tokenizers.base import Tokenizer
from data.tokenizers.decoding import text_of
from data.verify.pool import Judge, judge_of
from infer.continuation import Continuation
from infer.evaluate import completion_texts
from infer.recurrence import Recurrence
from infer.sampler import Rollout, generate
from infer.work import sampling_work
from model.compute import flops
from model.lm import Model, Params
from model.sharding import on_mesh, replicate
from rl.batch import RolloutRows, in_order, take, training_batch, without_routes
from rl.control import adapt_entropy_coef, gated_entropy_coef, sync_reference
from rl.costs import check_depth_rules, costs
from rl.experience import Experience, choose, informative, join, records, rollout_of, rows_of, statistics
from rl.gate_actions import depth_logps
from rl.history import example_key, group_accuracies
from rl.masks import top_entropy_mask
from rl.objectives import importance_weights
from rl.partial_rollouts import PartialRollouts
from rl.returns import estimate
from rl.rewards import Sample, Scorer, Scores, build_rewards
from rl.rules import RolloutRules
from rl.sampling import rollout_recurrence, rollout_sampling, rollout_thoughts
from rl.soft_thoughts import first_thoughts, replay_options
from rl.teaching import RolloutTeacher, taught
from settings.data import BY_GATE
from train.accumulate import WHOLE, UpdatePlan, per_token
from train.batches import on_devices
from train.completions import completion_logps
from train.progress import progress
from train.state import step_key

VERDICTS: Scorer = build_rewards({"accuracy": 1.0})  # the reward is the verdict's score
DEPTHS = 2  # folded into a step's key for the depths of its samples
ROUNDS = 1000  # and from here on for further rounds of sampling


class RolloutBatch(NamedTuple):
    """What one rollout gave: the whole batch, on the devices; its metrics, its samples as text, the step whose model
    sampled it, the accuracy of every example asked, by its key; on the host, what orders its rows: `lengths` [N],
    `advantages` [N] or [N, T], and where the task names it `depth` [N]; and the FLOPs of sampling it.
    """

    batch: RolloutRows
    stats: dict[str, float]
    samples: list[dict[str, Any]]
    step: int
    accuracies: dict[str, float]
    lengths: np.ndarray
    advantages: np.ndarray
    flops: int = 0
    depth: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """What a rollout is made with beside the model and the questions; noise comes from (seed, step, sample).

    `reference` (or None) gives `ref_logps` for a KL term; `ending` are the markers and thoughts that follow every
    prompt; `scorer` makes rewards of the verdicts of a `judge` (None: the task's own), to whose advantages a `teacher`
    adds its own; `quiet`: no progress bar.
    Log-probs are measured by the `plan` of the update. Samples are spread over `mesh` like the rows of a batch.
    `depths`: the iterations that an example is given where rl.depth="task".
    """

    seed: int
    reference: Params | None = None
    ending: Ending = NO_ENDING
    scorer: Scorer = VERDICTS
    teacher: RolloutTeacher | None = None
    judge: Judge | None = None
    say: Callable[[str], None] = print
    quiet: bool = False
    plan: UpdatePlan = WHOLE
    mesh: jax.sharding.Mesh | None = None
    depths: ExampleDepths = AS_NAMED


class RolloutWorker:
    """Called with parameters and a step, samples, judges and makes the whole batch of a rollout."""

    def __init__(
        self,
        model: Model,
        prompts: PromptSource,
        task: Task,
        tokenizer: Tokenizer,
        rules: RolloutRules,
        options: RolloutOptions,
    ) -> None:
        """Holds the prompt iterator, whose position is the state."""
        self._model, self._prompts, self._task, self._tokenizer = model, prompts, task, tokenizer
        self._rules, self._options, self.reference = rules, options, options.reference
        self._judge, self._thoughts = options.judge or judge_of(task), rollout_thoughts(rules, options.ending)
        check_depth_rules(model, rules)
        if rules.depth == "task":
            check_has_depth(task, "rl.depth")
        groups = rules.prompts if rules.carry else 0
        self._partial = PartialRollouts(prompts, groups, rules.carry, rules.samples, rules.max_new_tokens)
        self._carried: dict[str, float] = {}
        self._told: set[str] = set()
        self._entropy_coef = self._weight = 0.0
        self._flops = 0
        self._placed = on_mesh(options.mesh)(self._roll)
        self._log_probs = jax.jit(self._measured)
        self._weights = jax.jit(functools.partial(token_weights, rules))
        self._depth_logps = jax.jit(lambda params, batch: replicate(depth_logps(model, params, batch)))

    def __call__(self, params: Params, step: int, sampled_at: int | None = None) -> RolloutBatch:
        """The rollout for the update of `step`, from parameters of that step or (`sampled_at`) of an earlier one."""
        return self._placed(params, step, sampled_at)

    def _roll(self, params: Params, step: int, sampled_at: int | None) -> RolloutBatch:
        rules, self._times, self._flops = self._rules, dict.fromkeys(("generate", "reward", "logps"), 0.0), 0
        self.reference = sync_reference(self.reference, params, step, rules.sync_every, rules.sync_alpha)
        rounds = self._rounds(params, step)
        sampled = join(rounds)
        kept = sampled if len(rounds) == 1 else choose(sampled, full_batch(sampled, len(rounds[0].examples)))
        with self._timed("logps"):
            batch = on_devices(training_batch(kept.rollout, np.zeros(kept.rewards.size)), self._options.mesh)
            batch = self._with_measures(batch, params, kept.rollout, sampled.rollout)
        gains, opinion = self._taught(params, kept, compute_advantages(kept, batch, rules))
        if rules.first_thought == "best":
            batch = batch.replace(soft_mask=first_thoughts(kept.rollout, np.asarray(batch.soft_density), gains))
        batch = on_devices(batch.replace(advantages=gains), self._options.mesh)
        stats = statistics(sampled) | opinion | {f"time/{name}": value for name, value in self._times.items()}
        asked = self._prompts.stats()
        stats |= self._carried | {f"prompts/{name}": float(asked[name]) for name in ("read", "dropped")}
        if rules.refill:
            stats |= refill_metrics(rounds, sampled, kept)
        if rules.entropy_target:
            stats["entropy_coef"] = self._weight
        self._complain(step, sampled.scored)
        prompts = [self._task.prompt(example) for example in kept.examples]
        accuracies = group_accuracies([example_key(example) for example in sampled.examples], sampled.scores)
        origin = step if sampled_at is None else sampled_at
        told = gains if gains.ndim == 1 else (gains * kept.rollout.mask).sum(1) / kept.rollout.mask.sum(1)
        spoken, deep = records(kept, prompts, told), kept.rollout.depth
        depth = deep.max(1) if deep is not None and rules.depth == "task" else None
        lengths = kept.rollout.lengths
        return RolloutBatch(batch, stats, spoken, origin, accuracies, lengths, gains, self._flops, depth)

    def _taught(self, params: Params, kept: Experience, gains: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """The advantages with those of the teacher, if there is one, and how far the samples lie from it."""
        teacher = self._options.teacher
        if teacher is None:
            return gains, {}
        self._times["teacher"] = 0.0
        with self._timed("teacher"):
            logps = teacher.logps(params, kept.examples, kept.rollout)
        return taught(gains, kept.rollout, logps, self._rules)

    def state(self) -> dict[str, Any]:
        """The position of the prompt iterator, the weight of an adaptive entropy bonus, and the prompts in flight."""
        more: dict[str, Any] = {"entropy_coef": self._entropy_coef} if self._rules.entropy_target else {}
        more |= {"flight": self._partial.state()} if self._rules.carry else {}
        return {**self._prompts.state(), **more}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a position of the prompt iterator."""
        state = dict(state)
        self._entropy_coef = state.pop("entropy_coef", 0.0)
        if "flight" in state:
            self._partial.restore(state.pop("flight"))
        self._prompts.restore(state)

    def arrays(self) -> dict[str, Any]:
        """The arrays that a resumed run cannot make again: a reference that moved, what has been said in flight."""
        arrays: dict[str, Any] = {"reference": self.reference} if self._rules.sync_every else {}
        said = self._partial.arrays()
        return arrays | ({"flight": said} if said else {})

    def restore_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Takes back what `arrays` gave, after `restore`."""
        self.reference = arrays.get("reference", self.reference)
        self._partial.restore_arrays(arrays.get("flight", {}))

    def _rounds(self, params: Params, step: int) -> list[Experience]:
        """One round of prompts, and more while groups of equal rewards leave the batch short (at most `refill`)."""
        rounds = [self._round(params, step, 0)]
        while len(rounds) <= self._rules.refill:
            if sum(int(informative(each).sum()) for each in rounds) >= len(rounds[0].examples):
                break
            rounds.append(self._round(params, step, len(rounds)))
        return rounds

    def _round(self, params: Params, step: int, number: int) -> Experience:
        """New prompts, answered, judged and rewarded."""
        with self._timed("generate"):
            asked, rollout = self._answers(params, step, number)
        with self._timed("reward"):
            texts = completion_texts(rollout, self._tokenizer, self._rules.stop)
            verdicts = self._judge([item["example"] for item in asked for _ in range(self._rules.samples)], texts)
            scored = self._options.scorer(self._as_samples(asked, rollout, texts, verdicts), rollout.group_of)
        rewards = (scored.total - costs(rollout, self._rules)).reshape(len(asked), -1).astype(np.float32)
        return Experience([item["example"] for item in asked], rollout, texts, verdicts, scored, rewards)

    def _answers(self, params: Params, step: int, number: int) -> tuple[list[dict[str, Any]], Rollout]:
        """Prompts and their samples; where more are in flight than are learnt from, those that are complete."""
        ask = functools.partial(self._generate, params, step=step, number=number)
        if not self._rules.carry:
            asked = self._prompts.next()
            return asked, ask(asked)
        flying, partial = self._partial.next()
        rollout = ask(flying, continuation=partial)
        ready = self._partial.retire(flying, rollout)
        rows = rows_of(ready, self._rules.samples)
        old = partial.lengths[rows].sum() / rollout.lengths[rows].sum()
        self._carried = {"carried/tokens": float(old), "carried/samples": float((partial.lengths[rows] > 0).mean())}
        return [flying[group] for group in ready], dataclasses.replace(rollout_of(rollout, ready, rows), partial=None)

    def _generate(
        self,
        params: Params,
        asked: list[dict[str, Any]],
        step: int,
        number: int,
        continuation: Continuation | None = None,
    ) -> Rollout:
        rules, samples = self._rules, len(asked) * self._rules.samples
        prompts = [[*item["tokens"], *self._options.ending.tokens] for item in asked]
        key = jax.random.fold_in(step_key(self._options.seed, step), 1 if not number else ROUNDS + number)
        recurrence = self._recurrence(asked, samples, jax.random.fold_in(key, DEPTHS))
        name = f"rollout of step {step + 1}" + (f", round {number + 1}" if number else "")
        with nullcontext() if self._options.quiet else progress(name, samples) as bar:
            show = (lambda done, total: bar.update(done)) if bar else None
            rollout = generate(
                self._model,
                params,
                prompts,
                key,
                rollout_sampling(rules, (*self._tokenizer.eos_ids, *rules.stop), show),
                tokenizer=self._tokenizer,
                recurrence=recurrence,
                thoughts=self._thoughts,
                continuation=continuation,
            )
        work = sampling_work(rollout, continuation, by_sample=recurrence is not None)
        self._flops += flops(self._model, work, trains=False)
        return rollout

    def _recurrence(self, asked: list[dict[str, Any]], samples: int, key: jax.Array) -> Recurrence | None:
        task_depths, depths = None, self._options.depths
        if self._rules.depth == "task":
            by_question = [depths.answer_depth(self._task, item["example"]) for item in asked]
            task_depths = np.repeat(by_question, self._rules.samples)
        return rollout_recurrence(self._model, self._rules, samples, key, task_depths, depths.jitter)

    def _as_samples(
        self, asked: list[dict[str, Any]], rollout: Rollout, texts: list[str], verdicts: list[Verdict]
    ) -> list[Sample]:
        prompts = [text_of(item["tokens"], self._tokenizer) for item in asked]
        rows = zip(texts, verdicts, rollout.lengths, rollout.finished, strict=True)
        group, limit = self._rules.samples, self._rules.max_new_tokens
        return [
            Sample(asked[n // group]["example"], prompts[n // group], text, verdict, int(length), bool(ended), limit)
            for n, (text, verdict, length, ended) in enumerate(rows)
        ]

    def _with_measures(self, batch: RolloutRows, params: Params, kept: Rollout, sampled: Rollout) -> RolloutRows:
        """The batch with what the loss needs besides: the reference's log-probs, weights of tokens, the bonus' weight.

        With importance weights `old_logps` become the trainer's own, and the weights lead to them from the sampler's.
        """
        rules = self._rules
        order = in_order(kept.lengths, np.zeros(batch.rows))
        if self.reference is not None:
            # Another model: its routers choose for themselves.
            batch = batch.replace(ref_logps=self._log_probs(self.reference, without_routes(batch), order)[0])
        if rules.entropy_share < 1 or rules.weighs_tokens:
            logps, entropies = self._log_probs(params, batch.replace(ref_logps=None), order)
            weights, old_logps = self._weights(logps, entropies, batch.old_logps, batch.mask)
            batch = batch.replace(weights=weights, old_logps=old_logps)
        if rules.depth == BY_GATE:
            batch = batch.replace(depth_logps=self._depth_logps(params, batch))
        if rules.entropy_target:
            self._weight = self._next_entropy_coef(sampled)
            batch = batch.replace(entropy_coef=np.full(batch.rows, self._weight, np.float32))
        return batch

    def _next_entropy_coef(self, sampled: Rollout) -> float:
        """Moves the coefficient; -log p of the sampled tokens is an unbiased estimate of their entropy."""
        rules, entropy = self._rules, -float((sampled.logps * sampled.mask).sum() / sampled.mask.sum())
        moved = adapt_entropy_coef(
            self._entropy_coef, entropy, rules.entropy_target, rules.entropy_step, high=rules.entropy_max
        )
        self._entropy_coef = float(moved)
        return float(gated_entropy_coef(moved, entropy, rules.entropy_target))

    def _measured(self, params: Params, batch: RolloutRows, order: jax.Array) -> tuple[jax.Array, ...]:
        """Log-probs and entropies [N, T], measured in the order of the rows' lengths, and known to every device."""

        def measure(params: Params, part: RolloutRows) -> tuple[jax.Array, jax.Array]:
            replayed = replay_options(self._model, params, part, self._thoughts)
            return completion_logps(self._model, params, part, self._rules.temperature, **replayed)[:2]

        measured = per_token(measure, params, take(batch, order), self._options.plan)
        return tuple(replicate(x[jnp.argsort(order)]) for x in measured)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._times[name] += time.perf_counter() - started

    def _complain(self, step: int, scored: Scores) -> None:
        """Once per reward: what fails at every step is counted in rewards/<name>/errors."""
        failing = [name for name, count in scored.errors.items() if count]
        for name, sentence in zip(failing, scored.complaints, strict=False):
            if name not in self._told:
                self._told.add(name)
                self._options.say(f"step {step}: {sentence}")


def importance_rules(rules: RolloutRules) -> dict[str, Any]:
    """The arguments of `importance_weights`."""
    keep = None if rules.importance_high is None else (rules.importance_low, rules.importance_high)
    return {"level": rules.importance_level, "cap": rules.importance_cap, "keep": keep}


def token_weights(
    rules: RolloutRules, logps: jax.Array, entropies: jax.Array, old_logps: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weights of tokens in the loss [N, T], and the log-probs that the policy's ratio is measured to."""
    weights = top_entropy_mask(entropies, mask, rules.entropy_share)
    if rules.weighs_tokens:
        weights = weights * importance_weights(logps, old_logps, mask, **importance_rules(rules))
        old_logps = logps * mask
    return replicate((weights.astype(jnp.float32), old_logps))


def compute_advantages(kept: Experience, batch: RolloutRows, rules: RolloutRules) -> np.ndarray:
    """The advantages [N], or of each token [N, T]; a KL in the reward takes the measured log-probs to the host."""
    rewarded = rules.kl_in == "reward"
    estimated = estimate(
        jnp.asarray(kept.rewards),
        jnp.asarray(kept.rollout.mask),
        rules,
        old_logps=jnp.asarray(np.asarray(batch.old_logps)) if rewarded else None,
        ref_logps=jnp.asarray(np.asarray(batch.ref_logps)) if rewarded else None,
        finished=kept.rollout.finished,
    )
    return np.asarray(estimated, np.float32)


def full_batch(sampled: Experience, size: int) -> np.ndarray:
    """The first `size` groups that teach something, then as many of the others as it takes."""
    return np.argsort(~informative(sampled), kind="stable")[:size]


def refill_metrics(rounds: list[Experience], sampled: Experience, kept: Experience) -> dict[str, float]:
    """What replacing groups of equal rewards cost and brought."""
    useful = int(informative(sampled).sum())
    return {
        "refill/rounds": float(len(rounds)),
        "refill/keep_rate": useful / len(sampled.examples),
        "refill/surplus": float(max(useful - len(kept.examples), 0)),
        "refill/full": float(useful >= len(kept.examples)),
        "refill/tokens": float(sampled.rollout.lengths.sum()),
    }
