"""From flags to a config, and from a result to what the user reads."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console as Screen
from rich.table import Table
from rich.text import Text

from model.config import unknown
from store.command import exit_code, words_of
from store.objects import place
from store.records import number, read_lines
from store.terminal import one_line, visible
from train.hosts import Hosts, join, leave, lost
from train.pipeline import Choice
from train.settings import described, flat, override, read_recipe

COLUMNS = {"accuracy": "{:.1%}", "mean_tokens": "{:.1f}", "answer_loss": "{:.4f}", "seconds": "{:.1f}"}
INTERRUPTED = "interrupted; the same command continues at the last checkpoint, if there is one"
FLAGS = {
    "config": "a recipe, configs/<name>.py or configs/<name>.py:<argument>",
    "workdir": "the run directory: new, or that of an interrupted run, which continues",
    "only": "stages of a pipeline, with commas between them, which alone are run",
    "until": "a stage of a pipeline: it and what it needs are run",
    "redo": "stages that are run anew with what depends on them, their folders moved aside; stale: what was changed",
    "dry_run": "print the graph of a pipeline's stages and run nothing",
}
SWITCHES = ("dry_run",)


class Wanted(NamedTuple):
    """What a command line asks for."""

    config: ConfigDict
    workdir: Path
    choice: Choice
    dry_run: bool


class UsageError(ValueError):
    """Wrong use of the command line, as one paragraph."""


def guarded(action: Callable[[], None]) -> int:
    """Runs an action and turns what it raises into one paragraph and an exit code (SAGAX_TRACEBACK=1: the stack)."""
    code = exit_code(action, INTERRUPTED, lost)
    if code:
        leave(code)
    return code


def parse(arguments: list[str], usage: str) -> Wanted:
    """Reads FLAGS and --config.<setting>; anything else raises UsageError with the nearest name.

    What of the recipe no longer applies is said on stderr.
    """
    try:
        flags, settings = flags_of(arguments[1:])
        if not flags.get("config") or not flags.get("workdir"):
            raise ValueError("--config and --workdir are needed")
        config, notes = override(read_recipe(flags["config"]), settings)
        workdir = place(flags["workdir"])
        choice = Choice(_names(flags.get("only", "")), flags.get("until", ""), _names(flags.get("redo", "")))
    except (AttributeError, ImportError, KeyError, SyntaxError, TypeError, OSError, ValueError) as error:
        raise UsageError(f"{words_of(error)} ({usage})") from error
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    return Wanted(config, workdir, choice, "dry_run" in flags)


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def flags_of(arguments: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(flags, settings), as `--name=value` or `--name value`; a setting without a value is true."""
    flags: dict[str, str] = {}
    settings: dict[str, str] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}; settings are written --config.key=value")
        name, given, value = word[2:].partition("=")
        setting = name.startswith("config.")
        if not setting and name not in FLAGS:
            raise ValueError(unknown("flag", f"--{name}", [f"--{flag}" for flag in (*FLAGS, "config.<setting>")]))
        if not given:
            if name not in SWITCHES and not setting and (not left or left[0].startswith("--")):
                raise ValueError(f"--{name} needs a value")
            alone = name in SWITCHES or not left or left[0].startswith("--")
            value = "true" if alone else left.pop(0)
        if setting:
            settings[name.removeprefix("config.")] = value
        else:
            flags[name] = value
    return flags, settings


def help_text(arguments: list[str], usage: str) -> str:
    """What --help prints: the flags and the recipes; beside a --config the settings of that recipe, too."""
    spec = next((word.split("=", 1)[1] for word in arguments if word.startswith("--config=")), "")
    lines = [usage, "", *(f"  --{name:21}{words}" for name, words in FLAGS.items())]
    lines += [f"  {'--config.<setting>':23}another value for a setting, in every stage of a pipeline"]
    lines += [f"  {'--config.stage.<name>.<setting>'}   ... in one stage"]
    if not spec:
        recipes = sorted(str(path) for path in Path("configs").rglob("*.py") if "def get_config" in path.read_text())
        return "\n".join([*lines, "", "--config=<recipe> --help lists its settings. Recipes:", *recipes])
    config = read_recipe(spec)
    if "--help_settings" in arguments:
        return "\n".join([f"Settings of {spec}:", *(f"  {line}" for line in described(config))])
    settings = [f"  {name} = {value!r}" for name, value in flat(config)]
    return "\n".join([*lines, "", f"Settings of {spec} (--help_settings says what they mean):", *settings])


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
    if result["status"] == "partial" and not jax.process_index():
        print(f"{workdir}: left are the stages {', '.join(result['left'])}")
    if result["status"] != "complete" or jax.process_index():
        return
    screen = Screen(width=None if sys.stdout.isatty() else 110, highlight=False)
    screen.print(_table(result))
    _print_samples(screen, workdir, [stage["name"] for stage in result["stages"]])
    folders = [workdir / stage["name"] for stage in result["stages"]]
    last = next((folder for folder in reversed(folders) if (folder / "checkpoints").is_dir()), workdir)
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
        if record.get("kind") == "eval":
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
