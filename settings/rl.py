"""The settings `rl`: how rollouts are sampled and rewarded, what becomes of the rewards, and what an update minimises.

Each class is one concern; `RLConfig` is all of them, under one name in a config.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from settings.setting import check, setting

LEVELS = ("token", "sequence")
AGGREGATES = ("token_mean", "sequence_mean", "sequence_sum", "constant")
SURROGATES = ("clip", "cispo", "sapo", "gmpo")
EMPTY_ROWS = ("skip", "count")
KL_KINDS = ("k1", "k2", "k3", "k1_straight_through", "k3_straight_through")
KL_PLACES = ("loss", "reward")
BASELINES = ("group", "leave_one_out", "batch", "none")
SCALES = ("group", "batch", "whiten", "mean", "none")
SINGLETONS = ("raw", "zero")
GROUPED = {"group", "leave_one_out", "mean"}  # baselines and scales that one completion per prompt does not have
ESTIMATORS = ("group", "reinforce_pp", "reinforce_pp_baseline")
COMPOSITIONS = ("sum", "gated")
DEPTHS = ("mean", "drawn", "task", "gate")
MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: beyond it a ratio says only "far away", and float32 would soon overflow
GREEDY = "greedy samples have no policy gradient"
LOOPS = ("last", "uniform", "progressive", "exit")
THOUGHT_NOISES = ("none", "one_sided", "two_sided")
FIRST_THOUGHTS = ("all", "best")
UNFINISHED = ("learn", "zero", "leave_out")
# Teachers that are no folder: the student as it is, and as it was when the run began.
TEACHER_IS_SELF, TEACHER_IS_START = "self", "start"
# Weights by name; None: not computed, 0: only measured.
REWARDS: dict[str, float | None] = {
    "accuracy": 1.0,
    "format": None,
    "tag_count": None,
    "language": None,
    "kimi_length": None,
    "cosine_length": None,
    "repetition": None,
    "script": None,
    "model": None,
}


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """What a rollout samples, and into which updates it is dealt."""

    prompts: int = setting(32, "prompts of a rollout", low=1)
    samples: int = setting(8, "completions of a prompt: the group", low=1)
    max_new_tokens: int = setting(64, "tokens of a completion, at most", low=1)
    max_prompt_length: int = setting(0, "tokens of a prompt; 0: what max_new_tokens leaves of the context", low=0)
    temperature: float = setting(1.0, "of the distribution sampled from and learnt", above=0, why=GREEDY)
    slots: int = setting(0, "rows decoded at once; 0: all samples", low=0)
    depth: str = setting(
        "mean",
        "iterations of a recurrent core: the mean; drawn for every sample; as the task names them; or drawn from the"
        " exit gate at the prompt's end, which learns from it",
        choices=DEPTHS,
    )
    max_depth: int = setting(0, "the largest depth of a sample, where they differ; 0: twice the mean", low=0)
    minibatches: int = setting(1, "updates that a rollout's rows are dealt into", low=1)
    epochs: int = setting(1, "times a rollout is learnt from; a step is one update", low=1)
    overlap: bool = setting(False, "sample the next rollout while this one is learnt from, one rollout behind")
    carry: int = setting(0, "groups in flight beyond `prompts`, which go on in the next rollout", low=0)
    refill: int = setting(0, "further rounds of prompts, at most, to replace groups of equal rewards", low=0)
    replay_routes: bool = setting(False, "an update sends tokens to the experts that the sampler took")
    share_prompts: bool = setting(True, "an update reads a prompt once, where the cache has a gradient")
    widths: int = setting(4, "widths of micro-batches, at most, so that an update leaves empty columns out", low=1)

    def rollout_faults(self) -> Iterator[str]:
        """Numbers of samples that do not go together."""
        rows = self.prompts * self.samples
        if rows % self.minibatches:
            yield (
                f"rl.minibatches = {self.minibatches} must divide the rows of a rollout evenly, found {self.prompts}"
                f" prompts x {self.samples} samples"
            )
        if self.carry > self.prompts:
            yield f"rl.carry is a number of groups from 0 to rl.prompts={self.prompts}; found {self.carry}"
        if self.max_depth and self.depth in ("mean", "gate"):
            yield (
                f"rl.max_depth={self.max_depth} bounds depths that are drawn or that the task names, and rl.depth="
                f"{self.depth!r} goes to recurrent.mean; leave it at 0"
            )
        varied = f"rl.depth={self.depth}"
        others = {"rl.refill": self.refill, "rl.replay_routes": self.replay_routes, varied: self.depth != "mean"}
        for name in (name for name, value in others.items() if self.carry and value):
            yield f"rl.carry={self.carry} interrupts samples, which does not go with {name}: leave one of them out"
        rows += self.carry * self.samples
        if self.carry and self.slots and 4 * self.slots < rows:
            yield (
                f"rl.carry={self.carry} needs all prompts at once: rl.slots={self.slots} must be at least a quarter of"
                f" {rows} samples, or 0"
            )


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What a completion earns (docs/rewards.md), and what it pays."""

    rewards: Mapping[str, Any] = setting(
        REWARDS, "weights by name, or dicts of weight, kind and options; None: not computed, 0: only measured"
    )
    compose: str = setting("sum", "gated: the rest counts only where `gate` is 1", choices=COMPOSITIONS)
    gate: str = setting("accuracy", "the reward that gates the others")
    depth_cost: float = setting(0.0, "taken off the reward per iteration, on average over a sample's tokens")
    token_cost: float = setting(0.0, "taken off the reward per token")


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """How much better a completion was than what could be expected (`rl.advantages`, `rl.returns`)."""

    baseline: str = setting("group", "what is taken off a reward: a mean of", choices=BASELINES)
    scale: str = setting("group", "what it is then divided by", choices=SCALES)
    ddof: int = setting(1, "variances are divided by n - ddof", low=0, high=1)
    epsilon: float = setting(1e-6, "added to the deviation divided by", low=0)
    singleton: str = setting("", "what one sample per prompt earns; '' refuses that", choices=("", *SINGLETONS))
    estimator: str = setting("group", "advantages of rows, or of tokens and whitened", choices=ESTIMATORS)
    gamma: float = setting(1.0, "discount per token, of estimator=reinforce_pp", above=0, high=1)
    unfinished: str = setting(
        "learn",
        "a completion cut at max_new_tokens: learnt from; has advantage 0; and is no part of its group's mean either",
        choices=UNFINISHED,
    )

    def group_faults(self, samples: int) -> Iterator[str]:
        """What a group of so many completions cannot give."""
        if samples == 1 and {self.baseline, self.scale} & GROUPED and not self.singleton:
            yield (
                f"rl.samples = 1 with baseline={self.baseline!r}, scale={self.scale!r}: one completion has no group to"
                ' be compared with. Raise samples, or take baseline="batch" and scale="batch", or choose'
                ' singleton="raw" (the reward itself) or "zero" (no signal)'
            )
        if self.unfinished == "leave_out" and self.estimator != "group":
            yield f'rl.unfinished="leave_out" is of estimator="group", found {self.estimator!r}: take "zero"'
        if self.gamma < 1 and self.estimator != "reinforce_pp":
            yield (
                f"rl.gamma = {self.gamma} discounts returns, which estimator={self.estimator!r} has not: take"
                " reinforce_pp, or gamma=1"
            )


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig:
    """The keywords of `rl.objectives.policy_loss` that a run chooses."""

    clip_low: float = setting(0.2, "the ratio is at least 1 - clip_low", low=0)
    clip_high: float = setting(0.28, "the ratio is at most 1 + clip_high", low=0)
    ratio_cap: float | None = setting(None, "an absolute upper bound on the ratio, in the place of 1 + clip_high")
    dual_clip: float | None = setting(None, "where A < 0 the loss is at most -dual_clip x A", above=1)
    delta: float | None = setting(None, "the unclipped ratio is at most this")
    level: str = setting("token", "the ratio is a token's, or its geometric mean over the row", choices=LEVELS)
    aggregate: str = setting("token_mean", "what the loss is a mean or a sum of", choices=AGGREGATES)
    surrogate: str = setting("clip", "the form of the objective", choices=SURROGATES)
    empty_rows: str = setting("skip", "whether rows without a token count in means over rows", choices=EMPTY_ROWS)
    off_policy_threshold: float | None = setting(
        None, "nats per token beyond which rows with A < 0 are left out; None: no mask", low=0
    )
    policy_coef: float = setting(
        1.0, "weight of the surrogate; 0: the KL and the entropy bonus alone", low=0, why="0 leaves the surrogate out"
    )
    beta: float = setting(
        0.0,
        "weight of the KL to the model the run starts from",
        low=0,
        why="a negative weight pushes the policy away from its reference",
    )
    kl_kind: str = setting("k3", "the estimator of the KL in the loss", choices=KL_KINDS)
    unbiased_kl: bool = setting(False, "the KL is multiplied by the ratio")
    entropy_coef: float = setting(0.0, "weight of the entropy bonus")

    def __post_init__(self) -> None:
        check(self, "", self.loss_faults())

    @property
    def bounds(self) -> tuple[float, float]:
        """What the ratio is kept within; GMPO's clip_low and clip_high are of the log-ratio."""
        low, high = 1 - self.clip_low, 1 + self.clip_high
        if self.surrogate == "gmpo":
            low, high = (
                math.exp(bound) for bound in (-min(self.clip_low, MAX_LOG_RATIO), min(self.clip_high, MAX_LOG_RATIO))
            )
        return low, high if self.ratio_cap is None else self.ratio_cap

    def loss_faults(self) -> Iterator[str]:
        """Bounds on the ratio that are out of order, or of no effect."""
        for name in ("dual_clip", "delta"):
            if getattr(self, name) is not None and self.surrogate != "clip":
                found = f"{name} = {getattr(self, name)}"
                yield f'{found} acts on surrogate="clip" alone, found {self.surrogate!r}: leave it out'
        low, high = self.bounds
        if not (high > 0 and high >= low):
            yield f"ratio_cap = {self.ratio_cap} must lie above 0 and above the lower bound {low} (of clip_low)"
        if self.delta is not None and not self.delta > high:
            yield f"delta = {self.delta} must lie above the upper clip bound {high}, or nothing but it acts"
        if not math.isfinite(self.policy_coef):
            yield f"policy_coef = {self.policy_coef} weighs the surrogate and must be finite"


