"""Rejection sampling: a split's examples answered, judged and filtered, chunk by chunk.

`samples.jsonl` holds every sample with the filter that took it out; `kept.jsonl` the rest, as examples with a
`completion` that a later stage can learn from. While a chunk is judged the next is sampled. A broken stage goes on at
its last whole chunk, and writes the same.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from data.chat import prompt_tokens, render_prompt
from data.depths import check_has_depth
from data.sources.source import check_not_empty
from data.tasks.base import WRITTEN, examples_of
from infer.asking import TaskSpec
from infer.checks import check_room
from infer.gate_depths import check_gate
from infer.recurrence import Recurrence
from infer.reward_model import open_reward_model, strategy_reward
from infer.sampling import Execution, SamplingParams
from infer.strategies import Answers, Strategy, answer, build_strategy
from infer.strategies.votes import label_answers
from model.lm import Params
from model.sharding import on_mesh
from rl.jobs.filters import Sampled, chosen, reasons
from rl.jobs.texts import ABOUT, measures, rewards_of
from rl.reward_functions import Sample
from settings.data import BY_GATE, BY_TASK
from store.json_files import read_json
from store.records import SAMPLES, append_line, keep_lines, write_json
from train.console import Interrupt
from train.jobs.base import Job, Stopped
from train.progress import progress
from train.setup import Setup

KEPT, PROGRESS = "kept.jsonl", "progress.json"


class Sampler:
    """One stage: what its chunks share."""

    def __init__(self, setup: Setup) -> None:
        """Builds the strategy and the rewards; reads no parameters yet."""
        rules, data = setup.config.sample, setup.config.data
        self.setup, self.rules = setup, rules
        self.examples = examples_of(setup.task, data.split)
        check_not_empty(data.split, len(self.examples))
        self.count = min(rules.examples or len(self.examples), len(self.examples))
        self.rewards = rewards_of(setup, rules.least)
        self.strategy = _strategy(setup)

    def chunk(self, params: Params, number: int) -> tuple[list[dict[str, Any]], Answers]:
        """The examples of a chunk and all candidates that answer them."""
        first = number * self.rules.chunk
        asked = [self._asked(n) for n in range(first, min(first + self.rules.chunk, self.count))]
        longest = max(len(item["tokens"]) for item in asked)
        check_room(self.setup.model, longest + len(self.setup.ending.tokens), self.rules.max_new_tokens)
        key = jax.random.fold_in(jax.random.key(self.setup.config.seed), number)
        strategy = dataclasses.replace(self.strategy, recurrence=self._recurrence(asked))
        return asked, on_mesh(self.setup.mesh)(answer)(strategy, self.setup.model, params, asked, key)

    def _recurrence(self, asked: list[dict[str, Any]]) -> Recurrence | None:
        """The iterations of the samples of a chunk; None for a model's own."""
        depth, task = self.rules.depth, self.setup.task
        if depth == BY_TASK:
            by_question = [self.setup.depths.answer_depth(task, item["example"]) for item in asked]
            return Recurrence(np.repeat(by_question, self.rules.n))
        return Recurrence(depth) if depth else None

    def _asked(self, number: int) -> dict[str, Any]:
        data, example = self.setup.config.data, self.examples[number]
        tokens = prompt_tokens(
            self.setup.tokenizer, self.setup.task.prompt(example), data.template, data.system or None
        )
        return {"example": example, "tokens": tokens}

    def judged(self, asked: Sequence[dict[str, Any]], answers: Answers, number: int) -> Sampled:
        """The candidates with their verdicts, rewards and votes."""
        candidates, data, task = answers.candidates, self.setup.config.data, self.setup.task
        examples = [asked[n]["example"] for n in candidates.example_of]
        verdicts = answers.verdicts or self.setup.judge(examples, candidates.texts)
        prompts = [
            render_prompt(self.setup.tokenizer, task.prompt(item["example"]), data.template, data.system or None)
            for item in asked
        ]
        samples = [
            Sample(
                examples[n],
                prompts[candidates.example_of[n]],
                text,
                verdicts[n],
                int(candidates.tokens[n]),
                bool(candidates.finished[n]),
                self.rules.max_new_tokens,
            )
            for n, text in enumerate(candidates.texts)
        ]
        votes = np.full(len(samples), -1)
        if self.rules.agreement:
            parsed = [verdict.parsed for verdict in verdicts]
            votes = label_answers(task, self.setup.judge, parsed, candidates.example_of).labels
        mean_logp = candidates.logps / np.maximum(candidates.own, 1)
        measured = measures(self.rewards, samples, candidates.example_of)
        return Sampled(samples, candidates.example_of, measured, mean_logp, votes)

    def rows(self, sampled: Sampled, number: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Counter[str]]:
        """All samples as records, the kept ones as examples, and how many each filter took out."""
        dropped = reasons(sampled, self.rules)
        rng = np.random.default_rng([self.setup.config.seed, number])
        kept = chosen(sampled, np.array([not reason for reason in dropped]), self.rules, rng)
        left = set(kept.tolist())
        records = [
            self._record(sampled, n, number, dropped[n] or ("" if n in left else "enough")) for n in range(len(dropped))
        ]
        examples = [self._kept(sampled, n, number) for n in kept]
        counts = Counter(record["dropped"] or "kept" for record in records)
        return records, examples, counts

    def _record(self, sampled: Sampled, n: int, number: int, dropped: str) -> dict[str, Any]:
        sample = sampled.samples[n]
        return {
            "step": number + 1,
            "kind": "sample",
            "prompt": sample.prompt,
            "completion": sample.text,
            "score": sample.verdict.score,
            "reason": sample.verdict.reason,
            "rewards": {name: float(values[n]) for name, values in sampled.measures.items()},
            "tokens": sample.length,
            "finished": sample.finished,
            "dropped": dropped,
        }

    def _kept(self, sampled: Sampled, n: int, number: int) -> dict[str, Any]:
        """An example with a text to learn from, and where that is from."""
        sample, config = sampled.samples[n], self.setup.config
        about = {
            "run": config.init_from,
            "stage": config.name,
            "chunk": number,
            "number": n,
            "key": [config.seed, number],
            "score": sample.verdict.score,
            "scores": {name: float(values[n]) for name, values in sampled.measures.items()},
            "mean_logp": float(sampled.mean_logp[n]),
            "tokens": sample.length,
            "finished": sample.finished,
        }
        return {**sample.example, WRITTEN: sample.text, ABOUT: about}


