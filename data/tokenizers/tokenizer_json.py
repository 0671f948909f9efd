"""Hugging Face `tokenizer.json` through the library tokenizers, with the control tokens its folder names."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.generation import MOST_IDS, as_list, check_end_ids, written
from data.tokenizers.base import missing_tokenizer, write_description
from data.tokenizers.characters import DEFAULT_SPECIALS, check_id, check_specials
from data.tokenizers.hub import TOKENIZER_FILE, Folder, add_tokens, content_of, read_folder, special_tokens_of
from data.tokenizers.library import Library, import_tokenizers


class HFTokenizer:
    """The tokenizer of a Hub folder.

    eos: `tokenizer_config.json` or `special_tokens_map.json`, otherwise `generation_config.json` or
    `config.json`; the ids of all of them end generation (`eos_ids`). bos: only where the tokenizer itself
    puts it in front, so that a bos that is merely mentioned is not added. pad: as named, otherwise eos.
    Tokens that only the settings add are added as transformers adds them.
    """

    def __init__(self, library: Library, folder: Folder, size: int | None = None) -> None:
        """`size`: how many ids there may be, where the model has fewer than the tokenizer."""
        self._library, self._folder, self._size = library, folder, size

    @classmethod
    def from_folder(cls, path: str | Path) -> "HFTokenizer":
        """Returns the tokenizer of a folder or of a `tokenizer.json`; FileNotFoundError without one."""
        folder = Path(path).parent if Path(path).name == TOKENIZER_FILE else Path(path)
        if not (folder / TOKENIZER_FILE).is_file():
            raise missing_tokenizer(folder, TOKENIZER_FILE)
        library, contents = Library(folder / TOKENIZER_FILE), read_folder(folder)
        add_tokens(library, contents)
        tokenizer = cls(library, contents)
        check_end_ids(folder, tokenizer.vocab_size)
        _ = tokenizer.eos_id
        return tokenizer

    def within(self, size: int) -> "HFTokenizer":
        """Returns this tokenizer for a model of `size` ids: what is beyond is refused where a text has it."""
        return HFTokenizer(self._library, self._folder, size)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        largest = max(self._library.vocab.values()) + 1
        return largest if self._size is None else min(largest, self._size)

    @cached_property
    def base_size(self) -> int:
        """One more than the largest id that is no added token's."""
        added = self._library.added()
        return max((index for index in self._library.vocab.values() if index not in added), default=-1) + 1

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id at which generation ends, the tokenizer's own eos first; ValueError when there is none."""
        named = self._id_of("eos_token")
        listed = as_list(self._folder.generation.get("eos_token_id"))
        limit = MOST_IDS if self._size is None else self._size
        ids = tuple(dict.fromkeys(index for index in (named, *listed) if index is not None and index < limit))
        if not ids:
            raise ValueError(f"no end-of-text token in {self._folder.path}: set eos_token in tokenizer_config.json")
        return ids

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return self.eos_ids[0]

    @cached_property
    def bos_id(self) -> int | None:
        """The id every text begins with, where the tokenizer puts it there; ValueError where the model lacks it."""
        bos, wanted = self._id_of("bos_token"), self._folder.settings.get("add_bos_token")
        if bos is None or wanted is False:
            return None
        starts = self._library.encode("", add_special_tokens=True).ids[:1] == [bos]
        return self._checked([bos], "the beginning of every text")[0] if starts or wanted else None

    @cached_property
    def pad_id(self) -> int:
        """The pad that the files name, otherwise eos, also where what they name is no id."""
        listed = as_list(self._folder.generation.get("pad_token_id"))
        ids = (self._id_of("pad_token"), *listed, self.eos_id)
        return next(index for index in ids if isinstance(index, int) and 0 <= index < self.vocab_size)

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """Texts of the control tokens that the tokenizer's files name, by role."""
        return special_tokens_of(self._folder.settings)

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The chat templates by name; `default` is used where none is asked for."""
        return self._folder.templates

    @property
    def chat_template(self) -> str | None:
        """The default chat template."""
        return self.chat_templates.get("default")

    @cached_property
    def _dropped(self) -> frozenset[int]:
        """Of pad, bos and eos those that are special: a model may end at, or pad with, a token that is text."""
        special = {index for index, token in self._library.added().items() if token.special}
        controls = {*self.eos_ids, self.pad_id, self._id_of("bos_token"), self._id_of("pad_token")}
        return frozenset(index for index in controls if index in special)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the text; control tokens in it become their ids, as chat templates need.

        ValueError for half of a surrogate pair, for a text that the file would make too long, and for an id that the
        model lacks.
        """
        return self._checked(list(self._library.encode(text).ids), text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of many texts, uint32: those of `encode`, several times as fast; ValueError as there."""
        found = self._library.encode_batch(texts)
        for ids, text in zip(found, texts, strict=True):
            if self._size is not None and ids.max(initial=0) >= self._size:
                self._checked(ids.tolist(), text)
        return found

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the characters [start, end) that each id of `encode(text)` stands for."""
        return list(self._library.encode(text).offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text without pad, bos and eos; ValueError for an id outside the vocabulary."""
        kept = [check_id(int(index), self.vocab_size) for index in ids]
        return self._library.decode([index for index in kept if index not in self._dropped])

    def save(self, folder: str | Path) -> None:
        """Writes copies of the folder's tokenizer files; ids that config.json gave join `generation_config.json`."""
        write_description(folder, {"kind": "hf"})
        name, files = "generation_config.json", self._folder.files
        files = {**files, name: written(files.get(name), self._folder.generation)}
        for name, content in files.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(content)

    def _id_of(self, role: str) -> int | None:
        text = content_of(self._folder.settings.get(role))
        if text is None:
            return None
        index = self._library.id_of(text)
        if index is None:
            raise ValueError(f"{self._folder.path} names {text!r} as {role}, but tokenizer.json has no such token")
        return int(index)

    def _checked(self, ids: list[int], text: str) -> list[int]:
        if self._size is None or max(ids, default=0) < self._size:
            return ids
        index = max(ids)
        raise ValueError(
            f"{text[:60]!r} has the id {index} ({self._library.token(index)!r}), which the model with {self._size} ids"
            " has no embedding for: leave that token out of the text, or build the model with a larger vocabulary"
        )


def train_bpe(
    texts: Iterable[str],
    folder: str | Path,
    vocab_size: int = 384,
    specials: Sequence[str] = DEFAULT_SPECIALS,
) -> HFTokenizer:
    """Trains a byte-level BPE of at most `vocab_size` ids and saves it in a folder in the Hub's layout.

    Ids 0 and 1 are `<pad>` and `<eos>`, then the specials; digits stand alone. ValueError when `vocab_size`
    cannot hold the 256 bytes and these tokens.
    """
    check_specials(specials)
    smallest = 256 + 2 + len(specials)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (256 bytes, pad, eos, specials), got {vocab_size}")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    _bpe(texts, vocab_size, specials).save(str(path / TOKENIZER_FILE))
    _write_settings(path)
    return HFTokenizer.from_folder(path)


def _bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str]) -> Any:
    library = import_tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Digits(individual_digits=True),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>", *specials],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _write_settings(folder: Path) -> None:
    names = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": None}
    settings = {**names, "add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    map_text = json.dumps({role: text for role, text in names.items() if text}, indent=2)
    (folder / "special_tokens_map.json").write_text(map_text + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