@dataclasses.dataclass(frozen=True)
class ImportanceConfig:
    """Weights for a sampler whose probabilities differ from the trainer's (`rl.objectives.importance_weights`)."""

    importance_level: str = setting("token", "what the weights look at", choices=LEVELS)
    importance_cap: float | None = setting(
        None, "the weights are at most this (TIS: 2); None: no such weights", above=0, why="None is for no weights"
    )
    importance_low: float = setting(0.0, "outside importance_low .. importance_high a token counts 0", low=0)
    importance_high: float | None = setting(None, "the interval's upper end (IcePop: .5 .. 5)")

    def importance_faults(self) -> Iterator[str]:
        """Intervals that keep nothing, or do nothing."""
        low, high = self.importance_low, self.importance_high
        if high is not None and not 0 <= low < high:
            yield f"rl.importance_low = {low} and importance_high = {high} must be an interval, 0 <= low < high"
        if high is None and low:
            yield f"rl.importance_low = {low} is the lower end of an interval: give importance_high, too"


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Which iterations of a recurrent core are learnt from (`rl.loops`): the last, or all (RLTT, 2602.10520)."""

    loops: str = setting(
        "last",
        "iterations whose log-probs a reward reaches: the last; all alike; by t^loop_alpha; as the exit gate stops",
        choices=LOOPS,
    )
    loop_alpha: float = setting(1.0, "the exponent of progressive", low=0)
    loops_at: tuple[int, ...] = setting((), "the iterations that are read, rising to recurrent.mean; (): all")

    def loop_faults(self, rules: RolloutConfig, loss: PolicyLossConfig, overlap: bool) -> Iterator[str]:
        """What a sum over iterations, which has no ratio, does not go with."""
        if self.loops == "last":
            if self.loops_at:
                yield f'rl.loops_at={self.loops_at} names iterations, and rl.loops="last" reads the last alone'
            return
        if list(self.loops_at) != sorted({int(t) for t in self.loops_at if t > 0}):
            yield f"rl.loops_at must be whole, positive and rising, found {self.loops_at}"
        if rules.depth != "mean":
            yield (
                f"rl.loops={self.loops!r} reads the iterations up to recurrent.mean, rl.depth={rules.depth!r} gives"
                " samples other ones: leave one of them out"
            )
        if rules.epochs * rules.minibatches > 1 or overlap:
            yield (
                f"rl.loops={self.loops!r} has no ratio to an older policy: it takes rl.epochs=1, rl.minibatches=1 and"
                f" rl.overlap=False, found {rules.epochs}, {rules.minibatches}, {overlap}"
            )
        if loss.surrogate != "clip" or loss.level != "token":
            yield f"rl.loops={self.loops!r} takes surrogate=clip and level=token, found {loss.surrogate}, {loss.level}"


@dataclasses.dataclass(frozen=True)
class ThoughtNoiseConfig:
    """By what the continuous thoughts of samples differ in rollouts; an update replays it (infer/feedback.py)."""

    thought_dropout: float = setting(
        0.0, "share of each state fed back that is 0, one mask for all thoughts of a sample", low=0, high=0.99
    )
    thought_noise: str = setting(
        "none", "Gumbel noise by which soft thoughts are drawn; one-sided: never below 0", choices=THOUGHT_NOISES
    )
    thought_noise_scale: float = setting(1.0, "times that noise", above=0)
    first_thought: str = setting(
        "all",
        "whose first soft thought is learnt from; best: of a group's good samples the likeliest",
        choices=FIRST_THOUGHTS,
    )

    @property
    def thoughts_differ(self) -> bool:
        """Whether each sample has thoughts of its own."""
        return bool(self.thought_dropout) or self.thought_noise != "none"

    def thought_faults(self, loops: str, teacher: str) -> Iterator[str]:
        """Noise that is given twice, has nothing to act on, or is not replayed."""
        dropout, noise = f"rl.thought_dropout={self.thought_dropout}", f"rl.thought_noise={self.thought_noise!r}"
        if self.thought_dropout and self.thought_noise != "none":
            yield f"{dropout} is of states, {noise} of soft thoughts: leave one of them out"
        if self.first_thought == "best" and self.thought_noise == "none":
            yield 'rl.first_thought="best" chooses among soft thoughts that were drawn: give rl.thought_noise'
        others = {f"rl.loops={loops!r}": loops != "last", f"rl.teacher={teacher!r}": bool(teacher)}
        for name in (name for name, given in others.items() if given and self.thoughts_differ):
            yield f"{name} does not replay thoughts that differ ({dropout}, {noise}): leave one of them out"


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """What a run moves from step to step besides the parameters (`rl.control`): its reference and the entropy bonus."""

    track_kl: bool = setting(False, "measure the KL though beta is 0; costs a forward pass a step")
    kl_in: str = setting("loss", "reward: beta x KL is taken off each token's reward", choices=KL_PLACES)
    sync_every: int = setting(0, "steps after which the reference follows the model; 0: it stays", low=0)
    sync_alpha: float = setting(1.0, "how far the reference follows; 1 is a copy", above=0, high=1)
    entropy_target: float = setting(0.0, "nats per token at which the bonus' weight is aimed; 0: it is fixed", low=0)
    entropy_step: float = setting(0.005, "how far a step moves that weight", low=0)
    entropy_max: float = setting(1.0, "the largest such weight", low=0)
    entropy_share: float = setting(
        1.0,
        "learn from this share of the tokens, those of the highest entropy",
        above=0,
        high=1,
        why="1 keeps them all",
    )


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """On-policy distillation (`rl.teaching`): a teacher's opinion of every sampled token, added to the advantages."""

    teacher: str = setting(
        "", "a run directory or Hub folder with this vocabulary; self; start, as the run began", reference=True
    )
    teacher_depth: int = setting(0, "iterations of a recurrent teacher; 0: its model.recurrent.mean", low=0)
    teacher_coef: float = setting(1.0, "weight of log p of the teacher less log p of the student", above=0)
    teacher_discount: float = setting(0.0, "a token also earns later tokens' advantages, discounted", low=0, high=1)
    teacher_early: float = setting(0.0, "early tokens weigh up to 1 + this times as much", low=0)
    teacher_prompt: str = setting(
        "{prompt}", "what the teacher is asked; {target} is the demonstration, which the student does not see"
    )

    def teacher_faults(self, temperature: float) -> Iterator[str]:
        """What a teacher cannot be compared by."""
        if not self.teacher:
            return
        if temperature != 1:
            yield f"rl.teacher compares log-probs of temperature 1, found rl.temperature={temperature}"
        if "{prompt}" not in self.teacher_prompt:
            yield f"rl.teacher_prompt must hold {{prompt}}, found {self.teacher_prompt!r}"
        if self.teacher == TEACHER_IS_SELF and self.teacher_prompt == "{prompt}" and not self.teacher_depth:
            yield (
                "rl.teacher=self with the student's own prompt agrees with the student in everything: give"
                " rl.teacher_prompt something the student does not see, such as '{target}\n{prompt}', or more"
                " iterations (rl.teacher_depth)"
            )


