"""GRPO over every kind of layer: on policy at first, at the reference's side, and rewards rise."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.prompts import prompt_source
from data.sources.rows import PromptRows
from model import build
from model.rules import learn
from rl.grpo import grpo_objective
from rl.rollout import RolloutOptions, RolloutWorker
from rl.source import RolloutSource
from tests.rl.test_rollout import RULES, Digits
from tests.trunk import TINY, TOKENIZER
from train.optimizer import make_optimizer, optimizer_config
from train.sparse_tables import sparse_tables_of
from train.state import new_state
from train.step import make_step

STEPS = 16
OPTIMIZER = {"lr": 1e-2, "eps": 1e-3}
MOE = {"n_experts": 4, "top_k": 2, "d_expert": 24, "balance": "bias", "score": "sigmoid"}
SLOTS: dict[str, dict[str, Any]] = {
    "moe": {"ffn": "moe", "moe": MOE},
    "moe replayed": {"ffn": "moe", "moe": MOE},
    "peer": {"n_layers": 2, "ffn": ("glu", "peer"), "peer": {"n_experts": 64, "heads": 2, "top_k": 4, "key_dim": 16}},
    "mingru": {"mixer": "mingru", "rnn": {"conv": 3}},
    "gated_delta": {"mixer": "gated_delta", "delta": {"chunk": 4}},
    "recurrent": {"n_layers": 3, "depth": "recurrent", "recurrent": {"mean": 3, "draw": "poisson"}},
}


@pytest.mark.more
@pytest.mark.parametrize("slot", SLOTS)
def test_grpo_learns_with_every_slot(slot: str) -> None:
    """The dense model's turn is in test_rollout.py."""
    model = build(TINY | {"init_std": 0.1, "logit_scale": 1.0} | SLOTS[slot])
    params = jax.jit(model.init)(jax.random.key(0))
    rules = replace(RULES, samples=8, max_new_tokens=4, depth="drawn" if slot == "recurrent" else "mean")
    rules = replace(rules, replay_routes=slot == "moe replayed")
    asked = prompt_source(Digits(), TOKENIZER, PromptRows(split="train", batch_size=4, seed=0))
    worker = RolloutWorker(
        model,
        asked,
        Digits(),
        TOKENIZER,
        rules,
        RolloutOptions(seed=5, reference=params, say=lambda _: None, quiet=True),
    )
    source = RolloutSource(worker, rules, seed=5)
    rows = sparse_tables_of(model, optimizer_config(OPTIMIZER), STEPS)
    optimizer = make_optimizer(OPTIMIZER, STEPS, axes=model.axes())
    objective = grpo_objective(model, beta=1e-3)
    step = make_step(objective, optimizer, learn=functools.partial(learn, model.config), rows=rows)
    state, rewards = new_state(jax.tree.map(jnp.copy, params), optimizer, 0, rows=rows), []
    for n in range(STEPS):
        state, metrics = step(state, jax.tree.map(jnp.asarray, source.next(state.params, n)))
        rewards.append(source.stats()["reward"])
        if n == 0:
            assert float(metrics["ratio_deviation/max"]) < 1e-5
            assert float(metrics["sampling/sampling_logp_difference/max"]) < 1e-5
            assert abs(float(metrics["kl"])) < 1e-8
    assert float(metrics["kl"]) > 1e-4, "the model left its reference"
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2
