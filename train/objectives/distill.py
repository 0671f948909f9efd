"""Logit distillation: demonstrations in, the distance from a teacher's distributions over them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.sources.batch import TokenRows
from data.sources.demonstrations import Demonstrations
from data.sources.rows import TextRows
from model.lm import Model, Params
from model.sharding import on_mesh
from settings.preference import DistillConfig
from train.accumulate import UpdatePlan
from train.batches import on_devices
from train.frozen import kept_arrays
from train.objectives.distillation_losses import of_hidden, of_top_k
from train.objectives.losses import Loss, Objective, add_auxiliary_losses, next_token_mask, read_rows, target_logps
from train.objectives.sft import demonstrations, rows_of_host, token_rows
from train.setup import Algorithm, Setup, Update
from train.teacher import Teacher, open_teacher


class TaughtRows(TokenRows, kw_only=True):
    """Rows with what a teacher says of each column's next token: its states `hidden` [B, S, D], to which `shared`, its
    output embedding [V, D], belongs; or the `ids` and `logps` [B, S, K] of its likeliest tokens.
    """

    hidden: Any = None
    ids: Any = None
    logps: Any = None


def build(setup: Setup) -> Algorithm:
    """The update and the source of a run that learns from a teacher's distributions."""
    config = setup.config
    teacher = open_teacher(setup, config.distill.teacher, "distill.teacher")
    source = KeptSource(setup, teacher) if config.distill.top_k else TaughtSource(setup, teacher)
    return Algorithm(_update(setup, teacher), source)


def update(setup: Setup) -> Update:
    """What is minimised, on rows of demonstrations."""
    return _update(setup, open_teacher(setup, setup.config.distill.teacher, "distill.teacher"))


def _update(setup: Setup, teacher: Teacher) -> Update:
    config, their = setup.config, teacher.model.config
    rows, columns = config.data.batch_size, min(config.data.length, setup.model.config.max_length)
    array, rules = jax.ShapeDtypeStruct, config.distill
    shapes: dict[str, Any] = vars(token_rows(rows, columns))
    if rules.top_k:
        shape = (rows, columns, rules.top_k)
        shapes |= {"ids": array(shape, jnp.int32), "logps": array(shape, jnp.float32)}
    else:
        head = array((their.vocab_size, their.d_model), jnp.dtype(their.param_dtype))
        shapes |= {"hidden": array((rows, columns, their.d_model), jnp.dtype(their.dtype)), "shared": head}
    objective = distill_objective(setup.model, rules, their.logit_scale)
    return Update(objective, TaughtRows(**shapes), UpdatePlan(micro_batch=config.micro_batch or None))


def distill_objective(model: Model, rules: DistillConfig, teacher_scale: float = 1.0) -> Objective:
    """The mean distance over the wanted tokens, and `rules.hard` x their cross entropy.

    Metrics: `distance` to the teacher, `cross_entropy` of the demonstrations, `entropy`.
    """

    def objective(params: Params, batch: TaughtRows, key: jax.Array) -> Loss:
        out = read_rows(model, params, batch, train=True, key=key)
        mask, hidden = next_token_mask(batch), out.hidden[:, :-1]
        student = (hidden, model.head(params), model.config.logit_scale)
        if rules.top_k:
            apart = of_top_k(student, batch.ids[:, :-1], batch.logps[:, :-1], rules.beta, rules.tail)
        else:
            teacher = (batch.hidden[:, :-1], batch.shared, teacher_scale)
            apart = of_hidden(student, teacher, rules.beta, rules.temperature)
        logps, entropies = target_logps(model, params, hidden, batch.tokens[:, 1:])
        count, distance, missed = mask.sum(), (apart * mask).sum(), -(logps * mask).sum()
        metrics = {
            "cross_entropy": (missed, count),
            "distance": (distance, count),
            "entropy": ((entropies * mask).sum(), count),
        }
        return add_auxiliary_losses((distance + rules.hard * missed, count, metrics), out.reports)

    return objective


