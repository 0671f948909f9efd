"""The rules of a policy-optimisation run, checked when it is built and not at its first step."""

import dataclasses
from collections.abc import Iterator

from rl.advantages import BASELINES, GROUPED, SCALES, SINGLETONS
from rl.control import check_sync
from rl.kl import KINDS, check
from rl.objectives import LEVELS, check_names, check_policy_coef, clip_of
from rl.returns import ESTIMATORS, KL_PLACES


@dataclasses.dataclass(frozen=True)
class RolloutRules:
    """How to sample and how to score; the fields are those of `config.rl` plus the text that ends an answer."""

    samples: int
    max_new_tokens: int
    temperature: float
    slots: int
    baseline: str
    scale: str
    ddof: int
    epsilon: float
    depth: str
    max_depth: int
    depth_cost: float
    token_cost: float
    singleton: str = ""
    refill: int = 0
    epochs: int = 1
    minibatches: int = 1
    overlap: bool = False
    replay_routes: bool = False
    prompts: int = 0
    carry: int = 0
    share_prompts: bool = False
    widths: int = 1
    estimator: str = "group"
    gamma: float = 1.0
    kl_in: str = "loss"
    beta: float = 0.0
    importance_level: str = "token"
    importance_cap: float | None = None
    importance_low: float = 0.0
    importance_high: float | None = None
    sync_every: int = 0
    sync_alpha: float = 1.0
    entropy_share: float = 1.0
    entropy_target: float = 0.0
    entropy_step: float = 0.005
    entropy_max: float = 1.0
    stop: tuple[str, ...] = ()

    @property
    def ordered(self) -> bool:
        """Whether the rows of an update come in an order that makes micro-batches of a kind, for its plan to find."""
        return self.share_prompts or self.widths > 1


def check_rules(
    *,
    samples: int,
    baseline: str = "group",
    scale: str = "group",
    singleton: str | None = None,
    ddof: int = 1,
    level: str = "token",
    aggregate: str = "sequence_mean",
    surrogate: str = "clip",
    empty_rows: str = "skip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_cap: float | None = None,
    dual_clip: float | None = None,
    delta: float | None = None,
    max_length: int | None = None,
    beta: float = 0.0,
    kl_kind: str = "k3",
    unbiased_kl: bool = False,
    has_reference: bool = False,
    sync_every: int = 0,
    sync_alpha: float = 1.0,
    entropy_share: float = 1.0,
    off_policy_threshold: float | None = None,
    policy_coef: float = 1.0,
    estimator: str = "group",
    gamma: float = 1.0,
    kl_in: str = "loss",
    importance_level: str = "token",
    importance_cap: float | None = None,
    importance_low: float = 0.0,
    importance_high: float | None = None,
) -> None:
    """Raise one ValueError that lists everything in these rules that cannot be meant; a builder calls it once.

    `samples` is the group size G, `has_reference` whether the run has reference parameters, `sync_every` and
    `sync_alpha` what `sync_reference` gets, `entropy_share` what `top_entropy_mask` gets (1: no mask), and all
    others are arguments of `advantages` and `policy_loss` under their own names. singleton=None means that nobody
    chose: then one completion per prompt under a rule that compares completions is an error.
    """
    check(baseline=(baseline, BASELINES), scale=(scale, SCALES), kl_kind=(kl_kind, KINDS))
    check_names(level, aggregate, surrogate, empty_rows)
    if singleton is not None:
        check(singleton=(singleton, SINGLETONS))
    clip_of(surrogate, clip_low, clip_high, ratio_cap, dual_clip, delta)
    check_policy_coef(policy_coef)
    check_sync(sync_every, sync_alpha)
    check(estimator=(estimator, ESTIMATORS), kl_in=(kl_in, KL_PLACES), importance_level=(importance_level, LEVELS))
    found = [
        *group_problems(samples, baseline, scale, singleton, ddof),
        *reference_problems(beta, has_reference, sync_every, unbiased_kl),
        *bound_problems(aggregate, max_length, entropy_share, off_policy_threshold),
        *token_problems(estimator, gamma, kl_in, beta, unbiased_kl),
        *importance_problems(importance_cap, importance_low, importance_high),
    ]
    if found:
        raise ValueError("\n".join(found))


