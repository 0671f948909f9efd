"""A corpus: documents of several sources, mixed by weight, as packed rows to pretrain on, and held-out ones apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import grain
import numpy as np

from data.sources.batch import TokenRows
from data.sources.documents import Documents, Prepared, TaskDocuments, held_out, is_prepared, open_documents
from data.sources.examples import Example
from data.sources.fim import OWN, Fim, sentinels_of
from data.sources.fused import fused_tokens, split_fused
from data.sources.mixture import Concatenated, Mixture
from data.sources.packing import pack_rows
from data.sources.rows import Rows
from data.sources.source import FOREVER, Source, check_not_empty, in_order, prefetched
from data.tasks import build_task
from data.tasks.base import Verdict, stable_hash
from data.tokenizers.base import Tokenizer
from settings.corpus import CorpusConfig

MOST_SYMBOLS = 4096  # characters that a tokenizer of a corpus's own may have
LONGEST = 16  # documents of each source that are measured before the first step


@dataclass(frozen=True)
class Corpus:
    """The sources of `corpus.sources`, opened: a task too, whose demonstrations are the documents, so that tokenizers
    are made of their text.
    """

    config: CorpusConfig

    splits = ("train", "held_out")

    @cached_property
    def sources(self) -> dict[str, Documents | Prepared]:
        """All sources by name; ValueError where there are none, or one holds no documents."""
        if not self.config.sources:
            raise ValueError("algorithm=pretrain needs documents: set corpus.sources.<name>.path (docs/pretraining.md)")
        found: dict[str, Documents | Prepared] = {}
        for name in self.config.sources:
            source = self.config.source(name)
            if source.task:
                found[name] = TaskDocuments(build_task(source.task, **source.options))
            elif is_prepared(source.path):
                found[name] = Prepared(source.path)
            else:
                found[name] = open_documents(source.path, source.field)
            check_not_empty(f"corpus.sources.{name}", len(found[name]))
        return found

    def numbers(self, name: str, split: str) -> np.ndarray:
        """The numbers of a source's documents that are trained on (train), or kept (held_out)."""
        count = len(self.sources[name])
        kept = held_out(count, self.config.held_out)
        return kept if split == "held_out" else np.setdiff1d(np.arange(count), kept, assume_unique=True)

    def texts(self, split: str = "train") -> Iterator[str]:
        """All documents of a split; ValueError where they are tokens."""
        for name in self.sources:
            yield from self.texts_of(name, self.numbers(name, split))

    def texts_of(self, name: str, numbers: np.ndarray | None = None) -> Iterator[str]:
        """Some documents of a source, or all; ValueError where they are tokens."""
        source = self.sources[name]
        if isinstance(source, Prepared):
            raise ValueError(f"corpus.sources.{name} is tokens already: set tokenizer to the one that made them")
        yield from (source.text(int(number)) for number in (range(len(source)) if numbers is None else numbers))

    @cached_property
    def alphabet(self) -> str | None:
        """Every character of the documents; None where they are too many for a tokenizer of characters."""
        symbols: set[str] = set()
        for name, source in self.sources.items():
            known = getattr(source, "alphabet", None)
            symbols.update(known or (symbol for text in self.texts_of(name) for symbol in set(text)))
        return "".join(sorted(symbols)) if len(symbols) <= MOST_SYMBOLS else None

    @property
    def specials(self) -> tuple[str, ...]:
        """What a tokenizer of characters or bytes needs besides."""
        return OWN if self.config.fim else ()

    def examples(self, split: str) -> Sequence[Example]:
        """Every document as `{"text"}`."""
        return [{"text": text} for text in self.texts(split)]

    def prompt(self, example: Example) -> str:
        """Nothing: all of a document is learnt."""
        return ""

    def target(self, example: Example) -> str:
        """The document."""
        return str(example["text"])

    def verify(self, example: Example, text: str) -> Verdict:
        """No answer is right."""
        return Verdict(0.0, None, "a document is no question")


