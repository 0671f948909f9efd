"""A curriculum over a task's chains: stages follow steps, a resumed source goes on, wrong use is loud."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from data.sources.rows import ThoughtRows
from data.sources.thoughts import SPECIALS, ThoughtSource, announced, encode_chain, markers_of
from data.tasks import build_task
from data.thoughts import Chain, Curriculum, Ending, ending_of, prompt_row
from data.tokenizers.characters import CharTokenizer

TASK: Any = build_task("prosqa", nodes=17, style="symbols", train_size=50)
TOKENIZER = CharTokenizer(TASK.alphabet, specials=SPECIALS)
MIXED = Curriculum(max_stage=2, thoughts_per_step=2, stage_steps=2, uniform_prob=0.4)


def make(curriculum: Curriculum = MIXED, **changes: Any) -> Any:
    rows: dict[str, Any] = {"first": 80, "length": 110, "batch_size": 4, **changes}
    return ThoughtSource(TASK, TOKENIZER, curriculum, ThoughtRows(**rows))


def test_chain_is_the_demonstration() -> None:
    example = TASK.examples("train")[0]
    chain = encode_chain(TASK, TOKENIZER, example)
    assert TOKENIZER.decode(chain.question) == TASK.prompt(example)
    written = [*(token for step in chain.steps for token in step), *chain.answer]
    assert TOKENIZER.decode(written) == TASK.target(example) and written[-1] == TOKENIZER.eos_id


def test_what_announces_an_answer_is_counted() -> None:
    """A tokenizer may merge the last character of the mark with the answer."""
    chains = [Chain([5], [], [*TOKENIZER.encode(text), TOKENIZER.eos_id]) for text in ("### a", "### b")]
    assert announced(TOKENIZER, chains) == 4
    merged = [chain._replace(answer=[*chain.answer[:3], 7, 1]) for chain in chains]
    assert announced(TOKENIZER, merged) == 3
    assert announced(TOKENIZER, [Chain([5], [], TOKENIZER.encode("### "))]) == 3, "something is left to predict"


def test_an_ending_is_what_a_prompt_row_adds() -> None:
    ids = markers_of(TOKENIZER)
    for method, thoughts in (("coconut", 4), ("pause", 0), ("no_thought", 0)):
        curriculum = dataclasses.replace(MIXED, method=method, uniform_prob=0.0)
        ending = ending_of(curriculum, ids, curriculum.last_stage)
        row = prompt_row([7, 8], curriculum, ids, curriculum.last_stage)
        assert ([7, 8, *ending.tokens], ending.thoughts) == (row["tokens"].tolist(), thoughts)
    assert ending_of(MIXED, ids, 0, 1) == Ending((ids.start, ids.latent, ids.end), 1)
    with pytest.raises(ValueError, match="0 or more"):
        ending_of(MIXED, ids, 0, -1)


def test_a_paired_source_has_both_views() -> None:
    batch = make(Curriculum("no_curriculum", thoughts_per_step=2, max_stage=2), paired=True, length=120).next(None, 0)
    assert batch.latent.shape == (4, 4) and batch.teacher.mask.sum() > batch.mask.sum()
    for view in (batch, batch.teacher):
        before = np.take_along_axis(view.tokens, view.answer[:, None] - 4, 1)[:, 0]
        assert (before == TOKENIZER.encode("#")[0]).all()


def test_stages_follow_steps() -> None:
    source = make(Curriculum(max_stage=2, thoughts_per_step=2, stage_steps=2))
    batches = [source.next(None, step) for step in range(8)]
    assert [None if batch.latent is None else batch.latent.shape for batch in batches[:3]] == [None, None, (4, 2)]
    assert all(batch.latent.shape == (4, 4) for batch in batches[4:])
    assert {batch.tokens.shape for batch in batches} == {(4, 110)}
    ids = markers_of(TOKENIZER)
    for batch in batches[2:]:
        assert batch.first == 80
        assert (batch.tokens[:, 80 : 80 + batch.thoughts][batch.latent] == ids.latent).all()
        assert batch.latent.sum() == (batch.tokens == ids.latent).sum() > 0
    # The last stage holds no step: the answer follows the end marker.
    ends = np.argmax(batches[-1].tokens == ids.end, 1)
    np.testing.assert_array_equal(batches[-1].answer, ends + 1)


def test_a_resumed_source_goes_on() -> None:
    whole, source = make(), make()
    want = [whole.next(None, step) for step in range(5)]
    for step in range(3):
        source.next(None, step)
    state, fresh = json.loads(json.dumps(source.state())), make()
    fresh.restore(state)
    for step in (3, 4):
        got = fresh.next(None, step)
        assert jax.tree.structure(got) == jax.tree.structure(want[step])
        jax.tree.map(np.testing.assert_array_equal, got, want[step])
    assert fresh.stats()["dropped"] == 0
    with pytest.raises(ValueError, match=r"another curriculum .*max_stage: saved 2, now 1"):
        make(Curriculum(max_stage=1)).restore(state)


def test_hosts_draw_their_own() -> None:
    rows = [make(process_index=i, process_count=2).next(None, 2).tokens for i in range(2)]
    assert not np.array_equal(*rows)


def test_wrong_use() -> None:
    for specials in ((), SPECIALS[1:]):
        with pytest.raises(ValueError, match=r"no single token for <\|start-latent\|>; add it"):
            markers_of(CharTokenizer(TASK.alphabet, specials=specials))
    with pytest.raises(ValueError, match="needs to know the step"):
        make().next()
    with pytest.raises(ValueError, match="has no steps to take away"):
        rows = ThoughtRows(first=8, length=8, batch_size=1)
        ThoughtSource(build_task("countdown"), TOKENIZER, MIXED, rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length=90"):
        make(length=90).next(None, 5)
