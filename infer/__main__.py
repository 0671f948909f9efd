"""Command line: python -m infer --run=runs/q --prompt="123+456="   or   --task=gsm8k --path=data/gsm8k [--samples=8]"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from model.platform import restart_with_huge_pages
from settings.setting import declared
from settings.strategies import STRATEGIES, option_fields, strategy_options
from store.command import exit_code
from store.terminal import visible

if TYPE_CHECKING:
    from infer.draft import Draft
    from infer.recurrence import Recurrence
    from infer.sampling import SamplingParams


class Parser(argparse.ArgumentParser):
    """Wrong flags raise, so that they are told like every other wrong use."""

    def error(self, message: str) -> NoReturn:
        """Raises ValueError with argparse's words."""
        raise ValueError(f"{message}; python -m infer --help lists the flags")


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m infer`."""
    flags = Parser("python -m infer", description="Talk to a run (or a Hub folder), or measure it on a task.")
    flags.add_argument("--run", required=True, help="run directory, or a folder in the Hub's layout")
    flags.add_argument("--step", type=int, help="checkpoint step; the last one if absent")
    flags.add_argument("--dtype", help="of the parameters: float32, bfloat16 or float16; default: as they are stored")
    flags.add_argument("--prompt", help="text to continue")
    flags.add_argument("--task", help="task to measure; 'own' for the run's own")
    flags.add_argument("--path", help="the task's data folder")
    flags.add_argument(
        "--task_option", action="append", default=[], metavar="NAME=VALUE", help="of the task, such as allow_code=True"
    )
    flags.add_argument("--split", default="test")
    flags.add_argument("--examples", type=int, default=256)
    flags.add_argument("--samples", type=int, default=1, help="answers per prompt; more than one gives pass@k")
    flags.add_argument("--temperature", type=float, help="0 is greedy; default 0 for one sample, else 1")
    flags.add_argument("--top_k", type=int, default=0)
    flags.add_argument("--top_p", type=float, default=1.0)
    flags.add_argument("--min_p", type=float, default=0.0)
    flags.add_argument("--max_new_tokens", type=int, help="default: the run's own limit, or 256")
    flags.add_argument("--slots", type=int, default=64, help="rows decoded at once")
    flags.add_argument("--draft", action="store_true", help="speculative decoding with the model's own MTP module")
    flags.add_argument(
        "--depth",
        type=lambda text: text if text in ("task", "gate") else int(text),
        help="iterations of a recurrent model, task: those that the task names, or gate: where the exit gate stops at"
        " the prompt's end; default: the model's mean",
    )
    flags.add_argument(
        "--exit", help="end a token's iterations early: kl, latent, cosine, entropy, argmax, min_p_kl, gate"
    )
    flags.add_argument("--threshold", type=float, help="of --exit or --depth=gate; default: the criterion's own")
    flags.add_argument("--warm_start", default="", help="raw or normed: begin where the token before ended")
    flags.add_argument("--draft_depth", type=int, default=0, help="guess tokens with so few iterations")
    flags.add_argument(
        "--thoughts", type=int, help="continuous thoughts of a model that has them; default: as in training"
    )
    flags.add_argument("--by", default="", help="a field of the examples: accuracy is also told for each of its values")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--output", help="write every sample to this JSONL file")
    flags.add_argument("--results", help="append a line with the metrics to this JSONL file (analysis.budget reads it)")
    flags.add_argument("--reward_model", help="a run directory or Hub folder, for strategies that score by reward")
    flags.add_argument("--strategy", default="sample", help=" | ".join(STRATEGIES))
    _add_options(flags.add_argument_group("strategies", "what a strategy may be told; docs/test_time.md explains them"))
    return flags


def _add_options(group: Any) -> None:
    """A flag for every option of a strategy, absent unless it is given."""
    for name, (field, owners) in option_fields().items():
        rules, of = declared(field), "all" if len(owners) == len(STRATEGIES) else ", ".join(owners)
        meaning = f"{rules.meaning} ({of}; default {field.default!r})"
        group.add_argument(f"--{name}", type=type(field.default), help=meaning.replace("%", "%%"))


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def act() -> None:
        options = parser().parse_args(arguments)
        if options.samples < 1:
            raise ValueError(f"--samples must be at least 1, found {options.samples}")
        if (options.prompt is None) == (options.task is None):
            raise ValueError("give either --prompt or --task")
        _speak(options) if options.prompt is not None else _measure(options)

    return exit_code(act)


# Strategies that may answer by one sample, and then take the likeliest tokens.
ALONE = ("sample", "budget", "token_conditional", "step_conditional", "class_conditional")


class Asked(NamedTuple):
    """What the flags come to: how to sample, how a recurrent model iterates, how tokens are drafted, and the options of
    the strategy.
    """

    sampling: SamplingParams
    recurrence: Recurrence | None
    draft: Draft | None
    options: dict[str, Any]


def _asked(options: argparse.Namespace, config: dict[str, Any], stop: tuple[int | str, ...]) -> Asked:
    """The flags as data; ValueError for those that contradict one another."""
    from infer.draft import Draft
    from infer.recurrence import Recurrence
    from infer.sampling import Execution, SamplingParams
    from model.depth import Exit

    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if options.samples == 1 and options.strategy in ALONE else 1.0
    by_gate = options.depth == "gate"
    if options.threshold and not (options.exit or by_gate):
        raise ValueError(f"--threshold={options.threshold} belongs to a criterion: give --exit, or --depth=gate")
    if options.draft and options.draft_depth:
        raise ValueError(f"--draft and --draft_depth={options.draft_depth} are two ways of guessing: give one")
    leave = Exit(options.exit, options.threshold) if options.exit else None
    sampling = SamplingParams(
        options.max_new_tokens or config.get("eval", {}).get("max_new_tokens", 256),
        temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        stop,
        options.samples,
        Execution(slots=options.slots),
    )
    if options.depth == "task" and not options.task:
        raise ValueError("--depth=task takes the iterations of an example from its task: give --task, or a number")
    depth = None if options.depth == "task" else options.depth
    threshold = options.threshold if by_gate else None
    recurrence = Recurrence(depth, exit=leave, warm_start=options.warm_start, gate_threshold=threshold)
    draft = Draft(depth=options.draft_depth) if options.draft or options.draft_depth else None
    strategy_flags = {name: value for name in option_fields() if (value := getattr(options, name)) is not None}
    strategy_options(options.strategy, strategy_flags)
    return Asked(sampling, recurrence, draft, strategy_flags)


def _load(options: argparse.Namespace) -> tuple[Any, Asked]:
    from infer.load import load_run

    loaded = load_run(options.run, options.step, options.dtype)
    return loaded, _asked(options, loaded.config, tuple(loaded.config.get("data", {}).get("stop", ())))


def _ending(loaded: Any, thoughts: int | None) -> Any:
    """What every question ends in: what the run's did, or so many thoughts."""
    from data.sources.thoughts import markers_of
    from data.thoughts import with_places

    return loaded.ending if thoughts is None else with_places(loaded.ending, markers_of(loaded.tokenizer), thoughts)


def _speak(options: argparse.Namespace) -> None:
    import jax

    from data.chat import prompt_tokens
    from infer.evaluate import completion_texts
    from infer.sampler import generate
    from infer.strategies.base import budgeted
    from infer.thoughts import thoughts_of
    from store.json_files import without_surrogates

    loaded, (sampling, recurrence, draft, strategy_flags) = _load(options)
    if options.strategy not in ("sample", "budget"):
        raise ValueError(f"--strategy={options.strategy} chooses by what a task reads: give --task instead of --prompt")
    sampling = budgeted(sampling, strategy_options(options.strategy, strategy_flags))
    data, prompt = loaded.config.get("data", {}), without_surrogates(options.prompt)
    tokens = prompt_tokens(loaded.tokenizer, prompt, data.get("template", "none"), data.get("system") or None)
    ending = _ending(loaded, options.thoughts)
    rollout = generate(
        loaded.model,
        loaded.params,
        [[*tokens, *ending.tokens]],
        jax.random.key(options.seed),
        dataclasses.replace(sampling, stop=(*loaded.tokenizer.eos_ids, *sampling.stop)),
        tokenizer=loaded.tokenizer,
        recurrence=recurrence,
        draft=draft,
        thoughts=thoughts_of(ending),
    )
    texts = completion_texts(rollout, loaded.tokenizer, sampling.stop_strings)
    for text, done in zip(texts, rollout.finished, strict=True):
        print(visible(f"{prompt}{text}") + ("" if done else f"  [cut at {sampling.max_new_tokens} tokens]"))


def _measure(options: argparse.Namespace) -> None:
    import jax
    import numpy as np
    from rich.progress import Progress

    from data.depths import ExampleDepths
    from infer.evaluate import TaskSpec, evaluate_strategy, questions
    from infer.reward_model import open_reward_model, strategy_reward
    from infer.strategies import build_strategy
    from store.json_files import cleaned

    loaded, (sampling, recurrence, draft, strategy_flags) = _load(options)
    ending = _ending(loaded, options.thoughts)
    data = loaded.config.get("data", {})
    task = loaded.task(None if options.task == "own" else options.task, options.path, task_options(options.task_option))
    rendering = {"template": data.get("template", "none"), "system": data.get("system") or None}
    spec = TaskSpec(task, loaded.tokenizer, ending, options.by, None, rendering["template"], rendering["system"])
    room = loaded.model.config.max_length - sampling.max_new_tokens - len(ending.tokens)
    examples, dropped = questions(
        task,
        loaded.tokenizer,
        options.split,
        options.examples,
        room=room,
        drops=data.get("too_long") == "drop",
        say=lambda text: print(text, file=sys.stderr),
        **rendering,
    )
    if options.depth == "task":
        depths = ExampleDepths(data.get("depth_offset", 0))
        by_question = [depths.answer_depth(task, asked["example"]) for asked in examples]
        assert recurrence is not None
        recurrence = dataclasses.replace(recurrence, depth=np.repeat(by_question, sampling.n))
    started = time.perf_counter()
    with Progress(transient=True) as bar:
        row = bar.add_task("answering", total=len(examples) * sampling.n)
        told = dataclasses.replace(sampling.execution, progress=lambda done, total: bar.update(row, completed=done))
        sampling = dataclasses.replace(sampling, execution=told)
        reward = strategy_reward(open_reward_model(options.reward_model), spec) if options.reward_model else None
        strategy = build_strategy(
            options.strategy, spec, sampling, recurrence=recurrence, draft=draft, reward=reward, **strategy_flags
        )
        evaluated = evaluate_strategy(strategy, loaded.model, loaded.params, examples, jax.random.key(options.seed))
    seconds = time.perf_counter() - started
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(cleaned(sample)) + "\n" for sample in evaluated.samples)
    counted = {"examples": len(examples), **({"dropped": dropped} if dropped else {}), "seconds": round(seconds, 2)}
    print(json.dumps(counted | evaluated.metrics, indent=2))
    for note, count in evaluated.notes.items():
        print(f"{count} of {len(examples)} examples: {note}", file=sys.stderr)
    if options.results:
        with open(options.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(result_of(options.strategy, strategy_flags, sampling.n, evaluated.metrics)) + "\n")


def task_options(texts: list[str]) -> dict[str, Any]:
    """Options of a task from texts `name=value`; values are read as Python's literals, and else as text."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--task_option takes name=value, got {text!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def result_of(strategy: str, strategy_flags: dict[str, Any], samples: int, metrics: dict[str, float]) -> dict[str, Any]:
    """One point of accuracy against tokens, as `analysis.budget` reads it."""
    told = {**strategy_flags, **({"samples": samples} if samples > 1 else {})}
    alone = next(iter(told.values())) if len(told) == 1 else None
    budget = alone if isinstance(alone, int) else ", ".join(f"{name}={value}" for name, value in told.items())
    spent = ("mean_thought", "tokens_per_question", "mean_tokens")
    tokens = next(metrics[name] for name in spent if name in metrics)
    return {"strategy": strategy, "budget": budget or "none", "tokens": tokens, "accuracy": metrics["accuracy"]}


if __name__ == "__main__":
    restart_with_huge_pages(["-m", "infer", *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