@dataclass(frozen=True)
class Reader:
    """From a source's document, by number, to the tokens that are learnt: bos where the tokenizer has one, the
    document, rearranged or not, and eos. Draws belong to the place in the stream, so that each epoch has its own.
    """

    source: Documents | Prepared
    name: str
    number: int  # of the source, from 1
    tokenizer: Tokenizer
    fim: Fim | None
    fused: Mapping[int, tuple[int, ...]]
    share: float  # of fused tokens that are split
    seed: int

    def __call__(self, place: int, document: int) -> dict[str, np.ndarray]:
        """{"tokens" [n], "source" [n], "mask" [n]}."""
        rng = np.random.default_rng((self.seed, self.number, place))
        ids = self.ids(int(document), rng)
        if self.fused:
            ids = split_fused(ids, self.fused, self.share, rng)
        bos = self.tokenizer.bos_id
        tokens = np.array([*([] if bos is None else [bos]), *ids, self.tokenizer.eos_id], np.int32)
        return {
            "tokens": tokens,
            "source": np.full(len(tokens), self.number, np.int32),
            "mask": np.ones(len(tokens), np.float32),
        }

    def ids(self, document: int, rng: np.random.Generator) -> list[int]:
        """The ids of a document, without bos and eos."""
        if isinstance(self.source, Prepared):
            ids = self.source.tokens(document).tolist()
            if self.fim is None:
                return ids
            return self.fim.of_tokens(ids, self.tokenizer, rng)
        text = self.source.text(document)
        return self.fim.tokens(text, self.tokenizer.encode, rng) if self.fim else self.tokenizer.encode(text)


@dataclass(frozen=True, kw_only=True)
class CorpusRows(Rows):
    """Rows of a corpus: `length` columns; `too_long`: of documents packed first-fit, `error` or `truncate`."""

    length: int
    too_long: str = "error"

    def identity(self, examples: int) -> dict[str, Any]:
        """That of all rows, and their length."""
        return super().identity(examples) | {"length": self.length}


def corpus_source(corpus: Corpus, tokenizer: Tokenizer, rows: CorpusRows) -> Source:
    """An endless source of packed rows: documents of all sources in the proportions of their weights.

    ValueError for what cannot be read, for tokens of another tokenizer, and for documents that do not fit.
    """
    config, readers = corpus.config, readers_of(corpus, tokenizer, rows.seed)
    if config.packing == "first_fit":
        check_lengths(corpus, readers, rows)
    streams = [stream(corpus, reader, rows) for reader in readers]
    weights = [config.source(reader.name).weight for reader in readers]
    mixed = Mixture(streams, [reader.name for reader in readers], weights, config.by)
    whole = rows.global_batch_size
    if config.packing == "first_fit":
        fitted = mixed.map(partial(_cut, rows.length))
        packed = pack_rows(fitted, rows.length, tokenizer.pad_id, whole, ("source",))
    else:
        fim = fim_of(config, tokenizer) if config.fim_level == "context" else None
        change = partial(_change, fim, tokenizer) if fim else None
        packed = Concatenated(mixed, rows.length, tokenizer.pad_id, change, rows.seed)
    counted = partial(_counted, rows.share.of_rows, [reader.name for reader in readers], tokenizer.eos_id)
    counts = [f"{kind}/{reader.name}" for reader in readers for kind in ("tokens", "documents")]
    identity = rows.identity(sum(len(source) for source in corpus.sources.values()))
    identity |= {"corpus": config_text(config)}
    return Source(prefetched(packed.batch(whole).map(counted), rows.prefetch), identity, counts)


