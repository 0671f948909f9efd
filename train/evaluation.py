"""Evaluation hooks: the task's held-out accuracy, and the loss on held-out demonstrations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data.depths import ExampleDepths, check_has_depth
from data.names import unknown_name
from data.sources.batch import TokenRows
from infer.checks import check_room
from infer.evaluate import TaskSpec, evaluate_strategy, questions
from infer.gate_depths import check_gate
from infer.recurrence import Recurrence
from infer.reward_model import open_reward_model, strategy_reward
from infer.sampling import Execution, SamplingParams
from infer.strategies import build_strategy
from model.depth import Exit
from model.lm import Params
from model.sharding import on_mesh
from settings.data import BY_GATE, BY_TASK
from train.batches import on_devices
from train.objectives.losses import batch_logps, next_token_mask
from train.progress import progress
from train.setup import EvaluationSpec, Setup, Source
from train.state import step_key

AT_DEPTHS = ("accuracy", "answer_loss")
Depth = int | str | np.ndarray  # of all samples, BY_TASK, BY_GATE, or of each [N]


def check_depths(setup: Setup) -> None:
    """Raises ValueError where `eval` asks for depths that the model does not have."""
    rules = setup.config.eval
    asked = {name: getattr(rules, name) for name in ("depth", "depths", "exit", "warm_start") if getattr(rules, name)}
    if asked and setup.model.config.depth != "recurrent":
        raise ValueError(f"eval.{next(iter(asked))} is for recurrent models, and this one is a plain stack")
    if rules.depth == BY_TASK:
        check_has_depth(setup.task, "eval.depth")
    if rules.depth == BY_GATE:
        check_gate(setup.model, "eval.depth")


def evaluation_sampling(
    config: ConfigDict, stop: tuple[int | str, ...], progress: Callable[[int, int], None] | None = None
) -> SamplingParams:
    """How `config.eval` samples answers, which `stop` ends."""
    rules = config.eval
    execution = Execution(slots=rules.slots, progress=progress)
    return SamplingParams(rules.max_new_tokens, rules.temperature, stop=stop, n=rules.samples, execution=execution)


def evaluation_recurrence(setup: Setup, samples: int, depth: Depth) -> Recurrence | None:
    """How a recurrent model answers: one program for all depths, except where `eval.exit` ends them early.

    `depth`: of all samples (0: the model's mean), of each, or "gate". A plan, which reads no examples, gives "task" the
    mean.
    """
    rules, mean = setup.config.eval, setup.model.config.recurrent.mean
    if setup.model.config.depth != "recurrent":
        return None
    if isinstance(depth, str) and depth == BY_GATE:
        return Recurrence(BY_GATE, warm_start=rules.warm_start, gate_threshold=rules.exit_threshold or None)
    exit = Exit(rules.exit, rules.exit_threshold or None) if rules.exit else None
    each = depth if isinstance(depth, np.ndarray) else np.full(samples, mean if depth in (0, BY_TASK) else depth)
    if isinstance(depth, int) and (exit or not rules.depths):
        return Recurrence(int(each[0]), exit=exit, warm_start=rules.warm_start)
    return Recurrence(each, max((int(each.max()), *rules.depths)), exit, rules.warm_start)


class Evaluator:
    """Called with parameters and a step, gives (metrics, samples); examples are the same each time."""

    def __init__(self, setup: Setup, evaluation: EvaluationSpec | None = None) -> None:
        """Fixes the examples; with `eval.examples` = 0 nothing is generated, and losses alone are measured."""
        self._setup, self._rules, self._evaluation = setup, setup.config.eval, evaluation or EvaluationSpec()
        data, rules = setup.config.data, setup.config.eval
        check_depths(setup)
        if rules.examples and not self._evaluation.answers:
            raise ValueError(
                f"eval.examples={rules.examples}: a model of scores answers no questions; set it to 0 and"
                " eval.loss_batches to at least 1, batches of eval.split that are scored"
            )
        self._examples, self._dropped = self._asked()
        opened = functools.partial(open_reward_model, mesh=setup.mesh, opened=setup.open)
        self._reward = opened(rules.reward_model) if rules.reward_model else None
        if self._examples and rules.by and rules.by not in self._examples[0]["example"]:
            raise unknown_name("eval.by: field of the examples", rules.by, self._examples[0]["example"])
        if self._examples:
            longest = max(len(example["tokens"]) for example in self._examples)
            last = self._evaluation.ending(setup.config.steps - 1, rules.thoughts)
            check_room(setup.model, longest + len(last.tokens), rules.max_new_tokens)
        corpora, measures = self._evaluation.corpora, self._evaluation.measures
        own = bool(corpora or measures or not rules.loss_batches)
        kinds = () if own else ("answer", *(("all",) if data.loss_on == "all" else ()))
        # Made here, for what does not fit is to be found before the first step, and rewound for each evaluation.
        self._held_out = {kind: (source, source.state()) for kind, source in ((k, self._source(k)) for k in kinds)}
        if corpora and rules.loss_batches:
            self._held_out = {name: (source, source.state()) for name, source in corpora().items()}
        self._sums, self._placed = jax.jit(self._range_sums), on_mesh(setup.mesh)(self._measured)

    def _asked(self) -> tuple[list[dict[str, Any]], int]:
        """The examples to answer, and how many with too long prompts were left out of them."""
        setup, data, rules = self._setup, self._setup.config.data, self._setup.config.eval
        last = self._evaluation.ending(setup.config.steps - 1, rules.thoughts)
        return questions(
            setup.task,
            setup.tokenizer,
            rules.split,
            rules.examples,
            room=setup.model.config.max_length - rules.max_new_tokens - len(last.tokens),
            drops=data.too_long == "drop",
            say=setup.say,
            template=data.template,
            system=data.system or None,
        )

    def _source(self, loss_on: str) -> Source:
        """Rows of the held-out split, with a loss on answers or on all tokens."""
        from train.objectives.sft import demonstrations

        split, held_out = self._rules.split, self._evaluation.held_out
        depths = ExampleDepths(self._setup.depths.offset) if self._rules.depth == BY_TASK else None
        return held_out(split) if held_out else demonstrations(self._setup, split, 0, loss_on, depths)

    def __call__(self, params: Params, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Accuracy and tokens (when `eval.examples`) and losses (when `eval.loss_batches`) of one set of parameters."""
        return self._placed(params, step)

    def _measured(self, params: Params, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        metrics, samples = self._answers(params, step, self._rules.depth) if self._examples else ({}, [])
        metrics |= {"dropped": float(self._dropped)} if self._dropped else {}
        metrics |= self._losses(params, step, self._rules.depth)
        for depth in self._rules.depths:
            at_depth = self._answers(params, step, depth)[0] if self._examples else {}
            at_depth |= self._losses(params, step, depth)
            metrics |= {
                f"{name}_at_depth_{depth}": value for name, value in at_depth.items() if name.startswith(AT_DEPTHS)
            }
        return metrics, samples

    def _answers(self, params: Params, step: int, depth: int | str) -> tuple[dict[str, float], list[dict[str, Any]]]:
        config, setup = self._setup.config, self._setup
        samples = config.eval.samples * len(self._examples)
        ending = self._evaluation.ending(max(step - 1, 0), config.eval.thoughts)
        recurrence, data = evaluation_recurrence(setup, samples, self._depths(depth)), config.data
        rendering = (data.template, data.system or None)
        spec = TaskSpec(setup.task, setup.tokenizer, ending, config.eval.by, setup.judge, *rendering)
        with progress(f"evaluation at step {step}", samples) as bar:
            sampling = evaluation_sampling(config, tuple(data.stop), lambda done, total: bar.update(done))
            options = dict(config.eval.strategy_options)
            reward = strategy_reward(self._reward, spec) if self._reward else None
            strategy = build_strategy(
                config.eval.strategy, spec, sampling, recurrence=recurrence, reward=reward, **options
            )
            key = jax.random.fold_in(step_key(config.seed, step), 2)
            evaluated = evaluate_strategy(strategy, setup.model, params, self._examples, key)
        return evaluated.metrics, evaluated.samples

    def _depths(self, depth: int | str) -> Depth:
        """The iterations of each sample [N] where the task names them."""
        if depth != BY_TASK:
            return depth
        by_question = [self._setup.depths.answer_depth(self._setup.task, asked["example"]) for asked in self._examples]
        return np.repeat(by_question, self._rules.samples)

    def _losses(self, params: Params, step: int, depth: int | str) -> dict[str, float]:
        """`answer_loss`; `loss` over prompts as well where training learns them; `excess_loss` over a known floor.

        A task that knows the entropy of its answers has `floor(length)` (data/tasks/languages.py). `eval.positions`
        asks for `answer_loss_from_<p>` besides, that of the answer tokens from each position to the next.
        """
        rules, data, task = self._setup.config.eval, self._setup.config.data, self._setup.task
        if not rules.loss_batches:
            return {}
        if self._evaluation.measures:
            return self._evaluation.measures(params)
        if self._evaluation.corpora:
            return self._corpus_losses(params, step, depth)
        missed, wanted = self._totals(params, step, "answer", depth)
        losses = {"answer_loss": float(missed.sum() / wanted.sum())}
        if rules.positions:
            parts = zip((0, *rules.positions), missed, wanted, strict=True)
            losses |= {f"answer_loss_from_{start}": float(part / count) for start, part, count in parts if count}
        if data.loss_on == "all":
            missed, wanted = self._totals(params, step, "all", depth)
            losses["loss"] = float(missed.sum() / wanted.sum())
        if hasattr(task, "floor"):
            length = min(data.length, self._setup.model.config.max_length)
            losses["excess_loss"] = losses["answer_loss"] - task.floor(length)
        return losses

    def _corpus_losses(self, params: Params, step: int, depth: int | str) -> dict[str, float]:
        """Of every source of a corpus the loss of a token, `loss/<name>`, and `bits_per_byte/<name>`: the bits of all
        predicted tokens over the bytes of their text; and the mean `loss` over all tokens.
        """
        losses, sums = {}, np.zeros(2)
        for name in self._held_out:
            missed, wanted = self._totals(params, step, name, depth).sum(1)
            losses[f"loss/{name}"] = float(missed / wanted)
            read = self._held_out[name][0].stats()["bytes"]
            losses[f"bits_per_byte/{name}"] = float(missed / np.log(2) / max(read, 1))
            sums += missed, wanted
        return losses | {"loss": float(sums[0] / sums[1])}

    def _totals(self, params: Params, step: int, loss_on: str, depth: int | str) -> np.ndarray:
        """Cross entropy and number of the wanted held-out tokens, by ranges of positions: [2, ranges], float64."""
        rules, (source, start) = self._rules, self._held_out[loss_on]
        source.restore(start)
        last = max(step - 1, 0)
        batches = (
            on_devices(source.next(params, last), self._setup.mesh, whole=False) for _ in range(rules.loss_batches)
        )
        thinks = self._setup.model.config.depth == "recurrent"
        mean = self._setup.model.config.recurrent.mean
        number = mean if depth in (0, BY_GATE) else depth  # the gate is read for answers that are sampled
        deep = jnp.int32(number) if thinks and depth != BY_TASK else None
        return np.sum([np.asarray(self._sums(params, batch, deep), np.float64) for batch in batches], 0)

    def _range_sums(self, params: Params, batch: TokenRows, depth: jax.Array | None) -> jax.Array:
        """Cross entropy of the wanted tokens alone, whatever else the objective may hold, and their number; without a
        `depth` rows have their own.
        """
        batch = batch if depth is None else batch.replace(depth=None)
        logps, _, _ = batch_logps(self._setup.model, params, batch, depth=depth)
        mask = next_token_mask(batch)
        edges = jnp.asarray(self._setup.config.eval.positions, jnp.int32)
        place = jnp.searchsorted(edges, batch.positions[:, 1:], side="right")
        inside = mask * (place == jnp.arange(len(edges) + 1)[:, None, None])
        return jnp.stack([-(logps * inside).sum((1, 2)), inside.sum((1, 2))])
