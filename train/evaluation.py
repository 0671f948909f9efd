"""Evaluation hooks: the task's held-out accuracy, and the loss on held-out demonstrations."""

from __future__ import annotations

from typing import Any

import jax

from data.pipeline import fixed_examples
from infer.evaluate import evaluate
from infer.sampler import check_room
from model.lm import Params
from train.losses import sft_objective
from train.metrics import progress
from train.setup import Setup
from train.state import step_key


class Evaluator:
    """Called with parameters and a step, gives (metrics, samples); examples are the same each time."""

    def __init__(self, setup: Setup) -> None:
        """Fixes the examples."""
        self._setup = setup
        data, rules = setup.config.data, setup.config.eval
        self._examples = fixed_examples(
            setup.task,
            setup.tokenizer,
            rules.split,
            rules.examples,
            template=data.template,
            system=data.system or None,
        )
        if not self._examples:
            raise ValueError(f"eval.examples must be at least 1, found {rules.examples}")
        longest = max(len(example["tokens"]) for example in self._examples)
        check_room(setup.model, longest, rules.max_new_tokens)
        self._objective = jax.jit(sft_objective(setup.model))

    def __call__(self, params: Params, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Accuracy, tokens and (when `eval.loss_batches`) the answer loss of one set of parameters."""
        config, setup = self._setup.config, self._setup
        rules = config.eval
        with progress(f"evaluation at step {step}", rules.samples * len(self._examples)) as bar:
            found = evaluate(
                setup.model,
                params,
                setup.task,
                setup.tokenizer,
                self._examples,
                jax.random.fold_in(step_key(config.seed, step), 2),
                max_new_tokens=rules.max_new_tokens,
                temperature=rules.temperature,
                samples=rules.samples,
                slots=rules.slots,
                stop=tuple(config.data.stop),
                progress=lambda done, total: bar.update(done),
            )
        return {**found.metrics, **self._answer_loss(params)}, found.samples

    def _answer_loss(self, params: Params) -> dict[str, float]:
        batches = self._setup.config.eval.loss_batches
        if not batches:
            return {}
        from train.sft import demonstrations

        source = demonstrations(self._setup, self._setup.config.eval.split, seed=0)
        total = count = 0.0
        for n in range(batches):
            loss = self._objective(params, jax.device_put(source.next(params, n)), step_key(0, n))
            total, count = total + float(loss[0]), count + float(loss[1])
        return {"answer_loss": total / count}
