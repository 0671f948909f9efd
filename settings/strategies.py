"""Compute at test time: the strategies by name, and what each of them may be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from settings.setting import check, setting, unknown

UNITS = ("tokens", "iterations")
SCORERS = ("logp", "mean_logp", "self_certainty", "verifier", "reward")
PARTIAL_SCORERS = ("logp", "mean_logp", "verifier", "reward")
WEIGHTS = ("", "logp", "mean_logp", "self_certainty", "reward")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Plain sampling: every sample is an answer.

    What all strategies share is how long a sample thinks (budget forcing, s1, 2501.19393).
    """

    max_thinking: int = setting(0, "own tokens of a thought after which its end is forced; 0: no limit", low=0)
    waits: int = setting(0, "times that --wait takes the place of the end of a thought", low=0)
    delimiters: str = setting("think", "around a thought: think, opened (by the prompt), s1, or task (the task's own)")
    wait: str = setting("Wait", "what is forced where a thought would end too early")
    unit: str = setting("tokens", "of max_thinking: tokens, or iterations of a recurrent model", choices=UNITS)

    def __post_init__(self) -> None:
        check(self, "", self.option_faults())

    def option_faults(self) -> Iterator[str]:
        """What its options have against one another."""
        yield from ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(Sample):
    """Budget forcing: plain sampling whose thoughts are cut at a maximum, or made to go on (s1, section 3.1)."""

    def option_faults(self) -> Iterator[str]:
        """A budget that forces nothing."""
        if not (self.max_thinking or self.waits):
            yield "strategy budget forces nothing, for max_thinking=0 is no limit: set max_thinking, waits or both"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Majority(Sample):
    """The answer that most samples come to (self-consistency, 2203.11171)."""

    weights: str = setting("", "what a vote weighs: 1 (empty), or a score of its sample", choices=WEIGHTS)
    at_once: int = setting(0, "samples a question drawn at a time, until its vote cannot change; 0: all", low=0)

    def option_faults(self) -> Iterator[str]:
        """Weights that are known only at the end."""
        if self.at_once and self.weights:
            yield f"at_once={self.at_once} stops votes of equal weight; leave weights={self.weights!r} out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN(Sample):
    """The sample with the best score."""

    scorer: str = setting("mean_logp", "what scores a sample", choices=SCORERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clusters(Sample):
    """The program whose outputs on generated inputs most others share (o1-ioi, 2502.06807; AlphaCode, 2203.07814)."""

    inputs: int = setting(32, "generated for a question", low=1)
    errors: float = setting(1.0, "taken from a program's score if it fails on all of them", low=0)
    public: float = setting(10.0, "taken from a program's score if it fails the tests that the prompt shows", low=0)
    size: float = setting(
        1.0, "given to a cluster that holds all samples; 0: clusters count by their mean score", low=0
    )
    scorer: str = setting("", "what else scores a program; empty: nothing", choices=("", *SCORERS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection(Sample):
    """Samples until an answer has at most so many tokens (the baseline of s1, section 3.2)."""

    longest: int = setting(64, "tokens of an answer that is kept", low=1)
    attempts: int = setting(16, "samples a question, at most; the shortest answers where none is kept", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenConditional(Sample):
    """The prompt says how many tokens a thought may have (a baseline of s1, section 3.2)."""

    bound: int = setting(256, "tokens that the prompt names", low=1)
    instruction: str = setting("Think for up to {bound} tokens.\n", "what stands before the question")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConditional(TokenConditional):
    """The prompt says how many steps a thought may have (a baseline of s1, section 3.2)."""

    tokens_per_step: int = setting(100, "tokens that are taken for one step", low=1)
    instruction: str = setting("Think for up to {steps} steps.\n", "what stands before the question")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassConditional(Sample):
    """The prompt asks in general words for a short or a long thought (a baseline of s1, section 3.2)."""

    length: str = setting("short", "of the thought", choices=("short", "long"))
    short: str = setting("Answer after a short amount of thinking.\n", "what stands before the question")
    long: str = setting("Answer after a long amount of thinking.\n", "what stands before the question")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam(Sample):
    """Beam search over steps: the best partial answers go on, each in several ways."""

    width: int = setting(4, "partial answers kept", low=1)
    expand: int = setting(2, "ways in which each goes on", low=1)
    separator: str = setting("\n", "what ends a step")
    step_tokens: int = setting(32, "tokens of a step, at most", low=1)
    lookahead: int = setting(0, "further tokens drawn greedily, for the score alone (lookahead search)", low=0)
    scorer: str = setting("mean_logp", "what scores a partial answer", choices=PARTIAL_SCORERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repair(Sample):
    """A generator and a verifier in a loop: what the verifier says of an attempt is told in the next prompt."""

    attempts: int = setting(4, "attempts a question, at most", low=1)
    minutes: float = setting(0.0, "after which no further attempt begins; 0: no limit", low=0)
    feedback: str = setting(
        "{prompt}{answer}\n{reason}\n{prompt}",
        "the next prompt, of question, last answer and the verifier's reason",
    )


STRATEGIES: Mapping[str, type[Sample]] = {
    "sample": Sample,
    "budget": Budget,
    "majority": Majority,
    "best_of_n": BestOfN,
    "clusters": Clusters,
    "rejection": Rejection,
    "token_conditional": TokenConditional,
    "step_conditional": StepConditional,
    "class_conditional": ClassConditional,
    "beam": Beam,
    "repair": Repair,
}


def strategy_options(name: str, options: Mapping[str, Any]) -> Sample:
    """The options of a strategy; ValueError for an unknown name or option, and for values out of range."""
    if name not in STRATEGIES:
        raise ValueError(unknown("strategy", name, STRATEGIES))
    known = [field.name for field in dataclasses.fields(STRATEGIES[name])]
    for option in options:
        if option not in known and option in option_fields():
            owners = ", ".join(option_fields()[option][1])
            raise ValueError(f"option {option!r} belongs to {owners}; strategy {name!r} has {', '.join(known)}")
        if option not in known:
            raise ValueError(unknown(f"option of strategy {name!r}:", option, known))
    return STRATEGIES[name](**options)


def option_fields() -> dict[str, tuple[dataclasses.Field[Any], list[str]]]:
    """Every option there is by name: the field that declares it, and the strategies that have it."""
    found: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for name, owner in STRATEGIES.items():
        for field in dataclasses.fields(owner):
            found.setdefault(field.name, (field, []))[1].append(name)
    return found
