"""The only loop: batch -> step -> metrics -> evaluation -> checkpoint, for every algorithm.

    result = run(config, "runs/x")

A run directory that was interrupted continues at its last checkpoint, bit for bit; one that is complete returns its result.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from model.sharding import replicated
from train.algorithms import build_algorithm
from train.checkpoint import Checkpoints
from train.console import Console, CompileCounter, Interrupt
from train.evaluation import Evaluator
from train.metrics import MetricsWriter, SamplesWriter, plot_curves, progress, write_json
from train.run_directory import claim, provenance, resume_command
from train.setup import Algorithm, Setup, prepare
from train.state import TrainState, make_state
from train.step import Step, make_step

Result = dict[str, Any]


def run(config: ConfigDict, workdir: str | Path) -> Result:
    """Trains what `config` describes in `workdir` and returns what result.json holds.

    `status` is "complete", or "stopped" after SIGTERM. Raises ValueError or FileNotFoundError for a config, data or directory
    that cannot be used, FloatingPointError after `max_bad_steps` non-finite updates in a row.
    """
    workdir = Path(workdir)
    done = _finished(workdir, config)
    if done is not None:
        return done
    if config.stages:
        from train.pipeline import run_stages

        return run_stages(config, workdir)
    console = Console(config.name)
    setup = prepare(config, workdir, console.say)
    claim(workdir, config, setup.model.config.to_dict())
    if not (workdir / "tokenizer").is_dir():
        setup.tokenizer.save(workdir / "tokenizer")
    return Trainer(setup, console).train()


class Trainer:
    """One run: what its steps share, and the few pieces of host state a loop has."""

    def __init__(self, setup: Setup, console: Console) -> None:
        """Builds the step, the source, the evaluator and the writers."""
        config = setup.config
        self.setup, self.console, self.config, self.workdir = setup, console, config, setup.workdir
        self.started, self.compiles = time.perf_counter(), CompileCounter()
        self.algorithm: Algorithm = build_algorithm(setup)
        self.step: Step = make_step(
            self.algorithm.objective,
            setup.optimizer,
            setup.mesh,
            micro_batch=config.micro_batch or None,
            ema_decay=config.optimizer.ema,
        )
        self.evaluator = Evaluator(setup)
        self.checkpoints = Checkpoints(self.workdir, config.checkpoint.keep_last, config.checkpoint.keep_best)
        self.recent: list[tuple[int, Any]] = []

    def train(self) -> Result:
        """Runs from the last checkpoint (or the start) to the end, or to SIGTERM."""
        state = make_state(self.setup.make_params, self.setup.optimizer, self.config, self.setup.mesh)
        state = self._resume(state)
        first = int(state.step)
        self.metrics = MetricsWriter(
            self.workdir, first, tensorboard=self.config.log.tensorboard, wandb=self.config.log.wandb, name=self.config.name
        )
        self.samples = SamplesWriter(self.workdir, first)
        with Interrupt() as interrupt, progress(self.config.algorithm, self.config.steps, first) as bar:
            state = self._steps(state, first, bar, interrupt)
        if interrupt.requested and int(state.step) < self.config.steps:
            return self._stop(state)
        return self._finish(state)

    def _steps(self, state: TrainState, first: int, bar: Any, interrupt: Any) -> TrainState:
        """The loop proper. Metrics are read one step late, when the device has long finished them."""
        pending: tuple[int, Any, dict[str, float]] | None = None
        for n in range(first, self.config.steps):
            started = time.perf_counter()
            batch = self.algorithm.source.next(state.params, n)
            fetched = time.perf_counter()
            on_device = self._to_device(batch)
            if n == first:
                self.console.compiling("the training step")
            with jax.transfer_guard("disallow"):
                state, metrics = self.step(state, on_device)
            if n == first:
                jax.block_until_ready(metrics)
                self.console.compiled()
            self.recent = [*self.recent[-self.config.max_bad_steps :], (n, batch)]
            if pending is not None:
                self._record(*pending)
            host = {**self.algorithm.source.stats(), "time/batch": fetched - started}
            pending = (n, metrics, host | {"started": started})
            bar.advance(self._caption(host))
            if interrupt.requested:
                break
            if self._due(self.config.eval.every, n + 1):
                pending = self._record(*pending)
                self._evaluate(state, n + 1)
            if self._due(self.config.checkpoint.every, n + 1):
                pending = self._record(*pending) if pending else None
                self._save(state)
        if pending is not None:
            self._record(*pending)
        return state

    def _due(self, every: int, step: int) -> bool:
        return bool(every) and step % every == 0 and step < self.config.steps

    def _to_device(self, batch: Any) -> Any:
        if self.setup.mesh is None:
            return jax.device_put(batch)
        from model.sharding import batch_sharding

        sharding = batch_sharding(self.setup.mesh)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)

    def _record(self, n: int, metrics: Any, host: dict[str, float]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        started = host.pop("started")
        if self._due(self.config.log.every, n + 1) or n + 1 == self.config.steps:
            self.metrics.write(n + 1, {**host, **values, "step_time": time.perf_counter() - started})
        if values["bad"] >= self.config.max_bad_steps:
            raise FloatingPointError(self._save_bad_batches(n))

    def _save_bad_batches(self, n: int) -> str:
        path = self.workdir / f"bad_batch_{n + 1}.npz"
        bad = next(batch for step, batch in self.recent if step == n)
        np.savez(path, **{name: np.asarray(value) for name, value in bad.items()})
        return (
            f"loss or gradient was not finite in {self.config.max_bad_steps} updates in a row, up to step {n + 1}; none of"
            f" them was applied. The last of these batches is saved in {path}. Lower optimizer.lr, or look at that batch"
        )

    def _evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        metrics, samples = self.evaluator(state.params if state.ema is None else state.ema, step)
        self.metrics.write(step, {f"eval/{name}": value for name, value in metrics.items()})
        rollouts = getattr(self.algorithm.source, "samples", list)()
        kept = self.config.log.samples
        self.samples.write(step, [{"kind": "eval", **s} for s in samples[:kept]] + [{"kind": "rollout", **s} for s in rollouts[:kept]])
        self.last_evaluation = (step, metrics)
        return metrics

    def _save(self, state: TrainState) -> None:
        step, metrics = getattr(self, "last_evaluation", (None, {}))
        self.checkpoints.save(state, self.algorithm.source.state(), metrics if step == int(state.step) else None)

    def _resume(self, state: TrainState) -> TrainState:
        if self.checkpoints.latest() is None:
            return state
        state, position = self.checkpoints.restore(state)
        self.algorithm.source.restore(position)
        self.console.say(f"resumed at step {int(state.step)} of {self.config.steps}")
        return state

    def _stop(self, state: TrainState) -> Result:
        self._save(state)
        self.checkpoints.close()
        self.console.say(f"stopped at step {int(state.step)}; resume with:\n  {resume_command()}")
        return {"status": "stopped", "step": int(state.step), "workdir": str(self.workdir)}

    def _finish(self, state: TrainState) -> Result:
        trained = time.perf_counter() - self.started
        final = self._evaluate(state, self.config.steps)
        self._save(state)
        self.checkpoints.close()
        seconds = time.perf_counter() - self.started
        stage = {
            "name": self.config.algorithm,
            "accuracy": final.get("accuracy"),
            "mean_tokens": final.get("mean_tokens"),
            "seconds": round(seconds, 2),
        }
        result = {
            "status": "complete",
            "name": self.config.name,
            "stages": [stage],
            "steps": self.config.steps,
            "evaluation": final,
            "seconds": round(seconds, 2),
            "train_seconds": round(trained, 2),
            "skipped_updates": int(state.skipped),
            "compilations": self.compiles.count,
            "compile_seconds": round(self.compiles.seconds, 2),
            **provenance(self.config),
        }
        self.metrics.close()
        self.samples.close()
        plot_curves([self.workdir], self.workdir / "curves.png")
        write_json(self.workdir / "result.json", result)
        return result

    def _caption(self, host: dict[str, float]) -> str:
        if "reward" in host:
            return f"reward {host['reward']:.3f}  tokens {host['completions/mean_length']:.1f}"
        return ""


def _finished(workdir: Path, config: ConfigDict) -> Result | None:
    path = workdir / "result.json"
    if not path.is_file():
        return None
    if not config.stages:
        found = json.loads((workdir / "config.json").read_text())
        claim(workdir, config, {k: v for k, v in found["model"].items() if k != "path"})
    else:
        claim(workdir, config)
    return json.loads(path.read_text())
