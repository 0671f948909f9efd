"""Small tokenizers of the kinds found on the Hub, written as tokenizer.json, for the tests of text and ids."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from data.tokenizers.tokenizer_json import HFTokenizer

PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789.:()", "▁", "▁▁", "▁▁▁▁", "##b"]
MERGES = [("▁", "▁"), ("▁▁", "▁▁")]
CONTROLS = ["<unk>", "<s>", "</s>", "<|user|>"]
SETTINGS = {"eos_token": "</s>", "bos_token": "<s>"}


def write_json(folder: Path, name: str, content: Any) -> None:
    """Writes a file of a Hub folder."""
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def hub_folder(library: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any] | None = None) -> Path:
    """Writes a tokenizer and its settings as the Hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    library.add_special_tokens(CONTROLS)
    library.save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", SETTINGS if settings is None else settings)
    return folder


def byte_fallback() -> tokenizers.Tokenizer:
    """A BPE of characters, with a piece for each of the 256 bytes that others fall back to."""
    names = [*CONTROLS, *(f"<0x{value:02X}>" for value in range(256)), *PIECES]
    vocab = {name: index for index, name in enumerate(names)}
    return tokenizers.Tokenizer(models.BPE(vocab, MERGES, unk_token="<unk>", byte_fallback=True, fuse_unk=True))


def llama() -> tokenizers.Tokenizer:
    """As Llama 2: a space in front of every text, which decoding strips."""
    library = byte_fallback()
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(parts)
    return library


def metaspace() -> tokenizers.Tokenizer:
    """As Mistral and Gemma conversions: Metaspace puts a space in front of texts that have none."""
    library = byte_fallback()
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    library.decoder = decoders.Sequence(parts)
    return library


def word_piece() -> tokenizers.Tokenizer:
    """As BERT: decoding puts a space before every piece but the first and those that go on."""
    vocab = {name: index for index, name in enumerate([*CONTROLS, *PIECES])}
    library = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    return library


def load(library: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any] | None = None) -> HFTokenizer:
    """Writes a tokenizer and reads it as we do."""
    return HFTokenizer.from_folder(hub_folder(library, folder, settings))
