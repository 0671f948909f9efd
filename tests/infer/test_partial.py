"""Samples that are interrupted and go on later are the samples that nobody interrupted."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from infer.partial import PartialSamples, with_beginnings
from infer.sampler import Rollout, generate
from model import build
from model.lm import Model
from tests.trunk import TINY, prompts_of

GROUP, T, P = 4, 12, 4
PROMPTS = prompts_of(3, 6, 2, 4)
KINDS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mla": {"mixer": "mla", "mla": dict(kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8)},
    "mingru": {"mixer": "mingru"},
    "recurrent": {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 2}},
}


@functools.cache
def model_of(kind: str) -> tuple[Model, Any]:
    model = build(TINY | KINDS[kind])
    return model, jax.jit(model.init)(jax.random.key(0))


def sampled(kind: str = "gqa", **options: Any) -> Rollout:
    given: dict[str, Any] = dict(samples_per_prompt=GROUP, max_new_tokens=T, stop=(2, 3), chunk=2) | options
    return generate(*model_of(kind), PROMPTS, jax.random.key(7), **given)


@functools.cache
def whole(kind: str = "gqa") -> Rollout:
    found = sampled(kind)
    assert len(set(found.lengths.tolist())) > 4 and not found.finished.all()
    return found


def cut(rollout: Rollout, lengths: np.ndarray) -> PartialSamples:
    """What the samples had said when they were so long."""
    kept = np.minimum(lengths, rollout.lengths)
    inside = np.arange(T) < kept[:, None]
    done = (kept == rollout.lengths) & rollout.finished
    return PartialSamples(np.where(inside, rollout.tokens, 0), np.where(inside, rollout.logps, 0), kept, done)


def check_same(found: Rollout, wanted: Rollout) -> None:
    for name in ("tokens", "lengths", "finished", "prompts", "prompt_mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_allclose(found.logps, wanted.logps, rtol=0, atol=2e-5)


@pytest.mark.more_but("gqa")
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_begun_goes_on_as_it_would_have(kind: str) -> None:
    lengths = np.arange(P * GROUP) % (T + 1)  # nothing, a little, all
    check_same(sampled(kind, begun=cut(whole(kind), lengths)), whole(kind))


@pytest.mark.more_but("None")
@pytest.mark.parametrize("slots", [None, 5])
def test_enough_prompts_end_a_run_and_the_rest_goes_on_in_the_next(slots: int | None) -> None:
    first = sampled(enough=1, slots=slots)
    assert first.partial is not None
    ready = (~first.partial).reshape(P, GROUP).all(1)
    assert 1 <= ready.sum() < P, "some must be ready, and some not"
    assert first.lengths[first.partial].any(), "some must have begun"
    for n in range(P * GROUP):
        np.testing.assert_array_equal(first.tokens[n, : first.lengths[n]], whole().tokens[n, : first.lengths[n]])
        assert first.partial[n] == (first.lengths[n] < whole().lengths[n])
    begun = PartialSamples(first.tokens, first.logps, first.lengths, first.finished)
    again = sampled(begun=begun, enough=int(ready.sum()), slots=slots)
    assert again.partial is not None
    assert (again.lengths >= first.lengths).all() and (~again.partial).reshape(P, GROUP).all(1)[ready].all()
    last = sampled(begun=begun, slots=slots)
    assert last.partial is None
    check_same(last, whole())


def test_stop_strings_see_what_was_said_before() -> None:
    class Letters:
        def decode(self, ids: Any) -> str:
            return "".join(chr(65 + int(i) % 26) for i in ids)

    plain = sampled(stop=())
    text = Letters().decode(plain.tokens[0])
    options: dict[str, Any] = dict(stop=(text[3:6],), tokenizer=Letters())
    stopped = sampled(**options)
    assert stopped.lengths[0] <= 6
    check_same(sampled(begun=cut(stopped, np.full(P * GROUP, 4)), **options), stopped)


def test_rows_of_the_prefill_are_few_sizes() -> None:
    tokens, mask = np.ones((2, 8), np.int32), np.ones((2, 8), bool)
    for lengths in ((1, 0, 0, 0), (3, 3, 0, 0)):
        begun = PartialSamples(np.full((4, 8), 9), np.zeros((4, 8)), np.asarray(lengths), np.zeros(4, bool))
        found, seen, rows = with_beginnings(tokens, mask, begun, 2)
        assert found.shape == seen.shape == (2 + (1 if lengths[1] == 0 else 2), 8 + (2 if lengths[0] == 1 else 4))
        assert rows.tolist() == ([2, 0, 1, 1] if lengths[1] == 0 else [2, 3, 1, 1])
        assert found[2][seen[2]].tolist() == [1] * 8 + [9] * lengths[0]


def test_what_cannot_be_interrupted() -> None:
    begun = cut(whole(), np.zeros(P * GROUP, int))
    with pytest.raises(ValueError, match="16 samples of at most 9"):
        sampled(begun=begun, max_new_tokens=9)
    strange, one = np.full_like(begun.tokens, 300), np.eye(16, dtype=int)[2]
    with pytest.raises(ValueError, match=r"begun.tokens\[2, 0\] is 300"):
        sampled(begun=dataclasses.replace(begun, tokens=strange, lengths=one))
    with pytest.raises(ValueError, match="16 numbers from 0 to"):
        sampled(begun=dataclasses.replace(begun, lengths=99 * one))
    with pytest.raises(ValueError, match="quarter of the samples"):
        sampled(begun=begun, slots=2)
    with pytest.raises(ValueError, match="neither drafts"):
        sampled("recurrent", enough=1, depth=np.ones(16, int), max_depth=2)
    assert dataclasses.is_dataclass(begun)
