"""Tunix's GRPO step, for benchmarks/peers.py: its GRPOLearner, stopped where it asks for the next batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout
from wire import Wire

STEPS = 10**9  # more than anybody asks for


class Numbers:
    """A tokenizer whose words are the tokens' numbers, with the methods that Tunix wants of one."""

    def __init__(self, end: int) -> None:
        """`end`: the token that ends a text."""
        self._end = end

    def encode(self, text: str) -> list[int]:
        """Numbers in words -> numbers."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Numbers -> numbers in words."""
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        """There is none."""

    def eos_id(self) -> int:
        """The end."""
        return self._end

    def pad_id(self) -> int:
        """Tunix takes a sampled 0 for padding: one token in `vocab_size` is not learnt from."""
        return 0


def model_of(case: dict[str, Any]) -> llama3.Llama3:
    """The model of the case, random, its outputs nearly uniform."""
    sizes = case["model"]
    config = llama3.ModelConfig(
        num_layers=sizes["n_layers"],
        vocab_size=sizes["vocab_size"],
        embed_dim=sizes["d_model"],
        hidden_dim=sizes["d_ff"],
        num_heads=sizes["n_heads"],
        head_dim=sizes["d_model"] // sizes["n_heads"],
        num_kv_heads=sizes["n_heads"],
        rope_theta=10_000,
        norm_eps=1e-6,
        weight_tying=True,
    )
    model = llama3.Llama3(config, rngs=nnx.Rngs(0))
    keys = map(jax.random.key, itertools.count())
    # Tunix expects weights from a file and leaves feed-forwards at zero.
    draw = lambda x: 0.02 * jax.random.normal(next(keys), x.shape) if x.ndim > 1 else x  # noqa: E731
    nnx.update(model, jax.tree.map(draw, nnx.state(model)))
    model.final_norm.w.value = model.final_norm.w.value * case["norm"]
    return model


def rollout_of(case: dict[str, Any], setting: dict[str, Any]) -> base_rollout.RolloutConfig:
    """How to sample; the cache is as short as it can be unless the setting leaves Tunix's default."""
    cache = {"kv_cache_size": case["length"] + case["new"]} if setting["short_cache"] else {}
    return base_rollout.RolloutConfig(
        max_tokens_to_generate=case["new"],
        max_prompt_length=case["length"],
        temperature=1.0,
        top_p=1.0,
        eos_tokens=case["stop"] or [case["model"]["vocab_size"]],
        **cache,
    )


def cluster_of(case: dict[str, Any], setting: dict[str, Any], model: llama3.Llama3) -> rl_cluster.RLCluster:
    """One device for everything; micro-batches of `rows` samples (0: Tunix's default, the whole batch)."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    prompts, rows = len(case["prompts"]), setting["rows"]
    micro = {"mini_batch_size": prompts, "train_micro_batch_size": rows // case["samples"]} if rows else {}
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(case["lr"], weight_decay=0.0)),
        eval_every_n_steps=STEPS,
        max_steps=STEPS,
        rollout_micro_batch_size=prompts,
        **micro,
    )
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh), training_config=training, rollout_config=rollout_of(case, setting)
    )
    end = (case["stop"] or [case["model"]["vocab_size"]])[-1]
    return rl_cluster.RLCluster(actor=model, tokenizer=Numbers(end), cluster_config=config)


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The share of odd tokens."""
    texts = [list(map(int, text.split())) for text in completions]
    return [sum(token % 2 for token in ids) / max(len(ids), 1) for ids in texts]


def learner_of(wire: Wire, cluster: rl_cluster.RLCluster) -> grpo_learner.GRPOLearner:
    """Tunix's learner, which tells the wire when its samples are there."""
    lengths: list[int] = []
    sample = cluster.generate

    def generate(*given: Any, **named: Any) -> Any:
        output = sample(*given, **named)
        lengths[:] = map(len, output.tokens)
        return output

    cluster.generate = generate

    class Timed(grpo_learner.GRPOLearner):  # type: ignore[misc]
        def _generate_and_compute_advantage(self, *given: Any, **named: Any) -> Any:
            found = jax.block_until_ready(super()._generate_and_compute_advantage(*given, **named))
            wire.generated(list(lengths))
            return found

    config = grpo_learner.GRPOConfig(num_generations=wire.case["samples"], num_iterations=1, beta=0.0)
    return Timed(rl_cluster=cluster, algo_config=config, reward_fns=reward)


def batches(wire: Wire, cluster: rl_cluster.RLCluster) -> Iterator[dict[str, np.ndarray]]:
    """The same prompts for ever. Tunix asks for the next ones when a step is over, whose result is then waited for."""
    prompts = np.array([" ".join(map(str, prompt)) for prompt in wire.case["prompts"]])
    versions = {name: metadata.version(name) for name in ("jax", "flax", "google-tunix")}
    wire.ready(**versions, threads="XLA's own")
    for n in itertools.count():
        wire.begin()
        cluster.cluster_config.rollout_config.seed = jax.random.PRNGKey(n)  # else every step draws the same
        yield {"prompts": prompts}
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
        wire.end()


def main() -> None:
    """Trains until nobody asks."""
    wire = Wire()
    cluster = cluster_of(wire.case, wire.setting, model_of(wire.case))
    learner_of(wire, cluster).train(batches(wire, cluster))


if __name__ == "__main__":
    main()
