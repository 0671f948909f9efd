"""From flags to a config, and from a result to what the user reads."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console as Screen
from rich.table import Table
from rich.text import Text

from infer.terminal import one_line, visible
from train.hosts import Hosts, join, leave, lost
from train.metrics import number, read_lines

COLUMNS = {"accuracy": "{:.1%}", "mean_tokens": "{:.1f}", "answer_loss": "{:.4f}", "seconds": "{:.1f}"}
USAGE_ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, NotADirectoryError, flags.Error)


class UsageError(Exception):
    """Wrong use of the command line, as one paragraph."""


def guarded(action: Callable[[], None]) -> int:
    """Runs an action and turns what it raises into one paragraph and an exit code (SAGAX_TRACEBACK=1: the stack)."""
    code = 0
    try:
        action()
    except KeyboardInterrupt:
        code = _complain("interrupted", 130)
    except (UsageError, *USAGE_ERRORS) as error:
        code = _complain(_words(error), 2)
    except Exception as error:  # a fault: still one paragraph, never a wall of frames
        code = _complain(f"{lost(error)}{type(error).__name__}: {_words(error)}", 1)
    if code:
        leave(code)
    return code


def _words(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback" in text:  # a recipe that raised: ml_collections hands its whole stack over as the message
        text = [line for line in text.splitlines() if line.strip()][-1]
    return " ".join(text.split())


def _complain(text: str, code: int) -> int:
    if os.environ.get("SAGAX_TRACEBACK"):
        traceback.print_exc()
    print(f"error: {one_line(text)}", file=sys.stderr, flush=True)
    return code


def parse(arguments: list[str], usage: str) -> tuple[ConfigDict, Path]:
    """Reads --config, --workdir and overrides; anything else raises UsageError with the nearest name."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "the experiment", lock_config=True, flag_values=values, sys_argv=arguments
    )
    flags.DEFINE_string("workdir", None, "the run directory", flag_values=values)
    path = next((a.split("=", 1)[1] for a in arguments if a.startswith("--config=")), None)
    if path and not Path(path.split(":", 1)[0]).is_file():
        raise UsageError(f"no config file at {path.split(':', 1)[0]}; the recipes are in configs/")
    try:
        left = values(arguments)
        config = values["config"].value
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        staged = any(argument.startswith("--config.stage.") for argument in arguments)
        hint = "a stage takes the settings its recipe lists for it, others go to --config.<setting>; " if staged else ""
        raise UsageError(f"{_words(error)} ({hint}{usage})") from error
    if config is None or not values["workdir"].value:
        raise UsageError(f"--config and --workdir are needed; {usage}")
    if len(left) > 1:
        raise UsageError(f"unexpected argument {left[1]!r}; settings are written --config.key=value; {usage}")
    return config, Path(values["workdir"].value)


def initialize(hosts: Hosts | None = None) -> None:
    """Joins the other hosts when there are any, and keeps compiled programs between runs."""
    join(hosts)
    # What Orbax raises it also logs, with a stack for each of its threads.
    logging.getLogger("absl").setLevel(logging.ERROR if "SAGAX_TRACEBACK" in os.environ else logging.CRITICAL)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)


def report(result: dict[str, Any], workdir: Path) -> None:
    """Prints the table of stages, samples before and after, and where everything lies."""
    if result["status"] != "complete" or jax.process_index():
        return
    screen = Screen(width=None if sys.stdout.isatty() else 110, highlight=False)
    screen.print(_table(result))
    _print_samples(screen, workdir, [stage["name"] for stage in result["stages"]])
    last = workdir / result["stages"][-1]["name"] if (workdir / result["stages"][-1]["name"]).is_dir() else workdir
    for path, what in (
        (workdir / "curves.png", "reward, accuracy, length, entropy, KL over steps"),
        (workdir / "samples.jsonl", "what the model wrote"),
        (workdir / "result.json", "this table, with command, commit, versions"),
        (last / "checkpoints", "the parameters"),
    ):
        screen.print(Text(f"  {one_line(str(path))}  ").append(what, style="dim"), soft_wrap=True)
    # A prompt that is not printed as it is would not be the same when it is typed again.
    prompts = (record["prompt"].strip() for record in _records(workdir))
    if prompt := next((prompt for prompt in prompts if prompt and visible(prompt) == prompt), None):
        command = f"{_python()} -m infer --run={shlex.quote(str(workdir))} --prompt={shlex.quote(prompt)}"
        screen.print(Text(f"Talk to it:\n  {visible(command)}"), soft_wrap=True)


def _table(result: dict[str, Any]) -> Table:
    """A row for each stage, with what was measured of it."""
    table = Table(title=Text(one_line(result["name"]), style="italic"))
    table.add_column("stage")
    columns = {name: form for name, form in COLUMNS.items() if any(name in stage for stage in result["stages"])}
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for stage in result["stages"]:
        cells = (form.format(number(stage[name])) if name in stage else "" for name, form in columns.items())
        table.add_row(Text(one_line(stage["name"])), *cells)
    return table


def _python() -> str:
    """The interpreter as the user would type it."""
    here = Path(sys.executable)
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else "python"


def _records(workdir: Path) -> list[dict[str, Any]]:
    return read_lines(workdir / "samples.jsonl")


def _print_samples(screen: Screen, workdir: Path, stages: list[str]) -> None:
    """Three prompts with the first and the last answer to each."""
    answers: dict[str, list[dict[str, Any]]] = {}
    for record in _records(workdir):
        if record["kind"] == "eval":
            answers.setdefault(record["prompt"], []).append(record)
    for prompt, records in list(answers.items())[:3]:
        screen.print(Text(_short(prompt), style="bold"))
        for label, record in (
            (("before", records[0]), ("after", records[-1])) if len(records) > 1 else (("answer", records[-1]),)
        ):
            mark = "right" if record["score"] >= 1 else "wrong"
            screen.print(Text(f"  {label:7}{_short(record['completion'])}  ({mark})"))


def _short(text: str, width: int = 160) -> str:
    """On one line, as a terminal may be given it, of at most so many characters."""
    text = one_line(text)
    return text if len(text) <= width else f"{text[: width - 3]}..."
