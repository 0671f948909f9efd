"""The settings of stages that train nothing: `sample`, `score`, `pairs`, `merge` and `export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from settings.data import is_depth
from settings.setting import check, setting
from settings.strategies import STRATEGIES, strategy_options

JOBS = ("sample", "score", "pairs", "merge", "export")  # algorithms that train nothing
LEAVE_NO_MODEL = ("sample", "score", "pairs", "export")
KEEP = ("all", "best", "shortest", "longest", "random")
PAIRS_BY = ("verdict", "length", "score", "judge")
MERGE_HOW = ("average", "task_vectors")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Rejection sampling: answers to a split's examples, judged, filtered and written to kept.jsonl."""

    examples: int = setting(0, "of data.split, the first so many; 0: all", low=0)
    n: int = setting(8, "samples of a prompt, or candidates of the strategy", low=1)
    temperature: float = setting(1.0, "of the distribution sampled from", low=0)
    max_new_tokens: int = setting(64, "tokens of a sample, at most", low=1)
    slots: int = setting(0, "rows decoded at once; 0: all samples of a chunk", low=0)
    depth: int | str = setting(
        0, "iterations of a recurrent core; 0: model.recurrent.mean; task: those that the task names for an example"
    )
    chunk: int = setting(256, "prompts answered, judged and written together; what a broken stage repeats", low=1)
    strategy: str = setting("sample", "how a question is answered with more compute", choices=tuple(STRATEGIES))
    strategy_options: Mapping[str, Any] = setting({}, "of the strategy, see docs/test_time.md")
    least: Mapping[str, Any] = setting(
        {"accuracy": 1.0}, "what a kept sample's rewards are at least, by name: a number, or `least` and options"
    )
    finished: bool = setting(True, "samples that were cut are left out")
    min_tokens: int = setting(0, "shorter samples are left out", low=0)
    max_tokens: int = setting(0, "longer samples are left out; 0: none", low=0)
    code: bool = setting(True, "samples may hold fenced code (``` ... ```)")
    paragraph: int = setting(0, "samples with a paragraph of more words are left out; 0: none", low=0)
    agreement: float = setting(
        0.0, "samples whose answer a smaller share of the prompt's gives are left out", low=0, high=1
    )
    keep: str = setting("all", "which of a prompt's remaining samples come first", choices=KEEP)
    rank: str = setting("", "the reward that `best` goes by; '': the mean log-prob of a token")
    most: int = setting(0, "samples of a prompt that are kept, at most; 0: all", low=0)

    def __post_init__(self) -> None:
        check(self, "sample.", self.sample_faults())

    def sample_faults(self) -> Iterator[str]:
        """Options that the strategy does not have, lengths that nothing has, a rank that is not measured."""
        try:
            strategy_options(self.strategy, self.strategy_options)
        except (TypeError, ValueError) as error:
            yield f"sample.strategy_options: {error}"
        if not is_depth(self.depth):
            yield f'sample.depth is "task", "gate" or a number, found {self.depth!r}'
        if self.max_tokens and self.min_tokens > self.max_tokens:
            yield f"sample.min_tokens={self.min_tokens} is more than sample.max_tokens={self.max_tokens}: none is left"
        if self.rank and self.rank not in self.least:
            yield f"sample.rank={self.rank!r} is not measured: name it in sample.least ({', '.join(self.least)})"


@dataclasses.dataclass(frozen=True)
class ScoringConfig:
    """Rewards of texts that lie in a file: the rows of data.split with `scores`, written to scored.jsonl."""

    rewards: Mapping[str, Any] = setting({"accuracy": 1.0}, "weights by name, or dicts of weight, kind and options")

    def __post_init__(self) -> None:
        check(self, "score.")


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """Pairs of a better and a worse completion of one prompt, made of the rows of data.split: pairs.jsonl."""

    by: str = setting("verdict", "what makes one better: right, shorter, a higher score, a judge", choices=PAIRS_BY)
    score: str = setting("reward", "the score that by=score compares, a name that the stage `score` gave")
    most: int = setting(1, "pairs of a prompt, at most; 0: all", low=0)
    margin: float = setting(0.0, "a smaller difference of scores makes no pair", low=0)
    held_out: float = setting(0.0, "share of prompts whose pairs go to held_out.jsonl", low=0, high=0.5)
    judge: str = setting("", "the judge's run directory or Hub folder, of by=judge", reference=True)
    template: str = setting(
        "{prompt}{first}\n{prompt}{second}\nBetter: ", "what the judge is asked, with {prompt}, {first} and {second}"
    )
    options: tuple[str, ...] = setting(("1", "2"), "what the judge answers: the first is better, the second is")
    tie: float = setting(0.0, "no pair where the judge is this near to even, over both orders", low=0, high=0.5)

    def __post_init__(self) -> None:
        check(self, "pairs.", self.pairs_faults())

    def pairs_faults(self) -> Iterator[str]:
        """A judge that is missing, or asked for nothing."""
        if (self.by == "judge") != bool(self.judge):
            yield f"pairs.by={self.by!r} and pairs.judge={self.judge!r}: a judge needs a folder, and a folder by=judge"
        missing = [name for name in ("{first}", "{second}") if name not in self.template]
        if missing:
            yield f"pairs.template lacks {', '.join(missing)}: the judge must see both sides"
        if len(self.options) != 2 or self.options[0] == self.options[1]:
            yield f"pairs.options are two different texts, found {self.options}"


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """One model of several with the same shapes: their average, or task vectors added to a base (2212.04089)."""

    models: tuple[str, ...] = setting((), "run directories or Hub folders", reference=True)
    weights: tuple[float, ...] = setting((), "of the models; (): equal in an average, 1 each of task vectors")
    how: str = setting("average", "weights are normalised, or multiply differences to init_from", choices=MERGE_HOW)

    def __post_init__(self) -> None:
        check(self, "merge.", self.merge_faults())

    def merge_faults(self) -> Iterator[str]:
        """Weights that are none."""
        if self.weights and len(self.weights) != len(self.models):
            yield f"merge.weights has {len(self.weights)} entries for {len(self.models)} models"
        if self.how == "average" and self.weights and not sum(self.weights) > 0:
            yield f"merge.weights={self.weights} must add up to more than 0 for an average"


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The model as a folder in the Hub's layout, `model` in the stage's directory."""

    shard_gb: float = setting(5.0, "of a file of weights, at most", above=0)

    def __post_init__(self) -> None:
        check(self, "export.")