def held_out_source(corpus: Corpus, name: str, tokenizer: Tokenizer, rows: CorpusRows) -> Source:
    """Rows of one source's held-out documents in their order, from the first again after the last; not rearranged.

    Counted are the `bytes` of what is predicted: of each piece of a row the text of all tokens but the first.
    """
    numbers = corpus.numbers(name, "held_out")
    check_not_empty(f"the held-out part of corpus.sources.{name} (corpus.held_out)", len(numbers))
    number = list(corpus.sources).index(name) + 1
    check_tokens(corpus.sources[name], name, tokenizer)
    reader = Reader(corpus.sources[name], name, number, tokenizer, None, {}, 0.0, 0)
    endless = grain.MapDataset.source(numbers).repeat(FOREVER // len(numbers)).map_with_index(reader)
    packed = Concatenated(in_order(endless), rows.length, tokenizer.pad_id)
    counted = partial(_measured, rows.share.of_rows, tokenizer)
    return Source(packed.batch(rows.global_batch_size).map(counted), rows.identity(len(numbers)), ["bytes"])


def readers_of(corpus: Corpus, tokenizer: Tokenizer, seed: int) -> list[Reader]:
    """A reader for every source."""
    config = corpus.config
    fim = fim_of(config, tokenizer) if config.fim_level == "document" else None
    fused = fused_tokens(tokenizer) if config.split_fused else {}
    readers = []
    for number, (name, source) in enumerate(corpus.sources.items(), start=1):
        check_tokens(source, name, tokenizer)
        readers.append(Reader(source, name, number, tokenizer, fim, fused, config.split_fused, seed))
    return readers


def fim_of(config: CorpusConfig, tokenizer: Tokenizer) -> Fim | None:
    """How texts are rearranged; ValueError where the tokenizer has no sentinels."""
    return Fim(config.fim, config.fim_spm, sentinels_of(tokenizer)) if config.fim else None


def stream(corpus: Corpus, reader: Reader, rows: CorpusRows) -> grain.IterDataset:
    """A source's documents in shuffled epochs, as many as it may have."""
    numbers = corpus.numbers(reader.name, "train")
    check_not_empty(f"corpus.sources.{reader.name}", len(numbers))
    # Sources are shuffled apart, whatever other sources there are.
    seed = stable_hash(rows.seed, reader.name) % 2**31
    epochs = corpus.config.source(reader.name).epochs or FOREVER // len(numbers)
    shuffled = grain.MapDataset.source(numbers).seed(seed).shuffle().repeat(epochs)
    return in_order(shuffled.map_with_index(reader))


def check_tokens(source: Documents | Prepared, name: str, tokenizer: Tokenizer) -> None:
    """Raises ValueError for tokens that another tokenizer made."""
    if not isinstance(source, Prepared):
        return
    made, now = source.manifest["fingerprint"], fingerprint(tokenizer)
    if made != now:
        raise ValueError(
            f"corpus.sources.{name} was prepared with another tokenizer ({source.manifest['tokenizer']}, fingerprint"
            f" {made}; this run's is {now}): prepare it again, or set tokenizer to that one"
        )


def fingerprint(tokenizer: Tokenizer) -> str:
    """16 hexadecimal digits that differ for tokenizers that make other ids of a text that uses most of them."""
    from data.tokenizers.decoding import vocabulary_texts

    texts = vocabulary_texts(tokenizer)
    return f"{stable_hash(len(texts), tokenizer.eos_id, *texts):016x}"


def check_lengths(corpus: Corpus, readers: Sequence[Reader], rows: CorpusRows) -> None:
    """Raises ValueError where one of the longest documents of a source does not fit into a row and may not be cut."""
    if rows.too_long == "truncate":
        return
    if rows.too_long != "error":
        raise ValueError(f"corpus.packing=first_fit takes data.too_long=error or truncate, found {rows.too_long!r}")
    for reader in readers:
        numbers = corpus.numbers(reader.name, "train")
        sizes = np.array([reader.source.size(int(number)) for number in numbers])
        for number in numbers[np.argsort(-sizes, kind="stable")[:LONGEST]]:
            tokens = len(reader(0, int(number))["tokens"])
            if tokens > rows.length:
                raise ValueError(
                    f"document {number} of corpus.sources.{reader.name} has {tokens} tokens, the rows hold"
                    f" {rows.length}: raise data.length, cut documents by corpus.packing=concat or"
                    " data.too_long=truncate"
                )


def config_text(config: CorpusConfig) -> str:
    """What of the settings must be equal for a position in the stream to be one."""
    return repr({**vars(config), "sources": {name: dict(values) for name, values in config.sources.items()}})


def _change(fim: Fim, tokenizer: Tokenizer, piece: list[int], rng: np.random.Generator) -> list[int]:
    """A piece of a row, rearranged: its eos and bos stay where they are."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    front, back = piece[:1] if piece[0] == bos else [], piece[-1:] if piece[-1] == eos else []
    inside = piece[len(front) : len(piece) - len(back)]
    return [*front, *fim.of_tokens(inside, tokenizer, rng), *back]


def _cut(length: int, document: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[:length] for name, values in document.items()}


def _counted(
    mine: Callable[[dict[str, Any]], dict[str, Any]], names: Sequence[str], eos: int, batch: Mapping[str, Any]
) -> tuple[TokenRows, dict[str, int]]:
    """This process's rows of a batch; tokens of each source in the whole batch, and documents that end in it."""
    batch = dict(batch)
    source, ends = batch.pop("source"), batch["tokens"] == eos
    counts = {"read": int((ends & (source > 0)).sum()), "dropped": 0, "truncated": 0}
    for number, name in enumerate(names, start=1):
        inside = source == number
        counts |= {f"tokens/{name}": int(inside.sum()), f"documents/{name}": int((inside & ends).sum())}
    return TokenRows(**mine(batch)), counts


def _measured(
    mine: Callable[[dict[str, Any]], dict[str, Any]], tokenizer: Tokenizer, batch: Mapping[str, Any]
) -> tuple[TokenRows, dict[str, int]]:
    """This process's rows of a batch, and the bytes of what all rows predict."""
    rows, counts = _counted(mine, [], tokenizer.eos_id, batch)
    predicted = 0
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        for number in range(1, int(segments.max()) + 1):
            piece = tokens[segments == number].tolist()
            predicted += len(tokenizer.decode(piece).encode()) - len(tokenizer.decode(piece[:1]).encode())
    return rows, counts | {"bytes": predicted}