@dataclasses.dataclass(frozen=True)
class RLConfig(
    TeacherConfig,
    LoopConfig,
    ThoughtNoiseConfig,
    ControlConfig,
    ImportanceConfig,
    PolicyLossConfig,
    AdvantageConfig,
    RewardConfig,
    RolloutConfig,
):
    """GRPO (2402.03300): 32 prompts x 8 samples, clip .2/.28, group-normalised rewards, no KL.

    Raises one ValueError that lists everything in these rules that cannot be meant.
    """

    def __post_init__(self) -> None:
        parts = (self.rollout_faults(), self.group_faults(self.samples), self.loss_faults(), self.importance_faults())
        more = (self.reference_faults(), self.entropy_faults(), self.teacher_faults(self.temperature))
        loops = self.loop_faults(self, self, self.overlap)
        thoughts = self.thought_faults(self.loops, self.teacher)
        check(self, "rl.", [fault for part in (*parts, *more, loops, thoughts) for fault in part])

    @property
    def has_reference(self) -> bool:
        """Whether a run keeps the model it starts from: for a KL, weighed or only measured."""
        return bool(self.beta or self.track_kl)

    def reference_faults(self) -> Iterator[str]:
        """What a KL term cannot do without."""
        if self.unbiased_kl and not self.beta:
            yield "rl.unbiased_kl = True corrects a KL that weighs nothing: give beta, or leave it out"
        if self.sync_every and not self.has_reference:
            yield f"rl.sync_every = {self.sync_every} renews a reference, but there is none: give beta or track_kl"
        if self.kl_in == "reward" and not self.beta:
            yield "rl.kl_in='reward' takes beta x KL off the reward, but beta = 0: give beta, or leave kl_in out"
        if self.kl_in == "reward" and self.unbiased_kl:
            yield "rl.unbiased_kl corrects a KL in the loss, and kl_in='reward' has none there: leave one of them out"

    def entropy_faults(self) -> Iterator[str]:
        """Weights that leave nothing to learn from, or are given twice."""
        if not (self.policy_coef or self.beta or self.entropy_coef or self.entropy_target):
            yield (
                "rl.policy_coef=0 leaves nothing to learn from: give rl.entropy_coef, rl.entropy_target or rl.beta a"
                " weight"
            )
        if self.entropy_target and self.entropy_coef:
            yield (
                f"rl.entropy_target={self.entropy_target} finds the weight of the entropy bonus by itself: leave"
                f" rl.entropy_coef={self.entropy_coef} out"
            )
