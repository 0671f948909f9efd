"""What a stage that trains nothing is: a function of a setup that writes files into its run directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from model.sharding import parse_rules, using
from store.objects import uploaded
from store.records import write_json
from store.run_directory import claim, provenance, release, resume_command, set_aside
from train.console import Interrupt
from train.setup import Setup, prepare


class Stopped(Exception):
    """A job that heard a signal, and whose files are such that it can go on."""


@dataclass(frozen=True)
class Job:
    """`run` writes into `setup.workdir` and returns metrics, raising Stopped once `interrupt.requested`; `check` raises
    ValueError for settings that cannot be, without files that are yet to come.
    """

    run: Callable[[Setup, Interrupt], dict[str, float]]
    check: Callable[[Setup], None] = lambda setup: None


def run_job(config: ConfigDict, workdir: Path, say: Callable[[str], None], job: Job) -> dict[str, Any]:
    """Runs a stage that trains nothing and returns what its result.json holds; a broken one goes on."""
    started, new = time.perf_counter(), not (workdir / "config.json").is_file()
    with using(parse_rules(config.sharding)):
        setup = prepare(config, workdir, say)
        try:
            job.check(setup)
            with uploaded(workdir / "tokenizer") as folder:
                setup.tokenizer.save(folder)
            ending = setup.ending.to_dict() if setup.ending.tokens else None
            claim(workdir, config, setup.model.config.to_dict(), ending)
            set_aside(workdir)
            with Interrupt(say) as interrupt:
                metrics = job.run(setup, interrupt)
        except Stopped:
            say(f"stopped; resume with:\n  {resume_command()}")
            return {"status": "stopped", "workdir": str(workdir)}
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            if new and jax.process_index() == 0:
                release(workdir)
            raise
        finally:
            setup.judge.close()
    seconds = round(time.perf_counter() - started, 2)
    result = {
        "status": "complete",
        "name": config.name,
        "stages": [{"name": config.algorithm, **metrics, "seconds": seconds}],
        "evaluation": metrics,
        "seconds": seconds,
        **provenance(config),
    }
    write_json(workdir / "result.json", result)
    return result
