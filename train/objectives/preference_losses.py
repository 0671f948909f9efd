"""DPO and its kin as one loss of pairs: a form, and what of the log-probs it is applied to.

| paper                         | arguments                                                                |
|-------------------------------|--------------------------------------------------------------------------|
| DPO (2305.18290)              | the defaults                                                             |
| cDPO (Mitchell, 2023)         | smoothing=.1                                                             |
| robust DPO (2403.00409)       | loss="robust", smoothing=.1                                              |
| SLiC's hinge (2305.10425)     | loss="hinge"                                                             |
| IPO (2310.12036), as TRL      | loss="ipo", average=True                                                 |
| SimPO (2405.14734)            | reference=False, average=True, beta=2, margin=.5 (TRL's gamma)           |
| CPO (2401.08417)              | reference=False, nll=1                                                   |
| AlphaPO (2501.03884)          | SimPO with alpha=.25                                                     |
| ORPO (2403.07691)             | loss="orpo", reference=False, nll=1, nll_prompt=True                     |
| KTO (2402.01306)              | loss="kto", desirable, undesirable                                       |
| APO (2408.06266)              | loss="apo_zero", "apo_down", "apo_zero_unpaired"                         |
| EXO (2402.00856)              | loss="exo_pair", smoothing=.001                                          |
| NCA (2402.05369), BCO (2404.04656), SPPO (2405.00675) | loss="nca_pair", "bco_pair", "sppo_hard"         |
| AOT (2406.05882)              | loss="aot", "aot_unpaired"                                               |
| DiscoPOP (2406.08414)         | loss="discopop", beta=.05, tau=.05                                       |
| f-DPO (2309.16240)            | divergence="forward_kl", "js"                                            |
| LD-DPO (2409.06411)           | excess=.3                                                                |
| WPO (2406.11827)              | weighted=True                                                            |
| MPO (2411.10442)              | loss=("sigmoid", "bco_pair"), weights=(.8, .2), nll=1                    |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, Float, Shaped

from settings.preference import UNPAIRED, PreferenceLossConfig
from train.objectives.metrics import Metrics

Loss = tuple[jax.Array, jax.Array, Metrics]


class Side(NamedTuple):
    """The completions of one side of N pairs: log-probs per token [N, T] of the policy and (or None) the reference,
    `mask` [N, T] of the tokens that count; `log_sum_sq` [N, T], log of the sum over the vocabulary of p squared, for
    `weighted`.
    """

    logps: Float[Array, "N T"]
    mask: Shaped[Array, "N T"]
    ref_logps: Float[Array, "N T"] | None = None
    log_sum_sq: Float[Array, "N T"] | None = None


class Values(NamedTuple):
    """What a form is a function of, [N] each: log-ratios (or log-probs, without a reference) of chosen and rejected,
    those of the policy and of the reference, means over tokens of the policy's, and the KL of mismatched completions.
    """

    x: jax.Array
    y: jax.Array
    policy: tuple[jax.Array, jax.Array]
    reference: tuple[jax.Array, jax.Array]
    means: tuple[jax.Array, jax.Array]
    kl: jax.Array


def preference_loss(
    chosen: Side,
    rejected: Side,
    rules: PreferenceLossConfig,
    *,
    mismatched: Side | None = None,
    prompt_nll: tuple[jax.Array, jax.Array] | None = None,
) -> Loss:
    """The loss of N pairs as (total, count, metrics); total / count is to be minimised, and adds up over micro-batches.

    Counts are of pairs, of unpaired forms (KTO) of completions. `mismatched` are completions [M, T] of other prompts,
    for their KL; `prompt_nll` the sum of -log p of the chosen rows' prompts and its tokens, for `nll_prompt`. Metrics
    are TRL's: rewards (beta x log-ratio) and log-probs of both sides, margins, accuracies. Raises ValueError where what
    the rules need is missing.
    """
    _check_given(chosen, rejected, rules, mismatched, prompt_nll)
    values = _values(chosen, rejected, rules, mismatched)
    rows = sum(weight * FORMS[form](values, rules) for form, weight in zip(rules.loss, rules.form_weights, strict=True))
    assert isinstance(rows, jax.Array)
    if rules.weighted:
        rows = rows * stop_gradient(jnp.exp(_likelihood(chosen) + _likelihood(rejected)))
    count = jnp.asarray(rows.shape[0], rows.dtype)
    total, missed, tokens = rows.sum(), -_masked(chosen).sum(), chosen.mask.sum()
    metrics: Metrics = {}
    if rules.nll:
        if rules.nll_prompt and prompt_nll is not None:
            missed, tokens = missed + prompt_nll[0], tokens + prompt_nll[1]
        total = total + count * rules.nll * missed / jnp.maximum(tokens, 1)
        metrics["nll"] = (missed, tokens)
    return total, count, stop_gradient(metrics | pair_metrics(values, rules, chosen, rejected))


def pair_metrics(values: Values, rules: PreferenceLossConfig, chosen: Side, rejected: Side) -> Metrics:
    """Rewards and log-probs of both sides, and how often the better one has the higher reward."""
    n = jnp.asarray(len(values.x), values.x.dtype)
    better, worse = rules.beta * values.x, rules.beta * values.y
    named = {
        "rewards/chosen": better,
        "rewards/rejected": worse,
        "rewards/accuracies": (better > worse).astype(better.dtype),
        "rewards/margins": better - worse,
        "logps/chosen": _masked(chosen).sum(1),
        "logps/rejected": _masked(rejected).sum(1),
    }
    return {name: (value.sum(), n) for name, value in named.items()}


def smoothed(margin: jax.Array, smoothing: float) -> jax.Array:
    """-(1 - e) log sigmoid(m) - e log sigmoid(-m): the negative log-likelihood where a share e of pairs is reversed."""
    return -(1 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin)


def _difference(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    return rules.beta * (values.x - values.y) - rules.margin


def _sigmoid(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    return smoothed(_difference(values, rules), rules.smoothing)


def _robust(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    margin, e = _difference(values, rules), rules.smoothing
    return (-(1 - e) * log_sigmoid(margin) + e * log_sigmoid(-margin)) / (1 - 2 * e)


def _hinge(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    return jnp.maximum(0, 1 - _difference(values, rules))


def _ipo(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    return (values.x - values.y - 1 / (2 * rules.beta)) ** 2


def _exo_pair(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    margin, e = _difference(values, rules), rules.smoothing
    right = sigmoid(margin) * (log_sigmoid(margin) - math.log1p(-e))
    return right + sigmoid(-margin) * (log_sigmoid(-margin) - math.log(e))


def _nca_pair(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    x, y = rules.beta * values.x, rules.beta * values.y
    return -log_sigmoid(x) - 0.5 * log_sigmoid(-x) - 0.5 * log_sigmoid(-y)


def _bco_pair(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    return -log_sigmoid(rules.beta * values.x) - log_sigmoid(-rules.beta * values.y)


def _sppo_hard(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    half = 1 / (2 * rules.beta)
    return (values.x - half) ** 2 + (values.y + half) ** 2


def _apo_zero(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    return 1 - sigmoid(rules.beta * values.x) + sigmoid(rules.beta * values.y)


def _apo_down(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    return sigmoid(rules.beta * values.x) + 1 - sigmoid(_difference(values, rules))


def _aot(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    """Sorted differences of the policy against sorted ones of the reference."""
    (p, q), (ref_p, ref_q) = values.policy, values.reference
    return smoothed(rules.beta * (jnp.sort(p - q) - jnp.sort(ref_p - ref_q)), rules.smoothing)


def _aot_unpaired(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    return smoothed(rules.beta * (jnp.sort(values.x) - jnp.sort(values.y)), rules.smoothing)


def _discopop(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    margin = _difference(values, rules)
    mix = sigmoid(margin / rules.tau)
    return -(1 - mix) * log_sigmoid(margin) + mix * jnp.exp(-margin)


def _orpo(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    """-beta log sigmoid of the log-odds ratio of mean log-probs."""
    p, q = values.means
    return -rules.beta * log_sigmoid((p - q) - (log1mexp(p) - log1mexp(q)))


def _kto(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    gained = rules.desirable * (1 - sigmoid(rules.beta * (values.x - values.kl)))
    lost = rules.undesirable * (1 - sigmoid(rules.beta * (values.kl - values.y)))
    return jnp.concatenate([gained, lost])


def _apo_zero_unpaired(values: Values, rules: PreferenceLossConfig) -> jax.Array:
    gained = rules.desirable * (1 - sigmoid(rules.beta * values.x))
    return jnp.concatenate([gained, rules.undesirable * sigmoid(rules.beta * values.y)])


FORMS: dict[str, Callable[[Values, PreferenceLossConfig], jax.Array]] = {
    "sigmoid": _sigmoid,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "discopop": _discopop,
    "orpo": _orpo,
    "kto": _kto,
    "apo_zero_unpaired": _apo_zero_unpaired,
}


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) of x < 0, exact near 0 and far from it."""
    near = x > -math.log(2)
    close, far = jnp.where(near, x, -1.0), jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(close)), jnp.log1p(-jnp.exp(far)))


