"""Another model that a run learns from: opened beside it, frozen, and of the same vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data.tokenizers.base import Tokenizer
from data.tokenizers.build import check_vocab
from data.tokenizers.decoding import vocabulary_texts
from infer.load import Origin
from model.lm import Model, Params
from train.setup import Setup


@dataclass(frozen=True)
class Teacher:
    """A frozen language model; `load` reads its parameters onto the run's mesh."""

    model: Model
    tokenizer: Tokenizer
    origin: Origin
    load: Callable[[], Params]


def open_teacher(setup: Setup, folder: str, name: str) -> Teacher:
    """The model in `folder`, the value of setting `name`, of which no array is read yet.

    Raises ValueError where none is named, for a model of scores, and for one of another vocabulary.
    """
    if not folder:
        raise ValueError(f"{name} names no folder: give a run directory or a folder in the Hub's layout")
    origin = setup.open(folder)
    model, own = origin.model, setup.model.config
    if model.config.score.size:
        raise ValueError(f"{name}={folder}: a model of scores predicts no tokens; name a language model")
    tokenizer = check_vocab(origin.tokenizer(), model.config.vocab_size, model.config.pairs)
    if wrong := difference(setup.tokenizer, tokenizer):
        raise ValueError(
            f"{name}={folder} has another vocabulary than this run's model: {wrong}. Log-probs of tokens cannot be"
            " compared; take a teacher with the same tokenizer"
        )
    if model.config.vocab_size < setup.tokenizer.vocab_size or model.config.pairs != own.pairs:
        raise ValueError(f"{name}={folder} predicts {model.config.vocab_size} tokens, the tokenizer has more")
    return Teacher(model, tokenizer, origin, lambda: origin.params(setup.mesh))


def difference(own: Tokenizer, other: Tokenizer) -> str:
    """In words, the first thing in which two vocabularies differ; "" for the same one."""
    for name in ("vocab_size", "eos_id", "bos_id"):
        here, there = getattr(own, name), getattr(other, name)
        if here != there:
            return f"{name} is {there} there and {here} here"
    mine, theirs = vocabulary_texts(own), vocabulary_texts(other)
    place = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), None)
    return "" if place is None else f"token {place} is {theirs[place]!r} there and {mine[place]!r} here"
