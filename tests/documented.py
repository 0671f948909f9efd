"""What the pages tell a reader to type, and whether it can be typed: read and checked without starting anything."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.__main__ import BENCHMARKS
from configs.common import base
from data.select.__main__ import NAMES
from data.tasks import TASKS
from launch.chips import HERE
from launch.launchers import LAUNCHERS
from launch.plan import PROGRAMS
from launch.slices import slice_of
from launch.stages import stages_of
from launch.sweep import changes_of, plan, run_names
from model.depth import CRITERIA
from rl.select import RULES
from train.cli import FLAGS, flags_of
from train.hosts import hosts_of
from train.settings import override, read_recipe

ROOT = Path(__file__).resolve().parents[1]
# What pages call by `python -m` and nothing here can check, with the reason.
UNCHECKED = {"pytest": "another project's flags"}
WITHOUT_FLAGS = ("settings", "benchmarks.peer_growth")
TAKES_SETTINGS = ("launch.sweep", "launch.plan")
WITH_PARSERS = (
    "infer",
    "infer.lm_eval",
    "infer.samples",
    "rl.select",
    "data.prepare",
    "data.select",
    "analysis.budget",
    "analysis.depth",
    "analysis.captures",
    "analysis.exits",
    "analysis.lens",
    "analysis.studies.cluster_programs",
    "analysis.studies.clusters",
    "analysis.studies.iterations",
    "analysis.studies.proxy",
    "analysis.studies.roads",
    "analysis.studies.selection",
    "analysis.studies.thoughts",
    "analysis.studies.verifier_free",
    "analysis.thoughts",
    "launch.sweep",
    "launch.pipeline",
    "launch.plan",
    "launch.report",
    "benchmarks",
    "benchmarks.digests",
    "benchmarks.peers",
    "benchmarks.prepare",
    "notebooks",
    "tests.mutants",
)
# Flags that stand alone on a page and belong to no command of ours.
FOREIGN = ("--coordinator", "--processes", "--process", "--help", "--help_settings")
# (module, flag) -> the names that it takes, where the parser lets any text through
CHOICES: dict[tuple[str, str], Collection[str]] = {
    ("infer", "task"): ("own", *TASKS),
    ("infer", "exit"): (*CRITERIA, "gate"),
    ("analysis.depth", "exit"): CRITERIA,
    ("launch.sweep", "launcher"): LAUNCHERS,
    ("launch.plan", "program"): PROGRAMS,
    ("rl.select", "rule"): RULES,
    ("data.select", "rule"): NAMES,
    ("benchmarks", "names"): BENCHMARKS,
}
HOLE, ANY = "HOLE", "1"  # what stands for `<...>` and shell variables; a number and a word alike
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.S | re.M)
SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", re.S)


def text_of(page: Path) -> str:
    """A page's text; of a notebook that of its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every shell command in the code of a page, and of every span of flags alone."""
    spans = SPAN.findall(FENCE.sub("\n\n", text))
    lines = [line for _, kind, block in FENCE.findall(text) if kind != "python" for line in lines_of(block)]
    for line in [*lines, *(" ".join(span.split()) for _, span in spans)]:
        yield from split(line)


def lines_of(block: str) -> list[str]:
    """A block's lines without comments; those that end in a backslash go on in the next."""
    return [re.sub(r"(^|\s)#(\s.*|$)", "", line) for line in block.replace("\\\n", "").splitlines()]


def split(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell; nothing for text that a shell would not read."""
    line = re.sub(r"<[^<>\n]+>|\$\{?\w+\}?", HOLE, line)
    words = shlex.shlex(line, posix=True, punctuation_chars="|;&()<>")
    words.whitespace_split, words.commenters = True, ""
    command: list[str] = []
    try:
        for word in words:
            if set(word) <= set("|;&()<>"):
                yield command
                command = []
            else:
                command.append(word.removeprefix("[").removesuffix("]"))
    except ValueError:
        return
    yield command


def problems(text: str) -> list[str]:
    """What is wrong with the commands of a page, a sentence each."""
    told = []
    for words in commands_in(text):
        try:
            check(words, recipes_in(text))
        except (ValueError, TypeError, KeyError, OSError, AttributeError, ImportError, SystemExit) as error:
            told.append(f"{' '.join(words)}: {error}")
    return told


def check(words: list[str], recipes: Sequence[str]) -> None:
    """Raises one of a few errors for a command of ours that could not be typed so."""
    if "-m" in words[:-1] and words[words.index("-m") - 1].endswith(("python", "python3")):
        at = words.index("-m")
        check_module(words[at + 1], words[at + 2 :])
    elif words[:1] == ["make"]:
        if wrong := [word for word in words[1:] if "=" not in word and word not in (*targets(), "...")]:
            raise ValueError(f"the Makefile has no {wrong[0]}")
    elif words and words[0].startswith("--"):
        check_flags(words, recipes)


@functools.cache
def targets() -> set[str]:
    """The names that `make` takes."""
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def recipes_in(text: str) -> list[str]:
    """Every recipe that a page names, with its argument."""
    specs = dict.fromkeys(re.findall(r"configs/[\w/]+\.py(?::\w+)?", text))
    return [spec for spec in specs if "def get_config" in Path(ROOT, spec.partition(":")[0]).read_text()]


def check_module(module: str, words: list[str]) -> None:
    """A command's module, and what follows it."""
    if module in (*UNCHECKED, "..."):
        return
    words = [word.replace(HOLE, ANY) for word in words]
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"there is no module {module}")
    if module == "train":
        check_training(words)
    elif module in WITHOUT_FLAGS:
        if words:
            raise ValueError(f"{module} takes no flags")
    elif words:
        check_parsed(module, words)


