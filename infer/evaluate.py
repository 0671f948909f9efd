"""How good the answers are: accuracy, pass@k, tokens spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from data.names import unknown_name
from data.sources.examples import Example
from data.sources.prompts import fixed_examples
from data.tasks.base import Task, Verdict, examples_of
from data.thoughts import NO_ENDING, Ending
from data.tokenizers.base import Tokenizer, find_stop
from data.tokenizers.decoding import tail_of, text_of
from data.verify.pool import Judge, judge_of
from infer.draft import Draft
from infer.recurrence import Recurrence
from infer.sampler import Rollout, generate
from infer.sampling import SamplingParams
from infer.strategies.estimators import pass_at_k
from infer.thoughts import thoughts_of
from model.lm import Model, Params


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`metrics` by name, and one record per sample: prompt, completion, score, reason, tokens."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]


def completion_texts(rollout: Rollout, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> list[str]:
    """The text that every sample adds to its prompt's, [N], cut before the first stop string."""
    asked = zip(rollout.prompts, rollout.prompt_mask, strict=True)
    prompts = [tail_of(row[mask.astype(bool)].tolist(), tokenizer) for row, mask in asked]
    rows = zip(rollout.tokens, rollout.lengths, rollout.group_of, strict=True)
    texts = [text_of(row[:length].tolist(), tokenizer, prompts[group]) for row, length, group in rows]
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


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What is asked and who judges: `ending` are markers and thoughts that follow every question; `by` is a field of
    the examples, such as a difficulty, for each value of which accuracy (and mean depth) are reported too; `judge`
    scores the texts (None: the task, in workers of its own where it asks for them).

    A task with `parts(example, text)`, {name: whether this holds of a part of the answer}, has the share of each
    reported too.
    """

    task: Task
    tokenizer: Tokenizer
    ending: Ending = NO_ENDING
    by: str = ""
    judge: Judge | None = None


def evaluate(
    model: Model,
    params: Params,
    spec: TaskSpec,
    examples: Sequence[dict[str, Any]],
    key: jax.Array,
    sampling: SamplingParams,
    *,
    recurrence: Recurrence | None = None,
    draft: Draft | None = None,
) -> Evaluation:
    """Answers every example `sampling.n` times and judges the answers; `examples` as `fixed_examples` gives them.

    An answer also ends at the tokenizer's end tokens. Raises ValueError without examples, and for a field of `spec.by`
    that they do not have.
    """
    if not examples:
        raise ValueError("there are no examples to answer: ask for at least 1")
    if spec.by and spec.by not in examples[0]["example"]:
        raise unknown_name("field of the examples", spec.by, examples[0]["example"])
    rollout = generate(
        model,
        params,
        [[*example["tokens"], *spec.ending.tokens] for example in examples],
        key,
        dataclasses.replace(sampling, stop=(*spec.tokenizer.eos_ids, *sampling.stop)),
        tokenizer=spec.tokenizer,
        recurrence=recurrence,
        draft=draft,
        thoughts=thoughts_of(spec.ending),
    )
    texts = completion_texts(rollout, spec.tokenizer, sampling.stop_strings)
    asked = [example["example"] for example in examples for _ in range(sampling.n)]
    with nullcontext(spec.judge) if spec.judge else judge_of(spec.task) as scoring:
        verdicts = scoring(asked, texts)
    columns = zip(asked, texts, verdicts, rollout.lengths, rollout.finished, strict=True)
    records = [record(spec.task, *row) for row in columns]
    metrics = summary(records, sampling.n)
    metrics["readable"] = float(np.mean([verdict.parsed is not None for verdict in verdicts]))
    return Evaluation(metrics | rollout_metrics(spec, asked, texts, records, rollout), records)


def rollout_metrics(
    spec: TaskSpec,
    examples: Sequence[Example],
    texts: Sequence[str],
    records: Sequence[dict[str, Any]],
    rollout: Rollout,
) -> dict[str, float]:
    """What only some models, tasks and questions have: acceptance, mean depth, parts, accuracy by a field."""
    metrics: dict[str, float] = {}
    if rollout.acceptance is not None:
        metrics["draft_acceptance"] = rollout.acceptance
    if rollout.depth is not None:
        metrics["mean_depth"] = mean_depth(rollout, np.arange(len(texts)))
    parts = parts_of(spec.task, examples, texts)
    metrics |= {name: float(right.mean()) for name, right in parts.items()}
    if spec.by:
        values = np.array([str(example[spec.by]) for example in examples])
        right = np.array([record["score"] for record in records]) >= 1
        metrics |= by_value(spec.by, values, {"accuracy": right, **parts}, rollout)
    return metrics


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