def _values(chosen: Side, rejected: Side, rules: PreferenceLossConfig, mismatched: Side | None) -> Values:
    if rules.excess < 1:
        shorter = jnp.minimum(chosen.mask.sum(1), rejected.mask.sum(1))
        chosen, rejected = (_cut(side, shorter, rules.excess) for side in (chosen, rejected))
    sides = (chosen, rejected)
    policy = tuple(_sequence(side.logps, side.mask, rules.average) for side in sides)
    reference = tuple(
        jnp.zeros_like(logps) if side.ref_logps is None else _sequence(side.ref_logps, side.mask, rules.average)
        for side, logps in zip(sides, policy, strict=True)
    )
    ratios: Any = policy
    if rules.alpha:
        ratios = [(1 - jnp.exp(-rules.alpha * p)) / rules.alpha for p in policy]
    elif rules.reference:
        ratios = [_bent(p - ref, rules.divergence) for p, ref in zip(policy, reference, strict=True)]
    kl = jnp.zeros((), policy[0].dtype)
    if mismatched is not None and mismatched.ref_logps is not None:
        apart = _masked(mismatched).sum(1) - jnp.where(mismatched.mask > 0, mismatched.ref_logps, 0).sum(1)
        kl = stop_gradient(jnp.maximum(apart.mean(), 0))
    means = tuple(_sequence(side.logps, side.mask, True) for side in sides)
    x, y = ratios
    return Values(x, y, (policy[0], policy[1]), (reference[0], reference[1]), (means[0], means[1]), kl)


