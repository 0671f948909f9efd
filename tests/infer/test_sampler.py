"""The sampler: its log-probs are the model's, and no token depends on slots, batch, chunks or devices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infer import sampler
from infer.drawing import draw
from infer.sampler import Rollout, bucket, pad_prompts
from infer.sampling import Truncation
from model.sharding import make_mesh
from tests.sampled import generate
from tests.trunk import TOKENIZER, counted_traces, forward, prompts_of, tiny, tiny_params

PROMPTS = prompts_of(3, 5, 7, 2)
T = 10
MANY_STOPS = tuple(range(2, 6))
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
)


def sample(prompts: list[list[int]] = PROMPTS, **options: Any) -> Rollout:
    """Two samples of each prompt, unless told otherwise."""
    defaults = {"max_new_tokens": T, "n": 2, "key": jax.random.key(3)}
    given = defaults | options
    return generate(tiny(), tiny_params(), prompts, given.pop("key"), **given)


@functools.cache
def queue_of_forty() -> Rollout:
    """Forty samples with many early ends, each in a slot of its own."""
    return sample(n=10, stop=MANY_STOPS)


def next_logits(prompts: list[list[int]], rollout: Rollout) -> np.ndarray:
    """Logits [N, T, V] before every sampled token, from one right-padded full forward pass."""
    group = len(rollout.tokens) // len(prompts)
    rows = np.zeros((len(rollout.tokens), 8 + T), np.int32)
    segments = np.zeros_like(rows)
    for n, tokens in enumerate(rollout.tokens):
        prompt = prompts[n // group]
        rows[n, : len(prompt) + T] = [*prompt, *tokens]
        segments[n, : len(prompt) + rollout.lengths[n]] = 1
    logits = np.asarray(forward(tiny(), tiny_params(), jnp.asarray(rows), None, jnp.asarray(segments)))
    starts = [len(prompts[n // group]) - 1 for n in range(len(rows))]
    return np.stack([row[start : start + T] for row, start in zip(logits, starts, strict=True)])


def reference_logps(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Log-probs [V] of the truncated distribution in float64, one rule after the other, by sorting."""
    p = np.exp(logits.astype(np.float64) / temperature)
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    with np.errstate(divide="ignore"):
        return np.log(p / p.sum())


