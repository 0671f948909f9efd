"""How good the answers are: accuracy, pass@k, tokens spent."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data.names import unknown_name
from data.sources.examples import Example
from data.sources.prompts import fixed_examples
from data.tasks.base import Task, Verdict, examples_of
from data.tokenizers.base import Tokenizer
from infer.asking import Candidates, TaskSpec, asked_of, completion_texts
from infer.draft import Draft
from infer.recurrence import Recurrence
from infer.sampling import SamplingParams
from infer.strategies import Answers, Strategy, answer, build_strategy
from infer.strategies.base import judging
from infer.strategies.estimators import pass_at_k
from model.lm import Model, Params

__all__ = [
    "Evaluation",
    "TaskSpec",
    "completion_texts",
    "evaluate",
    "evaluate_strategy",
    "pass_at_k",
    "questions",
    "summary",
]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`metrics` by name, and one record per sample: prompt, completion, score, reason, tokens; `notes`: of how many
    examples something else became than was asked, and what.
    """

    metrics: dict[str, float]
    samples: list[dict[str, Any]]
    notes: dict[str, int] = dataclasses.field(default_factory=dict)


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
    plain = build_strategy("sample", spec, sampling, recurrence=recurrence, draft=draft)
    return evaluate_strategy(plain, model, params, examples, key)


def evaluate_strategy(
    strategy: Strategy, model: Model, params: Params, examples: Sequence[dict[str, Any]], key: jax.Array
) -> Evaluation:
    """The like for the answers that a strategy gives: accuracy is that of those it chose.

    What was spent on a question is told besides; errors are those of `evaluate` and of the strategy.
    """
    spec = strategy.spec
    if spec.by and examples and spec.by not in examples[0]["example"]:
        raise unknown_name("field of the examples", spec.by, examples[0]["example"])
    answers = answer(strategy, model, params, examples, key)
    told = answers.candidates if answers.every else answers.candidates.rows(answers.chosen)
    asked = asked_of(examples, told)
    if answers.verdicts is None:
        with judging(spec) as judge:
            verdicts = judge(asked, told.texts)
    else:
        verdicts = [answers.verdicts[place] for place in answers.chosen]
    columns = zip(asked, told.texts, verdicts, told.tokens, told.finished, strict=True)
    records = [record(spec.task, *row) for row in columns]
    metrics = summary(records, len(records) // len(examples))
    metrics["readable"] = float(np.mean([verdict.parsed is not None for verdict in verdicts]))
    metrics |= candidate_metrics(spec, asked, records, told) | cost_metrics(answers)
    return Evaluation(metrics, records, dict(Counter(answers.notes.values())))


def cost_metrics(answers: Answers) -> dict[str, float]:
    """What was spent on a question, on average, where that is more than the tokens of one answer."""
    metrics: dict[str, float] = {}
    budget = bool(answers.thought.any() or answers.forced.any())
    if budget:
        metrics |= {"mean_thought": float(answers.thought.mean()), "mean_forced": float(answers.forced.mean())}
    if not answers.every:
        metrics["tokens_per_question"] = float((answers.thought + answers.written).mean())
        metrics["candidates_per_question"] = len(answers.candidates.texts) / len(answers.chosen)
        metrics["support" if answers.voted else "chosen_score"] = float(np.mean(answers.support))
    if answers.calls:
        metrics["verifier_calls"] = float(answers.calls)
    if answers.notes:
        metrics["notes"] = float(len(answers.notes))
    if answers.nodes:
        metrics["nodes_per_second"] = answers.nodes / answers.seconds
    return metrics


def candidate_metrics(
    spec: TaskSpec, examples: Sequence[Example], records: Sequence[dict[str, Any]], candidates: Candidates
) -> dict[str, float]:
    """What only some models, tasks and questions have: acceptance, mean depth, parts, accuracy by a field."""
    metrics: dict[str, float] = {}
    if candidates.acceptance is not None:
        metrics["draft_acceptance"] = candidates.acceptance
    if candidates.iterations is not None:
        metrics["mean_depth"] = mean_depth(candidates, np.arange(len(records)))
    parts = parts_of(spec.task, examples, candidates.texts)
    metrics |= {name: float(right.mean()) for name, right in parts.items()}
    if spec.by:
        values = np.array([str(example[spec.by]) for example in examples])
        right = np.array([record["score"] for record in records]) >= 1
        metrics |= by_value(spec.by, values, {"accuracy": right, **parts}, candidates)
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


def by_value(name: str, values: np.ndarray, marks: dict[str, np.ndarray], candidates: Candidates) -> dict[str, float]:
    """The share of each of `marks` [N], and mean depth where it varies, for each of the values that samples have."""
    metrics: dict[str, float] = {}
    for value in sorted(set(values.tolist())):
        here = np.flatnonzero(values == value)
        metrics |= {f"{mark}_{name}_{value}": float(right[here].mean()) for mark, right in marks.items()}
        if candidates.iterations is not None:
            metrics[f"mean_depth_{name}_{value}"] = mean_depth(candidates, here)
    return metrics


def mean_depth(candidates: Candidates, rows: np.ndarray) -> float:
    """Iterations per emitted token of some samples."""
    assert candidates.iterations is not None
    return float(candidates.iterations[rows].sum() / max(candidates.tokens[rows].sum(), 1))


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
