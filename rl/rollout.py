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
from data.thoughts import NO_ENDING, Ending
from data.tokenizer import Tokenizer
from infer.evaluate import completion_texts
from infer.sampler import Rollout, generate
from model.depth import draw_depth
from model.lm import Model, Params
from model.parts import unknown
from rl.advantages import advantages
from rl.checks import complaints
from train.losses import Batch, batch_logps
from train.metrics import progress
from train.state import step_key

DEPTHS = 2  # folded into a step's key for the depths of its samples


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
    depth: str
    max_depth: int
    depth_cost: float
    token_cost: float
    stop: tuple[str, ...] = ()


class RolloutSource:
    """`next` samples from the given parameters; `reference` (or None) gives `ref_logps` for a KL term; `ending` are
    the markers and thoughts that follow every prompt.
    """

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
        ending: Ending = NO_ENDING,
        say: Callable[[str], None] = print,
    ) -> None:
        """Holds the prompt iterator, whose position is the only state; noise comes from (seed, step, sample)."""
        self._model, self._prompts, self._task, self._tokenizer = model, prompts, task, tokenizer
        self._rules, self._seed, self._reference, self._say = rules, seed, reference, say
        self._ending = ending
        check_thinking(model, rules)
        self._stats: dict[str, float] = {}
        self._history: list[dict[str, float]] = []
        self._samples: list[dict[str, Any]] = []
        self._reference_logps = jax.jit(self._score)

    def next(self, params: Params, step: int) -> Batch:
        """The batch of one step, N = prompts x samples rows: [prompt, left-padded | completion]."""
        started = time.perf_counter()
        asked = self._prompts.next()
        rollout = self._generate(params, [[*item["tokens"], *self._ending.tokens] for item in asked], step)
        generated = time.perf_counter()
        verdicts, texts = self._judge(asked, rollout)
        scores = np.array([verdict.score for verdict in verdicts], np.float32).reshape(len(asked), -1)
        rules = self._rules
        rewards = scores - costs(rollout, rules).reshape(scores.shape)
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
        self._stats = statistics(rollout, rewards, scores, texts) | {f"time/{k}": v for k, v in times.items()}
        self._samples = [
            {
                "prompt": self._task.prompt(asked[n // rules.samples]["example"]),
                "completion": text,
                "reward": float(rewards.reshape(-1)[n]),
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
        key = jax.random.fold_in(step_key(self._seed, step), 1)
        thinking = depths_of(self._model, rules, len(prompts) * rules.samples, jax.random.fold_in(key, DEPTHS))
        with progress(f"rollout of step {step + 1}", len(prompts) * rules.samples) as bar:
            return generate(
                self._model,
                params,
                prompts,
                key,
                max_new_tokens=rules.max_new_tokens,
                temperature=rules.temperature,
                samples_per_prompt=rules.samples,
                thoughts=self._ending.thoughts,
                slots=rules.slots or None,
                stop=(*self._tokenizer.eos_ids, *rules.stop),
                tokenizer=self._tokenizer,
                progress=lambda done, total: bar.update(done),
                **thinking,
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


def depths_of(model: Model, rules: RolloutRules, samples: int, key: jax.Array) -> dict[str, Any]:
    """The arguments of `generate` that say how deep each of N samples thinks: every one its own draw, or none."""
    if rules.depth == "mean":
        return {}
    r = model.config.recurrent
    bound = rules.max_depth or 2 * r.mean
    drawn = draw_depth(dataclasses.replace(r, per_sequence=True), key, samples)
    return {"depth": np.minimum(np.asarray(drawn), bound), "max_depth": bound}


def check_thinking(model: Model, rules: RolloutRules) -> None:
    """Raises ValueError for depths that the model does not have or that nothing would vary."""
    if rules.depth not in ("mean", "drawn"):
        raise ValueError(unknown("rl.depth", rules.depth, ("mean", "drawn")))
    recurrent = model.config.depth == "recurrent"
    if rules.depth == "drawn" and not (recurrent and model.config.recurrent.draw != "fixed"):
        raise ValueError('rl.depth="drawn" takes a recurrent model with recurrent.draw other than "fixed"')
    if rules.depth_cost and rules.depth != "drawn":
        raise ValueError(f'rl.depth_cost={rules.depth_cost} costs all samples the same unless rl.depth="drawn"')


def costs(rollout: Rollout, rules: RolloutRules) -> np.ndarray:
    """What each sample pays [N] for its tokens, and for its iterations per token."""
    paid = rules.token_cost * rollout.lengths
    return paid if rollout.depth is None else paid + rules.depth_cost * mean_depths(rollout)


def mean_depths(rollout: Rollout) -> np.ndarray:
    """Iterations per emitted token of each sample [N]."""
    return np.asarray(rollout.depth).sum(1) / np.maximum(rollout.lengths, 1)


def completion_start(batch: Batch) -> int:
    """The column before the first completion token: its hidden state predicts that token."""
    return batch["tokens"].shape[1] - batch["old_logps"].shape[1] - 1


def training_batch(rollout: Rollout, advantage: np.ndarray) -> Batch:
    """Rows [prompt | completion] of N samples: tokens, positions, segments, mask [N, Lp + T], old_logps [N, T],
    advantages [N], of a recurrent model depth [N], and latent [N, n] where prompts end in n thoughts.
    """
    group = len(rollout.tokens) // len(rollout.prompts)
    seen = np.concatenate([np.repeat(rollout.prompt_mask, group, 0), rollout.mask > 0], 1)
    blank = np.zeros_like(rollout.prompt_mask, np.float32)
    # A sample that drew its own depth is learnt from at that depth: at another one the ratio is not 1.
    replayed = {} if rollout.depth is None else {"depth": rollout.depth.max(1).astype(np.int32)}
    if rollout.thoughts:
        replayed["latent"] = np.ones((len(rollout.tokens), rollout.thoughts), bool)
    return replayed | {
        "tokens": np.concatenate([np.repeat(rollout.prompts, group, 0), rollout.tokens], 1).astype(np.int32),
        "positions": np.maximum(np.cumsum(seen, 1) - 1, 0).astype(np.int32),
        "segments": seen.astype(np.int32),
        "mask": np.concatenate([np.repeat(blank, group, 0), rollout.mask], 1).astype(np.float32),
        "old_logps": rollout.logps.astype(np.float32),
        "advantages": advantage.astype(np.float32),
    }


def statistics(rollout: Rollout, rewards: np.ndarray, scores: np.ndarray, texts: list[str]) -> dict[str, float]:
    """Means over one rollout; rewards and scores (rewards before costs) [P, G]."""
    lengths, ended = rollout.lengths, rollout.finished
    terminated = lengths[ended] if ended.any() else np.zeros(1)
    groups = np.array(texts, object).reshape(rewards.shape)
    named = {
        "reward": rewards.mean(),
        "reward_std": rewards.std(1).mean(),
        "frac_reward_zero_std": (rewards.std(1) == 0).mean(),
        "groups/all_right": (scores >= 1).all(1).mean(),
        "groups/all_wrong": (scores <= 0).all(1).mean(),
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
        "score": scores.mean(),
    }
    if rollout.depth is not None:
        depths = mean_depths(rollout)
        named |= {"depth/mean": depths.mean(), "depth/std": depths.std()}
        varied = depths.std() > 0 and scores.std() > 0
        named["depth/score_correlation"] = np.corrcoef(depths, scores.reshape(-1))[0, 1] if varied else 0.0
    return {name: float(value) for name, value in named.items()}
