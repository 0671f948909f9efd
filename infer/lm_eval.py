"""Runs and Hub folders as a model of EleutherAI's lm-evaluation-harness, and the command that measures its tasks.

python -m infer.lm_eval --run=runs/q --tasks=gsm8k,minerva_math500 --apply_chat_template        # docs/lm_eval.md
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import fnmatch
import functools
import importlib
import importlib.util
import json
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from infer.__main__ import Parser
from infer.harness import NAME, Answers, Options, options_of
from infer.load import load_run
from model.lm import parameter_count
from model.platform import restart_with_huge_pages
from store.command import exit_code

MISSING = "lm-evaluation-harness is not installed: pip install -c constraints.txt -e '.[eval]'"


def harness(module: str) -> Any:
    """A module of the harness; ValueError naming the extra where it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(MISSING)
    return importlib.import_module(module)


@functools.cache
def model_class() -> type:
    """The harness's model `sagax`: `model_class()(run="runs/q")`, or model="sagax" and model_args after `register`."""
    base: Any = harness("lm_eval.api.model").LM

    class Sagax(base):
        """A run by its `model_args`, `Options`."""

        def __init__(self, **given: Any) -> None:
            super().__init__()
            options = options_of(given)
            self.answers = Answers(load_run(options.run, options.step, options.dtype), options)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return self.answers.loglikelihood(requests)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return self.answers.loglikelihood_rolling(requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return self.answers.generate_until(requests)

        def apply_chat_template(self, chat_history: list[Any], add_generation_prompt: bool = True) -> str:
            return self.answers.apply_chat_template(chat_history, add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return self.answers.chat_template(chat_template)

        @property
        def tokenizer_name(self) -> str:
            options = self.answers.options
            return f"{options.run}{options.chat_template and f'@{options.chat_template}'}".replace("/", "__")

        def get_model_info(self) -> dict[str, Any]:
            loaded = self.answers.loaded
            asked = dataclasses.asdict(self.answers.options)
            return {
                **asked,
                "model_num_parameters": parameter_count(loaded.params),
                "max_length": self.answers.max_length,
            }

    return Sagax


def register() -> None:
    """Makes the harness know the model `sagax`, as often as it is called."""
    harness("lm_eval.models")  # its own models, which it registers only where there are none yet
    harness("lm_eval.api.registry").model_registry.register(NAME, target=model_class())


def check_tasks(names: Sequence[str], known: Iterable[str]) -> None:
    """Raises ValueError for a name that is neither a task, a group or a tag, nor a pattern of some, nor a YAML file."""
    known = list(known)
    for name in names:
        if name in known or fnmatch.filter(known, name) or Path(name).is_file():
            continue
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"unknown task {name!r}.{hint} The harness has {len(known)}; lm-eval ls tasks lists them")


def measured(options: Options, tasks: Sequence[str], include: str = "", **asked: Any) -> dict[str, Any]:
    """The harness's results of a run on some of its tasks; `include`: a folder with more of them, `asked`: further
    arguments of its `simple_evaluate`.
    """
    manager = harness("lm_eval.tasks").TaskManager(include_path=include or None)
    check_tasks(tasks, manager.all_tasks)
    model = model_class()(**dataclasses.asdict(options))
    found = harness("lm_eval.evaluator").simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, **asked)
    return typing.cast("dict[str, Any]", found)


def tables(found: dict[str, Any]) -> str:
    """The harness's table of tasks and, where there are any, of groups."""
    table = harness("lm_eval.utils").make_table
    return "\n".join(table(found, column) for column in ("results", "groups") if found.get(column))


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m infer.lm_eval`."""
    flags = Parser("python -m infer.lm_eval", description="Measures a run (or a Hub folder) by lm-evaluation-harness.")
    flags.add_argument("--run", default="", help="run directory, or a folder in the Hub's layout")
    flags.add_argument("--tasks", default="", help="names of tasks, groups or YAML files, with commas between them")
    flags.add_argument("--include_path", default="", help="a folder with further tasks")
    flags.add_argument("--num_fewshot", type=int, help="examples in the context; default: the task's own")
    flags.add_argument("--limit", type=float, help="only so many examples of a task, or such a share")
    flags.add_argument("--apply_chat_template", action="store_true", help="contexts as conversations")
    flags.add_argument("--system_instruction", help="the system's message")
    flags.add_argument("--gen_kwargs", help="for generation, over the task's own: temperature=0.6,max_gen_toks=2048")
    flags.add_argument("--step", type=int, help="checkpoint step; the last one if absent")
    flags.add_argument("--dtype", help="of the parameters; default: as they are stored")
    flags.add_argument("--depth", type=int, help="iterations of a recurrent model; default: the model's mean")
    for name, what in (
        ("batch_size", "rows scored at once"),
        ("slots", "rows decoded at once"),
        ("max_length", "a shorter context than the model's; 0: that one"),
        ("max_gen_toks", "tokens of an answer, where the task names no number"),
        ("seed", "of what is sampled"),
    ):
        flags.add_argument(f"--{name}", type=int, default=getattr(Options, name), help=what)
    flags.add_argument("--truncate", action="store_true", help="what is too long loses its beginning")
    flags.add_argument("--chat_template", default="", help="one of several by name")
    flags.add_argument("--think_end", default="", help="an answer is what follows the last of these marks: </think>")
    flags.add_argument("--output", default="", help="write the results to this JSON file")
    flags.add_argument("--log_samples", action="store_true", help="with every request and answer")
    flags.add_argument(
        "--harness",
        nargs=argparse.REMAINDER,
        help=f"what follows is the harness's own command line, with the model {NAME!r} known to it",
    )
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""

    def act() -> None:
        flags = vars(parser().parse_args(arguments))
        if (words := flags.pop("harness")) is not None:
            register()
            sys.argv[1:] = words
            return harness("lm_eval.__main__").cli_evaluate()
        tasks = [name.strip() for name in flags.pop("tasks").split(",") if name.strip()]
        if not tasks:
            raise ValueError("--tasks names what is measured, such as --tasks=gsm8k")
        options = options_of({field.name: flags.pop(field.name) for field in dataclasses.fields(Options)})
        output, include = flags.pop("output"), flags.pop("include_path")
        found = measured(options, tasks, include, **flags)
        print(tables(found))
        if output:
            text = json.dumps(found, indent=2, default=harness("lm_eval.utils").handle_non_serializable)
            Path(output).write_text(text + "\n", encoding="utf-8")

    return exit_code(act)


if __name__ == "__main__":
    restart_with_huge_pages(["-m", "infer.lm_eval", *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
