"""The diagnosis of a run: says in words, with the number and what to try, what would make it learn nothing.

Whoever runs the loop keeps two things: the records so far (one per step, each the merged metrics of rollout and
update, as in metrics.jsonl) and what has been said.

    history = remember(history, {**rollout_metrics, **update_metrics})
    found = diagnose(history, said)
    said |= found.keys()
    for sentence in found.values():
        say(sentence)

A check whose metrics are missing is silent, so records may hold what a run has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence

Record = Mapping[str, float]
History = Sequence[Record]

FIRST = 5  # records of the start that later ones are compared with
LATEST = 5  # records that "now" is the mean of
PERSISTS = 3  # records in a row that make a habit
TEACHER = "teacher/kl"  # in records of runs that learn from a teacher's opinion of every token, whatever the rewards


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Where each check begins to speak: shares of what the run began with, or absolute values."""

    entropy_fall: float = 0.1  # entropy now / at the start
    mastered: float = 0.75  # mean score from which on a low entropy is no fault
    entropy_rise: float = 3.0
    kl: float = 1.0  # nats per token
    gap: float = 0.5  # largest |sampler - trainer| log-prob of a token, in nats; 1e-3 is reached in float32
    clipped: float = 0.3  # share of the tokens
    all_right: float = 0.9  # share of the groups
    dominance: float = 0.9  # one reward's share of the standard deviations of all
    unique: float = 0.2  # distinct completions per prompt / completions per prompt
    length_fall: float = 0.2  # mean length now / at the start


Check = Callable[[History, Bounds], str | None]


def remember(history: History, record: Record) -> list[Record]:
    """The history with one more record, thinned to what the checks read: the first FIRST and the last 2 x LATEST."""
    longer = [*history, record]
    return longer if len(longer) <= FIRST + 2 * LATEST else [*longer[:FIRST], *longer[-2 * LATEST :]]


def diagnose(history: History, said: Collection[str] = (), bounds: Bounds = Bounds()) -> dict[str, str]:
    """Sentences about the records so far, by the check's name, without those in `said`; the newest record is last."""
    found = {name: check(history, bounds) for name, check in CHECKS.items() if name not in said and history}
    return {name: sentence for name, sentence in found.items() if sentence}


def complaints(history: History) -> list[str]:
    """The sentences that the last record brought, hence none that was due before it."""
    said = {name for n in range(1, len(history)) for name in diagnose(history[:n])}
    return list(diagnose(history, said).values())


def last(history: History, name: str, count: int = 1) -> list[float]:
    """The finite values of a metric in the last `count` records, [] unless all of them have one."""
    values = [record.get(name, math.nan) for record in history[-count:]]
    return values if len(values) == count and all(map(math.isfinite, values)) else []


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)


def then_and_now(history: History, name: str) -> tuple[float, float] | None:
    """Means of a metric over the first FIRST and the last LATEST records; None where they overlap or it is missing."""
    begun, now = last(history[:FIRST], name, FIRST), last(history, name, LATEST)
    return (mean(begun), mean(now)) if begun and now and len(history) >= FIRST + LATEST else None


def cut(history: History, bounds: Bounds) -> str | None:
    """No completion ended by itself."""
    if last(history, "completions/clipped_ratio") != [1]:
        return None
    return (
        "every completion was cut at max_new_tokens and none ended by itself: raise rl.max_new_tokens, or check"
        " that the demonstrations ended with the end token and that the prompt template is the one trained on"
    )


def endless(history: History, bounds: Bounds) -> str | None:
    """No completion had an end token."""
    if last(history, "completions/eos_rate") != [0]:
        return None
    return "no end token was seen in any completion: the model may never learn when to stop"


def constant(history: History, bounds: Bounds) -> str | None:
    """No group had two different rewards, and no teacher judged the tokens."""
    if TEACHER in history[-1] or set(last(history, "frac_reward_zero_std", PERSISTS)) != {1}:
        return None
    return "in three rollouts every group had equal rewards, so every advantage is zero and nothing is learned"


def unrewarded(history: History, bounds: Bounds) -> str | None:
    """No completion had a reward, and no teacher judged the tokens."""
    if TEACHER in history[-1] or set(last(history, "reward", PERSISTS)) != {0}:
        return None
    return (
        "in three rollouts no completion was rewarded: the task is too hard for this model, or its answers are not"
        " in the form the verifier reads (see samples.jsonl for the reasons)"
    )


def saturated(history: History, bounds: Bounds) -> str | None:
    """Nearly all groups are all right."""
    shares = last(history, "groups/all_right", PERSISTS)
    if not shares or min(shares) < bounds.all_right:
        return None
    rewards = last(history, "reward", PERSISTS)
    reward = f" (mean reward {mean(rewards):.3g})" if rewards else ""
    return (
        f"the reward is saturated: in the last {PERSISTS} rollouts {mean(shares):.0%} of the groups were all right"
        f"{reward}, and these teach nothing: take harder prompts, replace such groups by new ones, or stop here"
    )


