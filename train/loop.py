"""The only loop: batch -> step -> metrics -> evaluation -> checkpoint, for every algorithm.

    result = run(config, "runs/x")

    with by_hand(config, "runs/x") as trainer:
        metrics = trainer.step()

A run directory that was interrupted continues at its last checkpoint, bit for bit; one that is complete returns its
result.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from infer import sampler
from model.sharding import parse_rules, using
from store.checkpoint import Checkpoints
from store.lock import locked
from store.objects import place, uploaded
from store.records import write_json
from store.run_directory import (
    claim,
    is_complete,
    provenance,
    read_result,
    release,
    resume_command,
    set_aside,
)
from train.algorithms import JOBS, build_algorithm, check_without_data, job_of
from train.batches import on_devices
from train.compute import Meter, sizes
from train.console import CompileCounter, Console, Interrupt, Interrupted
from train.curves import plot_curves
from train.evaluation import Evaluator
from train.graph import graph_of
from train.hosts import check_alike, stops
from train.metrics import MetricsWriter, SamplesWriter
from train.pending import Pending, caption, save_bad_batch
from train.pipeline import EVERY, Builders, Choice, check_directory, chosen_stages, complete, run_stages, trained_steps
from train.progress import Progress, progress
from train.setup import Algorithm, Setup, check_accelerator, prepare
from train.state import TrainState, forget, make_state
from train.step import step_of

Result = dict[str, Any]
Guard = contextlib.AbstractContextManager[None]
HEADLINES = ("accuracy", "mean_tokens", "answer_loss")  # what the table of stages shows, where it was measured


def run(config: ConfigDict, workdir: str | Path, choice: Choice = EVERY) -> Result:
    """Trains what `config` describes in `workdir` and returns what result.json holds.

    `choice`: which stages of a pipeline. `status` is "complete", "stopped" after SIGTERM or Ctrl-C, or of a pipeline
    "partial" where stages are left. Raises ValueError or FileNotFoundError for a config, data or directory that cannot
    be used, or in which another process trains, and where the accelerator that was asked for is missing,
    FloatingPointError after `max_bad_steps` non-finite updates in a row.
    """
    workdir, console = place(workdir), Console(config.name)
    check_accelerator(config.launch.to_dict())
    if choice != EVERY and not config.stages:
        raise ValueError(f"{config.name!r} has no stages to choose among: leave --only, --until and --redo out")
    if choice != EVERY:
        chosen_stages(graph_of(config, workdir), choice)
    if not choice.redo and (result := _finished(config, workdir, console)) is not None:
        return result
    check_alike(config.to_dict())
    if choice.only:  # other stages may run beside these, each locking its own folder
        return run_stages(config, workdir, BUILDERS, choice)
    with locked(workdir, console.say):
        # Once more: whoever held the lock until now may have written there.
        if not choice.redo and (result := _finished(config, workdir, console)) is not None:
            return result
        if config.stages:
            return run_stages(config, workdir, BUILDERS, choice)
        if config.algorithm in JOBS:
            return job_of(config, workdir, console.say)
        with using(parse_rules(config.sharding)):
            return _run(config, workdir)


def _finished(config: ConfigDict, workdir: Path, console: Console) -> Result | None:
    """The result of a run that is complete; ValueError where `workdir` is no place for this config."""
    check_directory(workdir, config)
    stages = graph_of(config, workdir) if config.stages else []
    if not is_complete(workdir, trained_steps(config, workdir)) or not all(map(complete, stages)):
        return None
    result = read_result(workdir)
    console.say(f"{workdir} is complete; this is its result (another --workdir trains anew)")
    return result


@contextlib.contextmanager
def by_hand(config: ConfigDict, workdir: str | Path) -> Iterator[Trainer]:
    """A run whose steps the caller takes, `trainer.step()`, reading and replacing `trainer.state` between them.

    Within the context the directory is the run's alone. What was trained is saved at its end, also of one that ends by
    an error: `run` or `by_hand` go on from there. Raises as `run` does, and ValueError for a config with stages and for
    a run that is complete.
    """
    workdir, console = place(workdir), Console(config.name)
    if config.stages:
        raise ValueError(f"config {config.name!r} has stages, each a run of its own: step one of them by hand")
    check_accelerator(config.launch.to_dict())
    with locked(workdir, console.say), using(parse_rules(config.sharding)):
        if _finished(config, workdir, console) is not None:
            raise ValueError(f"{workdir} is complete: name another directory, or load it (infer.load.load_run)")
        with _claimed(config, workdir) as trainer:
            trainer.open()
            try:
                yield trainer
            finally:
                trainer.leave()


def _run(config: ConfigDict, workdir: Path) -> Result:
    with _claimed(config, workdir) as trainer:
        return trainer.train()


@contextlib.contextmanager
def _claimed(config: ConfigDict, workdir: Path) -> Iterator[Trainer]:
    """A trainer in its directory, which is released where a bad value stops it before its first step."""
    started, console = time.perf_counter(), Console(config.name)
    setup = prepare(config, workdir, console.say)
    trainer = Trainer(setup, console, started)
    new = not (workdir / "config.json").is_file()
    try:
        with uploaded(workdir / "tokenizer") as folder:
            setup.tokenizer.save(folder)
        ending = trainer.algorithm.evaluation.ending(config.steps - 1, None)
        claim(workdir, config, setup.model.config.to_dict(), ending.to_dict() if ending.tokens else None)
        set_aside(workdir)
        yield trainer
    except (ValueError, TypeError, KeyError, FileNotFoundError):
        if new and not trainer.stepped and jax.process_index() == 0:
            release(workdir)
        raise


def _algorithm_of(setup: Setup) -> Algorithm:
    """What a stage's trainer would train, built and checked as far as it can be without training."""
    return Trainer(setup, Console(setup.config.name), time.perf_counter()).algorithm


