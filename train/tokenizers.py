"""Training a tokenizer on a task's own text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.tasks.base import Task, examples_of
from data.tokenizers.base import Tokenizer
from data.tokenizers.build import load_tokenizer
from data.tokenizers.sentencepiece_model import train_sentencepiece


def train_tokenizer(kind: str, task: Task, split: str, vocab_size: int, folder: Path) -> Tokenizer:
    """Trains a sentencepiece tokenizer on the prompts and demonstrations of a split and saves it in `folder`."""
    if kind != "sentencepiece":
        raise ValueError(f"a {kind!r} tokenizer cannot be trained here: give tokenizer.path, or kind sentencepiece")
    folder.parent.mkdir(parents=True, exist_ok=True)
    train_sentencepiece(_texts(task, split), folder, vocab_size)
    return load_tokenizer(folder)


def _texts(task: Task, split: str) -> Iterator[str]:
    for example in examples_of(task, split):
        yield task.prompt(example)
        yield task.target(example)
