"""What a model would say after each thought: the same probabilities as by thinking and speaking step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from analysis.pictures import save
from analysis.thoughts import candidate_probabilities, draw_candidates
from data.thoughts import Markers
from model import build
from settings.data import SoftConfig

MODEL = build({"vocab_size": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 24, "max_length": 16})
MARKERS = Markers(start=13, latent=14, end=15, pad=0)


SOFT = SoftConfig(feedback="soft", soft_tokens=3, soft_temperature=0.5)


def mixed(params: Any, states: jax.Array) -> jax.Array:
    """The three likeliest tokens' embeddings, weighed by their probabilities to the power of two."""
    p = np.asarray(jax.nn.softmax(MODEL.logits(params, states[:, None]))[0, 0], np.float64)
    best = np.argsort(-p)[:3]
    weights = p[best] ** 2 / (p[best] ** 2).sum()
    return weights @ np.asarray(params["embed"])[best]


@pytest.mark.parametrize(("marked", "soft"), [(True, None), (False, None), (True, SOFT)])
def test_probabilities_by_hand(tmp_path: Path, marked: bool, soft: SoftConfig | None) -> None:
    params = jax.tree.map(lambda x: 8 * x, jax.jit(MODEL.init)(jax.random.key(0)))
    question, candidates = [3, 4], [[5], [6, 7]]
    found = candidate_probabilities(MODEL, params, question, candidates, MARKERS, 2, marked, soft)
    assert found.shape == (3, 2)

    @jax.jit
    def ahead(tokens: np.ndarray, embeds: np.ndarray) -> tuple[jax.Array, jax.Array]:
        hidden = MODEL.apply(params, tokens, embeds=embeds).hidden
        return hidden, jax.nn.log_softmax(MODEL.logits(params, hidden))

    for thoughts in range(3):
        head = [*question, *[13] * marked, *[14] * thoughts, *[15] * marked]
        for n, candidate in enumerate(candidates):
            tokens = [*head, *candidate]
            row, embeds = np.zeros((1, 12), int), np.full((1, 12, 16), np.nan)  # what comes after changes nothing
            row[0, : len(tokens)] = tokens
            for k in range(thoughts):
                column = 2 + marked + k
                states = ahead(row, embeds)[0][:, column - 1]
                embeds[:, column] = states if soft is None else mixed(params, states)
            logp = np.asarray(ahead(row, embeds)[1])[0]
            places = range(len(head), len(tokens))
            want = np.exp(sum(float(logp[place - 1, tokens[place]]) for place in places))
            np.testing.assert_allclose(found[thoughts, n], want, rtol=1e-4)
    assert np.abs(np.log(found[0] / found[2])).max() > 1e-2, "thoughts must matter"
    save(draw_candidates(["5", "6 7"], found, "a question"), tmp_path / "thoughts.png")
    assert (tmp_path / "thoughts.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_use() -> None:
    params = jax.jit(MODEL.init)(jax.random.key(0))
    with pytest.raises(ValueError, match="at least one token"):
        candidate_probabilities(MODEL, params, [3], [[]], MARKERS, 1)
    with pytest.raises(ValueError, match="the model's context is 16"):
        candidate_probabilities(MODEL, params, [3], [[4]], MARKERS, 20)
