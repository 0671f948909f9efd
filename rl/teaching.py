"""On-policy distillation: what a teacher would have said of the samples of a rollout, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.chat import prompt_tokens
from data.sources.examples import Example
from data.thoughts import Ending
from infer.recurrence import Recurrence
from infer.sampler import Rollout
from infer.scoring import score
from infer.thoughts import thoughts_of
from model.lm import Model, Params
from rl.distillation import early_weights, teacher_advantages
from settings.rl import TEACHER_IS_SELF, TEACHER_IS_START, RLConfig
from train.setup import Setup
from train.teacher import open_teacher


@dataclass
class RolloutTeacher:
    """Scores the completions of a rollout, each after `prompt(example)`; `load` reads its parameters at the first call
    (None: it is the student as it is). `depth`: iterations of a recurrent one (0: its mean).
    """

    model: Model
    load: Callable[[], Params] | None
    prompt: Callable[[Example], list[int]]
    ending: Ending
    depth: int = 0
    params: Params | None = None

    def logps(self, student: Params, examples: Sequence[Example], rollout: Rollout) -> np.ndarray:
        """The teacher's log-probs [N, T] of the rollout's tokens, 0 past the ends."""
        if self.load is not None and self.params is None:
            self.params = self.load()
        params = student if self.load is None else self.params
        assert params is not None
        asked = [[*self.prompt(example), *self.ending.tokens] for example in examples]
        prompts = [asked[group] for group in rollout.group_of]
        rows = [row[:length] for row, length in zip(rollout.tokens, rollout.lengths, strict=True)]
        recurrence = Recurrence(self.depth) if self.depth else None
        found = score(self.model, params, prompts, rows, recurrence=recurrence, thoughts=thoughts_of(self.ending)).logps
        whole = np.zeros(rollout.tokens.shape, np.float32)
        whole[:, : found.shape[1]] = found
        return whole


def rollout_teacher(setup: Setup) -> RolloutTeacher | None:
    """The teacher that `rl.teacher` names, if any; ValueError for one of another vocabulary or a bad prompt."""
    rl, data, task = setup.config.rl, setup.config.data, setup.task
    if not rl.teacher:
        return None

    def prompt(example: Example) -> list[int]:
        text = rl.teacher_prompt.replace("{target}", task.target(example)).replace("{prompt}", task.prompt(example))
        return prompt_tokens(setup.tokenizer, text, data.template, data.system or None)

    if rl.teacher in (TEACHER_IS_SELF, TEACHER_IS_START):
        model, ending = setup.model, setup.ending
        load = setup.make_params if rl.teacher == TEACHER_IS_START else None
    else:
        teacher = open_teacher(setup, rl.teacher, "rl.teacher")
        model, load, ending = teacher.model, teacher.load, teacher.origin.ending
    if rl.teacher_depth and model.config.depth != "recurrent":
        raise ValueError(
            f"rl.teacher_depth={rl.teacher_depth} is for recurrent teachers, and this one is a plain stack"
        )
    return RolloutTeacher(model, load, prompt, ending, rl.teacher_depth)


def taught(
    gains: np.ndarray, rollout: Rollout, teacher_logps: np.ndarray, rules: RLConfig
) -> tuple[np.ndarray, dict[str, float]]:
    """Advantages [N] or [N, T] with the teacher's added to those of every token [N, T], and metrics of the distance."""
    mask = rollout.mask.astype(np.float32)
    own = teacher_advantages(rollout.logps, teacher_logps, mask, rules.teacher_coef, rules.teacher_discount)
    if rules.teacher_early:
        own = own * early_weights(own, rules.teacher_early)
    gap = (rollout.logps - teacher_logps) * mask
    metrics = {"teacher/kl": float(gap.sum() / max(mask.sum(), 1.0)), "teacher/advantage": float(np.abs(own).mean())}
    by_token = gains[:, None] * mask if gains.ndim == 1 else gains
    return (by_token + own).astype(np.float32), metrics
