"""A corpus: documents in files of every kind, mixtures, packing, epochs, resumption, preparation, bad input."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.prepare import main as prepare_main
from data.prepare import prepare
from data.sources.corpus import Corpus, CorpusRows, corpus_source, held_out_source
from data.sources.documents import Prepared, held_out, open_documents
from data.tokenizers.build import load_tokenizer
from data.tokenizers.characters import ByteTokenizer
from data.tokenizers.tokenizer_json import train_bpe
from settings.corpus import CorpusConfig

BYTES = ByteTokenizer(("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))
EOS, PAD = BYTES.eos_id, BYTES.pad_id


def write_lines(file: Path, texts: list[str], field: str = "text") -> Path:
    file.write_text("".join(json.dumps({field: text, "n": n}) + "\n" for n, text in enumerate(texts)))
    return file


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Any]:
    """A source of short documents of letters and one of long documents of digits."""
    write_lines(tmp_path / "letters.jsonl", [chr(97 + n % 26) * (3 + n % 4) for n in range(50)])
    write_lines(tmp_path / "digits.jsonl", [str(n % 10) * (20 + n % 9) for n in range(40)])
    names = ("letters", "digits")
    return {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in names}


def batches(config: CorpusConfig, count: int, length: int = 32, rows: int = 4, **more: Any) -> tuple[Any, list[Any]]:
    source = corpus_source(Corpus(config), BYTES, CorpusRows(batch_size=rows, length=length, **more))
    return source, [source.next() for _ in range(count)]


def pieces(batch: Any) -> list[list[int]]:
    """Every piece of every row, in order."""
    found = []
    for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
        found += [tokens[segments == n].tolist() for n in range(1, segments.max() + 1)]
    return found


# --- documents


def test_documents_of_every_kind_are_the_same(tmp_path: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    texts = ["one\n\nparagraph", "zwei é", "{no json"]
    write_lines(tmp_path / "a.jsonl", texts)
    folder = tmp_path / "texts" / "inner"
    folder.mkdir(parents=True)
    for n, text in enumerate(texts):
        (folder / f"{n}.txt").write_text(text)
    (folder / "picture.png").write_bytes(b"\x89")
    for name, records in (("plain", texts), ("json", [json.dumps({"text": text}) for text in texts])):
        writer = ArrayRecordWriter(str(tmp_path / f"{name}.array_record"), "group_size:1")
        for record in records:
            writer.write(record.encode())
        writer.close()
    for path in ("a.jsonl", "texts", "plain.array_record", "json.array_record"):
        documents = open_documents(tmp_path / path)
        assert [documents.text(n) for n in range(len(documents))] == texts, path
        assert all(documents.size(n) >= len(texts[n].encode()) for n in range(3)), path
    everything = open_documents(tmp_path)
    assert len(everything) == 12 and Counter(everything.text(n) for n in range(12)) == Counter(texts * 4)


def test_what_holds_no_document_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n\n{"body": "y"}\n{"text": 3}\nnot json\n')
    documents = open_documents(file)
    assert len(documents) == 4 and documents.text(0) == "x"
    for number, words in ((1, "document 2: no text under 'text'; it has body"), (2, "document 3"), (3, "document 4")):
        with pytest.raises(ValueError, match=words):
            documents.text(number)
    with pytest.raises(FileNotFoundError, match="no corpus at"):
        open_documents(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no documents"):
        open_documents(empty)


def test_some_are_held_out_and_never_read(two: dict[str, Any]) -> None:
    assert held_out(10, 0.0).tolist() == [] and len(held_out(3, 0.01)) == 1 and len(held_out(1, 0.5)) == 0
    corpus = Corpus(CorpusConfig(two, held_out=0.2))
    for name, count in (("letters", 50), ("digits", 40)):
        train, kept = corpus.numbers(name, "train"), corpus.numbers(name, "held_out")
        assert len(kept) == count // 5 and sorted([*train, *kept]) == list(range(count))
    source = held_out_source(corpus, "digits", BYTES, CorpusRows(batch_size=2, length=64))
    texts = {corpus.sources["digits"].text(int(n)) for n in corpus.numbers("digits", "held_out")}
    batch = source.next()
    inside = [piece[:-1] for piece in pieces(batch) if piece[-1] == EOS]
    assert all(BYTES.decode(piece) in texts for piece in inside[1:2]) and inside
    wanted = sum(len(piece) - 1 - (piece[-1] == EOS) for piece in pieces(batch))
    assert source.stats()["bytes"] == wanted


def test_a_task_is_a_source() -> None:
    config = CorpusConfig({"sums": {"task": "addition", "options": {"digits": 1, "direct_share": 1.0}}})
    corpus = Corpus(config)
    documents = corpus.sources["sums"]
    left, _, right = documents.text(3).partition("=")
    assert corpus.alphabet == "".join(sorted("0123456789+=,")) and sum(map(int, left.split("+"))) == int(right)
    _, made = batches(config, 2)
    assert all(eval_sum(BYTES.decode(piece)) for piece in pieces(made[0])[1:4])


def eval_sum(text: str) -> bool:
    left, _, right = text.partition("=")
    return sum(map(int, left.split("+"))) == int(right)


# --- mixtures


@pytest.mark.parametrize("by", ["tokens", "documents"])
def test_shares_are_those_of_the_weights(two: dict[str, Any], by: str) -> None:
    two["letters"]["weight"], two["digits"]["weight"] = 3.0, 1.0
    source, made = batches(CorpusConfig(two, by=by), 20)
    stats = source.stats()
    first, second = (stats[f"{by}/{name}"] for name in two)
    assert abs(first / (first + second) - 0.75) < 0.02
    tokens = np.concatenate([batch.tokens.reshape(-1) for batch in made])
    letters = ((tokens >= ord("a")) & (tokens <= ord("z"))).sum()
    assert letters + stats["documents/letters"] == pytest.approx(stats["tokens/letters"], abs=1)


def test_epochs_end_and_say_so(two: dict[str, Any]) -> None:
    two["letters"]["epochs"], two["digits"]["weight"] = 2, 0.0
    source = corpus_source(Corpus(CorpusConfig(two, held_out=0.0)), BYTES, CorpusRows(batch_size=1, length=16))
    with pytest.raises(ValueError, match=r"as often as their epochs allow.*raise\s+corpus\.sources"):
        for _ in range(100):
            source.next()
    assert 95 <= source.stats()["documents/letters"] <= 100, "two epochs of fifty, but for the last row"
    # One source ends, the other goes on.
    two["digits"]["weight"] = 1.0
    source = corpus_source(Corpus(CorpusConfig(two, held_out=0.0)), BYTES, CorpusRows(batch_size=1, length=16))
    for _ in range(300):
        source.next()
    assert source.stats()["documents/letters"] == 100 and source.stats()["documents/digits"] > 100


def test_every_epoch_has_every_document_once_in_another_order(two: dict[str, Any]) -> None:
    del two["digits"]
    _, made = batches(CorpusConfig(two, held_out=0.0), 40, length=16, rows=1)
    stream = [token for batch in made for token in batch.tokens.reshape(-1).tolist()]
    texts = BYTES.decode([t if t != EOS else ord("|") for t in stream]).split("|")[:-1]
    wanted = Counter(chr(97 + n % 26) * (3 + n % 4) for n in range(50))
    assert Counter(texts[:50]) == Counter(texts[50:100]) == wanted and texts[:50] != texts[50:100]


# --- rows


def test_concatenated_rows_are_one_stream_with_boundaries(two: dict[str, Any]) -> None:
    _, made = batches(CorpusConfig(two), 6)
    for batch in made:
        assert (batch.mask == 1).all() and (batch.segments > 0).all() and (batch.tokens != PAD).all()
        for piece in pieces(batch):
            assert EOS not in piece[:-1]
        starts = np.diff(batch.segments, axis=1) > 0
        assert (batch.tokens[:, :-1][starts] == EOS).all() and (batch.positions[:, 1:][starts] == 0).all()
        assert (np.diff(batch.positions, axis=1)[~starts] == 1).all()


def test_first_fit_holds_whole_documents(two: dict[str, Any]) -> None:
    _, made = batches(CorpusConfig(two, packing="first_fit"), 6)
    for batch in made:
        assert all(piece[-1] == EOS and EOS not in piece[:-1] for piece in pieces(batch))
        assert (batch.tokens[batch.segments == 0] == PAD).all()
    with pytest.raises(ValueError, match=r"sources\.digits has 29 tokens, the rows hold 16: raise data\.length"):
        batches(CorpusConfig(two, packing="first_fit"), 1, length=16)
    _, cut = batches(CorpusConfig(two, packing="first_fit"), 2, length=16, too_long="truncate")
    assert any(piece[-1] != EOS and len(piece) == 16 for batch in cut for piece in pieces(batch))


@pytest.mark.parametrize("packing", ["concat", "first_fit"])
@pytest.mark.parametrize("level", ["document", "context"])
def test_going_on_is_having_gone_on(two: dict[str, Any], packing: str, level: str) -> None:
    if (packing, level) == ("first_fit", "context"):
        return
    config = CorpusConfig(two, packing=packing, fim=0.5, fim_level=level, held_out=0.1)
    _, whole = batches(config, 9)
    source, _ = batches(config, 4)
    state = json.loads(json.dumps(source.state()))
    resumed, _ = batches(config, 2)
    resumed.restore(state)
    for wanted in whole[4:]:
        found = resumed.next()
        for name in ("tokens", "segments", "positions", "mask"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    other, _ = batches(CorpusConfig(two, packing=packing, by="documents"), 0)
    with pytest.raises(ValueError, match="belongs to another input pipeline"):
        other.restore(state)


def test_hosts_share_a_batch(two: dict[str, Any]) -> None:
    _, whole = batches(CorpusConfig(two), 3)
    for index in range(2):
        _, mine = batches(CorpusConfig(two), 3, rows=2, process_index=index, process_count=2)
        for part, batch in zip(mine, whole, strict=True):
            np.testing.assert_array_equal(part.tokens, batch.tokens[index::2])


def test_the_middle_is_filled_in_at_either_level(two: dict[str, Any]) -> None:
    for level in ("document", "context"):
        _, made = batches(CorpusConfig(two, fim=1.0, fim_level=level), 5)
        counts = Counter(token for batch in made for token in batch.tokens.reshape(-1).tolist() if token > EOS)
        assert set(counts) == {258, 259, 260} and max(counts.values()) - min(counts.values()) < 25
    with pytest.raises(ValueError, match="single tokens"):
        corpus_source(Corpus(CorpusConfig(two, fim=0.1)), ByteTokenizer(), CorpusRows(batch_size=1, length=8))


# --- preparation


def test_prepared_documents_are_the_same_stream(tmp_path: Path, two: dict[str, Any], capsys: Any) -> None:
    texts = [open_documents(two["digits"]["path"]).text(n) for n in range(40)]
    train_bpe(texts, tmp_path / "bpe", vocab_size=300)
    tokenizer = load_tokenizer(tmp_path / "bpe")
    out = tmp_path / "tokens"
    flags = [two["digits"]["path"], f"--tokenizer={tmp_path / 'bpe'}", f"--out={out}", "--workers=2"]
    assert prepare_main(flags) == 0
    assert "40 documents" in capsys.readouterr().out
    made = Prepared(out)
    assert [tokenizer.decode(made.tokens(n)) for n in range(40)] == texts
    assert made.manifest["tokens"] == made.lengths[:, 0].sum() and made.size(3) == len(texts[3].encode())
    rows = CorpusRows(batch_size=2, length=24)
    streams = [
        corpus_source(Corpus(CorpusConfig({"digits": {"path": path}})), tokenizer, rows)
        for path in (two["digits"]["path"], str(out))
    ]
    for _ in range(4):
        first, second = (stream.next() for stream in streams)
        np.testing.assert_array_equal(first.tokens, second.tokens)
    assert prepare_main(flags) == 2 and "holds something already" in capsys.readouterr().err
    with pytest.raises(ValueError, match="prepared with another tokenizer"):
        corpus_source(Corpus(CorpusConfig({"digits": {"path": str(out)}})), BYTES, rows)
    (out / made.manifest["shards"][0]).unlink()
    with pytest.raises(ValueError, match="which are not there"):
        Prepared(out)


def test_shards_and_workers_change_nothing(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", ["x" * (n * 997 % 5000) for n in range(300)])
    documents = open_documents(file)
    one = prepare(documents, "byte", tmp_path / "one")
    many = prepare(documents, "byte", tmp_path / "many", shard_mb=1, workers=2)
    assert len(one["shards"]) == 1 and len(many["shards"]) == 2 and one["fingerprint"] == many["fingerprint"]
    first, second = Prepared(tmp_path / "one"), Prepared(tmp_path / "many")
    for n in range(300):
        np.testing.assert_array_equal(first.tokens(n), second.tokens(n))


# --- settings


def test_bad_corpora_are_named(two: dict[str, Any]) -> None:
    zero = {name: values | {"weight": 0.0} for name, values in two.items()}
    for changes, words in (
        ({"sources": zero}, "the weights of letters, digits are all 0"),
        ({"sources": two | {"more": {"pth": "x"}}}, "Did you mean 'path'"),
        ({"sources": two | {"more": {"weight": 1.0}}}, "more names either a path or a task"),
        ({"sources": two | {"more": {"path": "x", "task": "addition"}}}, "more names either a path or a task"),
        ({"sources": two | {"more": "x"}}, "is a group of path"),
        ({"sources": {"a": {"path": "x", "weight": -1.0}}}, "weight must be at least 0"),
        ({"sources": two, "fim": 1.5}, r"corpus.fim must lie in \[0, 1\]"),
        ({"sources": two, "packing": "first-fit"}, "Did you mean 'first_fit'"),
        ({"sources": two, "fim": 0.1, "fim_level": "context", "packing": "first_fit"}, "takes corpus.packing=concat"),
    ):
        with pytest.raises(ValueError, match=words):
            CorpusConfig(**changes)
    with pytest.raises(ValueError, match="needs documents"):
        _ = Corpus(CorpusConfig()).sources
