"""Random languages: the law of their texts, the floor of the loss on them, and the verifier."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from data.sources.rows import TextRows
from data.sources.text import text_source
from data.tasks import build_task
from data.tasks.languages import Languages
from data.tokenizers.characters import CharTokenizer

SMALL = Languages(domains=3, symbols=5, order=2, branching=3, length=40)


def contexts(task: Languages, text: str) -> list[tuple[int, int]]:
    """(number of the context, symbol) at every place of a text; the context is read off the text itself."""
    symbols = [0] * task.order + [task.alphabet.index(letter) for letter in text]
    numbers = [int(np.polyval(symbols[i : i + task.order], task.symbols)) for i in range(len(text))]
    return list(zip(numbers, symbols[task.order :], strict=True))


def test_every_symbol_follows_zipfs_law_of_its_context() -> None:
    ranks: dict[tuple[int, int], Counter[int]] = {}
    for example in SMALL.examples("train")[:3000]:
        table = SMALL.successors(example["domain"])
        for context, symbol in contexts(SMALL, example["text"]):
            ranks.setdefault((example["domain"], context), Counter())[table[context].index(symbol)] += 1
    assert len(ranks) > 3 * 20, "nearly all of 3 x 25 contexts occur"
    total = sum(ranks.values(), Counter())
    assert [total[r] / total.total() for r in range(3)] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)
    common = [count for count in ranks.values() if count.total() > 2000]
    assert common
    for count in common:
        assert count[0] / count.total() == pytest.approx(6 / 11, abs=0.05)


def test_the_entropy_is_that_of_the_text() -> None:
    assert SMALL.entropy == pytest.approx(-sum(p * math.log(p) for p in (6 / 11, 3 / 11, 2 / 11)))
    examples = SMALL.examples("train")[:2000]
    pairs = [(e["domain"], *pair) for e in examples for pair in contexts(SMALL, e["text"])]
    seen, before = Counter(pairs), Counter((domain, context) for domain, context, _ in pairs)
    surprise = [-math.log(seen[pair] / before[pair[:2]]) for pair in pairs]
    assert np.mean(surprise) == pytest.approx(SMALL.entropy, abs=0.01)


def test_languages_differ_and_contexts_matter() -> None:
    tables = [SMALL.successors(domain) for domain in range(3)]
    assert tables[0] != tables[1] != tables[2]
    assert all(len(table) == 25 and all(len(set(row)) == 3 for row in table) for table in tables)
    assert len({tuple(row) for row in tables[0]}) > 10
    assert Languages(seed=1).successors(0) != Languages().successors(0) == Languages().successors(0)


@pytest.mark.parametrize(("length", "predicted"), [(30, 29), (41, 40), (42, 41), (60, 41)])
def test_the_floor_counts_what_is_predicted(length: int, predicted: int) -> None:
    """A row begins with the language's name; where it is long enough, the end token follows the text for free."""
    tokenizer = CharTokenizer(SMALL.alphabet)
    source = text_source(SMALL, tokenizer, TextRows(batch_size=4, length=length, too_long="truncate"))
    batch = source.next()
    assert (batch.mask[:, 1:].sum(1) == predicted).all()
    assert not batch.mask[:, 0].any()
    ends = (batch.tokens[0] * batch.mask[0].astype(int) == tokenizer.eos_id).sum()
    assert SMALL.floor(length) == pytest.approx(SMALL.entropy * (predicted - ends) / predicted)


@pytest.mark.parametrize("split", Languages.splits)
def test_demonstrations_are_possible_texts_in_the_alphabet(split: str) -> None:
    for task in (Languages(), Languages(order=1, symbols=26, domains=26), SMALL):
        for index, example in enumerate(task.examples(split)[:60]):
            assert example["domain"] == index % task.domains
            assert set(task.prompt(example) + task.target(example)) <= set(task.alphabet)
            assert len(task.target(example)) == task.length
            assert task.verify(example, task.target(example)).score == 1.0
            assert json.loads(json.dumps(example)) == example


def test_examples_depend_on_seed_split_and_index_alone() -> None:
    assert Languages().examples("train")[7] == Languages().examples("train")[7]
    texts = [Languages(seed=seed).examples(split)[7]["text"] for seed in (0, 1) for split in Languages.splits]
    assert len(set(texts)) == 6
    with pytest.raises(IndexError):
        Languages().examples("test")[2000]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-1], "39 symbols instead of 40"),
        (lambda text: text + "a", "41 symbols"),
        (lambda text: "", "0 symbols"),
        (lambda text: text[:20] + "?" + text[21:], "symbol 21 cannot"),
        (lambda text: text[:-1] + "A", "symbol 40 cannot"),
        (lambda text: "\x00" * 40, "symbol 1 cannot"),
    ],
)
def test_verdicts(change, reason: str) -> None:
    example = SMALL.examples("test")[1]
    verdict = SMALL.verify(example, change(example["text"]))
    assert verdict.score == 0.0
    assert reason in verdict.reason


def test_a_text_of_another_language_is_refused() -> None:
    own, other = SMALL.examples("test")[:2]
    assert SMALL.verify(own, other["text"]).score == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"domains": 27}, "domains must lie in 1..26"),
        ({"symbols": 1}, "symbols must lie in 2..26"),
        ({"order": 4}, "order must lie in 1..3"),
        ({"branching": 17}, "branching must lie in 1..16"),
        ({"length": 0}, "length must be at least 1"),
        ({"symbol": 3}, "Did you mean 'symbols'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_task("languages", **options)


def test_a_wrong_split_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        Languages().examples("trian")
