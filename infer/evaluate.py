"""How good the answers are: accuracy, pass@k, tokens spent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from data.names import unknown_name
from data.sources.examples import Example
from data.sources.text import fixed_examples
from data.tasks.base import Task, Verdict, examples_of
from data.thoughts import NO_ENDING, Ending
from data.tokenizers.base import Tokenizer, find_stop
from data.tokenizers.decoding import tail_of, text_of
from data.verify.pool import Judge, judge_of
from infer.sampler import Rollout, generate
from model.lm import Model, Params


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`metrics` by name, and one record per sample: prompt, completion, score, reason, tokens."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimator of the chance that one of k samples is right (2107.03374, equation 1)."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs between 1 and {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def completion_texts(rollout: Rollout, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> list[str]:
    """The text that every sample adds to its prompt's, [N], cut before the first stop string."""
    asked = zip(rollout.prompts, rollout.prompt_mask, strict=True)
    prompts = [tail_of(row[mask.astype(bool)].tolist(), tokenizer) for row, mask in asked]
    group = len(rollout.tokens) // len(prompts)
    rows = enumerate(zip(rollout.tokens, rollout.lengths, strict=True))
    texts = [text_of(row[:length].tolist(), tokenizer, prompts[n // group]) for n, (row, length) in rows]
    return [text[: find_stop(text, stop)] for text in texts] if stop else texts


def questions(
    task: Task,
    tokenizer: Tokenizer,
    split: str,
    n: int,
    *,
    room: int,
    drops: bool,
    say: Callable[[str], None],
    **rendering: Any,
) -> tuple[list[dict[str, Any]], int]:
    """The first n examples of a split, as `fixed_examples` gives them, and how many were left out of them.

    Where the run `drops` what is too long, prompts of more than `room` tokens are left out, and `say` is told: accuracy
    is that of the others. Elsewhere `generate` raises for them.
    """
    limit: dict[str, Any] = {"max_prompt_length": room, "too_long": "drop"} if drops and n else {}
    found = fixed_examples(task, tokenizer, split, n, **rendering, **limit)
    dropped = min(n, len(examples_of(task, split))) - len(found)
    if dropped:
        say(
            f"{dropped} of the first {dropped + len(found)} examples of split {split!r} have prompts of more than"
            f" {room} tokens and are left out"
        )
    return found, dropped


def evaluate(
    model: Model,
    params: Params,
    task: Task,
    tokenizer: Tokenizer,
    examples: Sequence[dict[str, Any]],
    key: jax.Array,
    *,
    temperature: float = 0.0,
    samples: int = 1,
    slots: int = 0,
    stop: Sequence[str] = (),
    ending: Ending = NO_ENDING,
    by: str = "",
    judge: Judge | None = None,
    **sampling: Any,
) -> Evaluation:
    """Answers every example `samples` times and judges the answers; `examples` as `fixed_examples` gives them.

    `ending`: markers and thoughts that follow every question. `by`: a field of the examples, such as a difficulty, for
    each value of which accuracy (and mean depth) are reported too; ValueError for a field that there is not. `judge`:
    who scores the texts; by default the task, in workers of its own where it asks for them. A task with
    `parts(example, text)`, {name: whether this holds of a part of the answer}, has the share of each reported too.
    `sampling`: what else `generate` takes (max_new_tokens, top_p, depth, exit, draft, progress ...).
    """
    if not examples:
        raise ValueError("there are no examples to answer: ask for at least 1")
    if by and by not in examples[0]["example"]:
        raise unknown_name("field of the examples", by, examples[0]["example"])
    rollout = generate(
        model,
        params,
        [[*example["tokens"], *ending.tokens] for example in examples],
        key,
        thoughts=ending.thoughts,
        after=ending.after,
        temperature=temperature,
        samples_per_prompt=samples,
        slots=slots or None,
        stop=(*tokenizer.eos_ids, *stop),
        tokenizer=tokenizer,
        **sampling,
    )
    texts = completion_texts(rollout, tokenizer, stop)
    asked = [example["example"] for example in examples for _ in range(samples)]
    with nullcontext(judge) if judge else judge_of(task) as scoring:
        verdicts = scoring(asked, texts)
    columns = zip(asked, texts, verdicts, rollout.lengths, rollout.finished, strict=True)
    records = [record(task, *row) for row in columns]
    metrics = summary(records, samples)
    metrics["readable"] = float(np.mean([verdict.parsed is not None for verdict in verdicts]))
    if rollout.acceptance is not None:
        metrics["draft_acceptance"] = rollout.acceptance
    if rollout.depth is not None:
        metrics["mean_depth"] = mean_depth(rollout, np.arange(len(texts)))
    parts = parts_of(task, asked, texts)
    metrics |= {name: float(right.mean()) for name, right in parts.items()}
    if by:
        values = np.repeat([str(example["example"][by]) for example in examples], samples)
        right = np.array([record["score"] for record in records]) >= 1
        metrics |= by_value(by, values, {"accuracy": right, **parts}, rollout)
    return Evaluation(metrics, records)


def record(task: Task, example: Example, text: str, verdict: Verdict, length: int, finished: bool) -> dict[str, Any]:
    """One judged answer, JSON-able."""
    return {
        "prompt": task.prompt(example),
        "completion": text,
        "score": verdict.score,
        "reason": verdict.reason,
        "tokens": int(length),
        "finished": bool(finished),
    }


def parts_of(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What the task says of the parts of the samples [N], by name; {} for a task that tells no parts apart."""
    if not hasattr(task, "parts"):
        return {}
    rows = [task.parts(example, text) for example, text in zip(examples, texts, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def by_value(name: str, values: np.ndarray, marks: dict[str, np.ndarray], rollout: Rollout) -> dict[str, float]:
    """The share of each of `marks` [N], and mean depth where it varies, for each of the values that samples have."""
    metrics: dict[str, float] = {}
    for value in sorted(set(values.tolist())):
        here = np.flatnonzero(values == value)
        metrics |= {f"{mark}_{name}_{value}": float(right[here].mean()) for mark, right in marks.items()}
        if rollout.depth is not None:
            metrics[f"mean_depth_{name}_{value}"] = mean_depth(rollout, here)
    return metrics


def mean_depth(rollout: Rollout, rows: np.ndarray) -> float:
    """Iterations per emitted token of some samples."""
    assert rollout.depth is not None
    return float(rollout.depth[rows].sum() / max(rollout.lengths[rows].sum(), 1))


def summary(records: Sequence[dict[str, Any]], samples: int) -> dict[str, float]:
    """Accuracy, mean tokens, share of finished answers, and pass@k for k = 1, 2, 4 ... up to `samples`."""
    right = (np.array([record["score"] for record in records]) >= 1.0).reshape(-1, samples)
    metrics = {
        "accuracy": float(right.mean()),
        "mean_tokens": float(np.mean([record["tokens"] for record in records])),
        "finished": float(np.mean([record["finished"] for record in records])),
        "score": float(np.mean([record["score"] for record in records])),
    }
    k = 2
    while k <= samples:
        metrics[f"pass@{k}"] = float(np.mean([pass_at_k(samples, int(row.sum()), k) for row in right]))
        k *= 2
    return metrics
