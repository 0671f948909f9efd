"""One GRPO step of Sagax, of TRL and of Tunix, in turns, as JSON: python -m benchmarks.peers --trl=... --tunix=...

    python3.11 -m venv trl_env && trl_env/bin/pip install trl==1.16.0 transformers==5.23.0 torch==2.13.0
    python3.12 -m venv tunix_env && tunix_env/bin/pip install google-tunix==0.1.7 jax==0.12.0.1 flax==0.12.12
    python -m benchmarks.peers --trl=trl_env/bin/python --tunix=tunix_env/bin/python

On Linux plain `torch` brings CUDA; `--extra-index-url https://download.pytorch.org/whl/cpu` and `torch==2.13.0+cpu`
spare it. Nothing is downloaded from the Hub: models are random, words are numbers.

The step: 16 prompts of 16 tokens x 8 samples, sampled at temperature 1, a trivial reward, advantages within the group
and one AdamW update, no KL. Two cases: "fixed" samples 64 tokens each; "ragged" ends a sample after each token with
probability 1/64, at 512 tokens at the latest. All run on the CPU. Every contender is a process that lives through the
whole measurement and sleeps while others step. A peer is first tried in all of its SETTINGS; the fastest goes into the
rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {name: ROOT / "benchmarks" / "contenders" / f"{name}_step.py" for name in ("sagax", "trl", "tunix")}
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
TAIL = 15  # lines of a dead contender's stderr

MODEL = dict(vocab_size=512, d_model=256, n_layers=6, n_heads=4, d_ff=768)
CASES: dict[str, dict[str, Any]] = {
    "fixed": {"new": 64, "stop": []},
    "ragged": {"new": 512, "stop": list(range(504, 512))},  # 8 of 512 tokens that are equally likely
}

Setting = dict[str, Any]
Steps = list[dict[str, Any]]


def trl_setting(rows: int, bf16: bool = False, waiting: str = "passive") -> Setting:
    """Both cores, large pages and no recomputation; micro-batches of so many rows.

    `waiting`: threads without work sleep, or spin ("active"), which gains little on an idle machine and loses much on a
    busy one.
    """
    options = {"bf16": bf16, "gradient_checkpointing": False}
    environment = {"OMP_WAIT_POLICY": waiting, **LARGE_PAGES}
    return {"rows": rows, "threads": os.cpu_count(), "options": options, "environment": environment}


def tunix_setting(rows: int) -> Setting:
    """Large pages and a cache without unused columns; micro-batches of so many rows."""
    return {"rows": rows, "short_cache": True, "environment": LARGE_PAGES}


SETTINGS: dict[str, dict[str, Setting]] = {
    "sagax": {"fp32_16": {"rows": 16, "environment": LARGE_PAGES}},
    "trl": {
        "default": {"rows": 8, "threads": 0, "options": {}, "environment": {}},
        **{f"fp32_{rows}": trl_setting(rows) for rows in (16, 32, 128)},
        "fp32_32_active": trl_setting(32, waiting="active"),
        "bf16_32": trl_setting(32, bf16=True),
    },
    "tunix": {
        "default": {"rows": 0, "short_cache": False, "environment": {}},
        **{f"fp32_{rows}": tunix_setting(rows) for rows in (16, 32, 128)},
    },
}


class ContenderError(RuntimeError):
    """A contender that died."""


class Contender:
    """A process that makes one step whenever it is asked to; a context manager, which ends it."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        """Starts the process; `about` is what it says of itself once it is ready."""
        self.name = name
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by __exit__)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._process = subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes)
        self.about: dict[str, Any] = {}

    def __enter__(self) -> Contender:
        try:
            self.about = self._answer()["ready"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._log.close()

    def step(self) -> dict[str, Any]:
        """One step: `seconds`, of which `generate` and `update`, `cpu_seconds`, and the `lengths` of its samples."""
        before = self.cpu_seconds()
        with contextlib.suppress(OSError):  # a dead process is found out below
            self._process.stdin.write("step\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer() | {"cpu_seconds": self.cpu_seconds() - before}

    def cpu_seconds(self) -> float:
        """What the process has used so far, 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        code = self._process.wait()
        self._log.seek(0)
        tail = "".join(self._log.readlines()[-TAIL:])
        raise ContenderError(f"{self.name} ended with code {code}; the last lines it wrote:\n{tail}")


