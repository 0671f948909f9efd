"""The settings `corpus`: documents to pretrain on, in which proportions, and how they become rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from settings.setting import check, setting, unknown

UNITS = ("tokens", "documents")
PACKINGS = ("concat", "first_fit")
LEVELS = ("document", "context")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of a corpus: documents that belong together."""

    path: str = setting("", "a file or folder of documents, or what data.prepare wrote")
    task: str = setting("", "in place of a path: a task, whose training examples with their answers are documents")
    options: Mapping[str, Any] = setting({}, "the task's own arguments")
    field: str = setting("text", "of a JSON line or record, that holds its document")
    weight: float = setting(1.0, "share of the mixture, beside the other weights", low=0)
    epochs: int = setting(0, "times that it is read at most; 0: any number", low=0)

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Documents to pretrain on, for algorithm=pretrain: a mixture of sources."""

    sources: Mapping[str, Any] = setting({}, "by name: path, field, weight, epochs (SourceConfig in settings/corpus)")
    by: str = setting("tokens", "what weights are shares of", choices=UNITS)
    packing: str = setting(
        "concat", "rows are cut from one stream of documents, or hold whole ones, first-fit", choices=PACKINGS
    )
    held_out: float = setting(0.01, "share of each source's documents that is kept for evaluation", low=0, high=0.5)
    fim: float = setting(0.0, "share of documents (or pieces of rows) rearranged to fill in the middle", low=0, high=1)
    fim_spm: float = setting(0.0, "share of these that show the suffix first (SPM), the others PSM", low=0, high=1)
    fim_level: str = setting("document", "rearranged before documents are packed, or in packed rows", choices=LEVELS)
    split_fused: float = setting(
        0.0, "share of tokens of punctuation and line ends that are split into both", low=0, high=1
    )

    def __post_init__(self) -> None:
        check(self, "corpus.", self.corpus_faults())

    def corpus_faults(self) -> Iterator[str]:
        """Sources that nobody can read, weights that are all zero, pieces of rows that hold whole documents."""
        known = [field.name for field in dataclasses.fields(SourceConfig)]
        for name, values in self.sources.items():
            if not isinstance(values, Mapping):
                yield f"corpus.sources.{name} is a group of {', '.join(known)}; found {values!r}"
                continue
            wrong = [key for key in values if key not in known]
            if wrong:
                yield unknown(f"corpus.sources.{name}:", wrong[0], known)
                continue
            try:
                source = SourceConfig(**values)
                if bool(source.path) == bool(source.task):
                    yield f"corpus.sources.{name} names either a path or a task, found {dict(values)}"
            except ValueError as error:
                yield f"corpus.sources.{name}.{error}"
        if self.sources and all(not dict(values).get("weight", 1.0) for values in self.sources.values()):
            yield f"corpus.sources: the weights of {', '.join(self.sources)} are all 0: nothing would be read"
        if self.fim and self.fim_level == "context" and self.packing != "concat":
            yield "corpus.fim_level=context rearranges pieces of rows: it takes corpus.packing=concat"

    def source(self, name: str) -> SourceConfig:
        """One of the sources."""
        return SourceConfig(**self.sources[name])
