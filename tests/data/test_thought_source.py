"""A curriculum over a task's chains: stages follow steps, a resumed source goes on, wrong use is loud."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from data.tasks import build_task
from data.thought_source import SPECIALS, encode_chain, markers_of, thought_source
from data.thoughts import Curriculum
from data.tokenizer_char import CharTokenizer

TASK: Any = build_task("prosqa", nodes=17, style="symbols", train_size=50)
TOKENIZER = CharTokenizer(TASK.alphabet, specials=SPECIALS)
MIXED = Curriculum(max_stage=2, thoughts_per_step=2, stage_steps=2, uniform_prob=0.4)


def make(curriculum: Curriculum = MIXED, **changes: Any) -> Any:
    return thought_source(TASK, TOKENIZER, curriculum, **{"first": 80, "length": 110, "batch_size": 4, **changes})


def test_chain_is_the_demonstration() -> None:
    example = TASK.examples("train")[0]
    chain = encode_chain(TASK, TOKENIZER, example)
    assert TOKENIZER.decode(chain.question) == TASK.prompt(example)
    written = [*(token for step in chain.steps for token in step), *chain.answer]
    assert TOKENIZER.decode(written) == TASK.target(example) and written[-1] == TOKENIZER.eos_id


def test_stages_follow_steps() -> None:
    source = make(Curriculum(max_stage=2, thoughts_per_step=2, stage_steps=2))
    batches = [source.next(None, step) for step in range(8)]
    assert [batch["latent"].shape if "latent" in batch else None for batch in batches[:3]] == [None, None, (4, 2)]
    assert all(batch["latent"].shape == (4, 4) for batch in batches[4:])
    assert {batch["tokens"].shape for batch in batches} == {(4, 110)}
    ids = markers_of(TOKENIZER)
    for batch in batches[2:]:
        thoughts = batch["latent"].shape[1]
        assert (batch["tokens"][:, 80 : 80 + thoughts][batch["latent"]] == ids.latent).all()
        assert batch["latent"].sum() == (batch["tokens"] == ids.latent).sum() > 0
    # The last stage holds no step: the answer follows the end marker.
    ends = np.argmax(batches[-1]["tokens"] == ids.end, 1)
    np.testing.assert_array_equal(batches[-1]["answer"], ends + 1)


def test_a_resumed_source_goes_on() -> None:
    whole, source = make(), make()
    want = [whole.next(None, step) for step in range(5)]
    for step in range(3):
        source.next(None, step)
    state, fresh = json.loads(json.dumps(source.state())), make()
    fresh.restore(state)
    for step in (3, 4):
        got = fresh.next(None, step)
        for name, array in want[step].items():
            np.testing.assert_array_equal(got[name], array, name)
    assert fresh.stats()["dropped"] == 0
    with pytest.raises(ValueError, match=r"another curriculum .*max_stage: saved 2, now 1"):
        make(Curriculum(max_stage=1)).restore(state)


def test_hosts_draw_their_own() -> None:
    rows = [make(process_index=i, process_count=2).next(None, 2)["tokens"] for i in range(2)]
    assert not np.array_equal(*rows)


def test_wrong_use() -> None:
    for specials in ((), SPECIALS[1:]):
        with pytest.raises(ValueError, match=r"no single token for <\|start-latent\|>; add it"):
            markers_of(CharTokenizer(TASK.alphabet, specials=specials))
    with pytest.raises(ValueError, match="needs to know the step"):
        make().next()
    with pytest.raises(ValueError, match="has no steps to take away"):
        thought_source(build_task("countdown"), TOKENIZER, MIXED, first=8, length=8, batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length=90"):
        make(length=90).next(None, 5)
