"""Sentencepiece: reading a model, and training a small one in which every text has ids."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from data.tokenizers.base import missing_tokenizer, write_description
from data.tokenizers.characters import DEFAULT_SPECIALS, check_id, check_specials

MODEL_FILE = "tokenizer.model"
# pad, eos, unknown, and the 256 bytes that anything falls back to.
BASE_SIZE = 3 + 256


class SentencePieceTokenizer:
    """A sentencepiece model; `bos_id` is None where it was trained without one, pad may be eos."""

    def __init__(self, file: str | Path) -> None:
        """Reads a model file; ValueError when it is not one, ImportError without sentencepiece."""
        self._file = Path(file)
        self._model = _load(self._file)

    chat_template: str | None = None

    @classmethod
    def from_folder(cls, path: str | Path) -> "SentencePieceTokenizer":
        """Returns the tokenizer of a `*.model` file, or of the folder that holds one."""
        file = Path(path)
        if file.is_file():
            return cls(file)
        found = sorted(file.glob("*.model"))
        if len(found) != 1:
            raise missing_tokenizer(file, "one *.model file of sentencepiece")
        return cls(found[0])

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return int(self._model.vocab_size())

    @cached_property
    def eos_id(self) -> int:
        """The model's end of sentence; ValueError when it has none."""
        eos = int(self._model.eos_id())
        if eos < 0:
            raise ValueError(f"{self._file} was trained without an end-of-sentence token; train it with eos_id >= 0")
        return eos

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The one id at which generation ends."""
        return (self.eos_id,)

    @cached_property
    def bos_id(self) -> int | None:
        """The model's beginning of sentence, or None."""
        bos = int(self._model.bos_id())
        return bos if bos >= 0 else None

    @cached_property
    def pad_id(self) -> int:
        """The model's pad, or eos where it has none."""
        pad = int(self._model.pad_id())
        return pad if pad >= 0 else self.eos_id

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Texts of the control pieces by role."""
        roles = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        return {role: str(self._model.id_to_piece(index)) for role, index in roles.items() if index is not None}

    @cached_property
    def _dropped(self) -> frozenset[int | None]:
        return frozenset((self.pad_id, self.bos_id, self.eos_id))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the text."""
        return list(self._model.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text without pad, bos and eos; ValueError for an id outside the vocabulary."""
        kept = [check_id(int(index), self.vocab_size) for index in ids]
        return str(self._model.decode([index for index in kept if index not in self._dropped]))

    def save(self, folder: str | Path) -> None:
        """Writes a copy of the model file."""
        write_description(folder, {"kind": "sentencepiece"})
        (Path(folder) / MODEL_FILE).write_bytes(self._model.serialized_model_proto())


def train_sentencepiece(
    texts: Iterable[str],
    folder: str | Path,
    vocab_size: int,
    specials: Sequence[str] = DEFAULT_SPECIALS,
    character_coverage: float = 1.0,
) -> SentencePieceTokenizer:
    """Trains a model in which every text has ids, saves it in a folder and returns it.

    Bytes are the fallback, white space and case are kept, digits stand alone, `specials` are one id each; pad
    is 0, eos 1 and there is no bos. `vocab_size` is an upper limit: small corpora give smaller models.
    `character_coverage`: the share of the corpus's characters that get ids of their own, the rare rest are
    bytes. ValueError when it is too small.
    """
    check_specials(specials)
    smallest = BASE_SIZE + len(specials)
    if vocab_size <= smallest:
        raise ValueError(f"vocab_size must exceed {smallest} (3 control tokens, 256 bytes, specials), got {vocab_size}")
    # A line is sentencepiece's unit; its own pieces never cross one, so newlines are left to the byte
    # fallback.
    sentences = [line for text in texts for line in text.split("\n") if line]
    if not sentences:
        raise ValueError("there is no text to train a tokenizer on")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    _train(sentences, path / MODEL_FILE, vocab_size, specials, character_coverage)
    tokenizer = SentencePieceTokenizer(path / MODEL_FILE)
    tokenizer.save(path)
    return tokenizer


def _train(
    sentences: list[str], file: Path, vocab_size: int, specials: Sequence[str], character_coverage: float
) -> None:
    try:
        _library().SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_prefix=str(file.with_suffix("")),
            vocab_size=vocab_size,
            user_defined_symbols=list(specials),
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"sentencepiece refused to train: {error}") from error
    file.with_suffix(".vocab").unlink(missing_ok=True)


def _load(file: Path) -> Any:
    if not file.is_file():
        raise missing_tokenizer(file.parent, file.name)
    try:
        return _library().SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{file} is not a sentencepiece model: {error}") from error


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError("this tokenizer needs sentencepiece: pip install sentencepiece") from error
    return sentencepiece
