"""Hugging Face `tokenizer.json` through the library tokenizers, with the control tokens its folder names."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from data.generation import as_list, check_end_ids, read_generation, read_object, written
from data.tokenizer import missing_tokenizer, write_description
from data.tokenizer_char import DEFAULT_SPECIALS, check_id, check_specials

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
# Later files win where several name a control token.
TOKEN_FILES = ("special_tokens_map.json", "tokenizer_config.json")
FILES = (TOKENIZER_FILE, TEMPLATE_FILE, *TOKEN_FILES, "generation_config.json")


class HFTokenizer:
    """The tokenizer of a Hub folder.

    eos: `tokenizer_config.json` or `special_tokens_map.json`, otherwise `generation_config.json` or
    `config.json`; the ids of all of them end generation (`eos_ids`). bos: only where the tokenizer itself
    puts it in front, so that a bos that is merely mentioned is not added. pad: as named, otherwise eos.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], generation: Mapping[str, Any]) -> None:
        """`settings`: the merged TOKEN_FILES; `generation`: the merged GENERATION_FILES."""
        self._folder = folder
        self._library = _library()
        self._tokenizer = self._library.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        # What a checkpoint set for batches of its own must not cut or fill ours.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._settings = settings
        self._generation = generation
        self._files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}

    @classmethod
    def from_folder(cls, path: str | Path) -> "HFTokenizer":
        """Returns the tokenizer of a folder or of a `tokenizer.json`; FileNotFoundError without one."""
        folder = Path(path).parent if Path(path).name == TOKENIZER_FILE else Path(path)
        if not (folder / TOKENIZER_FILE).is_file():
            raise missing_tokenizer(folder, TOKENIZER_FILE)
        tokenizer = cls(folder, _merge(folder, TOKEN_FILES), read_generation(folder))
        check_end_ids(folder, tokenizer.vocab_size)
        _ = tokenizer.eos_id
        return tokenizer

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id at which generation ends, the tokenizer's own eos first; ValueError when there is none."""
        named = self._id_of("eos_token")
        listed = as_list(self._generation.get("eos_token_id"))
        ids = tuple(dict.fromkeys(index for index in (named, *listed) if index is not None))
        if not ids:
            raise ValueError(f"no end-of-text token in {self._folder}: set eos_token in tokenizer_config.json")
        return ids

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return self.eos_ids[0]

    @cached_property
    def bos_id(self) -> int | None:
        """The id every text begins with, where the tokenizer puts it there."""
        bos = self._id_of("bos_token")
        if bos is None or self._settings.get("add_bos_token") is False:
            return None
        starts = self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos]
        return bos if starts or self._settings.get("add_bos_token") else None

    @cached_property
    def pad_id(self) -> int:
        """The pad that the files name, otherwise eos."""
        named = self._id_of("pad_token")
        listed = as_list(self._generation.get("pad_token_id"))
        return next((index for index in (named, *listed) if index is not None), self.eos_id)

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """Texts of the control tokens by role."""
        roles = {"eos_token": self.eos_id, "pad_token": self.pad_id, "bos_token": self.bos_id}
        texts = {role: self._tokenizer.id_to_token(index) for role, index in roles.items() if index is not None}
        return {"bos_token": _content(self._settings.get("bos_token")) or "", **texts}

    @cached_property
    def chat_template(self) -> str | None:
        """The template of `chat_template.jinja` or `tokenizer_config.json` (`default` of several)."""
        if TEMPLATE_FILE in self._files:
            return self._files[TEMPLATE_FILE].decode("utf-8")
        template = self._settings.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default", next(iter(named.values()), None))
        return template

    @cached_property
    def _dropped(self) -> frozenset[int | None]:
        return frozenset((*self.eos_ids, self.pad_id, self._id_of("bos_token")))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the text; control tokens in it become their ids, as chat templates need."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text without pad, bos and eos; ValueError for an id outside the vocabulary."""
        kept = [check_id(int(index), self.vocab_size) for index in ids]
        return str(self._tokenizer.decode([i for i in kept if i not in self._dropped], skip_special_tokens=False))

    def save(self, folder: str | Path) -> None:
        """Writes copies of the folder's tokenizer files; ids that config.json gave join `generation_config.json`."""
        write_description(folder, {"kind": "hf"})
        name = "generation_config.json"
        files = self._files | {name: written(self._files.get(name), self._generation)}
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)

    def _id_of(self, role: str) -> int | None:
        text = _content(self._settings.get(role))
        if text is None:
            return None
        index = self._tokenizer.token_to_id(text)
        if index is None:
            raise ValueError(f"{self._folder} names {text!r} as {role}, but tokenizer.json has no such token")
        return int(index)


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
    library = _library()
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


def _merge(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in names:
        if (folder / name).is_file():
            merged.update(read_object(folder / name))
    return merged


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ImportError("this tokenizer needs the library tokenizers: pip install tokenizers") from error
    return tokenizers
