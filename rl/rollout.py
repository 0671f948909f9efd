"""A source whose batches come from the model: prompts -> samples -> rewards -> advantages -> a training batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.pipeline import Source as PromptSource
from data.tasks.base import Task, Verdict
from data.tokenizer import Tokenizer
from infer.evaluate import completion_texts
from infer.sampler import Rollout, generate
from model.lm import Model, Params
from rl.advantages import advantages
from rl.checks import complaints
from train.losses import Batch, batch_logps
from train.metrics import progress
from train.state import step_key


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
    stop: tuple[str, ...] = ()


class RolloutSource:
    """`next` samples from the given parameters; `reference` (or None) gives `ref_logps` for a KL term."""

    def __init__(
        self,
        model: Model,
        prompts: PromptSource,
        task: Task,
        tokenizer: Tokenizer,
        rules: RolloutRules,
        *,
        seed: int,
        reference: Params | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Holds the prompt iterator, whose position is the only state; noise comes from (seed, step, sample)."""
        self._model, self._prompts, self._task, self._tokenizer = model, prompts, task, tokenizer
        self._rules, self._seed, self._reference, self._say = rules, seed, reference, say
        self._stats: dict[str, float] = {}
        self._history: list[dict[str, float]] = []
        self._samples: list[dict[str, Any]] = []
        self._reference_logps = jax.jit(self._score)

    def next(self, params: Params, step: int) -> Batch:
        """The batch of one step, N = prompts x samples rows: [prompt, left-padded | completion]."""
        started = time.perf_counter()
        asked = self._prompts.next()
        rollout = self._generate(params, [item["tokens"] for item in asked], step)
        generated = time.perf_counter()
        verdicts, texts = self._judge(asked, rollout)
        rewards = np.array([verdict.score for verdict in verdicts], np.float32).reshape(len(asked), -1)
        rules = self._rules
        advantage = advantages(
            jnp.asarray(rewards), baseline=rules.baseline, scale=rules.scale, ddof=rules.ddof, epsilon=rules.epsilon
        )
        batch: dict[str, Any] = training_batch(rollout, np.asarray(advantage).reshape(-1))
        judged = time.perf_counter()
        if self._reference is not None:
            batch["ref_logps"] = np.asarray(self._reference_logps(self._reference, jax.tree.map(jnp.asarray, batch)))
        times = {
            "generate": generated - started,
            "reward": judged - generated,
            "logps": time.perf_counter() - judged,
        }
        self._stats = statistics(rollout, rewards, texts) | {f"time/{k}": v for k, v in times.items()}
        self._samples = [
            {
                "prompt": self._task.prompt(asked[n // rules.samples]["example"]),
                "completion": text,
                "reward": verdict.score,
                "reason": verdict.reason,
                "advantage": float(batch["advantages"][n]),
            }
            for n, (text, verdict) in enumerate(zip(texts, verdicts, strict=True))
        ]
        self._check(step)
        return batch

    def state(self) -> dict[str, Any]:
        """The position of the prompt iterator."""
        return self._prompts.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a position of the prompt iterator."""
        self._prompts.restore(state)

    def stats(self) -> dict[str, float]:
        """Metrics of the last rollout, under TRL's names where it has one."""
        return self._stats

    def samples(self) -> list[dict[str, Any]]:
        """The last rollout as text, one record per sample."""
        return self._samples

    def _generate(self, params: Params, prompts: list[list[int]], step: int) -> Rollout:
        rules = self._rules
        with progress(f"rollout of step {step + 1}", len(prompts) * rules.samples) as bar:
            return generate(
                self._model,
                params,
                prompts,
                jax.random.fold_in(step_key(self._seed, step), 1),
                max_new_tokens=rules.max_new_tokens,
                temperature=rules.temperature,
                samples_per_prompt=rules.samples,
                slots=rules.slots or None,
                stop=(*self._tokenizer.eos_ids, *rules.stop),
                tokenizer=self._tokenizer,
                progress=lambda done, total: bar.update(done),
            )

    def _judge(self, asked: list[dict[str, Any]], rollout: Rollout) -> tuple[list[Verdict], list[str]]:
        texts = completion_texts(rollout, self._tokenizer, self._rules.stop)
        examples = [item["example"] for item in asked for _ in range(self._rules.samples)]
        return [self._task.verify(example, text) for example, text in zip(examples, texts, strict=True)], texts

    def _score(self, params: Params, batch: Batch) -> jax.Array:
        start = completion_start(batch)
        return batch_logps(self._model, params, batch, temperature=self._rules.temperature, start=start)[0]

    def _check(self, step: int) -> None:
        if len(self._history) < 10:
            self._history.append(self._stats)
            for sentence in complaints(self._history):
                self._say(f"step {step}: {sentence}")


def completion_start(batch: Batch) -> int:
    """The column before the first completion token: its hidden state predicts that token."""
    return batch["tokens"].shape[1] - batch["old_logps"].shape[1] - 1


def training_batch(rollout: Rollout, advantage: np.ndarray) -> Batch:
    """Rows [prompt | completion] of N samples: tokens, positions, segments, mask [N, Lp + T], old_logps [N, T],
    advantages [N].
    """
    group = len(rollout.tokens) // len(rollout.prompts)
    seen = np.concatenate([np.repeat(rollout.prompt_mask, group, 0), rollout.mask > 0], 1)
    blank = np.zeros_like(rollout.prompt_mask, np.float32)
    return {
        "tokens": np.concatenate([np.repeat(rollout.prompts, group, 0), rollout.tokens], 1).astype(np.int32),
        "positions": np.maximum(np.cumsum(seen, 1) - 1, 0).astype(np.int32),
        "segments": seen.astype(np.int32),
        "mask": np.concatenate([np.repeat(blank, group, 0), rollout.mask], 1).astype(np.float32),
        "old_logps": rollout.logps.astype(np.float32),
        "advantages": advantage.astype(np.float32),
    }


def statistics(rollout: Rollout, rewards: np.ndarray, texts: list[str]) -> dict[str, float]:
    """Means over one rollout; rewards [P, G]."""
    lengths, ended = rollout.lengths, rollout.finished
    terminated = lengths[ended] if ended.any() else np.zeros(1)
    groups = np.array(texts, object).reshape(rewards.shape)
    named = {
        "reward": rewards.mean(),
        "reward_std": rewards.std(1).mean(),
        "frac_reward_zero_std": (rewards.std(1) == 0).mean(),
        "groups/all_right": (rewards >= 1).all(1).mean(),
        "groups/all_wrong": (rewards <= 0).all(1).mean(),
        "num_tokens": lengths.sum() + (rollout.prompt_mask.sum(1) * rewards.shape[1]).sum(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": terminated.mean(),
        "completions/min_terminated_length": terminated.min(),
        "completions/max_terminated_length": terminated.max(),
        "completions/clipped_ratio": 1 - ended.mean(),
        "completions/eos_rate": ended.mean(),
        "completions/unique_ratio": np.mean([len(set(row)) / len(row) for row in groups]),
        "sampling/decode_steps": rollout.steps,
    }
    return {name: float(value) for name, value in named.items()}