def _sequence(logps: jax.Array, mask: jax.Array, average: bool) -> jax.Array:
    """The sum, or mean, over the tokens of each completion; what stands where the mask is 0 changes nothing."""
    total = (jnp.where(mask > 0, logps, 0) * mask).sum(1)
    return total / jnp.maximum((mask > 0).sum(1), 1) if average else total


def _bent(ratio: jax.Array, divergence: str) -> jax.Array:
    """The derivative of an f-divergence where the log-ratio is `ratio` (2309.16240, table 1), up to constants."""
    if divergence == "forward_kl":
        return 1 - jnp.exp(-ratio)
    return math.log(2) + log_sigmoid(ratio) if divergence == "js" else ratio


def _cut(side: Side, length: jax.Array, weight: float) -> Side:
    """The side with its tokens beyond the first `length` [N] weighted, of policy and reference alike."""
    place = jnp.cumsum(side.mask > 0, 1)
    return side._replace(mask=side.mask * jnp.where(place > length[:, None], weight, 1.0))


def _likelihood(side: Side) -> jax.Array:
    """How likely a completion is beside what the policy would say there: the mean of log p - log sum p squared."""
    assert side.log_sum_sq is not None
    return _sequence(side.logps - side.log_sum_sq, side.mask, True)


def _masked(side: Side) -> jax.Array:
    return jnp.where(side.mask > 0, side.logps, 0)


def _check_given(
    chosen: Side, rejected: Side, rules: PreferenceLossConfig, mismatched: Side | None, prompt_nll: Any
) -> None:
    needs = {
        "ref_logps": rules.reference and (chosen.ref_logps is None or rejected.ref_logps is None),
        "log_sum_sq": rules.weighted and (chosen.log_sum_sq is None or rejected.log_sum_sq is None),
        "mismatched completions": "kto" in rules.loss and mismatched is None,
        "prompt_nll": rules.nll_prompt and prompt_nll is None,
    }
    missing = [name for name, absent in needs.items() if absent]
    if missing:
        raise ValueError(f"loss={rules.loss} with {dataclasses.asdict(rules)} needs {', '.join(missing)}; found None")


assert set(UNPAIRED) <= set(FORMS)
