"""Pretraining: documents of a mixture of sources in packed rows, cross entropy on every token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from data.sources.corpus import Corpus, CorpusRows, corpus_source, held_out_source
from train.depth_ramp import with_ramp
from train.objectives.sft import rows_of_host, update
from train.setup import Algorithm, EvaluationSpec, Setup, Source


def build(setup: Setup) -> Algorithm:
    """The update of supervised rows, and a source of packed documents; a part of every source is held out."""
    config, corpus = setup.config, Corpus(setup.config.corpus)
    rows = rows_of(setup, config.seed, config.data.prefetch)
    evaluation = EvaluationSpec(corpora=partial(held_out, setup, corpus) if config.corpus.held_out else None)
    source = with_ramp(setup, corpus_source(corpus, setup.tokenizer, rows))
    return Algorithm(update(setup), source, evaluation=evaluation)


def held_out(setup: Setup, corpus: Corpus) -> Mapping[str, Source]:
    """Rows of held-out documents, for each source of the corpus."""
    rows = rows_of(setup, 0, 0)
    return {name: held_out_source(corpus, name, setup.tokenizer, rows) for name in corpus.sources}


def rows_of(setup: Setup, seed: int, prefetch: int) -> CorpusRows:
    """This host's share of rows."""
    return CorpusRows(**rows_of_host(setup), too_long=setup.config.data.too_long, seed=seed, prefetch=prefetch)
