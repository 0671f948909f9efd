"""The rules of a policy-optimisation run, as the rollout and its source are given them."""

import dataclasses

from settings.rl import RLConfig


@dataclasses.dataclass(frozen=True)
class RolloutRules(RLConfig):
    """How to sample and how to score: the settings `rl`, and the text that ends an answer."""

    stop: tuple[str, ...] = ()

    @property
    def weighs_tokens(self) -> bool:
        """Whether tokens have importance weights: a cap or an interval was asked for."""
        return self.importance_cap is not None or self.importance_high is not None

    @property
    def by_token(self) -> bool:
        """Whether every token has an advantage of its own."""
        return self.estimator != "group" or bool(self.teacher)

    @property
    def ordered(self) -> bool:
        """Whether the rows of an update come in an order that makes micro-batches of a kind, for its plan to find."""
        return self.share_prompts or self.widths > 1
