"""The last samples go on in fewer slots, and nobody can tell by what they say."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from infer import decode
from infer.sampler import Rollout
from model import build
from tests.sampled import generate
from tests.trunk import TINY, prompts_of

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "queued": ({}, {"slots": 12}),
    "in chunks": ({}, {"progress": lambda done, total: None, "chunk": 3}),
    "drafting": ({"mtp": {"depth": 1}}, {"draft": True}),
    "running state": ({"mixer": "mingru"}, {}),
    "experts": ({"ffn": "moe", "moe": {"n_experts": 4, "d_expert": 8}}, {"routes": True}),
    "recurrent": (
        {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 2}},
        {"depth": np.arange(24) % 3 + 1, "max_depth": 3, "warm_start": "raw"},
    ),
}


def sampled(shrink: int, changes: dict[str, Any], options: dict[str, Any]) -> Rollout:
    model = build(TINY | changes)
    params = jax.jit(model.init)(jax.random.key(0))
    given: dict[str, Any] = {"n": 8, "stop": tuple(range(2, 6)), "max_new_tokens": 16} | options
    return generate(model, params, prompts_of(3, 5, 2), jax.random.key(4), shrink=shrink, **given)


@pytest.mark.more_but("plain")
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same_in_fewer_slots(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, options = KINDS[kind]
    whole = sampled(0, changes, options)
    assert len(set(whole.lengths.tolist())) > 3, "the test needs samples that end at different times"
    monkeypatch.setattr(decode, "LONG", 1)
    sizes: list[int] = []
    compact = decode.compact

    def watched(slots: int, lanes: int, state: Any) -> Any:
        sizes.append(slots)
        return compact(slots, lanes, state)

    monkeypatch.setattr(decode, "compact", watched)
    found = sampled(2, changes, options)
    assert len(sizes) > 1 and sizes == sorted(sizes, reverse=True), f"it must shrink more than once: {sizes}"
    assert found.steps == whole.steps
    for name in ("tokens", "lengths", "finished", "depth", "routes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(found.logps, whole.logps, rtol=0, atol=1e-5)


def test_short_answers_compile_no_smaller_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "compact", None)
    assert sampled(3, {}, {}).finished.all()