def _strategy(setup: Setup) -> Strategy:
    rules, data = setup.config.sample, setup.config.data
    spec = TaskSpec(setup.task, setup.tokenizer, setup.ending, "", setup.judge, data.template, data.system or None)
    folder = setup.config.eval.reward_model
    reward = strategy_reward(open_reward_model(folder, setup.mesh, opened=setup.open), spec) if folder else None
    execution = Execution(slots=rules.slots)
    sampling = SamplingParams(
        rules.max_new_tokens, rules.temperature, stop=tuple(data.stop), n=rules.n, execution=execution
    )
    return build_strategy(rules.strategy, spec, sampling, reward=reward, **dict(rules.strategy_options))


def run(setup: Setup, interrupt: Interrupt) -> dict[str, float]:
    """Answers, judges and writes all chunks that are not written yet; returns what was kept and what was dropped."""
    sampler, workdir, rules = Sampler(setup), setup.workdir, setup.config.sample
    path = workdir / PROGRESS
    told: dict[str, Any] = (
        read_json(path) if path.is_file() else {"chunks": 0, "counts": {}, "lines": {SAMPLES: 0, KEPT: 0}}
    )
    for name, lines in told["lines"].items():
        keep_lines(workdir / name, lines)
    counts, chunks = Counter[str](told["counts"]), -(-sampler.count // rules.chunk)
    with progress("sample", chunks, told["chunks"]) as bar:
        for number, sampled in _judged_chunks(sampler, range(told["chunks"], chunks), interrupt):
            records, kept, dropped = sampler.rows(sampled, number)
            for name, rows in ((SAMPLES, records), (KEPT, kept)):
                told["lines"][name] += len(rows)
                for row in rows:
                    append_line(workdir / name, row)
            counts += dropped | Counter(_totals(records))
            write_json(path, {"chunks": number + 1, "counts": dict(counts), "lines": told["lines"]})
            bar.advance(f"kept {counts['kept']} of {counts['samples']}")
    if not counts["kept"]:
        left = ", ".join(f"{name} {count}" for name, count in counts.items() if name not in TOTALS)
        raise RuntimeError(f"{workdir} kept none of {counts['samples']} samples ({left}): see samples.jsonl there")
    return _metrics(counts, sampler.count)


TOTALS = ("samples", "right", "tokens", "prompts")


def _totals(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What is added up over chunks besides the filters."""
    prompts = {record["prompt"] for record in records if not record["dropped"]}
    return {
        "samples": len(records),
        "right": sum(record["score"] >= 1 for record in records),
        "tokens": sum(record["tokens"] for record in records),
        "prompts": len(prompts),
    }


def _metrics(counts: Counter[str], examples: int) -> dict[str, float]:
    filters = {f"dropped/{name}": float(n) for name, n in sorted(counts.items()) if name not in (*TOTALS, "kept")}
    return {
        "accuracy": counts["right"] / counts["samples"],
        "mean_tokens": counts["tokens"] / counts["samples"],
        "kept": float(counts["kept"]),
        "samples": float(counts["samples"]),
        "prompts_kept": counts["prompts"] / examples,
        **filters,
    }


def _judged_chunks(sampler: Sampler, numbers: range, interrupt: Interrupt) -> Iterator[tuple[int, Sampled]]:
    """Chunks in order, each judged in a thread while the next is sampled; Stopped once a signal was heard."""
    if not numbers:
        return
    params = sampler.setup.make_params()
    with ThreadPoolExecutor(1, "judge") as judge:
        ahead: tuple[int, Future[Sampled]] | None = None
        for number in numbers:
            asked, answers = sampler.chunk(params, number)
            if ahead is not None:
                yield ahead[0], ahead[1].result()
            ahead = number, judge.submit(sampler.judged, asked, answers, number)
            if interrupt.requested:
                yield number, ahead[1].result()
                raise Stopped
        assert ahead is not None
        yield ahead[0], ahead[1].result()


def check(setup: Setup) -> None:
    """Raises ValueError for a model that cannot answer, and for rewards and strategies that cannot be built."""
    if setup.model.config.score.size:
        raise ValueError("algorithm=sample asks a language model, and init_from holds a model of scores")
    rewards_of(setup, setup.config.sample.least)
    asked, room = setup.config.sample.max_new_tokens, setup.model.config.max_length
    if asked >= room:
        raise ValueError(
            f"sample.max_new_tokens={asked} leaves no room for a prompt in the model's context of {room}"
            " (model.max_length): ask for fewer"
        )
    depth, recurrent = setup.config.sample.depth, setup.model.config.depth == "recurrent"
    if depth and not recurrent:
        raise ValueError(f"sample.depth={depth} is for recurrent models, and this one is a plain stack")
    if depth == BY_TASK:
        check_has_depth(setup.task, "sample.depth")
    if depth == BY_GATE:
        check_gate(setup.model, "sample.depth")
    _strategy(setup)


JOB = Job(run, check)
