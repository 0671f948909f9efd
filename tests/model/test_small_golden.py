"""The committed reference, so that parity is tested wherever the tests run; tests/golden/make_tiny_llama.py
wrote it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model import build, hf
from tests.model.common import assert_close, cached, distance, forward, left_pad

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "tiny_llama"


def read_golden() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "golden.npz") as golden:
        return dict(golden)


def test_forward_and_cached_decode() -> None:
    model, params = hf.load(FOLDER)
    golden = read_golden()
    logits, hidden = forward(model, params, golden["ids"].astype(np.int32))
    assert_close(logits, golden["logits"])
    assert distance(hidden, golden["hidden_last"]) < 1e-4
    decoded = np.asarray(cached(model, params, *left_pad(golden["ids"], (3, 0)), 10))
    assert_close(decoded[1], golden["logits"][1])
    assert_close(decoded[0, 3:], golden["logits"][0, :-3])


@pytest.mark.parametrize("change", [{"norm_eps": 1e-3}, {"qkv_bias": False}, {"out_bias": False}])
def test_mutant_is_caught(change: dict[str, float]) -> None:
    model, params = hf.load(FOLDER)
    golden = read_golden()
    mutant = build(model.config.replace(**change))
    assert distance(forward(mutant, params, golden["ids"].astype(np.int32))[0], golden["logits"]) > 1e-3
