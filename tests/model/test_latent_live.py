"""Continuous thoughts by their definition in transformers, when it is installed: a new seed on every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources.batch import TokenRows
from data.thoughts import Chain, Curriculum, Markers, thought_batch
from model import hf
from tests.model.common import distance
from tests.model.test_latent import run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.model.test_transformers_live import draw, randomise  # noqa: E402  (needs both)

IDS = Markers(start=57, latent=59, end=58, pad=60)


def draw_batch(rng: np.random.Generator) -> tuple[TokenRows, int, int]:
    """A mixed batch of random chains, so that rows have different numbers of thoughts; how many, and their column."""

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(0, 57, rng.integers(low, high)).tolist()

    chains = [Chain(ids(2, 6), [ids(1, 3) for _ in range(rng.integers(1, 4))], ids(1, 3)) for _ in range(3)]
    curriculum = Curriculum(thoughts_per_step=int(rng.integers(1, 3)), max_stage=2, uniform_prob=0.5)
    batch = thought_batch(chains, curriculum, IDS, int(rng.integers(1, 4)), rng=rng, first=6, length=18)
    return batch, curriculum.thoughts(0), 6


def definition(reference: Any, batch: TokenRows) -> tuple[float, np.ndarray, np.ndarray]:
    """n latents, n + 1 full passes: loss, logits, and the gradient of the input embedding."""
    tokens, positions, attention, latent = (
        torch.tensor(x).long() for x in (batch.tokens, batch.positions, batch.segments, batch.latent)
    )
    embed = reference.get_input_embeddings()
    given = {"attention_mask": attention, "position_ids": positions, "use_cache": False}
    states = reference.base_model(inputs_embeds=embed(tokens), **given).last_hidden_state
    fed = list(embed(tokens).unbind(1))
    for column in np.flatnonzero(batch.latent.any(0)):
        fed[column] = torch.where(latent[:, column, None] > 0, states[:, column - 1], fed[column])
        states = reference.base_model(inputs_embeds=torch.stack(fed, 1), **given).last_hidden_state
    logits = reference.lm_head(states)
    labels = torch.where(torch.tensor(batch.mask) > 0, tokens, -100)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    return loss.item(), logits.detach().numpy(), embed.weight.grad.numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_definition(family: str, parity_seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(parity_seed)
    config = draw(family, {}, rng)
    config._attn_implementation = "eager"
    reference = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    randomise(reference, rng)
    reference.save_pretrained(tmp_path)
    batch, thoughts, first = draw_batch(rng)
    loss, logits, gradient = definition(reference, batch)

    model, params = hf.load(tmp_path)
    arrays = jax.tree.map(jnp.asarray, batch.replace(answer=None))
    value, got, gradients = run(model, params, arrays, thoughts=thoughts, first=first)
    real = batch.segments > 0
    assert abs(float(value) - loss) < 1e-5 * max(1.0, abs(loss))
    assert distance(np.asarray(got)[real], logits[real]) < 1e-4
    assert np.abs(gradients["embed"] - gradient).max() < 1e-4 * np.abs(gradient).max()
