"""Samples that are cut and go on are the samples that nobody cut; forced tokens are fed as if they had been drawn."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from typing import Any

import jax
import numpy as np
import pytest

from infer.continuation import Continuation, continuation_of, empty_continuation, force
from infer.sampler import Rollout
from model import build
from model.lm import Model
from model.sharding import make_mesh, on_mesh
from tests.pairs import pairwise
from tests.sampled import generate
from tests.trunk import TINY, prompts_of

GROUP, T, P = 4, 12, 4
N = GROUP * P
PROMPTS = prompts_of(3, 6, 2, 4)
PARTS: dict[str, Any] = {
    "mla": dict(kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
    "moe": {"n_experts": 4, "top_k": 2, "d_expert": 16},
    "peer": {"n_experts": 64, "heads": 2, "top_k": 3, "key_dim": 16},
}
RECURRENT: dict[str, Any] = {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 2}}
SLOTS = [*itertools.product(("gqa", "mla", "mingru", "gated_delta"), ("glu", "moe", "peer"), ("stack", "recurrent"))]
GRID = {
    f"{mixer}-{ffn}-{depth}": PARTS | {"mixer": mixer, "ffn": ffn} | (RECURRENT if depth == "recurrent" else {})
    for mixer, ffn, depth in SLOTS
}
MEETING = ["-".join(slots) for slots in pairwise(SLOTS)]
CUTS = {"one token": np.ones(N, int), "anywhere": np.arange(N) * 5 % (T + 1), "all but one": np.full(N, T - 1)}
ALSO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "refill": ({}, {"slots": 5}),
    "several waves": ({}, {"slots": 2}),
    "draft": ({"mtp": {"depth": 1}}, {"draft": True}),
    "draft by few iterations": (RECURRENT, {"draft_depth": 1}),
    "depths that vary": (RECURRENT, {"depth": np.arange(N) % 3 + 1, "max_depth": 4}),
    "depths that vary, in waves": (RECURRENT, {"depth": np.arange(N) % 3 + 1, "slots": 3}),
    "exit": (RECURRENT, {"depth": 5, "exit": "latent"}),
    "shared slots of iterations": (RECURRENT | {"recurrent": {"mean": 4, "kv_slots": 2}}, {}),
    "warm start": (RECURRENT, {"warm_start": "raw"}),
    "routes": ({"ffn": "moe", "moe": PARTS["moe"]}, {"routes": True}),
    "routes in waves": ({"ffn": "moe", "moe": PARTS["moe"]}, {"routes": True, "slots": 3}),
    "thoughts": ({}, {"thoughts": 2, "after": 1}),
    "fewer slots": ({}, {"shrink": 2}),
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {name: (model, {}) for name, model in GRID.items()} | ALSO


@functools.cache
def model_of(kind: str) -> tuple[Model, Any]:
    model = build(TINY | KINDS[kind][0])
    return model, jax.jit(model.init)(jax.random.key(0))


def prompts_for(kind: str) -> list[list[int]]:
    """With places for their thoughts, where there are any."""
    return [[*prompt, 5, 5, 6] for prompt in PROMPTS] if kind == "thoughts" else PROMPTS


def sampled(kind: str = "gqa-glu-stack", **options: Any) -> Rollout:
    given: dict[str, Any] = dict(n=GROUP, max_new_tokens=T, stop=(2, 3), chunk=2) | KINDS[kind][1] | options
    return generate(*model_of(kind), prompts_for(kind), jax.random.key(7), **given)


@functools.cache
def whole(kind: str = "gqa-glu-stack") -> Rollout:
    found = sampled(kind)
    assert len(set(found.lengths.tolist())) > 3 and not found.finished.all()
    return found


def check_same(found: Rollout, wanted: Rollout) -> None:
    for name in ("tokens", "lengths", "finished", "prompts", "prompt_mask", "mask", "depth"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    if found.routes is not None and wanted.routes is not None:
        inside = np.arange(T) < wanted.lengths[:, None]
        np.testing.assert_array_equal(found.routes[inside], wanted.routes[inside])
        asked = wanted.prompt_mask > 0
        np.testing.assert_array_equal(found.prompt_routes[asked], wanted.prompt_routes[asked])  # type: ignore[index]
    np.testing.assert_allclose(found.logps, wanted.logps, rtol=0, atol=2e-5)


@pytest.mark.more_but("gqa-glu-stack", MEETING[-1])
@pytest.mark.parametrize("kind", MEETING)
def test_after_any_cut_samples_go_on_as_if_uncut(kind: str) -> None:
    """One sample is cut after each number of tokens that there is."""
    assert set(CUTS["anywhere"].tolist()) == set(range(T + 1))
    check_same(sampled(kind, continuation=continuation_of(whole(kind), CUTS["anywhere"])), whole(kind))


@pytest.mark.parametrize("cut", ["one token", "all but one"])
def test_all_samples_may_be_cut_alike(cut: str) -> None:
    check_same(sampled(continuation=continuation_of(whole(), CUTS[cut])), whole())


@pytest.mark.more_but("refill", "thoughts")
@pytest.mark.parametrize("kind", ALSO)
def test_a_cut_goes_with_everything_else(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "fewer slots":
        monkeypatch.setattr("infer.decode.LONG", 1)
    check_same(sampled(kind, continuation=continuation_of(whole(kind), CUTS["anywhere"])), whole(kind))


@pytest.mark.more_but("8-routes")
@pytest.mark.parametrize("kind", ["gqa-glu-stack", "routes", "depths that vary"])
@pytest.mark.parametrize("slots", [0, 8])
def test_a_cut_goes_with_lanes_on_a_mesh(kind: str, slots: int) -> None:
    mesh, (model, params) = make_mesh({"fsdp": 8}), model_of(kind)
    options: dict[str, Any] = dict(n=GROUP, max_new_tokens=T, stop=(2, 3), slots=slots) | KINDS[kind][1]
    placed = jax.device_put(params, model.shardings(mesh))
    continuation = continuation_of(whole(kind), CUTS["anywhere"])
    found = on_mesh(mesh)(generate)(model, placed, PROMPTS, jax.random.key(7), continuation=continuation, **options)
    check_same(found, whole(kind))


@pytest.mark.more_but("0-gqa-glu-stack", "5-thoughts")
@pytest.mark.parametrize("kind", ["gqa-glu-stack", "exit", "thoughts", "routes"])
@pytest.mark.parametrize("slots", [0, 5])
def test_complete_groups_end_a_run_and_the_rest_goes_on_in_the_next(kind: str, slots: int) -> None:
    first = sampled(kind, min_complete_groups=1, slots=slots)
    assert first.partial is not None
    ready = (~first.partial).reshape(P, GROUP).all(1)
    assert 1 <= ready.sum() < P, "some must be ready, and some not"
    assert first.lengths[first.partial].any(), "some must have started"
    for n in range(N):
        np.testing.assert_array_equal(first.tokens[n, : first.lengths[n]], whole(kind).tokens[n, : first.lengths[n]])
        assert first.partial[n] == (first.lengths[n] < whole(kind).lengths[n])
    again = sampled(kind, continuation=continuation_of(first), min_complete_groups=int(ready.sum()), slots=slots)
    assert again.partial is not None
    assert (again.lengths >= first.lengths).all() and (~again.partial).reshape(P, GROUP).all(1)[ready].all()
    for rollout in (first, again):
        last = sampled(kind, continuation=continuation_of(rollout), slots=slots)
        assert last.partial is None
        check_same(last, whole(kind))


class Letters:
    """An id is a letter."""

    def decode(self, ids: Any) -> str:
        return "".join(chr(65 + int(i) % 26) for i in ids)


@pytest.mark.more_but("0")
@pytest.mark.parametrize("slots", [0, 3])
def test_stop_strings_see_what_was_said_before(slots: int) -> None:
    plain = sampled(stop=())
    text = Letters().decode(plain.tokens[0])
    options: dict[str, Any] = dict(stop=(text[3:6],), tokenizer=Letters(), slots=slots)
    stopped = sampled(**options)
    assert stopped.lengths[0] <= 6
    for length in (4, 5):
        check_same(sampled(continuation=continuation_of(stopped, np.full(N, length)), **options), stopped)


def test_a_stop_inside_a_prefix_stops_nothing() -> None:
    """As in a dialogue, whose earlier turns ended in it; the next one does."""
    plain = sampled(stop=())
    text, ids = Letters().decode(plain.tokens[0]), tuple(sorted(set(plain.tokens[:, :4].reshape(-1).tolist())))
    turns = dataclasses.replace(continuation_of(plain, np.full(N, 6)), finished=np.zeros(N, bool))
    found = sampled(continuation=turns, stop=ids)
    assert (found.lengths > 6).all() and found.finished.any()
    for kind in ("exit", "gqa-glu-stack"):
        before = dataclasses.replace(continuation_of(sampled(kind, stop=()), np.full(N, 6)))
        assert (sampled(kind, continuation=before, stop=ids).lengths > 6).all()
    found = sampled(continuation=turns, stop=(text[3:6],), tokenizer=Letters())
    assert found.lengths[0] > 6


def forced_like(wanted: Rollout, columns: slice, cut: int = 0, read: bool = False) -> Continuation:
    """Cut after so many tokens, and in some columns made to say what was drawn."""
    before = continuation_of(wanted, np.full(N, cut))
    rows = [
        row[columns][: max(length - columns.start, 0)]
        for row, length in zip(wanted.tokens, wanted.lengths, strict=True)
    ]
    at = np.maximum(np.full(N, columns.start), before.lengths)
    # A stop inside a prefix that is read stops nothing: what ended there has to be said to have ended.
    ends_inside = read & wanted.finished & (wanted.lengths <= columns.stop)
    finished = before.finished
    made = force(
        before,
        [row.tolist() if not ended else [] for row, ended in zip(rows, finished, strict=True)],
        None if read else at,
        read=read,
    )
    return dataclasses.replace(made, finished=finished | ends_inside)


SCRIPTS: dict[str, dict[str, Any]] = {
    "a prefix": {"columns": slice(0, 3)},
    "a prefix that is read": {"columns": slice(0, 3), "read": True},
    "in the middle": {"columns": slice(3, 6)},
    "right after a cut": {"columns": slice(4, 7), "cut": 4},
    "right after a cut, read": {"columns": slice(4, 7), "cut": 4, "read": True},
    "later than a cut": {"columns": slice(6, 8), "cut": 4},
    "at the end": {"columns": slice(T - 2, T)},
    "all of it": {"columns": slice(0, T)},
}


OTHERS = ["mingru-moe-recurrent", "draft", "exit", "thoughts", "refill"]
TOLD = SCRIPTS if os.environ.get("SAGAX_FULL") else ("a prefix that is read", "in the middle", "right after a cut")


@pytest.mark.more_but(*(f"gqa-glu-stack-{script}" for script in SCRIPTS), "exit-in the middle")
@pytest.mark.parametrize(
    ("kind", "script"),
    [*(("gqa-glu-stack", script) for script in SCRIPTS), *itertools.product(OTHERS, TOLD)],
)
def test_forced_tokens_are_fed_as_if_drawn(kind: str, script: str) -> None:
    """What follows them is what followed them; they have no log-prob and are not the policy's."""
    wanted, columns = whole(kind), SCRIPTS[script]["columns"]
    found = sampled(kind, continuation=forced_like(wanted, **SCRIPTS[script]))
    for name in ("tokens", "lengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    place = np.arange(T)
    forced = (place >= columns.start) & (place < columns.stop) & (place < wanted.lengths[:, None])
    ended_before = SCRIPTS[script].get("cut", 0) >= wanted.lengths
    forced &= ~(ended_before & wanted.finished)[:, None]
    assert forced.any()
    np.testing.assert_array_equal(found.mask, wanted.mask * ~forced)
    np.testing.assert_allclose(found.logps, np.where(forced, 0, wanted.logps), rtol=0, atol=2e-5)
    assert not found.logps[forced].any()
    if found.depth is not None and not SCRIPTS[script].get("read"):
        np.testing.assert_array_equal(found.depth, wanted.depth)


def test_a_forced_stop_token_ends_its_sample() -> None:
    made = force(empty_continuation(N, T), [[2] if n % 2 else [] for n in range(N)], np.full(N, 3))
    found, free = sampled(continuation=made, stop=(2,)), sampled(stop=())
    for n in range(1, N, 2):
        ends = np.flatnonzero(free.tokens[n, :3] == 2)
        assert found.lengths[n] == (ends[0] + 1 if ends.size else 4) and found.finished[n]
        assert found.mask[n].sum() == (ends[0] + 1 if ends.size else 3)
        np.testing.assert_array_equal(found.tokens[n, : found.lengths[n] - 1], free.tokens[n, : found.lengths[n] - 1])


@pytest.mark.programs(250)
def test_other_tokens_than_were_drawn_lead_elsewhere() -> None:
    """Forced tokens are what the model reads: the log-probs after them are those of a full pass over them."""
    said = [[7, 8, 9] for _ in range(N)]
    found = sampled(continuation=force(empty_continuation(N, T), said, np.full(N, 2)), stop=())
    assert (found.tokens[:, 2:5] == [7, 8, 9]).all() and not found.mask[:, 2:5].any() and not found.logps[:, 2:5].any()
    model, params = model_of("gqa-glu-stack")
    for n in (0, 7):
        row = np.array([[*PROMPTS[n // GROUP], *found.tokens[n]]])
        logps = jax.nn.log_softmax(model.logits(params, model.apply(params, row).hidden)[0])
        before = len(PROMPTS[n // GROUP]) - 1
        wanted = np.take_along_axis(np.asarray(logps)[before:-1], found.tokens[n][:, None], 1)[:, 0]
        np.testing.assert_allclose(found.logps[n], wanted * found.mask[n], atol=2e-5)


@pytest.mark.parametrize("slots", [0, 2])
def test_groups_may_differ_in_size(slots: int) -> None:
    """Samples draw with the number that they are given, wherever they stand."""
    number = np.array([0, 1, 2, 3, 5, 9, 8, 12, 13, 15])
    group_of = number // GROUP
    cut = continuation_of(whole(), CUTS["anywhere"])
    part = {name: getattr(cut, name)[number] for name in ("tokens", "logps", "lengths", "finished", "forced")}
    found = sampled(continuation=Continuation(**part, group_of=group_of, number=number), slots=slots)
    np.testing.assert_array_equal(found.group_of, group_of)
    for name in ("tokens", "lengths", "finished", "mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole(), name)[number], err_msg=name)
    np.testing.assert_allclose(found.logps, whole().logps[number], rtol=0, atol=2e-5)


def test_groups_of_any_size_can_be_complete_enough() -> None:
    group_of = np.array([0, 1, 1, 1, 2, 2, 3, 3, 3, 3])
    found = sampled(continuation=empty_continuation(10, T, group_of), min_complete_groups=2)
    assert found.partial is not None
    complete = [not found.partial[group_of == group].any() for group in range(P)]
    assert sum(complete) >= 2


def test_samples_with_the_same_prefix_share_the_row_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of a search tree is read once, however many children it has."""
    from infer import sampler

    rows, prefill = [], sampler.prefill

    def watched(model: Any, plan: Any, params: Any, tokens: Any, *rest: Any) -> Any:
        rows.append(tokens.shape)
        return prefill(model, plan, params, tokens, *rest)

    monkeypatch.setattr(sampler, "prefill", watched)
    prefix = [[7, 8] if n < GROUP else [] for n in range(N)]
    sampled(continuation=force(empty_continuation(N, T), prefix, read=True))
    assert rows == [(P + 1, 8 + 3)], "the prompts, and one row more; prefixes widen them by a quarter of T"


def test_what_no_continuation_can_be() -> None:
    cut = continuation_of(whole(), np.zeros(N, int))
    refused = lambda words: pytest.raises(ValueError, match=words)  # noqa: E731
    with refused("12 columns was given for max_new_tokens=9"):
        sampled(continuation=cut, max_new_tokens=9)
    strange, one = np.full_like(cut.tokens, 300), np.eye(N, dtype=int)[2]
    with refused(r"continuation.tokens\[2, 0\] is 300"):
        sampled(continuation=dataclasses.replace(cut, tokens=strange, lengths=one))
    with refused("lengths must be from 0 to 12"):
        sampled(continuation=dataclasses.replace(cut, lengths=99 * one))
    with refused("16 samples was given for 4 prompts x n=2"):
        sampled(continuation=dataclasses.replace(cut, group_of=None), n=2)
    with refused("each prompt at least once"):
        sampled(continuation=dataclasses.replace(cut, group_of=np.zeros(N, int)))
    with refused(r"continuation.logps must be of shape \(16, 12\)"):
        sampled(continuation=dataclasses.replace(cut, logps=np.zeros((2, 2))))
    with refused("min_complete_groups=1 needs all samples in one wave: slots must be at least a quarter"):
        sampled(continuation=cut, slots=2, min_complete_groups=1)
    with refused("forced tokens are 16 rows at or after"):
        force(dataclasses.replace(cut, lengths=one), [[4]] * N, np.zeros(N, int))
    with refused("read=True forces tokens right after the prefixes"):
        force(cut, [[4]] * N, np.ones(N, int), read=True)