@pytest.mark.parametrize("rules", RULES, ids=lambda r: "-".join(r) or "plain")
def test_logps_are_those_of_the_full_forward_pass(rules: dict[str, Any]) -> None:
    rollout = sample(**rules)
    filled = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | rules
    for n, row in enumerate(next_logits(PROMPTS, rollout)):
        want = [reference_logps(z, **filled)[token] for z, token in zip(row, rollout.tokens[n], strict=True)]
        np.testing.assert_allclose(rollout.logps[n], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rules", RULES, ids=lambda r: "-".join(r) or "plain")
def test_draws_follow_the_distribution_whose_logps_are_returned(rules: dict[str, Any]) -> None:
    filled = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | rules
    logits = np.random.default_rng(2).standard_normal(12).astype(np.float32) * 1.5
    keys = jax.random.split(jax.random.key(0), 20_000)
    rule = Truncation(False, filled["top_k"], filled["top_p"], filled["min_p"])
    rows = jnp.broadcast_to(logits, (len(keys), 12))
    tokens, logps = draw(rows, keys, jnp.float32(filled["temperature"]), rule)
    want = reference_logps(logits, **filled)
    seen = np.bincount(np.asarray(tokens), minlength=12) / len(keys)
    np.testing.assert_allclose(seen, np.exp(want), atol=0.02)
    assert not seen[np.exp(want) == 0].any()
    np.testing.assert_allclose(logps, want[np.asarray(tokens)], atol=1e-5)


def test_greedy_is_the_argmax_of_the_full_forward_pass() -> None:
    rollout = sample(temperature=0.0)
    np.testing.assert_array_equal(next_logits(PROMPTS, rollout).argmax(-1), rollout.tokens)
    np.testing.assert_array_equal(rollout.logps, 0)
    np.testing.assert_array_equal(rollout.tokens[0::2], rollout.tokens[1::2])


@pytest.mark.more_but("3")
@pytest.mark.parametrize("slots", [1, 3, 16, 39])
def test_a_queue_gives_the_same_samples_as_a_slot_for_each(slots: int) -> None:
    whole, queued = queue_of_forty(), sample(n=10, stop=MANY_STOPS, slots=slots)
    assert len(set(whole.lengths.tolist())) > 3, "the test needs samples that end at different times"
    np.testing.assert_array_equal(queued.lengths, whole.lengths)
    np.testing.assert_array_equal(queued.tokens, whole.tokens)
    np.testing.assert_array_equal(queued.finished, whole.finished)
    np.testing.assert_allclose(queued.logps, whole.logps, rtol=0, atol=1e-5)
    assert queued.steps >= whole.steps


@pytest.mark.more
def test_waves_are_of_prompts_of_like_length(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(20, 3, 22, 5, 17, 2, 4)
    whole = sample(prompts, n=4)
    widths, prefill = [], sampler.prefill

    def watched(model: Any, plan: Any, *rest: Any) -> Any:
        widths.append((plan.prompt_length, int(rest[2].sum())))
        return prefill(model, plan, *rest)

    monkeypatch.setattr(sampler, "prefill", watched)
    queued = sample(prompts, n=4, slots=2)
    # Two prompts at a time, and the last one twice.
    assert widths == [(6, 2 + 3), (6, 4 + 5), (24, 17 + 20), (24, 22 + 22)]
    for name in ("tokens", "lengths", "finished", "prompts", "prompt_mask"):
        np.testing.assert_array_equal(getattr(queued, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(queued.logps, whole.logps, rtol=0, atol=1e-5)


def test_refilling_saves_steps() -> None:
    assert sample(n=10, stop=MANY_STOPS, slots=8).steps < 5 * T


def test_stop_tokens_end_a_sample_and_are_kept() -> None:
    rollout = queue_of_forty()
    for row, length, done in zip(rollout.tokens, rollout.lengths, rollout.finished, strict=True):
        assert not np.isin(row[: length - 1], MANY_STOPS).any()
        assert done == np.isin(row[length - 1], MANY_STOPS)
        assert done or length == T
        assert not row[length:].any()
    assert rollout.finished.any()
    assert not rollout.finished.all()
    np.testing.assert_array_equal(rollout.mask, np.arange(T) < rollout.lengths[:, None])
    np.testing.assert_array_equal(rollout.logps[rollout.mask == 0], 0)


def test_stop_tokens_only_cut_what_would_have_been_sampled_anyway() -> None:
    free, stopped = sample(n=10), queue_of_forty()
    np.testing.assert_array_equal(np.where(stopped.mask > 0, free.tokens, 0), stopped.tokens)


def test_a_sample_does_not_depend_on_the_prompts_beside_it() -> None:
    together = sample()
    for count in (1, 3):
        alone = sample(PROMPTS[:count])
        np.testing.assert_array_equal(alone.tokens, together.tokens[: 2 * count])


def test_a_sample_does_not_depend_on_padding() -> None:
    wider = sample([*PROMPTS, prompts_of(20)[0]])
    np.testing.assert_array_equal(wider.tokens[:8], sample().tokens)


def test_samples_of_one_prompt_differ_and_keys_decide() -> None:
    first = sample()
    assert (first.tokens[0::2] != first.tokens[1::2]).any(1).all()
    np.testing.assert_array_equal(first.tokens, sample().tokens)
    assert (first.tokens != sample(key=jax.random.key(4)).tokens).any(1).all()


@pytest.mark.more_but("0-1")
@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("slots", [0, 3])
def test_stop_strings_cut_at_the_token_that_completes_them(chunk: int, slots: int) -> None:
    stops, free = ("4", "12", "=", "8+"), sample(n=6)
    found = sample(n=6, stop=stops, tokenizer=TOKENIZER, chunk=chunk, slots=slots)
    for n, row in enumerate(free.tokens):
        texts = [TOKENIZER.decode(row[: t + 1].tolist()) for t in range(T)]
        hits = [t + 1 for t, text in enumerate(texts) if any(stop in text for stop in stops)]
        want = hits[0] if hits else T
        assert found.lengths[n] == want, f"sample {n} is {texts[-1]!r}"
        assert found.finished[n] == bool(hits)
        np.testing.assert_array_equal(found.tokens[n, :want], row[:want])


class Stripping:
    """Spaces and letters, without the first space of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(" ab"[index % 3] for index in ids).removeprefix(" ")


def test_a_stop_string_that_begins_with_a_space() -> None:
    free = sample(n=6)
    found = sample(n=6, stop=(" a",), tokenizer=Stripping(), chunk=4, slots=3)
    texts = ["".join(" ab"[index % 3] for index in row) for row in free.tokens]
    assert any(text.startswith(" a") for text in texts)
    for n, text in enumerate(texts):
        assert found.lengths[n] == (text.index(" a") + 2 if " a" in text else T), f"sample {n} is {text!r}"


def test_progress_is_told_and_changes_nothing() -> None:
    told: list[tuple[int, int]] = []
    found = sample(n=10, stop=MANY_STOPS, chunk=3, progress=lambda *now: told.append(now))
    np.testing.assert_array_equal(found.tokens, queue_of_forty().tokens)
    assert told == sorted(told)
    assert len(told) > 2
    assert told[-1] == (40, 40)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[]], {}, "at least one token"),
        ([[2, TOKENIZER.vocab_size]], {}, "is 16, and the model knows ids 0..15"),
        ([[2], [-1, 3]], {}, "is -1, and the model knows ids 0..15"),
        ([], {}, "at least one token"),
        ([[5], []], {}, "prompt 1 has none"),
        ([1, 2, 3], {}, r"found 1 as prompt 0 \(a single prompt is \[ids\]"),
        (np.asarray([1, 2, 3]), {}, r"\[prompts, length\]\); found an array of shape \[3\]"),
        ("hello", {}, "lists of token ids.*found 'hello'"),
        (["hello"], {}, "the text 'hello': encode it"),
        (7, {}, "lists of token ids.*found 7"),
        ([[1.0, 2.0]], {}, "dtype float64"),
        ([[[1, 2], [3]]], {}, r"prompt 0 is of dtype object and shape \[2\]"),
        (np.ones((2, 3)), {}, "dtype float64"),
        ([[5, 6], [300]], {}, r"prompts\[1\]\[0\] is 300"),
        ([[5, -5]], {}, r"prompts\[0\]\[1\] is -5"),
        ([[2**32 + 5]], {}, r"is 4294967301"),
        (PROMPTS, {"stop": (300,)}, "stop holds the id 300"),
        (PROMPTS, {"stop": (-1,)}, "stop holds the id -1"),
        (PROMPTS, {"stop": (1.5,)}, "found 1.5 among them"),
        (PROMPTS, {"stop": "ab", "tokenizer": TOKENIZER}, r"found 'ab': write \('ab',\)"),
        (PROMPTS, {"stop": 3}, r"found 3: write \(3,\)"),
        (PROMPTS, {"max_new_tokens": 0}, "max_new_tokens must be >= 1, found 0"),
        (PROMPTS, {"max_new_tokens": 58}, "context of 64"),
        (PROMPTS, {"top_p": 0.0}, "top_p"),
        (PROMPTS, {"top_k": -1}, "top_k"),
        (PROMPTS, {"min_p": 1.0}, "min_p"),
        (PROMPTS, {"temperature": -1.0}, "temperature must be >= 0 and finite, found -1"),
        (PROMPTS, {"n": 0}, "n must be >= 1, found 0"),
        (PROMPTS, {"slots": -2}, "slots"),
        (PROMPTS, {"stop": ("7",)}, "tokenizer"),
        (PROMPTS, {"stop": ("",), "tokenizer": TOKENIZER}, "empty stop"),
        (PROMPTS, {"depth": 3}, "depth"),
    ],
)
def test_bad_arguments_are_refused(prompts: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample(prompts, **options)


def test_an_array_of_prompts_is_a_list_of_them() -> None:
    prompts = [[2, 3, 4], [5, 6, 7]]
    for given in (np.asarray(prompts, np.int64), jnp.asarray(prompts)):
        np.testing.assert_array_equal(pad_prompts(given)[0], pad_prompts(prompts)[0])


def test_prompts_are_padded_to_few_lengths() -> None:
    lengths = {bucket(n) for n in range(1, 2049)}
    assert len(lengths) < 45
    assert all(n <= bucket(n) <= max(n + 7, 1.25 * n) for n in range(1, 2049))
    tokens, mask = pad_prompts([[5], [6, 7]])
    assert tokens.tolist() == [[0] * 7 + [5], [0] * 6 + [6, 7]]
    np.testing.assert_array_equal(mask, tokens > 0)


def test_nothing_is_compiled_twice() -> None:
    sample(key=jax.random.key(0))
    with counted_traces() as seen:
        sample(key=jax.random.key(5))
        sample(prompts_of(8, 1, 6, 6), key=jax.random.key(6), temperature=0.9)
    assert not seen
    with counted_traces() as seen:
        sample(prompts_of(9, 1, 6, 6))
    assert seen, "a longer bucket is a new shape: without it this test sees nothing"


@pytest.mark.more
@pytest.mark.parametrize("shape", [{"fsdp": -1}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_mesh_gives_the_same_samples(shape: dict[str, int]) -> None:
    mesh = make_mesh(shape)
    params = jax.device_put(tiny_params(), tiny().shardings(mesh))
    with jax.set_mesh(mesh):
        found = generate(tiny(), params, PROMPTS, jax.random.key(3), max_new_tokens=T, n=10, stop=MANY_STOPS)
    np.testing.assert_array_equal(found.tokens, queue_of_forty().tokens)
    np.testing.assert_allclose(found.logps, queue_of_forty().logps, rtol=0, atol=1e-5)
