"""Repeating a text: distinct symbols, lengths, disjoint splits, and an exact verifier."""

import json
from collections import Counter

import pytest

from data.sources.rows import TextRows
from data.sources.text import text_source
from data.tasks import build_task
from data.tasks.recall import MOST, Recall
from data.tokenizers.characters import CharTokenizer

EXAMPLE = {"text": "天地玄黄"}


def test_prompt_and_demonstration() -> None:
    assert Recall().prompt(EXAMPLE) == "=天地玄黄="
    assert Recall().target(EXAMPLE) == "天地玄黄"


@pytest.mark.parametrize("split", Recall.splits)
def test_demonstrations_are_right_and_stay_in_the_alphabet(split: str) -> None:
    task = Recall(symbols=50, longest=40)
    for example in task.examples(split)[:100]:
        assert set(task.prompt(example) + task.target(example)) <= set(task.alphabet)
        assert task.verify(example, task.target(example)).score == 1.0
        assert json.loads(json.dumps(example)) == example


def test_no_symbol_comes_again_before_all_have_come() -> None:
    task = Recall(symbols=5, shortest=12, longest=12)
    for example in task.examples("train")[:50]:
        text = example["text"]
        assert len(text) == 12
        assert len(set(text[:5])) == len(set(text[5:10])) == 5
        assert len(set(text[10:])) == 2


def test_every_length_is_as_likely() -> None:
    task = Recall(shortest=3, longest=6, symbols=9)
    lengths = Counter(len(example["text"]) for example in task.examples("train")[:4000])
    assert set(lengths) == {3, 4, 5, 6}
    assert all(count / 4000 == pytest.approx(0.25, abs=0.03) for count in lengths.values())


def test_every_answer_symbol_stands_the_same_distance_back() -> None:
    """In the rows the model sees: a prediction of symbol i needs what stands length + 1 columns back, and no eos."""
    task = Recall(shortest=10, longest=10, symbols=20)
    batch = text_source(task, CharTokenizer(task.alphabet), TextRows(batch_size=8, length=23)).next()
    tokens = batch.tokens
    assert (batch.mask == [0.0] * 12 + [1.0] * 11).all()
    assert (tokens[:, 12:22] == tokens[:, 1:11]).all()
    assert (tokens[:, 22] == CharTokenizer.eos_id).all()


def test_examples_depend_on_seed_split_and_index_alone() -> None:
    assert Recall().examples("train")[7] == Recall().examples("train")[7]
    texts = [Recall(seed=seed).examples(split)[7]["text"] for seed in (0, 1) for split in Recall.splits]
    assert len(set(texts)) == 6
    with pytest.raises(IndexError):
        Recall().examples("test")[2000]


def test_no_text_is_in_two_splits_whatever_the_seed() -> None:
    """Only 120 texts of three of six symbols there are, so that every split draws each of its own many times."""
    splits = {}
    for split in Recall.splits:
        tasks = [Recall(shortest=3, longest=3, symbols=6, seed=seed) for seed in (0, 1)]
        splits[split] = {example["text"] for task in tasks for example in task.examples(split)[:1000]}
    assert len(set.union(*splits.values())) == sum(map(len, splits.values())) == 120


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("天地玄黄", 1.0, "correct"),
        (" 天地玄黄\n", 1.0, "correct"),
        ("<think>=天=</think>天地玄黄", 1.0, "correct"),
        ("天地玄", 0.0, "first 3 symbols of 4"),
        ("天地玄黄天", 0.0, "first 4 symbols of 4"),
        ("天地黄玄", 0.0, "first 2 symbols of 4"),
        ("=天地玄黄", 0.0, "first 0 symbols"),
        ("天 地玄黄", 0.0, "first 1 symbols"),
        ("天地玄黄</think>", 0.0, "first 0 symbols"),
        ("", 0.0, "first 0 symbols"),
        ("天" * 10_000_000, 0.0, "first 1 symbols"),
        ("\ud800", 0.0, "first 0 symbols"),
    ],
)
def test_verdicts(text: str, score: float, reason: str) -> None:
    verdict = Recall().verify(EXAMPLE, text)
    assert verdict.score == score
    assert reason in verdict.reason
    assert verdict.parsed is not None and len(verdict.parsed) <= 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shortest": 0}, "1 <= shortest <= longest must hold, got 0 and 31"),
        ({"shortest": 9, "longest": 8}, "got 9 and 8"),
        ({"symbols": 1}, "symbols must lie in 2"),
        ({"symbols": MOST + 1}, f"symbols must lie in 2..{MOST}, got {MOST + 1}"),
        ({"longst": 3}, "Did you mean 'longest'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_task("recall", **options)


def test_a_wrong_split_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        Recall().examples("trian")
