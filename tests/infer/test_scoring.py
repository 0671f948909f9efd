"""Scores of given tokens: those that the sampler tells, whatever they are batched with, and their definitions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infer.recurrence import Recurrence
from infer.sampler import Rollout
from infer.scoring import Scores, compilations, measure, of_logits, score, windows
from infer.thoughts import Thoughts
from model import build
from model.depth import Exit
from model.sharding import make_mesh, on_mesh
from tests.grid import case_of
from tests.sampled import generate
from tests.trunk import TINY, forward, prompts_of, tiny, tiny_params

PROMPTS = prompts_of(3, 5, 7, 2)
DEPTHS = np.array([1, 4, 2, 3, 2, 4, 1, 3])
FIELDS = ("logps", "greedy", "self_certainty")


def pairs_of(rollout: Rollout, prompts: list[list[int]]) -> tuple[list[Any], list[Any]]:
    """The prompt and the tokens of each sample."""
    rows = zip(rollout.tokens, rollout.lengths, strict=True)
    return [prompts[group] for group in rollout.group_of], [row[:length] for row, length in rows]


@functools.cache
def sampled() -> Rollout:
    """Two samples of each prompt, of different lengths."""
    found = generate(tiny(), tiny_params(), PROMPTS, jax.random.key(3), max_new_tokens=10, n=2, stop=(2, 3, 4, 5))
    assert len(set(found.lengths.tolist())) > 2, "the test needs samples of different lengths"
    return found


@functools.cache
def scored(**options: Any) -> Scores:
    """The scores of those samples."""
    return score(tiny(), tiny_params(), *pairs_of(sampled(), PROMPTS), **options)


def assert_same(found: Scores, wanted: Scores, tolerance: float = 1e-5) -> None:
    """Both say the same of every token."""
    np.testing.assert_array_equal(found.lengths, wanted.lengths)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=tolerance, err_msg=name)


def test_log_probs_are_those_of_the_sampler() -> None:
    found, rollout = scored(), sampled()
    np.testing.assert_array_equal(found.lengths, rollout.lengths)
    width = rollout.lengths.max()
    assert found.logps.dtype == np.float32 and found.logps.shape == (8, width)
    np.testing.assert_allclose(found.logps, rollout.logps[:, :width], rtol=0, atol=1e-5)


def test_what_is_greedy_and_how_certain_follow_from_the_logits() -> None:
    found, (prompts, completions) = scored(), pairs_of(sampled(), PROMPTS)
    rows = np.zeros((8, 17), np.int32)
    for n, (prompt, row) in enumerate(zip(prompts, completions, strict=True)):
        rows[n, : len(prompt) + len(row)] = [*prompt, *row]
    logits = np.asarray(forward(tiny(), tiny_params(), jnp.asarray(rows)), np.float64)
    for n, (prompt, row) in enumerate(zip(prompts, completions, strict=True)):
        z = logits[n, len(prompt) - 1 : len(prompt) - 1 + len(row)]
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        uniform = 1 / p.shape[1]
        np.testing.assert_array_equal(found.greedy[n, : len(row)], z.argmax(-1) == row)
        divergence = (uniform * np.log(uniform / p)).sum(-1)
        np.testing.assert_allclose(found.self_certainty[n, : len(row)], divergence, atol=1e-5)
        assert not any(getattr(found, name)[n, len(row) :].any() for name in FIELDS)
    assert 0 < found.greedy.sum() < found.lengths.sum()


def test_a_uniform_distribution_has_no_certainty() -> None:
    logps, _, certainty = of_logits(jnp.full((2, 7), 3.0), jnp.array([0, 6]))
    np.testing.assert_allclose(logps, -np.log(7), rtol=1e-6)
    np.testing.assert_allclose(certainty, 0, atol=1e-6)


def test_batches_say_what_single_rows_say() -> None:
    """Of widths, rows and chunks that do not divide; and the programs are few."""
    before = compilations()
    for options in ({"batch": 1}, {"batch": 3, "chunk": 4}, {"chunk": 3}):
        assert_same(scored(**options), scored())
    # One row of 8 or 16 columns; three rows of 8 or 16, in chunks of another size; eight rows in yet another.
    assert compilations() - before <= 2 + 2 + 1


@pytest.mark.more
def test_precision_of_bfloat16() -> None:
    config = TINY | {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_params())
    found = score(build(config), params, *pairs_of(sampled(), PROMPTS))
    assert found.logps.dtype == np.float32
    assert 1e-5 < np.abs(found.logps - scored().logps).max() < 0.1
    assert np.abs(found.self_certainty - scored().self_certainty).max() < 0.1


@pytest.mark.parametrize(("size", "length"), [(1, 4), (4, 4), (5, 4), (11, 4), (3, 1), (9, 20)])
def test_windows_hold_every_token_once(size: int, length: int) -> None:
    ids, whole = list(range(10, 10 + size)), [1, *range(10, 10 + size)]
    pairs = list(windows(ids, 1, length))
    assert [index for _, row in pairs for index in row] == ids
    done = 0
    for prompt, row in pairs:
        done += len(row)
        columns = len(prompt) + len(row) - 1
        assert whole[: done + 1][-columns - 1 :] == [*prompt, *row], "a pair is a piece of the text"
        assert columns == min(length, done), "and as long as fits"


def test_a_text_of_any_length_is_cut_into_windows() -> None:
    [ids] = prompts_of(150)
    found = score(tiny(), tiny_params(), *zip(*windows(ids, 2, 64), strict=True), batch=2)
    assert found.lengths.tolist() == [64, 64, 22]
    alone = score(tiny(), tiny_params(), [[2, *ids][150 - 64 : 129]], [ids[128:]])
    np.testing.assert_allclose(found.logps[2, :22], alone.logps[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"do not fit the model's context of 64 .*infer\.scoring\.windows"):
        score(tiny(), tiny_params(), [[2]], [ids])


@pytest.mark.more_but("gqa-glu-recurrent")
@pytest.mark.more_but("gqa-moe-stack", "mingru-peer-scanned")
@pytest.mark.parametrize(("mixer", "ffn", "depth"), [
    ("gqa", "glu", "recurrent"),
    ("mla", "moe", "recurrent"),
    ("gqa", "moe", "stack"),
    ("mingru", "peer", "scanned"),
])  # fmt: skip
def test_models_of_every_kind(mixer: str, ffn: str, depth: str) -> None:
    """A recurrent one at the depth of each sample."""
    case = case_of(mixer, ffn, 0, depth)
    options: dict[str, Any] = {"depth": DEPTHS} if depth == "recurrent" else {}
    rollout = generate(
        case.model, case.params, PROMPTS, jax.random.key(0), max_new_tokens=6, n=2, stop=(2, 3), **options
    )
    recurrence = Recurrence(DEPTHS) if options else None
    found = score(case.model, case.params, *pairs_of(rollout, PROMPTS), recurrence=recurrence, batch=5)
    np.testing.assert_allclose(found.logps, rollout.logps[:, : found.logps.shape[1]], rtol=0, atol=1e-4)
    if options:
        shallow = score(case.model, case.params, *pairs_of(rollout, PROMPTS), recurrence=Recurrence(1), batch=5)
        assert np.abs(shallow.logps - found.logps).max() > 1e-2, "depth changes what is said"


@pytest.mark.more
@pytest.mark.parametrize("depth", ["stack", "recurrent"])
@pytest.mark.parametrize("after", [0, 1])
def test_prompts_may_end_in_thoughts(depth: str, after: int) -> None:
    case = case_of("gqa", "glu", 0, depth)
    prompts = [[*prompt, 9, 9, *[7] * after] for prompt in PROMPTS]
    asked = {"thoughts": 2, "after": after, "n": 2, "stop": (2, 3)}
    varied: dict[str, Any] = {"depth": DEPTHS} if depth == "recurrent" else {}
    rollout = generate(case.model, case.params, prompts, jax.random.key(0), max_new_tokens=6, **asked, **varied)
    recurrence = Recurrence(DEPTHS) if varied else None
    pairs = pairs_of(rollout, prompts)
    found = score(case.model, case.params, *pairs, recurrence=recurrence, thoughts=Thoughts(2, after), batch=3)
    np.testing.assert_allclose(found.logps, rollout.logps[:, : found.logps.shape[1]], rtol=0, atol=1e-4)
    plain = score(case.model, case.params, *pairs, recurrence=recurrence)
    assert np.abs(plain.logps - found.logps).max() > 1e-2, "thoughts change what is said"


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.more_but("shape1")
@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"context": 4, "data": 2}])
def test_scores_on_eight_devices_are_those_of_one(shape: dict[str, int]) -> None:
    mesh = make_mesh(shape)
    params = jax.device_put(tiny_params(), tiny().shardings(mesh))
    assert_same(on_mesh(mesh)(score)(tiny(), params, *pairs_of(sampled(), PROMPTS), batch=5), scored())


def test_logits_are_held_of_few_columns_at_a_time() -> None:
    """No array of the program is as large as the logits of a whole batch."""
    model = build(TINY | {"vocab_size": 4096})
    lowered: list[str] = []

    def watched(*arguments: Any) -> Any:
        lowered.append(measure.lower(*arguments).as_text())
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr("infer.scoring.measure", watched)
        score(model, model.abstract(), [[1] * 24] * 2, [[1] * 24] * 2, chunk=4)
    assert "2x4x4096xf32" in lowered[0] and "2x48x4096" not in lowered[0]


@pytest.mark.parametrize(("options", "message"), [
    ({"prompts": [[5], []]}, "every prompt needs at least one token; prompt 1 has none"),
    ({"completions": [[5], []]}, "every completion needs at least one token; completion 1 has none"),
    ({"completions": ["12", "3"]}, "completion 0 is the text '12': encode it"),
    ({"completions": [[5], [99]]}, r"completions\[1\]\[0\] is 99"),
    ({"completions": [[5]]}, "2 prompts and 1 completions: give one for each prompt"),
    ({"recurrence": Recurrence(3)}, "depth=3 requires a recurrent model"),
    ({"batch": 0}, "batch must be >= 1"),
    ({"chunk": 0}, "chunk must be >= 1"),
    ({"thoughts": Thoughts(1)}, "every prompt needs a token before its thoughts"),
])  # fmt: skip
def test_wrong_use_is_told(options: dict[str, Any], message: str) -> None:
    given = {"prompts": [[5], [6]], "completions": [[5], [6]]} | options
    with pytest.raises(ValueError, match=message):
        score(tiny(), tiny_params(), given.pop("prompts"), given.pop("completions"), **given)


def test_an_exit_belongs_to_decoding() -> None:
    model = build(TINY | {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 2}})
    with pytest.raises(ValueError, match="exit and warm_start belong to decoding"):
        score(model, {}, [[5]], [[6]], recurrence=Recurrence(2, exit=Exit("kl")))
