"""Models of scores in the Hub's words: which class says what, round trips, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from model import build, hf
from model.config import ModelConfig

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, (0, False, None)),
        ({"architectures": ["LlamaForCausalLM"], "pad_token_id": 3}, (0, False, None)),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "pad_token_id": 3}, (1, False, 3)),
        ({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a"}}, (1, False, None)),
        ({"architectures": ["LlamaForTokenClassification"], "pad_token_id": 3}, (2, True, None)),
    ],
)
def test_what_a_config_says_of_scores(more: dict[str, Any], wanted: tuple[int, bool, int | None]) -> None:
    score = ModelConfig.from_hf(BASE | more).score
    assert (score.size, score.bias, score.pad) == wanted


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'LlamaForQuestionAnswering'"):
        ModelConfig.from_hf(BASE | {"architectures": ["LlamaForQuestionAnswering"]})


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "LlamaForTokenClassification"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    model = build(ModelConfig.from_hf(BASE | {"architectures": [name], "num_labels": 3, "pad_token_id": 3}))
    params = jax.jit(model.init)(jax.random.key(0))
    assert "head" not in params and params["score"].shape == (3, 8)
    hf.save(tmp_path / "hub", model, params)
    again, loaded = hf.load(tmp_path / "hub")
    assert again == model and again.config.to_hf()["architectures"] == [name]
    jax.tree.map(np.testing.assert_array_equal, params, loaded)
