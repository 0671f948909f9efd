"""Evaluation: the summary, records of every sample, and text cut at stop strings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.sources.prompts import fixed_examples
from data.tasks import Verdict, build_task
from data.tasks.automaton import Automaton
from data.tokenizers.characters import CharTokenizer
from infer.evaluate import TaskSpec, completion_texts, evaluate, summary
from infer.polling import cut_at_strings
from infer.recurrence import Recurrence
from infer.sampler import Rollout, pad_prompts
from infer.sampling import Execution, SamplingParams
from model import build
from tests.data import toy_tokenizers
from tests.trunk import TINY, TOKENIZER, tiny, tiny_params


def test_the_summary_counts_rows_of_samples() -> None:
    scores = [1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0.5]
    records = [{"score": s, "tokens": n, "finished": n % 2 == 0} for n, s in enumerate(scores)]
    assert summary(records, 4) == pytest.approx(
        {
            "accuracy": 5 / 12,
            "mean_tokens": 5.5,
            "finished": 0.5,
            "score": 5.5 / 12,
            "pass@2": np.mean([0.5, 1, 0]),
            "pass@4": np.mean([1, 1, 0]),
        }
    )


def rollout_of(*texts: str, finished: bool = True) -> Rollout:
    """A rollout that says these texts, each with the end token."""
    rows = [[*TOKENIZER.encode(text), TOKENIZER.eos_id] for text in texts]
    tokens = np.zeros((len(rows), 12), np.int32)
    for n, row in enumerate(rows):
        tokens[n, : len(row)] = row
    lengths = np.array([len(row) for row in rows])
    blank = np.zeros((len(rows), 1))
    return Rollout(tokens, blank, blank, lengths, np.full(len(rows), finished), blank, blank, np.arange(len(rows)))


def test_texts_end_before_the_first_stop_string() -> None:
    rollout = rollout_of("12=3+", "<think>4", "5")
    assert completion_texts(rollout, TOKENIZER) == ["12=3+", "<think>4", "5"]
    assert completion_texts(rollout, TOKENIZER, ("+", "=3")) == ["12", "<think>4", "5"]


@pytest.mark.parametrize("kind", [toy_tokenizers.llama, toy_tokenizers.metaspace])
def test_texts_go_on_where_the_prompt_ends(kind: Callable[[], Any], tmp_path: Path) -> None:
    tokenizer = toy_tokenizers.load(kind(), tmp_path)
    asked, body = ["def f(a):\n", "g"], "    return a"
    prompts, prompt_mask = pad_prompts([tokenizer.encode(text) for text in asked])
    ids = tokenizer.encode(asked[0] + body)[len(tokenizer.encode(asked[0])) :]
    rows = [ids, ids[1:], ids, [tokenizer.eos_id]]
    tokens, lengths = np.zeros((4, 16), np.int32), np.array([len(row) for row in rows])
    for n, row in enumerate(rows):
        tokens[n, : len(row)] = row
    blank = np.zeros((4, 1))
    rollout = Rollout(
        tokens, blank, blank, lengths, np.ones(4, bool), prompts, prompt_mask.astype(np.float32), np.repeat([0, 1], 2)
    )
    assert completion_texts(rollout, tokenizer) == [body, body.lstrip(), body, ""]
    assert completion_texts(rollout, tokenizer, (" a",)) == ["    return", "return", "    return", ""]
    assert completion_texts(rollout, tokenizer, (" return",))[0] == "   "
    assert cut_at_strings(np.array(ids), ("    r",), tokenizer, prompts[0]) == 2
    assert cut_at_strings(np.array(ids), ("     r",), tokenizer, prompts[0]) == len(ids)


def test_ids_beyond_the_tokenizer_are_no_answer() -> None:
    rollout = rollout_of("123")
    rollout.tokens[0, 1] = TOKENIZER.vocab_size + 3
    [text] = completion_texts(rollout, TOKENIZER)
    assert text == "1\N{REPLACEMENT CHARACTER}3"


@pytest.mark.parametrize("stop", [(), ("7",)])
def test_a_model_with_more_ids_than_the_tokenizer_can_be_evaluated(stop: tuple[str, ...]) -> None:
    model = build(TINY | {"vocab_size": 40})
    params = tiny_params() | {"embed": jax.random.normal(jax.random.key(0), (40, 32))}
    task = build_task("addition", digits=1)
    examples = fixed_examples(task, TOKENIZER, "test", 4)
    sampling = SamplingParams(6, stop=stop, n=3)
    found = evaluate(model, params, TaskSpec(task, TOKENIZER), examples, jax.random.key(0), sampling)
    assert any("\N{REPLACEMENT CHARACTER}" in record["completion"] for record in found.samples)


def test_every_example_is_answered_and_judged() -> None:
    tokenizer = CharTokenizer(TOKENIZER.alphabet)
    task = build_task("addition", digits=1, direct_share=1.0)
    examples = fixed_examples(task, tokenizer, "test", 5)
    sampling = SamplingParams(6, n=2, execution=Execution(slots=3))
    found = evaluate(tiny(), tiny_params(), TaskSpec(task, tokenizer), examples, jax.random.key(0), sampling)
    assert len(found.samples) == 10
    assert {"accuracy", "mean_tokens", "finished", "score", "readable", "pass@2"} == set(found.metrics)
    judged = [task.verify(examples[n // 2]["example"], row["completion"]) for n, row in enumerate(found.samples)]
    assert found.metrics["readable"] == np.mean([verdict.parsed is not None for verdict in judged])
    for n, record in enumerate(found.samples):
        example = examples[n // 2]["example"]
        assert record["prompt"] == task.prompt(example)
        assert record["score"] == task.verify(example, record["completion"]).score


class EvenSteps(Automaton):
    """Whoever is asked for an even number of steps is right, and for one step in the part "first"."""

    def parts(self, example: dict[str, Any], text: str) -> dict[str, bool]:
        """The part is right for one step."""
        return {"first": example["steps"] == 1}

    def verify(self, example: dict[str, Any], text: str) -> Verdict:  # type: ignore[override]
        return Verdict(float(example["steps"] % 2 == 0), text, "by the number of steps")


def test_accuracy_by_a_field_of_the_examples() -> None:
    model = build(TINY | {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 3}})
    params = jax.jit(model.init)(jax.random.key(0))
    task = EvenSteps(width=8, max_steps=3)
    tokenizer = CharTokenizer(task.alphabet)
    examples = fixed_examples(task, tokenizer, "test", 7)
    steps = [example["example"]["steps"] for example in examples]
    spec, asked = TaskSpec(task, tokenizer, by="steps"), (examples, jax.random.key(0), SamplingParams(2, n=2))
    recurrence = Recurrence(np.repeat(steps, 2), max_depth=3)
    metrics = evaluate(model, params, spec, *asked, recurrence=recurrence).metrics
    assert metrics["accuracy"] == pytest.approx(steps.count(2) / 7)
    assert metrics["first"] == pytest.approx(steps.count(1) / 7)
    for k in set(steps):
        assert metrics[f"accuracy_steps_{k}"] == (k == 2)
        assert metrics[f"first_steps_{k}"] == (k == 1)
        assert metrics[f"mean_depth_steps_{k}"] == k
    with pytest.raises(ValueError, match=r"field of the examples 'step'.*Did you mean 'steps'"):
        evaluate(model, params, dataclasses.replace(spec, by="step"), *asked)