def entropy_collapse(history: History, bounds: Bounds) -> str | None:
    """The policy has become nearly deterministic."""
    found, right = then_and_now(history, "entropy"), last(history, "score")
    # Who mostly answers right may be sure: then the fall is what was wanted.
    if found is None or not 0 <= found[1] < bounds.entropy_fall * found[0] or (right and right[0] >= bounds.mastered):
        return None
    return (
        f"entropy fell from {found[0]:.3g} to {found[1]:.3g} nats per token, so samples of a prompt will soon be alike:"
        " try a higher rl.clip_high, a small rl.entropy_coef, a lower learning rate or a higher temperature"
    )


def entropy_rise(history: History, bounds: Bounds) -> str | None:
    """The policy drifts to noise."""
    found = then_and_now(history, "entropy")
    if found is None or found[1] <= bounds.entropy_rise * found[0] or found[1] < 0.1:
        return None
    return (
        f"entropy rose from {found[0]:.3g} to {found[1]:.3g} nats per token, towards noise: try a lower learning rate,"
        " a smaller rl.entropy_coef or a KL to the reference (rl.beta)"
    )


def kl_blow_up(history: History, bounds: Bounds) -> str | None:
    """The policy has left its reference."""
    values = last(history, "kl", PERSISTS)
    if not values or min(values) <= bounds.kl:
        return None
    return (
        f"the KL to the reference is {mean(values):.3g} nats per token, above {bounds.kl:g}: try a lower learning rate,"
        " a larger rl.beta, or a reference that is renewed from time to time"
    )


def sampler_gap(history: History, bounds: Bounds) -> str | None:
    """Sampler and trainer disagree about the very same tokens."""
    value = last(history, "sampling/sampling_logp_difference/max")
    if not value or value[0] <= bounds.gap:
        return None
    return (
        f"sampler and trainer differ by {value[0]:.3g} nats on a token, above {bounds.gap:g}, which biases every ratio:"
        " check that both use one precision, temperature and depth and no top-k or top-p, or weigh the tokens by"
        " importance_weights"
    )


def clipped(history: History, bounds: Bounds) -> str | None:
    """The clip holds back much of the batch."""
    values = last(history, "clip_ratio/region_mean", PERSISTS)
    if not values or min(values) <= bounds.clipped:
        return None
    return (
        f"the clip holds back {mean(values):.0%} of the tokens, above {bounds.clipped:.0%}: try a lower learning rate"
        " or fewer updates per rollout"
    )


def dominance(history: History, bounds: Bounds) -> str | None:
    """One of several rewards makes nearly all of the differences between completions."""
    names = [key for key in history[-1] if key.startswith("rewards/") and key.endswith("/std")]
    spreads = {key: mean(values) for key in names if (values := last(history, key, PERSISTS))}
    total = sum(spreads.values())
    if len(spreads) < 2 or total <= 0:
        return None
    key, spread = max(spreads.items(), key=lambda item: item[1])
    if spread < bounds.dominance * total:
        return None
    return (
        f"the reward {key.split('/')[1]!r} makes {spread / total:.0%} of the spread of all {len(spreads)} rewards"
        f" (standard deviation {spread:.3g}), so the others hardly move an advantage: change the weights, or drop them"
    )


def timeouts(history: History, bounds: Bounds) -> str | None:
    """The verifier ran out of time."""
    value = last(history, "verify/timeouts")
    if not value or value[0] <= 0:
        return None
    return (
        f"the verifier ran out of time on {value[0]:g} answers of this rollout, which score 0: look for reason"
        ' "timeout" in samples.jsonl, and raise the time limit if these answers are honest'
    )


def alike(history: History, bounds: Bounds) -> str | None:
    """The completions of a prompt repeat each other."""
    values = last(history, "completions/unique_ratio", PERSISTS)
    if not values or max(values) >= bounds.unique:
        return None
    return (
        f"only {mean(values):.0%} of a prompt's completions are distinct, so groups compare equals: try a higher"
        " temperature or an entropy bonus (rl.entropy_coef)"
    )


def shrunk(history: History, bounds: Bounds) -> str | None:
    """Completions have become very short."""
    found = then_and_now(history, "completions/mean_length")
    if found is None or found[1] >= bounds.length_fall * found[0]:
        return None
    return (
        f"completions shrank from {found[0]:.3g} to {found[1]:.3g} tokens on average: the reward may pay for answers"
        " without reasoning (read samples.jsonl), or aggregate and length penalties favour short ones"
    )


def skipped(history: History, bounds: Bounds) -> str | None:
    """Updates were not finite."""
    value = last(history, "skipped")
    if not value or value[0] <= 0:
        return None
    return (
        f"{value[0]:g} updates so far were not finite and were skipped: try a lower learning rate, gradient clipping or"
        " float32"
    )


CHECKS: dict[str, Check] = {
    "cut": cut,
    "endless": endless,
    "constant": constant,
    "unrewarded": unrewarded,
    "saturated": saturated,
    "entropy_collapse": entropy_collapse,
    "entropy_rise": entropy_rise,
    "kl_blow_up": kl_blow_up,
    "sampler_gap": sampler_gap,
    "clipped": clipped,
    "dominance": dominance,
    "timeouts": timeouts,
    "alike": alike,
    "shrunk": shrunk,
    "skipped": skipped,
}
