"""Two tasks in sequence: what is left of the first, with and without new experts: python -m benchmarks.peer_growth

A small language model learns two languages, then two others. `whole` trains all of it on the second pair, `experts`
only its PEER layers, and `growth` only a new bank in each of them beside old experts that are frozen. Growth guards
what was learnt only where inputs differ enough to retrieve other experts of the new bank, whose rows are still zero: so
it is measured with letters of their own for the second pair ("apart") and with the same ones for both ("overlapping").
"""

from __future__ import annotations

import functools
import json
import os
import time
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import jax
import numpy as np
import optax

from data.sources.batch import TokenRows
from data.tasks.languages import Languages
from model import Model, build
from model.lm import Params
from model.peer.growth import grow_experts
from model.rules import learn
from train.objectives.logps import token_logps
from train.objectives.losses import sft_objective
from train.optimizer import make_optimizer, optimizer_config
from train.sparse_tables import sparse_tables_of
from train.state import new_state
from train.step import make_step

TASK = Languages(domains=4, symbols=8, order=1, branching=2, length=32)
FIRST, SECOND = (0, 1), (2, 3)
PEER = {"n_experts": 256, "heads": 4, "top_k": 8}
MODEL: dict[str, Any] = dict(vocab_size=24, d_model=48, n_layers=2, n_heads=4, d_ff=96, max_length=33, init_std=0.1)
ROWS = 16
# Moves the second pair of languages off the ids of the first, names and letters.
APART = 12


def batches(domains: tuple[int, ...], split: str, count: int, shift: int = 0) -> list[TokenRows]:
    """Texts of some languages, the language's name in the first column of each row and all ids moved by `shift`."""
    letters = ascii_lowercase[: TASK.symbols] + ascii_uppercase[: TASK.domains]
    examples, found = TASK.examples(split), []
    wanted = (examples[i] for i in range(len(examples)) if i % TASK.domains in domains)
    for _ in range(count):
        texts = [TASK.prompt(example) + TASK.target(example) for example, _ in zip(wanted, range(ROWS), strict=False)]
        tokens = np.array([[letters.index(letter) + shift for letter in text] for text in texts], np.int32)
        ones, positions = (
            np.ones_like(tokens),
            np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        )
        found.append(TokenRows(tokens=tokens, mask=ones.astype(np.float32), positions=positions, segments=ones))
    return found


def excess_loss(model: Model, params: Params, domains: tuple[int, ...], shift: int = 0) -> float:
    """Nats per symbol over the entropy of the languages, on held-out texts."""

    @jax.jit
    def mean(params: Params, tokens: jax.Array) -> jax.Array:
        hidden = model.apply(params, tokens).hidden[:, :-1]
        return -token_logps(hidden, model.head(params), tokens[:, 1:])[0].mean()

    losses = [mean(params, batch.tokens) for batch in batches(domains, "test", 4, shift)]
    return round(float(np.mean(losses)) - TASK.entropy, 3)


def trained(
    model: Model, params: Params, domains: tuple[int, ...], steps: int, only_experts: bool, shift: int = 0
) -> Params:
    """The parameters after `steps` steps; with `only_experts`, whatever is not PEER's stays."""
    options = {"lr": 1e-2, "warmup_steps": steps // 10, "schedule": "cosine"}
    by_rows = sparse_tables_of(model, optimizer_config(options), steps)
    kinds = functools.partial(
        jax.tree_util.tree_map_with_path,
        lambda path, _: (
            "moves" if not only_experts or "ffn" in (getattr(part, "key", "") for part in path) else "stays"
        ),
    )
    adamw = make_optimizer(options, steps, axes=None)
    optimizer = optax.partition({"moves": adamw, "stays": optax.set_to_zero()}, kinds)
    rule = functools.partial(learn, model.config)
    step = make_step(sft_objective(model), optimizer, learn=rule, rows=by_rows)
    state = new_state(jax.tree.map(jax.numpy.copy, params), optimizer, 0, rows=by_rows)
    for batch in batches(domains, "train", steps, shift):
        state, _ = step(state, batch)
    return state.params


def bench_growth(steps: int = 200, new: int = 256) -> dict[str, Any]:
    """Excess loss in nats on both pairs of languages, before and after the second is learnt in each of three ways."""
    started, model = time.perf_counter(), build(MODEL | {"ffn": "peer", "peer": PEER})
    learnt = trained(model, jax.jit(model.init)(jax.random.key(0)), FIRST, steps, only_experts=False)
    grown, larger = grow_experts(learnt, new, model=model, key=jax.random.key(1))
    starts = {"whole": (model, learnt, False), "experts": (model, learnt, True), "growth": (grown, larger, True)}
    found: dict[str, Any] = {"first_before": excess_loss(model, learnt, FIRST)}
    found["first_just_grown"] = excess_loss(grown, larger, FIRST)
    for setting, shift in (("apart", APART), ("overlapping", 0)):
        for name, (which, start, only) in starts.items():
            end = trained(which, start, SECOND, steps, only, shift)
            first, second = excess_loss(which, end, FIRST), excess_loss(which, end, SECOND, shift)
            found[f"{setting}/{name}"] = {"first": first, "second": second}
    return {**found, "steps": steps, "seconds": round(time.perf_counter() - started), "load": os.getloadavg()[0]}


if __name__ == "__main__":
    print(json.dumps(bench_growth(), indent=1))
