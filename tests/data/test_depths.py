"""Depth by example: the iterations that a task names, on their way into rows; and the chains of `hops`."""

import json
from typing import Any

import numpy as np
import pytest

from data.depths import ExampleDepths, example_depth
from data.sources.rows import TextRows
from data.sources.text import text_source
from data.tasks import build_task
from data.tasks.automaton import Automaton
from data.tasks.hops import Hops
from data.tokenizers.characters import CharTokenizer

TASK = Automaton(width=8, max_steps=5)
CHARS = CharTokenizer(TASK.alphabet)


def batch(depths: ExampleDepths | None, **options: Any) -> Any:
    """The first batch of sixteen rows."""
    return text_source(TASK, CHARS, TextRows(batch_size=16, length=24, depths=depths, **options)).next()


def steps_of(rows: Any) -> np.ndarray:
    """The digit that each prompt begins with."""
    return np.array([int(CHARS.decode(row[:1].tolist())) for row in rows.tokens])


def test_rows_have_the_depth_of_their_examples_and_lie_in_its_order() -> None:
    rows, plain = batch(ExampleDepths()), batch(None)
    np.testing.assert_array_equal(rows.depth, steps_of(rows))
    assert rows.depth.dtype == np.int32 and (np.diff(rows.depth) >= 0).all() and len(set(rows.depth.tolist())) > 2
    assert plain.depth is None
    assert sorted(map(tuple, rows.tokens.tolist())) == sorted(map(tuple, plain.tokens.tolist()))


def test_offset_and_jitter_add_iterations() -> None:
    rows = batch(ExampleDepths(offset=3, jitter=2, seed=1))
    more = rows.depth - steps_of(rows)
    assert set(more.tolist()) == {3, 4, 5}
    again = batch(ExampleDepths(offset=3, jitter=2, seed=1))
    np.testing.assert_array_equal(again.depth, rows.depth)
    assert ExampleDepths(offset=3, jitter=2).answer_depth(TASK, {"row": "01101001", "steps": 4}) == 7


def test_permuted_depths_are_those_of_other_examples() -> None:
    rows = batch(ExampleDepths(permuted=True))
    assert set(rows.depth.tolist()) <= {1, 2, 3, 4, 5}
    assert (rows.depth != steps_of(rows)).any()
    examples = TASK.examples("train")
    depths = ExampleDepths(permuted=True)
    assert [depths.training_depth(TASK, examples, n) for n in range(4)] == [examples[n + 1]["steps"] for n in range(4)]


def test_several_examples_in_a_row_have_no_one_depth() -> None:
    with pytest.raises(ValueError, match=r"data\.pack=True puts several into one; set data\.pack=False"):
        TextRows(batch_size=4, length=24, pack=True, depths=ExampleDepths())


@pytest.mark.parametrize("found", [0, 2.0, "3", None])
def test_a_depth_is_a_number_from_one_up(found: Any) -> None:
    class Task:
        def depth(self, example: Any) -> Any:
            return found

    with pytest.raises(ValueError, match="must be a whole number from 1 up"):
        example_depth(Task(), {"steps": found})  # type: ignore[arg-type]


def test_tasks_without_depth_are_refused() -> None:
    with pytest.raises(ValueError, match="Addition names no depth"):
        example_depth(build_task("addition"), {"a": 1, "b": 2})


def test_hidden_steps_show_nothing_of_themselves() -> None:
    for task in (Automaton(width=8, max_steps=4, show_steps=False), Hops(show_steps=False)):
        rows = task.examples("train")[:400]
        shown = np.array([row["shown"] for row in rows])
        steps = np.array([row["steps"] for row in rows])
        assert abs(np.corrcoef(shown, steps)[0, 1]) < 0.15
        assert all(task.depth(row) == row["steps"] for row in rows)


def test_what_stands_in_the_place_of_the_steps_has_as_many_digits() -> None:
    for task in (Automaton(width=8, max_steps=12, show_steps=False), Hops(max_steps=12, show_steps=False)):
        rows = task.examples("train")[:100]
        assert 80 < max(row["shown"] for row in rows) < 100
        assert all(f"{row['shown']:02d}" in task.prompt(row) for row in rows)


def test_two_digits_are_written_where_some_have_them() -> None:
    assert Automaton(width=8, test_max_steps=12).prompt({"row": "01000000", "steps": 3}) == "03:01000000="
    assert Hops(nodes=20, test_max_steps=12).prompt({"pairs": "ab", "start": "a", "steps": 3}) == "ab:a03="


def test_chains_are_followed() -> None:
    task = Hops(nodes=8)
    example = {"pairs": "addbbcca", "start": "a", "steps": 2}
    assert task.prompt(example) == "addbbcca:a2="
    assert [task.target({**example, "steps": n}) for n in (1, 2, 3, 4)] == ["d", "b", "c", "a"]
    for row in task.examples("test")[:200]:
        answer = task.target(row)
        assert answer != row["start"] and set(task.prompt(row) + answer) <= set(task.alphabet)
        assert len(row["pairs"]) == 16 and sorted(row["pairs"][::2]) == sorted(row["pairs"][1::2])
        assert json.loads(json.dumps(row)) == row
        assert [task.verify(row, text).score for text in (answer, "", answer * 2, "z", "α", row["start"])] == [1] + [
            0
        ] * 5
    graphs = {split: {row["pairs"] for row in task.examples(split)[:1000]} for split in ("train", "valid", "test")}
    assert not (graphs["train"] & graphs["test"] or graphs["train"] & graphs["valid"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"nodes": 7}, "nodes must lie in 8..26"), ({"test_max_steps": 16}, "got 1 and 16 of 16 nodes")],
)
def test_wrong_options_of_hops(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_task("hops", **options)
