"""Tokenizers behind one small interface: characters, bytes, sentencepiece and Hugging Face `tokenizer.json`.

`build_tokenizer` makes one from a spec, `load_tokenizer` reads whatever `save` wrote or a folder from the
Hub.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

DESCRIPTION_FILE = "sagax_tokenizer.json"


class Tokenizer(Protocol):
    """Text to ids and back; `decode` drops pad, bos and eos and keeps every other special token."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that a model predicts."""

    @property
    def pad_id(self) -> int:
        """The id that fills rows."""

    @property
    def bos_id(self) -> int | None:
        """The id every text begins with, or None where the model wants none; `encode` never adds it."""

    @property
    def eos_id(self) -> int:
        """The id that ends a text; `encode` never adds it."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id at which generation ends, `eos_id` first."""

    @property
    def chat_template(self) -> str | None:
        """The jinja chat template that came with the tokenizer."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Texts of the control tokens by role (`bos_token`, `eos_token`, `pad_token`)."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the text, without bos and eos."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids without pad, bos and eos."""

    def save(self, folder: str | Path) -> None:
        """Writes what `load_tokenizer` reads."""


@runtime_checkable
class Extended(Protocol):
    """A tokenizer whose vocabulary was added to."""

    @property
    def base_size(self) -> int:
        """One more than the largest id that is no added token's."""

    def within(self, size: int) -> Tokenizer:
        """Returns it for a model of `size` ids."""


@runtime_checkable
class Batching(Protocol):
    """A tokenizer that encodes many texts faster than one after the other."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text as `encode` has them."""


def missing_tokenizer(folder: Path, wanted: str) -> FileNotFoundError:
    """Returns the error for a folder without a tokenizer: what it holds and what was looked for."""
    files = ", ".join(sorted(child.name for child in folder.iterdir())[:12]) if folder.is_dir() else "no such folder"
    return FileNotFoundError(f"no tokenizer in {folder}: looked for {wanted}, found: {files or 'an empty folder'}")


def write_description(folder: str | Path, spec: Mapping[str, Any]) -> None:
    """Writes a tokenizer's spec as JSON into a folder, which is made where it is missing."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(spec), indent=2, ensure_ascii=False) + "\n"
    (path / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def find_stop(text: str, stops: str | Sequence[str]) -> int | None:
    """Returns where the earliest stop string begins, or None; the text before it is what counts.

    Stops are matched on text, not on ids, since a tokenizer may fuse them with their neighbours. ValueError
    for an empty one.
    """
    wanted = (stops,) if isinstance(stops, str) else tuple(stops)
    if "" in wanted:
        raise ValueError("an empty stop string would stop every text at once; leave it out")
    places = [index for index in (text.find(stop) for stop in wanted) if index >= 0]
    return min(places, default=None)