def case_of(name: str, prompts: int = 16, samples: int = 8, length: int = 16) -> dict[str, Any]:
    """What every contender is told: sizes, prompts, limits, and a factor of the last norm that makes tokens equally
    likely, so that stop tokens come as often as they should.
    """
    asked = [[1 + (31 * row + 7 * column) % 503 for column in range(length)] for row in range(prompts)]
    return {"model": MODEL, "prompts": asked, "samples": samples, "length": length, "lr": 1e-6, "norm": 0.01} | CASES[
        name
    ]


def start(name: str, python: str, case: dict[str, Any], setting: Setting) -> Contender:
    """A contender in its own interpreter; only Sagax's sees this repository."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "GLIBC_TUNABLES")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "JAX_PLATFORMS": "cpu"}
    environment |= setting["environment"]
    if name == "sagax":
        environment["PYTHONPATH"] = str(ROOT)
    return Contender(name, [python, str(SCRIPTS[name]), json.dumps(case), json.dumps(setting)], environment)


def summary(steps: Steps) -> dict[str, Any]:
    """Medians over steps, the mean length, and all the seconds."""
    keys = ("seconds", "generate", "update", "cpu_seconds")
    middle = {key: round(statistics.median(step[key] for step in steps), 3) for key in keys}
    lengths = [length for step in steps for length in step["lengths"]]
    return middle | {
        "tokens_per_second": round(statistics.median(map(rate, steps))),
        "mean_length": round(statistics.mean(lengths), 1),
        "longest": max(lengths),
        "all_seconds": [round(step["seconds"], 2) for step in steps],
    }


def rate(step: dict[str, Any], clock: str = "seconds") -> float:
    """Tokens sampled per second of the whole step, or per second of CPU time."""
    return float(sum(step["lengths"]) / max(step[clock], 1e-9))


def fastest(
    name: str, python: str, case: dict[str, Any], settings: dict[str, Setting], tries: int, say: Callable[[str], None]
) -> tuple[str, dict[str, Any]]:
    """The setting with the fastest of `tries` steps, by tokens per second, after one that compiles; what each gave.

    A setting that fails is reported and passed over. Raises ContenderError where all do.
    """
    if len(settings) == 1:
        return next(iter(settings)), {}
    found: dict[str, Any] = {}
    best: dict[str, float] = {}
    for setting, options in settings.items():
        try:
            with start(name, python, case, options) as contender:
                contender.step()
                steps = [contender.step() for _ in range(tries)]
        except ContenderError as error:
            found[setting] = {"failed": str(error)}
        else:
            found[setting], best[setting] = summary(steps), max(map(rate, steps))
        say(f"{name} {setting}: {found[setting]}")
    if not best:
        raise ContenderError("\n".join(tried["failed"] for tried in found.values()))
    return max(best, key=lambda setting: best[setting]), found


def rounds(contenders: Sequence[Contender], repeats: int, warm_up: int) -> tuple[dict[str, Steps], dict[str, Any]]:
    """Steps in turns; and in CPU seconds per second, what each contender used while the others stepped, and what
    everything else on the machine did (of as many as there are cores).
    """
    for contender in contenders:
        for _ in range(warm_up):
            contender.step()
    before = [contender.cpu_seconds() for contender in contenders]
    busy, started = busy_seconds(), time.perf_counter()
    steps: dict[str, Steps] = {contender.name: [] for contender in contenders}
    for _ in range(repeats):
        for contender in contenders:
            steps[contender.name].append(contender.step())
    used = [contender.cpu_seconds() - then for contender, then in zip(contenders, before, strict=True)]
    busy, passed = busy_seconds() - busy, time.perf_counter() - started
    awake = [spent - sum(step["cpu_seconds"] for step in own) for spent, own in zip(used, steps.values(), strict=True)]
    between = {name: round(spent / passed, 3) for name, spent in zip(steps, awake, strict=True)}
    return steps, {"contenders_between_steps": between, "other_work": round((busy - sum(used)) / passed, 2)}


def ratios(steps: dict[str, Steps]) -> dict[str, dict[str, float]]:
    """How many times Sagax's tokens per second are a peer's: of the medians, the median over rounds, and of the medians
    per second of CPU time, which other work on the machine changes least.
    """
    ours, found = steps["sagax"], {}
    for name in [name for name in steps if name != "sagax"]:
        theirs = steps[name]
        by_clock = {
            clock: statistics.median(rate(step, clock) for step in ours)
            / statistics.median(rate(step, clock) for step in theirs)
            for clock in ("seconds", "cpu_seconds")
        }
        paired = statistics.median(rate(a) / rate(b) for a, b in zip(ours, theirs, strict=True))
        found[f"sagax / {name}"] = {
            "of_medians": round(by_clock["seconds"], 2),
            "median_of_rounds": round(paired, 2),
            "per_cpu_second": round(by_clock["cpu_seconds"], 2),
        }
    return found


def compare(
    pythons: dict[str, str],
    case: dict[str, Any],
    settings: dict[str, dict[str, Setting]],
    *,
    repeats: int,
    tries: int,
    warm_up: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The best setting of every contender in `pythons`, then all of them in turns."""
    load = os.getloadavg()[0]
    chosen = {name: fastest(name, pythons[name], case, settings[name], tries, say) for name in pythons}
    with contextlib.ExitStack() as running:
        contenders = [
            running.enter_context(start(name, pythons[name], case, settings[name][chosen[name][0]])) for name in pythons
        ]
        say(f"in turns: {', '.join(pythons)}")
        steps, cores = rounds(contenders, repeats, warm_up)
    return {
        "contenders": {
            each.name: {"setting": chosen[each.name][0], **summary(steps[each.name]), **each.about}
            for each in contenders
        },
        "ratios": ratios(steps),
        "tried": {name: tried for name, (_, tried) in chosen.items() if tried},
        "machine": {"cores": os.cpu_count(), "load": [load, os.getloadavg()[0]], "cores_taken_by": cores},
    }