class TaughtSource:
    """Batches of demonstrations with the teacher's states, which are computed as each batch is drawn."""

    def __init__(self, setup: Setup, teacher: Teacher) -> None:
        """Reads the teacher at the first batch."""
        data = setup.config.data
        self._inner = demonstrations(setup, data.split, setup.config.seed, data.loss_on)
        self._setup, self._teacher = setup, teacher
        self._params: Params | None = None
        model = teacher.model
        self._read = on_mesh(setup.mesh)(jax.jit(lambda params, batch: read_rows(model, params, batch).hidden))

    def next(self, params: Params, step: int) -> TaughtRows:
        """This host's rows, on the devices."""
        if self._params is None:
            self._params = self._teacher.load()
        batch = on_devices(self._inner.next(params, step), self._setup.mesh, whole=False)
        hidden = self._read(self._params, batch)
        return TaughtRows(**vars(batch) | {"hidden": hidden, "shared": self._teacher.model.head(self._params)})

    def state(self) -> dict[str, Any]:
        """The position."""
        return self._inner.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._inner.restore(state)

    def stats(self) -> Mapping[str, float]:
        """Those of the demonstrations."""
        return self._inner.stats()


class KeptSource:
    """Batches of demonstrations with the teacher's likeliest tokens, measured once for all of them and kept."""

    def __init__(self, setup: Setup, teacher: Teacher) -> None:
        """Reads the teacher at the first batch, unless what it says is in the run directory."""
        config, data = setup.config, setup.config.data
        if data.pack:
            raise ValueError("distill.top_k keeps what is said of single examples: set data.pack=False, or top_k=0")
        rows = TextRows(
            **rows_of_host(setup),
            split=data.split,
            seed=config.seed,
            template=data.template,
            system=data.system or None,
            too_long=data.too_long,
            loss_on=data.loss_on,
            prefetch=data.prefetch,
        )
        self._setup, self._teacher, self._top_k = setup, teacher, config.distill.top_k
        self._rows = Demonstrations(setup.task, setup.tokenizer, rows)
        self._said: dict[str, np.ndarray] = {}

    def next(self, params: Params, step: int) -> TaughtRows:
        """This host's rows, as numpy arrays."""
        del params, step
        if not self._said:
            name = f"teacher-{self._rows.digest[:16]}"
            self._said = kept_arrays(self._setup.workdir, name, self._measured)
        numbers = self._rows.numbers.next()
        batch = self._rows.batch(numbers)
        shape = (*batch.tokens.shape, self._top_k)
        ids, logps = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for row, number in enumerate(numbers):
            first, last = self._said["offsets"][number : number + 2]
            ids[row, : last - first] = self._said["ids"][first:last]
            logps[row, : last - first] = self._said["logps"][first:last]
        return TaughtRows(**vars(batch) | {"ids": ids, "logps": logps})

    def state(self) -> dict[str, Any]:
        """The position."""
        return self._rows.numbers.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position."""
        self._rows.numbers.restore(state)

    def stats(self) -> Mapping[str, float]:
        """How many demonstrations were read."""
        return {**self._rows.numbers.stats(), "dropped": self._rows.dropped}

    def _measured(self) -> dict[str, np.ndarray]:
        """The ids and log-probs [tokens, K] of all demonstrations after each other, and where each begins."""
        setup, model, count = self._setup, self._teacher.model, len(self._rows)
        setup.say(f"the teacher's {self._top_k} likeliest tokens: {count} demonstrations, once")
        params, size = self._teacher.load(), setup.config.data.batch_size

        def measure(params: Params, batch: TokenRows) -> tuple[jax.Array, jax.Array]:
            logits = model.logits(params, read_rows(model, params, batch).hidden)
            return jax.lax.top_k(jax.nn.log_softmax(logits), self._top_k)

        run = on_mesh(setup.mesh)(jax.jit(measure))
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for first in range(0, count, size):
            numbers = np.arange(first, first + size) % count
            logps, ids = run(params, on_devices(self._rows.batch(numbers), setup.mesh))
            lengths = self._rows.lengths[numbers[: min(size, count - first)]]
            found += [(np.asarray(ids[row, :n], np.int32), np.asarray(logps[row, :n])) for row, n in enumerate(lengths)]
        offsets = np.concatenate([[0], np.cumsum(self._rows.lengths)])
        ids, logps = (np.concatenate(part) for part in zip(*found, strict=True))
        return {"ids": ids, "logps": logps, "offsets": offsets}