def group_problems(samples: int, baseline: str, scale: str, singleton: str | None, ddof: int) -> Iterator[str]:
    """What a group of so many completions cannot give."""
    if samples < 1:
        yield f"samples = {samples}: a prompt needs at least one completion"
    grouped = sorted({baseline, scale} & GROUPED)
    if samples == 1 and grouped and singleton is None:
        yield (
            f"samples = 1 with baseline={baseline!r}, scale={scale!r}: one completion has no group to be compared with."
            ' Raise samples, or take baseline="batch" and scale="batch", or choose singleton="raw" (the reward itself)'
            ' or "zero" (no signal)'
        )
    if ddof not in (0, 1):
        yield f"ddof = {ddof} must be 0 (divide the variance by n) or 1 (by n - 1)"


def reference_problems(beta: float, has_reference: bool, sync_every: int, unbiased_kl: bool) -> Iterator[str]:
    """What a KL term cannot do without."""
    if not beta >= 0:
        yield f"beta = {beta} must be >= 0: a negative weight pushes the policy away from its reference"
    if beta > 0 and not has_reference:
        yield f"beta = {beta} weighs a KL to a reference, but there are no reference parameters: give them, or beta=0"
    if unbiased_kl and not beta:
        yield "unbiased_kl = True corrects a KL that weighs nothing: give beta, or leave it out"
    if sync_every and not has_reference:
        yield f"sync_every = {sync_every} renews a reference, but there are no reference parameters"


def bound_problems(
    aggregate: str, max_length: int | None, entropy_share: float, off_policy_threshold: float | None
) -> Iterator[str]:
    """Numbers outside what they can mean."""
    if aggregate == "constant" and (max_length is None or max_length < 1):
        yield f'aggregate="constant" divides by rows x max_length; found max_length = {max_length}, want the limit'
    if not 0 < entropy_share <= 1:
        yield f"entropy_share = {entropy_share} of the tokens must lie in (0, 1]; 1 keeps them all"
    if off_policy_threshold is not None and not off_policy_threshold >= 0:
        yield f"off_policy_threshold = {off_policy_threshold} nats per token must be >= 0, or None for no mask"


def token_problems(estimator: str, gamma: float, kl_in: str, beta: float, unbiased_kl: bool) -> Iterator[str]:
    """What advantages of tokens, and a KL inside the reward, do not go with."""
    if not 0 < gamma <= 1:
        yield f"gamma = {gamma} must lie in (0, 1]: 1 does not discount"
    if gamma < 1 and estimator != "reinforce_pp":
        yield f"gamma = {gamma} discounts returns, which estimator={estimator!r} has not: take reinforce_pp, or gamma=1"
    if kl_in == "reward" and not beta:
        yield "kl_in='reward' takes beta x KL off the reward, but beta = 0: give beta, or leave kl_in out"
    if kl_in == "reward" and unbiased_kl:
        yield "unbiased_kl corrects a KL in the loss, and kl_in='reward' has none there: leave one of them out"


def importance_problems(cap: float | None, low: float, high: float | None) -> Iterator[str]:
    """Bounds of importance weights that keep nothing, or do nothing."""
    if cap is not None and not cap > 0:
        yield f"importance_cap = {cap} must be positive, or None for no weights (TIS takes 2)"
    if high is not None and not 0 <= low < high:
        yield f"importance_low = {low} and importance_high = {high} must be an interval, 0 <= low < high"
    if high is None and low:
        yield f"importance_low = {low} is the lower end of an interval: give importance_high, too"
