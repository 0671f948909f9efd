"""Sources: masks, packing, epochs, hosts, exact resumption, and what happens to examples that do not fit."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.sources.batch import TokenRows
from data.sources.examples import Generated
from data.sources.prompts import fixed_examples, prompt_source
from data.sources.reading import Length, Reading
from data.sources.rows import PromptRows, TextRows
from data.sources.source import NOTHING
from data.sources.text import text_source
from data.tasks import Verdict, build_task
from data.tokenizers.characters import ByteTokenizer, CharTokenizer


@dataclass(frozen=True)
class Rows:
    """A task of given (prompt, target) pairs; its examples carry their index."""

    rows: tuple[tuple[str, str], ...]
    alphabet = None
    splits = ("train",)

    def examples(self, split: str) -> list[dict[str, Any]]:
        return [{"index": i, "prompt": p, "target": t} for i, (p, t) in enumerate(self.rows)]

    def prompt(self, example: dict[str, Any]) -> str:
        return example["prompt"]

    def target(self, example: dict[str, Any]) -> str:
        return example["target"]

    def verify(self, example: dict[str, Any], text: str) -> Verdict:
        return Verdict(float(text == example["target"]), text, "")


TOKENIZER = ByteTokenizer()
ADDITION = build_task("addition")
CHARS = CharTokenizer(ADDITION.alphabet)
MODES = [
    {"pack": pack, "prefetch": prefetch, "too_long": too_long}
    for pack in (False, True)
    for prefetch in (0, 2)
    for too_long in ("error", "drop")
]


def letters(count: int) -> Rows:
    return Rows(tuple((f"{i:03d}:", "x" * (i % 7)) for i in range(count)))


def addition_source(**options: Any) -> Any:
    return text_source(ADDITION, CHARS, TextRows(**{"batch_size": 8, "length": 64, "seed": 5, **options}))


def assert_same(left: TokenRows, right: TokenRows) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def segments_of(batch: TokenRows) -> list[tuple[list[int], list[int], list[float]]]:
    """Cuts a batch into its segments: tokens, positions, mask."""
    found = []
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segments[row].max() + 1):
            at = np.flatnonzero(batch.segments[row] == segment)
            assert (np.diff(at) == 1).all(), "a segment is contiguous"
            found.append(tuple(x[row, at].tolist() for x in (batch.tokens, batch.positions, batch.mask)))
    return found


@pytest.mark.parametrize("pack", [False, True])
def test_shapes_and_types(pack: bool) -> None:
    batch = addition_source(pack=pack).next(None, 0)
    arrays = {key: value for key, value in vars(batch).items() if isinstance(value, np.ndarray)}
    assert len(arrays) == len(jax.tree.leaves(batch))
    assert {key: value.shape for key, value in arrays.items()} == dict.fromkeys(arrays, (8, 64))
    types = {key: value.dtype.name for key, value in arrays.items()}
    assert types == {"tokens": "int32", "positions": "int32", "segments": "int32", "mask": "float32"}


def test_an_unpacked_row_is_prompt_target_eos_padding() -> None:
    batch = text_source(Rows((("ab", "cd"),)), TOKENIZER, TextRows(batch_size=1, length=7)).next()
    assert batch.tokens.tolist() == [[*b"abcd", TOKENIZER.eos_id, TOKENIZER.pad_id, TOKENIZER.pad_id]]
    assert batch.mask.tolist() == [[0, 0, 1, 1, 1, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 0]]


def test_an_example_may_fill_its_row() -> None:
    batch = text_source(Rows((("ab", "cd"),)), TOKENIZER, TextRows(batch_size=1, length=5)).next()
    assert batch.segments.tolist() == [[1] * 5]


@pytest.mark.parametrize("pack", [False, True])
def test_every_segment_is_one_whole_example_and_its_mask_the_answer(pack: bool) -> None:
    task = letters(50)
    expected = {f"{p}{t}": len(t) + 1 for p, t in task.rows}
    source = text_source(task, TOKENIZER, TextRows(batch_size=4, length=32, pack=pack))
    for _ in range(20):
        for tokens, positions, mask in segments_of(source.next()):
            assert tokens[-1] == TOKENIZER.eos_id
            answer = expected[TOKENIZER.decode(tokens)]
            assert mask == [0.0] * (len(tokens) - answer) + [1.0] * answer
            assert positions == list(range(len(tokens)))


@pytest.mark.parametrize("pack", [False, True])
def test_padding_is_pad_unmasked_and_outside_every_segment(pack: bool) -> None:
    batch = addition_source(pack=pack).next()
    padding = batch.segments == 0
    assert padding.any()
    assert (batch.tokens[padding] == CHARS.pad_id).all()
    assert not batch.mask[padding].any()
    assert not batch.positions[padding].any()


def test_packing_fills_rows() -> None:
    source, plain = addition_source(pack=True), addition_source()
    packed = np.mean([(source.next().segments > 0).mean() for _ in range(5)])
    padded = np.mean([(plain.next().segments > 0).mean() for _ in range(5)])
    assert packed > 0.75 > 2 * padded


def order_of(task: Rows, count: int, **options: Any) -> list[int]:
    source = prompt_source(task, TOKENIZER, PromptRows(batch_size=1, **options))
    return [source.next()[0]["example"]["index"] for _ in range(count)]


def test_every_epoch_is_complete_and_shuffled_anew() -> None:
    order = order_of(letters(20), 60, seed=3)
    epochs = [order[i : i + 20] for i in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order == order_of(letters(20), 60, seed=3)
    assert order != order_of(letters(20), 60, seed=4)


@pytest.mark.parametrize(("size", "hosts"), [(20, 2), (21, 4), (7, 3)])
def test_hosts_are_disjoint_and_cover_every_epoch(size: int, hosts: int) -> None:
    shares = [order_of(letters(size), 3 * size, process_index=h, process_count=hosts) for h in range(hosts)]
    together = [index for step in zip(*shares, strict=True) for index in step]
    assert together == order_of(letters(size), 3 * size * hosts)
    assert sorted(together[:size]) == list(range(size))


@pytest.mark.parametrize("mode", MODES)
def test_hosts_share_the_batches_of_one(mode: dict[str, Any]) -> None:
    """Row by row, whatever is packed or dropped; and a position is the same for any number of hosts."""
    length = 9 if mode["too_long"] == "drop" else 16

    def make(host: int = 0, hosts: int = 1) -> Any:
        share = {"process_index": host, "process_count": hosts}
        return text_source(
            letters(40), TOKENIZER, TextRows(batch_size=8 // hosts, length=length, seed=1, **share, **mode)
        )

    alone, pair, four = make(), [make(host, 2) for host in range(2)], [make(host, 4) for host in range(4)]
    for hosts in (pair, pair, four, four):
        if hosts is four and not four[0].stats()["read"]:
            for source in four:
                source.restore(json.loads(json.dumps(pair[1].state())))
        whole, shares = alone.next(), [source.next() for source in hosts]
        for host, share in enumerate(shares):
            own = slice(host, None, len(hosts))
            assert_same(share, jax.tree.map(lambda rows, own=own: rows[own], whole))
    assert pair[0].state() == pair[1].state()


@pytest.mark.parametrize("mode", MODES)
def test_a_restored_source_goes_on_bitwise(mode: dict[str, Any]) -> None:
    task = letters(30)
    length = 9 if mode["too_long"] == "drop" else 16

    def make() -> Any:
        return text_source(task, TOKENIZER, TextRows(batch_size=4, length=length, seed=1, **mode))

    source = make()
    start = json.loads(json.dumps(source.state()))
    first = source.next()
    for taken in (4, 12):
        for _ in range(taken):
            source.next()
        state = json.loads(json.dumps(source.state()))
        following = [source.next() for _ in range(9)]
        for other in (make(), source):
            other.restore(state)
            for batch in following:
                assert_same(other.next(), batch)
    source.restore(start)
    assert_same(source.next(), first)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_restored_prompt_source_goes_on(prefetch: int) -> None:
    source = prompt_source(letters(30), TOKENIZER, PromptRows(batch_size=4, prefetch=prefetch))
    for _ in range(11):
        source.next()
    state = json.loads(json.dumps(source.state()))
    following = [source.next() for _ in range(5)]
    other = prompt_source(letters(30), TOKENIZER, PromptRows(batch_size=4, prefetch=prefetch))
    other.restore(state)
    assert [other.next() for _ in range(5)] == following


def test_a_foreign_state_is_refused() -> None:
    state = addition_source().state()
    with pytest.raises(ValueError, match=r"seed: saved 5, now 6.*same settings"):
        addition_source(seed=6).restore(state)
    with pytest.raises(ValueError, match="batch_size: saved 8, now 4"):
        addition_source(batch_size=4).restore(state)


def test_prompts_are_tokens_of_the_prompt_alone() -> None:
    batch = prompt_source(ADDITION, CHARS, PromptRows(batch_size=3, split="test")).next()
    assert len(batch) == 3
    for element in batch:
        assert CHARS.decode(element["tokens"]) == ADDITION.prompt(element["example"])
        assert all(type(token) is int for token in element["tokens"])
    assert json.loads(json.dumps(batch)) == batch


def test_a_prompt_that_is_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"prompt of example \d+ has 8 tokens, max_prompt_length is 7"):
        prompt_source(ADDITION, CHARS, PromptRows(batch_size=2, max_prompt_length=7))
    prompt_source(ADDITION, CHARS, PromptRows(batch_size=2, max_prompt_length=8)).next()


MIXED = Rows((("ab", "c"), ("ab", "c" * 20), ("a", "bc")))


@pytest.mark.parametrize("pack", [False, True])
def test_the_longest_example_is_found_before_the_first_batch(pack: bool) -> None:
    rows = Rows((*MIXED.rows, ("de", "f" * 30)))
    words = (
        r"example 3 has 2 prompt \+ 31 target tokens = 33, the rows hold 8; it begins 'defff.*"
        r"2 of 4 examples looked at .* raise length to 33 or more .*'drop' or 'truncate'"
    )
    with pytest.raises(ValueError, match=words):
        text_source(rows, TOKENIZER, TextRows(batch_size=3, length=8, pack=pack))
    text_source(rows, TOKENIZER, TextRows(batch_size=3, length=33, pack=pack))


def test_of_many_examples_those_with_the_longest_texts_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.reading.MEASURED", 3)
    task = Rows((*[("ab", "c")] * 50, ("ab", "c" * 8), *[("ab", "c")] * 50))
    with pytest.raises(ValueError, match=r"example 50 has 2 prompt .* 1 of 3 examples looked at"):
        text_source(task, TOKENIZER, TextRows(batch_size=2, length=8))
    with pytest.raises(ValueError, match=r"prompt of example 50 has 8 tokens, .* raise max_prompt_length .* 8 tokens"):
        prompt_source(
            Rows(tuple((b, a) for a, b in task.rows)), TOKENIZER, PromptRows(batch_size=2, max_prompt_length=7)
        )
    drawn = Reading(Generated(10**6, lambda n: {"n": n}), lambda n: ({}, Length(1, 8, "")), str, False, "")
    assert 512 < len(drawn.measured()) <= 1024
    assert set(drawn.measured()) <= set(range(10**6))


@pytest.mark.parametrize("prefetch", [0, 1])
@pytest.mark.parametrize("pack", [False, True])
def test_what_was_not_looked_at_is_told_where_it_is_met(
    pack: bool, prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.sources.reading.MEASURED", 0)
    source = text_source(MIXED, TOKENIZER, TextRows(batch_size=3, length=8, pack=pack, prefetch=prefetch))
    with pytest.raises(ValueError, match=r"example 1 has .* not among the 0 of 3 examples .* goes on .* by init_from"):
        for _ in range(4):
            source.next()


def test_fixed_examples_that_are_too_long() -> None:
    task = Rows((("ab", "c"), ("a" * 9, "c"), ("a" * 12, "c"), ("abc", "d")))
    with pytest.raises(ValueError, match=r"prompt of example 2 has 12 tokens, max_prompt_length is 5; 2 of 4 are"):
        fixed_examples(task, TOKENIZER, "train", 4, max_prompt_length=5)
    kept = fixed_examples(task, TOKENIZER, "train", 4, max_prompt_length=5, too_long="drop")
    assert [item["example"]["index"] for item in kept] == [0, 3]
    with pytest.raises(ValueError, match="4 of 4 are too long"):
        fixed_examples(task, TOKENIZER, "train", 4, max_prompt_length=1, too_long="drop")


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_counts_are_those_of_the_batches_taken_and_go_on(pack: bool, prefetch: int, too_long: str) -> None:
    task = Rows(tuple((f"{n:03d}:", "x" * (n % 9)) for n in range(40)))

    def make(**more: Any) -> Any:
        rules = {"batch_size": 4, "length": 10, "seed": 1, "pack": pack, "too_long": too_long}
        return text_source(task, TOKENIZER, TextRows(**rules | more))

    source, plain, told = make(prefetch=prefetch), make(), []
    for step in range(30):
        used = len(segments_of(source.next()))
        assert plain.next() is not None
        told.append(source.stats())
        assert told[-1] == plain.stats()
        before = told[-2] if step else NOTHING
        assert told[-1]["read"] - before["read"] == used + told[-1]["dropped"] - before["dropped"]
        if step == 11:
            state = json.loads(json.dumps(source.state()))
    assert told[-1]["dropped" if too_long == "drop" else "truncated"] >= 8
    for other in (make(prefetch=prefetch), source):
        other.restore(state)
        assert other.stats() == told[11]
        for step in range(12, 30):
            other.next()
            assert other.stats() == told[step]
    state.pop("counts")  # as earlier versions left it
    source.restore(state)
    source.next()
    assert 0 < source.stats()["read"] < told[12]["read"]


def test_counts_are_the_same_on_every_host() -> None:
    for mode in MODES:
        length = 9 if mode["too_long"] == "drop" else 16
        rules = {"length": length, "seed": 1, **mode}
        alone = text_source(letters(40), TOKENIZER, TextRows(batch_size=8, **rules))
        halves = ({"process_index": host, "process_count": 2, **rules} for host in (0, 1))
        pair = [text_source(letters(40), TOKENIZER, TextRows(batch_size=4, **half)) for half in halves]
        for _ in range(7):
            for source in (alone, *pair):
                source.next()
        assert alone.stats() == pair[0].stats() == pair[1].stats()


@pytest.mark.parametrize("too_long", ["error", "drop"])
def test_prompts_are_counted(too_long: str) -> None:
    limit = None if too_long == "error" else 2
    task = Rows(tuple(("ab" if n % 4 else "abc", "d") for n in range(20)))

    def make() -> Any:
        return prompt_source(
            task, TOKENIZER, PromptRows(batch_size=5, max_prompt_length=limit, too_long=too_long, prefetch=2)
        )

    source = make()
    for _ in range(9):
        assert all(set(item) == {"example", "tokens"} for item in source.next())
    state, told = json.loads(json.dumps(source.state())), source.stats()
    assert told["read"] == 45 + told["dropped"]
    assert (told["dropped"] > 10) == (too_long == "drop")
    source.next()
    other = make()
    other.restore(state)
    assert other.stats() == told
    other.next()
    assert other.stats() == source.stats()


@pytest.mark.parametrize("pack", [False, True])
def test_examples_that_are_too_long_can_be_dropped_and_are_counted(pack: bool) -> None:
    source = text_source(MIXED, TOKENIZER, TextRows(batch_size=2, length=8, pack=pack, too_long="drop"))
    texts = {TOKENIZER.decode(tokens) for _ in range(6) for tokens, _, _ in segments_of(source.next())}
    assert texts == {"abc"}
    stats = source.stats()
    assert stats["dropped"] >= 2
    assert stats["read"] > 2 * stats["dropped"]
    assert stats["truncated"] == 0


def test_examples_that_are_too_long_can_be_truncated_and_are_counted() -> None:
    source = text_source(MIXED, TOKENIZER, TextRows(batch_size=3, length=8, too_long="truncate"))
    lengths = sorted(len(tokens) for tokens, _, _ in segments_of(source.next()))
    assert lengths == [4, 4, 8]
    assert source.stats() == {"read": 3, "dropped": 0, "truncated": 1}


def test_a_truncated_example_must_leave_something_to_predict() -> None:
    with pytest.raises(ValueError, match=r"nothing is left to predict.* length to 9 or more.*'drop'$"):
        text_source(Rows((("a" * 8, "b"),)), TOKENIZER, TextRows(batch_size=1, length=8, too_long="truncate"))


@pytest.mark.parametrize("prefetch", [0, 1])
def test_dropping_everything_is_an_error_and_no_hang(prefetch: int) -> None:
    rows = Rows((("a", "b" * 20), ("a", "b" * 21)))
    source = text_source(rows, TOKENIZER, TextRows(batch_size=1, length=8, too_long="drop", prefetch=prefetch))
    with pytest.raises(ValueError, match="every one of 2 examples was dropped"):
        source.next()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="split 'train' has no examples"):
        text_source(Rows(()), TOKENIZER, TextRows(batch_size=1, length=8))
    with pytest.raises(ValueError, match="has no examples"):
        prompt_source(Rows(()), TOKENIZER, PromptRows(batch_size=1))
    with pytest.raises(ValueError, match="has no examples"):
        fixed_examples(Rows(()), TOKENIZER, "train", 3)
    with pytest.raises(ValueError, match="Did you mean 'truncate'"):
        addition_source(too_long="truncat")
    with pytest.raises(ValueError, match="process_index 2 is not in"):
        addition_source(process_index=2, process_count=2)
    for wrong in ({"batch_size": 0}, {"length": 0}, {"prefetch": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            addition_source(**wrong)


def test_a_file_of_examples_takes_the_place_of_a_split(tmp_path: Path) -> None:
    task, path = build_task("addition", digits=1), tmp_path / "chosen.jsonl"
    chosen = [task.examples("train")[n] for n in (7, 2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    assert [item["example"] for item in fixed_examples(task, CHARS, str(path), 9)] == chosen
    source = prompt_source(task, CHARS, PromptRows(split=str(path), batch_size=8))
    for _ in range(2):
        found = [item["example"] for item in source.next()]
        assert [found.count(row) for row in chosen] == [4, 4], "what is chosen is repeated until the batch is full"
    rows = text_source(task, CHARS, TextRows(split=str(path), batch_size=4, length=60)).next().tokens
    assert len(np.unique(rows, axis=0)) == 2


def test_a_file_that_holds_no_examples_of_the_task_is_told(tmp_path: Path) -> None:
    task, path = build_task("addition", digits=1), tmp_path / "chosen.jsonl"
    with pytest.raises(FileNotFoundError, match=r"chosen\.jsonl"):
        prompt_source(task, CHARS, PromptRows(split=str(path), batch_size=1))
    path.write_text('{"a": 1, "b": 2, "think": false}\n{"question": "1+2?"}\n')
    with pytest.raises(ValueError, match=r"line 2 is no example of this task \(KeyError: 'a'\); it holds question"):
        prompt_source(task, CHARS, PromptRows(split=str(path), batch_size=1))


def test_fixed_examples_are_the_first_of_a_split() -> None:
    elements = fixed_examples(ADDITION, CHARS, "test", 5)
    assert [element["example"] for element in elements] == ADDITION.examples("test")[:5]
    assert elements == fixed_examples(ADDITION, CHARS, "test", 5)
    assert len(fixed_examples(letters(3), TOKENIZER, "train", 10)) == 3
    asked = fixed_examples(letters(3), TOKENIZER, "train", 1, template="question")
    assert TOKENIZER.decode(asked[0]["tokens"]) == "Question: 000:\nAnswer: "


def test_templates_and_systems_reach_the_rows() -> None:
    source = text_source(
        Rows((("q", "a"),)), TOKENIZER, TextRows(batch_size=1, length=40, template="question", system="S")
    )
    tokens, _, mask = segments_of(source.next())[0]
    assert TOKENIZER.decode(tokens) == "S\nQuestion: q\nAnswer: a"
    assert sum(mask) == 2


def test_bos_stands_in_front_and_is_not_predicted() -> None:
    class WithBos(ByteTokenizer):
        bos_id = 5

    tokens, _, mask = segments_of(text_source(MIXED, WithBos(), TextRows(batch_size=1, length=30)).next())[0]
    assert tokens[0] == 5
    assert mask[0] == 0.0


def test_a_prefetching_thread_ends_with_its_source() -> None:
    before = threading.active_count()
    source = addition_source(prefetch=2)
    source.next()
    del source
    deadline = time.time() + 10
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_process_that_prefetches_ends_in_silence() -> None:
    script = """
from data import TextRows, build_task, build_tokenizer, text_source
task = build_task("addition")
tokenizer = build_tokenizer({"kind": "char", "alphabet": task.alphabet})
options = {"batch_size": 4, "length": 64, "prefetch": 2}
sources = [text_source(task, tokenizer, TextRows(pack=pack, **options)) for pack in (False, True)]
print(len([source.next() for source in sources]))
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout) == (0, "2\n")
    assert "Exception ignored" not in result.stderr


def test_a_batch_is_quick() -> None:
    source = addition_source(batch_size=64)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        source.next()
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.03, "measured 4 ms on two cores; the limit leaves room for a busy machine"
