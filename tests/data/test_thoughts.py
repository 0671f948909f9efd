"""Rows of continuous thoughts: the reference's collated arrays to the last integer, and the baselines by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.sources.batch import TokenRows
from data.thoughts import (
    METHODS,
    Chain,
    Curriculum,
    Ending,
    Markers,
    check_fit,
    collate,
    ending_of,
    paired_batch,
    prompt_row,
    sizes,
    thought_batch,
    thought_row,
    with_places,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "coconut.npz"
IDS = Markers(start=99, latent=101, end=100, pad=98)
CHAIN = Chain([1, 2, 3], [[4, 5], [6], [7, 8]], [9, 98])
SHORT = Chain([1], [[4, 5]], [9, 98])


def golden() -> tuple[list[Chain], dict[str, np.ndarray]]:
    with np.load(GOLDEN) as arrays:
        return [Chain(*parts) for parts in json.loads(str(arrays["data"]))], dict(arrays)


def reference_arrays(batch: TokenRows) -> dict[str, np.ndarray]:
    """Our batch in the four arrays of the official collator."""
    return {
        "input_ids": batch.tokens,
        "labels": np.where(batch.mask > 0, batch.tokens, -100),
        "attention_mask": batch.segments,
        "position_ids": batch.positions,
    }


def row(method: str, stage: int, chain: Chain = CHAIN, offset: int = 0, **rest: Any) -> dict[str, Any]:
    return thought_row(chain, Curriculum(method, max_stage=2, **rest), IDS, stage, offset)


@pytest.mark.parametrize("stage", range(5))
def test_collated_arrays_are_the_reference(stage: int) -> None:
    chains, want = golden()
    curriculum = Curriculum("coconut", thoughts_per_step=2, max_stage=3)
    batch = thought_batch(chains, curriculum, IDS, stage)
    for name, array in reference_arrays(batch).items():
        np.testing.assert_array_equal(array, want[f"llama:s{stage}:{name}"], name)
    np.testing.assert_array_equal(batch.latent, batch.tokens == IDS.latent)
    assert batch.latent.sum(1).max() == curriculum.thoughts(stage) == [0, 2, 4, 6, 6][stage]


@pytest.mark.parametrize("change", [{"thoughts_per_step": 1}, {"max_stage": 2}, {"method": "pause_as_thought"}])
def test_mutant_is_caught(change: dict[str, Any]) -> None:
    chains, want = golden()
    curriculum = Curriculum(**{"thoughts_per_step": 2, "max_stage": 3, **change})
    batch = reference_arrays(thought_batch(chains, curriculum, IDS, 3))
    wanted = {name: want[f"llama:s3:{name}"] for name in batch}
    assert any(not np.array_equal(batch[name], wanted[name]) for name in batch)


ROWS = {
    # method, stage -> tokens, latent columns, first column with a loss
    ("coconut", 0): ([1, 2, 3, 99, 100, 4, 5, 6, 7, 8, 9, 98], [], 5),
    ("coconut", 1): ([1, 2, 3, 99, 101, 100, 6, 7, 8, 9, 98], [4], 6),
    ("coconut", 2): ([1, 2, 3, 99, 101, 101, 100, 7, 8, 9, 98], [4, 5], 7),
    ("coconut", 3): ([1, 2, 3, 99, 101, 101, 100, 9, 98], [4, 5], 7),
    ("cot", 0): ([1, 2, 3, 4, 5, 6, 7, 8, 9, 98], [], 3),
    ("no_cot", 3): ([1, 2, 3, 9, 98], [], 3),
    ("pause", 3): ([1, 2, 3, 99, 101, 101, 100, 9, 98], [], 7),
    ("no_curriculum", 3): ([1, 2, 3, 99, 101, 101, 100, 9, 98], [4, 5], 7),
    ("no_thought", 1): ([1, 2, 3, 6, 7, 8, 9, 98], [], 3),
    ("pause_as_thought", 1): ([1, 2, 3, 99, 101, 100, 6, 7, 8, 9, 98], [], 6),
    ("icot", 1): ([1, 2, 3, 7, 8, 9, 98], [], 3),
    ("icot", 3): ([1, 2, 3, 9, 98], [], 3),
}


@pytest.mark.parametrize(("method", "stage"), ROWS)
def test_rows_of_every_method(method: str, stage: int) -> None:
    tokens, latent, start = ROWS[method, stage]
    made = row(method, stage, removed_per_stage=3)
    assert made["tokens"].tolist() == tokens
    assert np.flatnonzero(made["latent"]).tolist() == latent
    assert np.flatnonzero(made["mask"]).tolist() == list(range(start, len(tokens)))
    assert made["positions"].tolist() == list(range(len(tokens)))
    assert made["tokens"][made["answer"]] == 9


@pytest.mark.parametrize(
    ("method", "stage", "tokens", "latent"),
    [
        ("coconut", 0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 98], []),
        ("coconut", 1, [1, 2, 3, 101, 6, 7, 8, 9, 98], [3]),
        ("coconut", 3, [1, 2, 3, 101, 101, 9, 98], [3, 4]),
        ("pause", 3, [1, 2, 3, 101, 101, 9, 98], []),
    ],
)
def test_rows_without_markers(method: str, stage: int, tokens: list[int], latent: list[int]) -> None:
    """Places follow the question at once, and the answer follows them."""
    made = row(method, stage, markers=False)
    assert made["tokens"].tolist() == tokens
    assert np.flatnonzero(made["latent"]).tolist() == latent
    places = tokens.count(IDS.latent)
    assert np.flatnonzero(made["mask"]).tolist() == list(range(3 + places, len(tokens)))
    curriculum = Curriculum(method, max_stage=2, markers=False)
    first, length = sizes(curriculum, [CHAIN, SHORT])
    assert first == 3
    batch = thought_batch([CHAIN, SHORT], curriculum, IDS, stage, first=first, length=length)
    assert not latent or (batch.latent.argmax(1) == first).all()


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("method", ["coconut", "pause"])
def test_an_ending_with_other_places(method: str, marked: bool) -> None:
    curriculum = Curriculum(method, max_stage=2, markers=marked)
    asked = ending_of(curriculum, IDS, curriculum.last_stage)
    assert with_places(asked, IDS, 2) == asked and asked.after == (marked or method == "pause")
    assert with_places(asked, IDS, 5) == ending_of(curriculum, IDS, 0, 5)
    with pytest.raises(ValueError, match="requires a model trained with thoughts"):
        with_places(Ending(), IDS, 1)


def test_fixed_methods_never_move() -> None:
    for method, kind in METHODS.items():
        stages = {Curriculum(method, stage_steps=2).stage(step) for step in range(12)}
        assert stages == ({0} if kind.fixed == "first" else {4} if kind.fixed else {0, 1, 2, 3, 4}), method


def test_icot_offset_and_positions() -> None:
    assert row("icot", 0, offset=1, removed_per_stage=3)["tokens"].tolist() == [1, 2, 3, 5, 6, 7, 8, 9, 98]
    kept = row("icot", 1, removed_per_stage=3, keep_position=True)
    assert kept["tokens"].tolist() == [1, 2, 3, 7, 8, 9, 98]
    assert kept["positions"].tolist() == [0, 1, 2, 6, 7, 8, 9]
    assert row("icot", 1, chain=SHORT, removed_per_stage=3)["tokens"].tolist() == [1, 9, 98]


def test_offsets_follow_the_smoothing() -> None:
    """P(o) = (1 - e^-l) e^(-l o)."""
    rng, curriculum = np.random.default_rng(0), Curriculum("icot", smoothing=1.0)
    drawn = np.array([curriculum.draw(CHAIN, 1, rng)[1] for _ in range(4000)])
    for offset in range(4):
        want = (1 - math.exp(-1)) * math.exp(-offset)
        assert abs((drawn == offset).mean() - want) < 4 * (want * (1 - want) / 4000) ** 0.5
    sharp = Curriculum("icot", smoothing=math.inf)
    assert {sharp.draw(CHAIN, 1, rng)[1] for _ in range(50)} == {0}


def test_uniform_stages() -> None:
    """With probability p a stage from 0 .. number of steps, drawn evenly; the rest keep the scheduled one."""
    rng, curriculum = np.random.default_rng(0), Curriculum(max_stage=2, uniform_prob=0.4)
    drawn = np.array([curriculum.draw(CHAIN, 1, rng)[0] for _ in range(4000)])
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.1, 0.7, 0.1, 0.1], atol=0.03)
    assert curriculum.thoughts(0) == 2
    batch = thought_batch([CHAIN] * 400, curriculum, IDS, 1, rng=rng)
    starts = [int(latent.argmax()) for latent in batch.latent if latent.any()]
    assert 330 < len(starts) < 390 and set(starts) == {4}
    without = ~batch.latent.any(1)
    assert batch.segments[without][:, 0].all()


def test_short_chains_in_the_last_stage() -> None:
    padded, own = (row("coconut", 3, chain=SHORT, pad_to_max=on)["latent"].sum() for on in (True, False))
    assert (padded, own) == (2, 1)
    assert row("coconut", 2, chain=SHORT, pad_to_max=False)["latent"].sum() == 2


def test_stages_of_steps() -> None:
    curriculum = Curriculum(max_stage=2, stage_steps=3)
    assert [curriculum.stage(step) for step in range(14)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]
    assert [step for step in range(14) if curriculum.starts_stage(step)] == [3, 6, 9]
    longer = Curriculum(max_stage=2, stage_steps=3, first_stage_steps=6)
    assert [step for step in range(20) if longer.starts_stage(step)] == [6, 9, 12]
    assert [curriculum.thoughts(stage) for stage in range(4)] == [0, 1, 2, 2]


def test_prompt_is_what_a_row_begins_with() -> None:
    curriculum = Curriculum(thoughts_per_step=2, max_stage=2)
    for stage in range(4):
        prompt, whole = prompt_row(CHAIN.question, curriculum, IDS, stage), thought_row(CHAIN, curriculum, IDS, stage)
        size = len(prompt["tokens"])
        assert not whole["mask"][:size].any() and whole["mask"][size:].all()
        for name in ("tokens", "positions", "latent"):
            np.testing.assert_array_equal(prompt[name], whole[name][:size])


def test_fixed_sizes_hold_every_stage() -> None:
    chains, curriculum = [CHAIN, SHORT, Chain([1] * 7, [[2]], [3, 98])], Curriculum(thoughts_per_step=3, max_stage=2)
    first, length = sizes(curriculum, chains)
    assert first == 8
    shapes, fullest = set(), 0
    for stage in range(4):
        batch = thought_batch(chains, curriculum, IDS, stage, first=first, length=length)
        shapes.add(batch.tokens.shape)
        fullest = max(fullest, int(batch.segments.any(0).sum()))
        if stage:
            assert (batch.latent.argmax(1) == first).all()
    assert shapes == {(3, length)} and fullest == length


def test_answers_and_padding() -> None:
    batch = thought_batch([CHAIN, SHORT], Curriculum(max_stage=2), IDS, 1, first=6, length=16)
    assert (batch.tokens[np.arange(2), batch.answer] == 9).all()
    empty = batch.segments == 0
    assert (batch.tokens[empty] == IDS.pad).all() and not batch.positions[empty].any()
    assert not batch.mask[empty].any() and not batch.latent[empty].any()


def test_paired_views() -> None:
    batch = paired_batch([CHAIN, SHORT], 4, IDS)
    assert batch.latent.sum(1).tolist() == [4, 4]
    assert batch.teacher is not None and batch.teacher.latent is None
    assert batch.teacher.tokens[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 98]
    for view in (batch, batch.teacher):
        assert (view.tokens[np.arange(2), view.answer] == 9).all()
    later = paired_batch([CHAIN, SHORT], 4, IDS, announced=1)
    assert later.teacher is not None
    for view in (later, later.teacher):
        assert (view.tokens[np.arange(2), view.answer] == 98).all()
    with pytest.raises(ValueError, match="announced=2, but the shortest answer has 2 tokens"):
        paired_batch([CHAIN, SHORT], 4, IDS, announced=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "coconot"}, "Did you mean 'coconut'"),
        ({"thoughts_per_step": -1}, "thoughts_per_step must be at least 0"),
        ({"thoughts_per_step": 0}, "has no thoughts"),
        ({"max_stage": 0}, "has no thoughts"),
        ({"stage_steps": 0}, "stage_steps must be at least 1"),
        ({"first_stage_steps": -1}, "first_stage_steps"),
        ({"uniform_prob": 1.5}, r"must lie in \[0, 1\]"),
        ({"method": "icot", "uniform_prob": 0.3}, "'icot' has not"),
        ({"method": "icot", "smoothing": 0.0}, "must be positive"),
        ({"method": "icot", "removed_per_stage": 0}, "removed_per_stage"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(**settings)


def test_curricula_that_do_not_fit_the_data() -> None:
    check_fit(Curriculum(max_stage=3), [CHAIN, SHORT], 14)
    check_fit(Curriculum("no_cot"), [Chain([1], [], [2])], 3)
    with pytest.raises(ValueError, match="no chains"):
        check_fit(Curriculum(), [], 14)
    with pytest.raises(ValueError, match="no chain has a step"):
        check_fit(Curriculum(), [Chain([1], [], [2])], 14)
    with pytest.raises(ValueError, match="longest chain has 3 steps"):
        check_fit(Curriculum(max_stage=4), [CHAIN, SHORT], 14)
    with pytest.raises(ValueError, match=r"chain 0 needs 25 columns .* up to 18 thoughts"):
        check_fit(Curriculum(max_stage=3, thoughts_per_step=6), [CHAIN, SHORT], 14)


def test_rows_that_do_not_fit() -> None:
    rows = [row("coconut", 1)]
    with pytest.raises(ValueError, match="first latent stands in column 4, but first=3"):
        collate(rows, IDS.pad, first=3)
    with pytest.raises(ValueError, match=r"takes 13 columns .* length=12"):
        collate(rows, IDS.pad, first=6, length=12)
