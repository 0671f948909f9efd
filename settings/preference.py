"""The settings `preference` and `reward`: what is learnt from pairs of a better and a worse completion."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from settings.setting import check, setting, unknown

FORMS = (
    *("sigmoid", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"),
    *("aot", "aot_unpaired", "discopop", "orpo", "kto", "apo_zero_unpaired"),
)
UNPAIRED = ("kto", "apo_zero_unpaired")  # every completion stands alone, against the KL of mismatched ones
WHOLE_BATCH = ("aot", "aot_unpaired", *UNPAIRED)  # their pairs depend on each other
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")
DIVERGENCES = ("reverse_kl", "forward_kl", "js")


@dataclasses.dataclass(frozen=True)
class PreferenceLossConfig:
    """The keywords of `train.objectives.preference_losses.preference_loss`; docs/preferences.md has papers' values."""

    loss: tuple[str, ...] = setting(("sigmoid",), "the form, or several that are added", choices=FORMS)
    weights: tuple[float, ...] = setting((), "of the forms, where there are several; (): 1 each")
    beta: float = setting(0.1, "multiplies log-ratios", above=0)
    reference: bool = setting(True, "log-probs are compared with those of the model the run starts from")
    average: bool = setting(False, "log-probs are means over tokens, not sums")
    margin: float = setting(0.0, "taken off beta x the difference (gamma of SimPO)", low=0)
    smoothing: float = setting(0.0, "share of pairs that are taken to be the wrong way round", low=0, high=0.5)
    divergence: str = setting("reverse_kl", "what the log-ratio is a function of (f-DPO)", choices=DIVERGENCES)
    tau: float = setting(0.05, "temperature of discopop's mixture", above=0)
    excess: float = setting(1.0, "weight of tokens beyond the shorter side's length (LD-DPO)", low=0, high=1)
    alpha: float = setting(0.0, "mean log-probs p become (1 - exp(-alpha p)) / alpha; 0: stay (AlphaPO)")
    weighted: bool = setting(False, "pairs count as likely as the policy finds them (WPO)")
    nll: float = setting(0.0, "weight of the mean -log p of the chosen completions' tokens", low=0)
    nll_prompt: bool = setting(False, "that mean takes in the prompts' tokens (ORPO)")
    desirable: float = setting(1.0, "weight of chosen completions in unpaired forms", low=0)
    undesirable: float = setting(1.0, "weight of rejected completions in unpaired forms", low=0)

    def __post_init__(self) -> None:
        check(self, "preference.", self.loss_faults())

    def loss_faults(self) -> Iterator[str]:
        """Forms that do not go together, and settings that would do nothing."""
        if not self.loss:
            yield unknown("preference.loss", self.loss, FORMS)
        if self.weights and len(self.weights) != len(self.loss):
            yield f"preference.weights has {len(self.weights)} entries for {len(self.loss)} forms of preference.loss"
        unpaired = [form for form in self.loss if form in UNPAIRED]
        if unpaired and len(self.loss) > 1:
            yield f"preference.loss={self.loss}: {unpaired[0]} counts completions, others count pairs: take it alone"
        for form in self.loss:
            if form in ("orpo", "aot", *UNPAIRED) and self.reference == (form == "orpo"):
                need = "has no reference" if form == "orpo" else "needs a reference"
                yield f"preference.loss={form!r} {need}: set preference.reference={form != 'orpo'}"
        if self.smoothing and not set(self.loss) & set(SMOOTHED):
            yield f"preference.smoothing={self.smoothing} acts on {', '.join(SMOOTHED)}, found loss={self.loss}"
        if "exo_pair" in self.loss and not self.smoothing:
            yield "preference.loss='exo_pair' takes the logarithm of preference.smoothing: give it, such as .001"
        if "robust" in self.loss and self.smoothing == 0.5:
            yield "preference.loss='robust' divides by 1 - 2 smoothing: preference.smoothing must be below .5"
        if self.divergence != "reverse_kl" and not self.reference:
            yield f"preference.divergence={self.divergence!r} is to a reference: set preference.reference=True"
        if self.alpha and not self.average:
            yield f"preference.alpha={self.alpha} acts on means over tokens: set preference.average=True"
        if self.nll_prompt and not self.nll:
            yield "preference.nll_prompt=True adds prompts to a term without weight: give preference.nll"

    @property
    def form_weights(self) -> tuple[float, ...]:
        """A weight for each form."""
        return self.weights or (1.0,) * len(self.loss)

    @property
    def rows_per_pair(self) -> int:
        """Completions that a pair has in a batch: both sides, and for unpaired forms two that answer other prompts."""
        return 4 if set(self.loss) & set(UNPAIRED) else 2


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """How pairs become rows: completions beside the prompts that they continue."""

    prompt_length: int = setting(0, "tokens of a prompt, at most; 0: half of data.length", low=0)
    share_prompts: bool = setting(True, "both sides of a pair read its prompt once, where the cache has a gradient")
    widths: int = setting(4, "widths of micro-batches, at most, so that an update leaves empty columns out", low=1)


@dataclasses.dataclass(frozen=True)
class PreferenceConfig(PairConfig, PreferenceLossConfig):
    """DPO (2305.18290) and its kin, for algorithm=preference; docs/preferences.md."""


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(PairConfig):
    """Models that score, for algorithm=reward (texts, from pairs) and algorithm=process_reward (steps, from labels)."""

    margins: bool = setting(True, "pairs that say by how much one side is better must differ by that much")
    center: float = setting(0.0, "weight of the squared sum of both scores, which keeps them around 0", low=0)
    separator: str = setting("\n", "what ends a step; its last token is the one that is scored")
    last_step_only: bool = setting(False, "learn from the last step's label alone")

    def __post_init__(self) -> None:
        check(self, "reward.")


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Distances from a teacher's distributions (`train.objectives.distillation_losses`), for algorithm=distill."""

    teacher: str = setting("", "a run directory or Hub folder, with the student's vocabulary", reference=True)
    beta: float = setting(0.0, "0: forward KL, 1: reverse KL, between: generalised Jensen-Shannon", low=0, high=1)
    temperature: float = setting(1.0, "of both distributions", above=0)
    top_k: int = setting(0, "learn from the teacher's likeliest tokens alone; 0: from the whole vocabulary", low=0)
    tail: bool = setting(True, "with top_k all other tokens are one more; else probabilities are renormalised")
    hard: float = setting(0.0, "weight of the cross entropy of the demonstrations besides", low=0)

    def __post_init__(self) -> None:
        check(self, "distill.", self.distill_faults())

    def distill_faults(self) -> Iterator[str]:
        """What is known of a teacher by its top k tokens does not tell."""
        if self.top_k and self.beta == 1:
            yield (
                "distill.top_k keeps the teacher's likeliest tokens, and beta=1 weighs by the student's, which may"
                " be others: take beta below 1, or top_k=0"
            )
        if self.top_k and self.temperature != 1:
            yield f"distill.top_k keeps log-probs of temperature 1, found distill.temperature={self.temperature}"