BUILDERS = Builders(run, _algorithm_of, check_without_data)


class Trainer:
    """One run: what its steps share, and the few pieces of host state a loop has."""

    def __init__(self, setup: Setup, console: Console, started: float) -> None:
        """Builds the step, the source and the evaluator, and writes nothing; `started` is when the run began."""
        config = setup.config
        self.setup, self.console, self.config, self.workdir = setup, console, config, setup.workdir
        self.started, self.compiles, self.sampled = started, CompileCounter(), sampler.compilations()
        self.algorithm = build_algorithm(setup)
        self.update = step_of(setup, self.algorithm.update)
        self.evaluator = Evaluator(setup, self.algorithm.evaluation)
        self.meter = Meter(setup.model, setup.mesh.size if setup.mesh else 1)
        self.pending: Pending | None = None
        self.stepped = False
        self.evaluated: tuple[int, dict[str, float]] = (-1, {})

    def train(self) -> Result:
        """Runs from the last checkpoint (or the start) to the end, or to a signal."""
        try:
            self.open()
            return self._train()
        except Exception:
            self._wait()
            raise

    def open(self) -> None:
        """The state at the last checkpoint (or the start), and the files that a run writes."""
        keep, setup, log = self.config.checkpoint, self.setup, self.config.log
        self.checkpoints = Checkpoints(self.workdir, keep.keep_last, keep.keep_best, self.console.say)
        self.state = self._resume(make_state(setup.make_params, setup.optimizer, self.config, setup.mesh, setup.rows))
        first = int(self.state.step)
        self.samples = SamplesWriter(self.workdir, first)
        self.metrics = MetricsWriter(
            self.workdir, first, tensorboard=log.tensorboard, wandb=log.wandb, name=self.config.name
        )
        if first == 0 and self.config.eval.at_start:
            self._evaluate(self.state, 0)

    def step(self) -> dict[str, float]:
        """One step: batch, update, metrics, and evaluation and checkpoint where they are due; returns its metrics.

        Raises ValueError after the last one.
        """
        n = int(self.state.step)
        if n >= self.config.steps:
            raise ValueError(f"all {self.config.steps} steps are taken: ask for more in config.steps")
        self.state = self._one(self.state, n, Progress(n), compiling=not self.stepped)
        return self._flush()

    def leave(self) -> None:
        """Saves what was trained by hand and closes the files; after the last step the run is complete."""
        try:
            if int(self.state.step) < self.config.steps:
                self._stop(self.state)
            else:
                self.trained = time.perf_counter() - self.started
                self._finish(self.state, self._final(self.state))
        except Exception:
            self._wait()
            raise

    def _wait(self) -> None:
        """What is being saved is not lost by what came after it; of several hosts the others may be gone."""
        if jax.process_count() == 1:
            with contextlib.suppress(Exception):
                self.checkpoints.wait()

    def _train(self) -> Result:
        state, first = self.state, int(self.state.step)
        with Interrupt(self.console.say) as interrupt:  # until the checkpoint is whole: SIGTERM waits for it, too
            with progress(self.config.algorithm, self.config.steps, first, records=True) as bar:
                for n in range(first, self.config.steps):
                    self.state = state = self._one(state, n, bar, compiling=n == first)
                    if stops(interrupt.requested, n):
                        break
                self._flush(bar)
            if int(state.step) < self.config.steps:
                return self._stop(state)
            self.trained = time.perf_counter() - self.started
            try:
                final = self._final(state, interrupt.at_once())
            except Interrupted:  # a resumed run begins this evaluation again
                return self._stop(state)
            return self._finish(state, final)

    def _one(self, state: TrainState, n: int, bar: Progress, compiling: bool) -> TrainState:
        """One step; the metrics of the step before are read once this one is under way."""
        if self.algorithm.waits:
            self._flush(bar)  # the batch cannot begin before that update ends: read here, each is timed by itself
        started = time.perf_counter()
        batch = self.algorithm.source.next(state.params, n)
        fetched = time.perf_counter()
        on_device = on_devices(batch, self.setup.mesh, self.algorithm.whole_batches)
        if compiling:
            self.console.compiling("the training step")
        if self.algorithm.restarts(n):
            state = self._forget(state)
        with jax.transfer_guard("disallow"):
            state, metrics = self.update(state, on_device)
        if compiling:
            jax.block_until_ready(metrics)
            self.console.compiled()
            self.stepped = True
        self._flush(bar)
        self.checkpoints.check()
        host = {**self.algorithm.source.stats(), "time/batch": fetched - started}
        self.pending = Pending(n, started, fetched, batch, metrics, host, self.algorithm.sampled())
        bar.advance(caption(host))
        if self._due(self.config.eval.every, n + 1):
            self._flush(bar)
            bar.record(n + 1, {f"eval/{name}": value for name, value in self._evaluate(state, n + 1).items()})
        if self._due(self.config.checkpoint.every, n + 1):
            self._flush(bar)
            self._save(state)
        return state

    def _forget(self, state: TrainState) -> TrainState:
        """The optimizer starts anew, laid out as before; it depends on the step alone, so resuming repeats it."""
        same = jax.tree.map(lambda x: x.sharding, state)
        again = functools.partial(forget, optimizer=self.setup.optimizer, rows=self.setup.rows)
        return jax.jit(again, out_shardings=same, donate_argnums=(0,))(state)

    def _due(self, every: int, step: int) -> bool:
        return bool(every) and step % every == 0 and step < self.config.steps

    def _flush(self, bar: Progress | None = None) -> dict[str, float]:
        """Waits for the last step's metrics, writes and returns them; stops a run whose updates are not finite."""
        last, self.pending = self.pending, None
        if last is None:
            return {}
        values = {name: float(value) for name, value in jax.device_get(last.metrics).items()}
        ended = time.perf_counter()
        self.meter.add(values, last.sampled, last.started, ended)
        if self._due(self.config.log.every, last.step + 1) or last.step + 1 == self.config.steps:
            times = {"time/update": ended - last.fetched, "step_time": ended - last.started}
            self.metrics.write(last.step + 1, {**last.host, **values, **times, **self.meter.metrics()})
        self.algorithm.watch(last.step, {**last.host, **values})
        if values["bad"] >= self.config.max_bad_steps:
            raise FloatingPointError(save_bad_batch(self.workdir, last, self.config.max_bad_steps))
        if bar is not None:
            bar.record(last.step + 1, {**last.host, **values})
        return {**last.host, **values}

    def _final(self, state: TrainState, guard: Guard | None = None) -> dict[str, float]:
        """The last evaluation; that of a run that was killed after its last checkpoint is read from there."""
        step = self.config.steps
        saved = self.checkpoints.metrics(step) if self.checkpoints.latest() == step else None
        return self._evaluate(state, step, guard) if saved is None else saved

    def _evaluate(self, state: TrainState, step: int, guard: Guard | None = None) -> dict[str, float]:
        """Measures within `guard`, which may end it, and writes what was found."""
        with guard or contextlib.nullcontext():
            metrics, answers = self.evaluator(state.params if state.ema is None else state.ema, step)
        named = {f"eval/{name}": value for name, value in metrics.items()}
        self.metrics.write(step, named | self.meter.metrics())
        records = {"eval": answers, "rollout": self.algorithm.samples()}
        kept = [{"kind": kind, **row} for kind, rows in records.items() for row in rows[: self.config.log.samples]]
        self.samples.write(step, kept)
        self.evaluated = (step, metrics)
        return metrics

    def _save(self, state: TrainState) -> None:
        step, metrics = self.evaluated
        here = metrics if step == int(state.step) else None
        position = self.algorithm.source.state() | {"compute": self.meter.state()}
        self.checkpoints.save(state, position, here, self.algorithm.arrays())

    def _resume(self, state: TrainState) -> TrainState:
        if self.checkpoints.latest() is None:
            return state
        state, position, arrays = self.checkpoints.restore(state, self.algorithm.arrays())
        spent = position.pop("compute", None)
        if spent is None:
            self.console.say("the checkpoint does not tell what the run has spent so far: compute/flops counts from it")
        try:
            self.meter.restore(spent or self.meter.state())
            self.algorithm.source.restore(position)
            self.algorithm.restore_arrays(arrays)
        except (LookupError, TypeError, AttributeError) as error:
            raise RuntimeError(
                f"checkpoint {int(state.step)} of {self.workdir} does not hold the position of this run's data"
                f" ({type(error).__name__}: {error}); move it away to continue from the one before it"
            ) from error
        self.console.say(f"resumed at step {int(state.step)} of {self.config.steps}")
        return state

    def _stop(self, state: TrainState) -> Result:
        self._save(state)
        self._close()
        self.console.say(f"stopped at step {int(state.step)}; resume with:\n  {resume_command()}")
        return {"status": "stopped", "step": int(state.step), "workdir": str(self.workdir)}

    def _finish(self, state: TrainState, final: dict[str, float]) -> Result:
        self._save(state)
        self._close()
        seconds = round(time.perf_counter() - self.started, 2)
        found = {name: final[name] for name in HEADLINES if name in final}
        row = {"name": self.config.algorithm, **found, "steps": self.config.steps}
        result = {
            "status": "complete",
            "name": self.config.name,
            "stages": [{**row, "seconds": seconds}],
            "steps": self.config.steps,
            **sizes(self.setup.model.config),
            "evaluation": final,
            "seconds": seconds,
            "train_seconds": round(self.trained, 2),
            "skipped_updates": int(state.skipped),
            "compilations": self.compiles.count,
            "sampler_compilations": sampler.compilations() - self.sampled,
            "compile_seconds": round(self.compiles.seconds, 2),
            **provenance(self.config),
        }
        plot_curves([self.workdir], self.workdir / "curves.png")
        write_json(self.workdir / "result.json", result)
        return result

    def _close(self) -> None:
        self.setup.judge.close()
        self.checkpoints.close()
        self.metrics.close()
        self.samples.close()
