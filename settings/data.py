"""The settings `data`, `tokenizer` and `thoughts`: what a run learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from settings.setting import check, setting

TOO_LONG = ("error", "drop", "truncate")
LOSS_ON = ("answer", "all")
METHODS = ("coconut", "cot", "no_cot", "icot", "pause", "no_curriculum", "no_thought", "pause_as_thought")
RESETS = ("never", "stage", "epoch")
OBJECTIVES = ("coconut", "codi")
FEEDBACKS = ("state", "soft")
BY_TASK = "task"  # the depth that a task names for an example (data/depths.py)
BY_GATE = "gate"  # the depth at which the exit gate stops at a prompt's last token (infer/gate_depths.py)


def is_depth(value: int | str) -> bool:
    """Whether a value says how many iterations: a number, 0 for the model's own, BY_TASK or BY_GATE."""
    return value in (BY_TASK, BY_GATE) if isinstance(value, str) else value >= 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to learn from: a task, how its prompts are rendered, and how rows are made."""

    task: str = setting("addition", "the task, a name of TASKS in data/tasks")
    options: Mapping[str, Any] = setting({}, "the task's own arguments")
    path: str = setting("", "a folder of real data, for tasks that read one")
    split: str = setting(
        "train", "the task's split to learn from, or a JSON-lines file of its examples", reference=True
    )
    template: str = setting("none", "the prompt template, none or a name of TEMPLATES in data/templates.py")
    system: str = setting("", "a system message before every prompt")
    batch_size: int = setting(64, "rows of a batch, on all hosts together", low=1)
    length: int = setting(64, "tokens of a row, at most", low=2)
    pack: bool = setting(False, "several examples share a row, apart as segments")
    too_long: str = setting("error", "what becomes of examples that do not fit", choices=TOO_LONG)
    loss_on: str = setting("answer", "learn the answer alone, or the prompt as well", choices=LOSS_ON)
    depth_offset: int = setting(0, 'iterations beyond those that the task names, where "task" is asked for', low=0)
    depth_jitter: int = setting(0, "and up to so many more in training, drawn for each example", low=0)
    depth_permuted: bool = setting(False, "train each example at the depth of another one: a control")
    prefetch: int = setting(2, "batches made ahead of time", low=0)
    verify_workers: int = setting(2, "processes that judge answers, for tasks whose verifier must be killable", low=1)
    verify_seconds: float | None = setting(None, "for judging one answer; None: what the task asks for", above=0)
    stop: tuple[str, ...] = setting((), "text that ends an answer, besides the end token")

    def __post_init__(self) -> None:
        check(self, "data.")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens; where nothing is given, init_from's tokenizer or the task's characters."""

    kind: str = setting("", "char, byte, sentencepiece or hf")
    path: str = setting("", "the trained tokenizer's file or folder")
    vocab_size: int = setting(0, "train a tokenizer of so many tokens on the task's text; 0: none", low=0)

    def __post_init__(self) -> None:
        check(self, "tokenizer.")


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Which stage of Coconut's curriculum (2412.06769) a step of training is in, and what rows hold there."""

    method: str = setting("coconut", "Coconut or one of its baselines (METHODS in data/thoughts)", choices=METHODS)
    thoughts_per_step: int = setting(1, "thoughts in the place of one step of the chain", low=0)
    max_stage: int = setting(3, "stages 0 .. max_stage leave out so many steps, and one more stage all", low=0)
    stage_steps: int = setting(1000, "training steps of a stage", low=1)
    first_stage_steps: int | None = setting(None, "training steps of stage 0; None: stage_steps", low=0)
    uniform_prob: float = setting(0.0, "probability that a row is of a stage drawn at random", low=0, high=1)
    markers: bool = setting(True, "tokens of their own stand before and after the thoughts")
    pad_to_max: bool = setting(True, "in the last stage short chains have the thoughts of max_stage steps, too")
    removed_per_stage: int = setting(8, "tokens that a stage of icot removes", low=1)
    smoothing: float = setting(4.0, "icot removes o more tokens with P(o) ~ exp(-smoothing o); inf: none", above=0)
    keep_position: bool = setting(False, "what icot leaves keeps the positions it had")

    def __post_init__(self) -> None:
        check(self, "thoughts.")


@dataclasses.dataclass(frozen=True)
class SoftConfig:
    """What a thought reads: the state before it, or a mixture of tokens, a soft thought (2604.27998, section 3)."""

    feedback: str = setting("state", "what is fed back: the state, or the likeliest tokens mixed", choices=FEEDBACKS)
    soft_tokens: int = setting(5, "tokens of a soft thought", low=1)
    soft_top_p: float = setting(
        0.95, "noise chooses them among the fewest tokens of this probability, or the likeliest", above=0, high=1
    )
    soft_temperature: float = setting(1.0, "the weights of the mixture are softmax(scores / this)", above=0)

    @property
    def soft(self) -> bool:
        """Whether thoughts are mixtures of tokens."""
        return self.feedback == "soft"


@dataclasses.dataclass(frozen=True)
class ThoughtsConfig(SoftConfig, CurriculumConfig):
    """Continuous thoughts (2412.06769), their baselines and CODI (2502.21074), for algorithm=coconut."""

    reset: str = setting("stage", "when the optimizer forgets", choices=RESETS)
    objective: str = setting("coconut", "what is minimised; codi takes method=no_curriculum", choices=OBJECTIVES)
    gamma: float = setting(1.0, "weight of CODI's distance between the states of student and teacher", low=0)
    teacher_weight: float = setting(1.0, "weight of the loss of CODI's teacher", low=0)
    step_weight: float = setting(
        0.0,
        "weight of the loss by which thoughts tell the steps in whose place they stand (SIM-CoT, 2509.20317)",
        low=0,
    )
    first: int = setting(0, "column of the first thought; 0: what the data need", low=0)
    length: int = setting(0, "tokens of a row; 0: what the data need", low=0)