def check_training(words: list[str]) -> None:
    """`python -m train`, or what a sweep and a plan hand on to it."""
    if {"--help", "--help_settings"} & set(words):
        words = [word for word in words if word not in ("--help", "--help_settings")]
    _, words = hosts_of(words, {})
    flags, settings = flags_of([word for word in words if word != "..."])
    for name in [name for name, value in settings.items() if value == "..." or name.endswith(".*") or name == "key"]:
        del settings[name]
        if name != "key" and f" {name.removesuffix('.*')}." not in known_settings():
            raise ValueError(f"there are no settings {name}")
    override(recipe(flags.get("config", "...")), settings)


def recipe(spec: str) -> Any:
    """A recipe's config; that of every default where the page leaves its name out."""
    left_out = "..." in spec or Path(spec.partition(":")[0]).stem == ANY
    return base() if left_out else read_recipe(str(ROOT / spec))


def command(module: str) -> Any:
    """The module that `python -m` runs."""
    spec = importlib.util.find_spec(module)
    package = spec is not None and spec.submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if package else module)


def check_parsed(module: str, words: list[str]) -> None:
    """A command with a `parser()`: its flags and values, and where names stand for something, that there is such."""
    options, rest = parsed(command(module).parser(), words)
    rest = [word for word in rest if word != "..."]
    if module not in TAKES_SETTINGS and rest:
        raise ValueError(f"{module} does not take {rest[0]}")
    for (owner, flag), names in CHOICES.items():
        value = getattr(options, flag) or [] if owner == module else []
        chosen = value.split(",") if isinstance(value, str) else value
        if wrong := [name for name in chosen if name not in (*names, "...", ANY)]:
            raise ValueError(f"{module} --{flag} takes {', '.join(names)}, not {wrong[0]}")
    if module in TAKES_SETTINGS:
        check_training([f"--config={options.config}", *rest])
    if module == "launch.sweep" and Path(ROOT, options.config.partition(":")[0]).is_file():
        check_sweep(options, rest)
    if module == "launch.plan":
        check_plan(options)


def parsed(flags: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What a parser makes of the words; what it misses is filled in where the page leaves something out."""

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    flags.error, flags.allow_abbrev = refuse, False  # type: ignore[method-assign]
    try:
        return flags.parse_known_args(words)
    except ValueError as error:
        missing = re.fullmatch(r"the following arguments are required: (.*?)(;.*)?", str(error))
        if missing is None or not any("..." in word for word in words):
            raise
    needed = [f"{name}=..." if name.startswith("-") else "..." for name in missing[1].split(", ")]
    return flags.parse_known_args([*words, *needed])


def check_sweep(options: argparse.Namespace, rest: list[str]) -> None:
    """The first run that a sweep would start, as it plans it."""
    path, _, argument = options.config.partition(":")
    names = [name for name in run_names(changes_of(ROOT / path)) if options.filter in name]
    if not names:
        raise ValueError(f"no run of {path} has {options.filter!r} in its name")
    spec = f"{ROOT / path}:{argument}" if argument else str(ROOT / path)
    plan(spec, Path("nowhere"), rest, names[0])


def check_plan(options: argparse.Namespace) -> None:
    """The slice and the stage of a plan."""
    if options.topology not in ("", "...", *HERE):
        slice_of(options.topology)
    if options.stage:
        stages_of(recipe(options.config), options.stage)


def check_flags(words: list[str], recipes: Sequence[str]) -> None:
    """A span of flags alone: settings of every run, or of a recipe that the page names; or flags of any command."""
    settings = [word for word in words if word.startswith("--config.")]
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and word not in settings and name not in known_flags():
            raise ValueError(f"no command has {name}")
    settings = [re.sub(rf"\.{HOLE}$", ".*", word) for word in settings]
    settings = [
        word.replace(HOLE, ANY) for word in settings if word != "--config.*" and HOLE not in word.partition("=")[0]
    ]
    reasons = []
    for spec in ("...", *recipes):
        try:
            return check_training([f"--config={spec}", *settings])
        except ValueError as error:
            reasons.append(error)
    raise reasons[0]


@functools.cache
def known_flags() -> set[str]:
    """Every flag of every command."""
    helps = (command(module).parser().format_help() for module in WITH_PARSERS)
    return {
        *FOREIGN,
        *(f"--{flag}" for flag in FLAGS),
        *(flag for text in helps for flag in re.findall(r"--[\w-]+", text)),
    }


@functools.cache
def known_settings() -> str:
    """The dotted names of all settings and their groups, each between a blank and a dot."""
    return "".join(f" {name}." for name in names_in(base().to_dict()))


def names_in(tree: dict[str, Any], at: str = "") -> Iterator[str]:
    """Every key of nested dicts, with those above it."""
    for key, value in tree.items():
        yield f"{at}{key}"
        if isinstance(value, dict):
            yield from names_in(value, f"{at}{key}.")