def busy_seconds() -> float:
    """What all processes of the machine have used so far, in CPU seconds; 0 where the system does not tell."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text().split(maxsplit=4)[1:4])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def wanted(peer: str, names: str) -> dict[str, Setting]:
    """The settings of these names, separated by commas; all without a name. Raises ValueError for an unknown one."""
    known = SETTINGS[peer]
    unknown = [name for name in names.split(",") if name and name not in known]
    if unknown:
        raise ValueError(f"{peer} has no setting {unknown[0]!r}; choose from {', '.join(known)}")
    return {name: known[name] for name in names.split(",") if name} or known


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.peers`."""
    flags = argparse.ArgumentParser(
        "python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for peer in ("trl", "tunix"):
        flags.add_argument(f"--{peer}", default="", help=f"the Python of an environment with {peer}")
        flags.add_argument(f"--{peer}-settings", default="", help=f"of {', '.join(SETTINGS[peer])}; all if left out")
    flags.add_argument("--case", choices=list(CASES), default="fixed")
    flags.add_argument("--repeats", type=int, default=8, help="steps of each that are timed, in turns")
    flags.add_argument("--tries", type=int, default=2, help="steps in which a setting is tried")
    flags.add_argument("--warm-up", type=int, default=2, help="steps of each before those")
    return flags


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags; ends with a usage message unless at least one peer is there."""
    flags = parser()
    options = flags.parse_args(arguments)
    if not (options.trl or options.tunix):
        commands = "\n".join(line for line in (__doc__ or "").splitlines() if line.startswith("    "))
        flags.error(f"give --trl, --tunix or both; an environment for each is made so:\n{commands}")
    for peer in ("trl", "tunix"):
        python = getattr(options, peer)
        if python and not os.access(python, os.X_OK):
            flags.error(f"--{peer}={python} is no program; it must be an environment's bin/python")
        try:
            wanted(peer, getattr(options, f"{peer}_settings"))
        except ValueError as error:
            flags.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one JSON object; progress goes to stderr."""
    options = options_of(arguments)
    given: Iterator[tuple[str, str]] = ((peer, getattr(options, peer)) for peer in ("trl", "tunix"))
    pythons = {"sagax": sys.executable} | {peer: os.path.abspath(python) for peer, python in given if python}
    settings = {peer: wanted(peer, getattr(options, f"{peer}_settings", "")) for peer in pythons}
    counts = {"repeats": options.repeats, "tries": options.tries, "warm_up": options.warm_up}
    try:
        found = compare(pythons, case_of(options.case), settings, **counts, say=lambda s: print(s, file=sys.stderr))
    except ContenderError as error:
        print(error, file=sys.stderr)
        return 1
    left_out = [peer for peer in SETTINGS if peer not in pythons]
    print(json.dumps({"case": options.case, **counts, "left_out": left_out} | found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
