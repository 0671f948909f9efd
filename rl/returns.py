"""Rewards per token: where a completion's reward stands, KL taken off it, and advantages made of such rewards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Shaped

from rl.advantages import VARIANCE_EPSILON, advantages, whiten
from rl.kl import kl
from rl.masks import masked
from settings.rl import AdvantageConfig, RLConfig


def estimate(
    rewards: jax.Array,
    mask: jax.Array,
    rules: RLConfig,
    *,
    old_logps: jax.Array | None = None,
    ref_logps: jax.Array | None = None,
    finished: np.ndarray | None = None,
) -> jax.Array:
    """Advantages of a rollout's rewards [P, G], mask [P x G, T]: [P x G] by "group", else per token [P x G, T].

    Of the `rules`: `kl_in` "reward" takes `beta` x k1 of every token off the rewards first, from old_logps and
    ref_logps [P x G, T]; `gamma` discounts the returns of "reinforce_pp"; `unfinished` is what becomes of rows that are
    not `finished` [P x G]; the others are those of `advantages`. Raises ValueError for missing log-probs. Sources: the
    functions below.
    """
    by_token = reward_at_end(rewards.reshape(-1), mask)
    if rules.kl_in == "reward":
        if old_logps is None or ref_logps is None:
            raise ValueError('kl_in="reward" needs old_logps and ref_logps, the log-probs of policy and reference')
        by_token = kl_in_reward(rewards.reshape(-1), old_logps, ref_logps, mask, beta=rules.beta)
        rewards = by_token.sum(1).reshape(rewards.shape)
    spread: dict[str, Any] = {"ddof": rules.ddof, "epsilon": rules.epsilon}
    if rules.estimator == "reinforce_pp":
        gains = reinforce_pp(by_token, mask, gamma=rules.gamma, **spread)
    elif rules.estimator == "reinforce_pp_baseline":
        gains = reinforce_pp_baseline(rewards, mask, singleton=rules.singleton, **spread)
    else:
        gains = group_advantages(rewards, rules, finished)
    if finished is None or rules.unfinished == "learn":
        return gains
    return jnp.where(finished if gains.ndim == 1 else finished[:, None], gains, 0)


def group_advantages(rewards: jax.Array, rules: RLConfig, finished: np.ndarray | None) -> jax.Array:
    """`advantages` of rewards [P, G] as [P x G]; where rows that are not `finished` [P x G] are left out, those of the
    others among themselves, and 0 for one that is alone.
    """
    rule: dict[str, Any] = {name: getattr(rules, name) for name in ("baseline", "scale", "ddof", "epsilon")}
    if finished is None or rules.unfinished != "leave_out":
        return advantages(rewards, **rule, singleton=rules.singleton).reshape(-1)
    rows, gains = np.flatnonzero(finished), jnp.zeros(rewards.size)
    if not len(rows):
        return gains
    group_of = np.repeat(np.arange(len(rewards)), rewards.shape[1])[rows]
    return gains.at[rows].set(advantages(rewards.reshape(-1)[rows], group_of, **rule, singleton="zero"))


def reward_at_end(rewards: Shaped[Array, " N"], mask: Shaped[Array, "N T"]) -> Shaped[Array, "N T"]:
    """Rewards [N] put on the last valid token of their rows, 0 elsewhere: [N, T].

    The reward of a row without a token is lost, for no token could be made better by it.
    """
    columns = jnp.arange(mask.shape[1])
    last = jnp.max(jnp.where(mask > 0, columns, -1), axis=1, keepdims=True)
    return jnp.where(columns == last, rewards[:, None], 0)


def kl_in_reward(
    rewards: Float[Array, " N"],
    logps: Float[Array, "N T"],
    ref_logps: Float[Array, "N T"],
    mask: Shaped[Array, "N T"],
    *,
    beta: float,
    kind: str = "k1",
) -> Float[Array, "N T"]:
    """Rewards [N] at the last token, less beta x KL(policy || reference) of every valid token: [N, T], constant.

    logps: those of the policy that sampled, ref_logps: the reference's, all [N, T]; `kind` is one of `rl.kl`. k1
    is the usual choice here: as a reward it is unbiased and its gradient is right, which as a loss it is not.
    REINFORCE++ takes the returns of these; RLOO's reward of a row is their sum over the row. Sources: REINFORCE++
    (2501.03262); RLOO (2402.14740); beta .05 is TRL's default for RLOO.
    """
    valid = mask > 0
    penalty = kl(masked(logps, valid), masked(ref_logps, valid), kind)
    return stop_gradient(reward_at_end(rewards, mask) - beta * masked(penalty, valid))


def returns_to_go(
    rewards: Float[Array, "N T"], mask: Shaped[Array, "N T"], gamma: float = AdvantageConfig.gamma
) -> Float[Array, "N T"]:
    """Each valid token's reward and all later ones of its row, discounted by gamma per valid token: [N, T].

    rewards and mask [N, T]; 0 where mask is 0, and what stands there is passed over: tokens of a tool inside a
    completion neither earn nor discount (verl forgets the later rewards there; on completions without holes the
    two are the same).
    """

    def earlier(later: jax.Array, token: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, valid = token
        total = jnp.where(valid, reward + gamma * later, later)
        return total, jnp.where(valid, total, 0)

    by_column = (rewards.T, mask.T > 0)
    return jax.lax.scan(earlier, jnp.zeros_like(rewards[:, 0]), by_column, reverse=True)[1].T


def reinforce_pp(
    rewards: Float[Array, "N T"],
    mask: Shaped[Array, "N T"],
    *,
    gamma: float = AdvantageConfig.gamma,
    ddof: int = AdvantageConfig.ddof,
    epsilon: float = VARIANCE_EPSILON,
) -> Float[Array, "N T"]:
    """REINFORCE++ advantages [N, T]: the returns of per-token rewards [N, T], whitened over all valid tokens.

    No baseline and no groups; rewards come from `kl_in_reward` or `reward_at_end`. The whitening is to see the
    global batch, hence before it is cut into micro-batches; long rows weigh more in it. Source: REINFORCE++
    (2501.03262); gamma 1.
    """
    return whiten(returns_to_go(rewards, mask, gamma), mask, ddof=ddof, epsilon=epsilon)


def reinforce_pp_baseline(
    rewards: jax.Array,
    mask: jax.Array,
    *,
    singleton: str = AdvantageConfig.singleton,
    ddof: int = AdvantageConfig.ddof,
    epsilon: float = VARIANCE_EPSILON,
) -> jax.Array:
    """Rewards [P, G] less their group's mean, whitened over all valid tokens of mask [P x G, T]: [P x G, T].

    What TRL and OpenRLHF whiten over rows (`advantages(scale="whiten")`) verl whitens over tokens, as here, so
    that long rows weigh more. Raises ValueError when mask has not P x G rows. Source: REINFORCE++ (2501.03262),
    the form with a baseline.
    """
    if mask.shape[0] != rewards.size:
        raise ValueError(f"rewards of shape {rewards.shape} need a mask of {rewards.size} rows, found {mask.shape[0]}")
    centred = advantages(rewards, scale="none", singleton=singleton).reshape(-1, 1)
    return whiten(jnp.broadcast_to(centred, mask.shape), mask, ddof=ddof, epsilon=epsilon)
