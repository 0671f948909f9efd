"""Tokenizers behind one small interface: characters, bytes, sentencepiece and Hugging Face `tokenizer.json`.

`build_tokenizer` makes one from a spec, `load_tokenizer` reads whatever `save` wrote or a folder from the
Hub.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data.files import read_json
from data.names import check_options, unknown_name

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
        """Returns it for a model of so many ids."""


def _char(spec: Mapping[str, Any]) -> Tokenizer:
    from data.tokenizer_char import CharTokenizer

    return CharTokenizer.from_spec(spec)


def _byte(spec: Mapping[str, Any]) -> Tokenizer:
    from data.tokenizer_char import ByteTokenizer

    return ByteTokenizer.from_spec(spec)


def _sentencepiece(spec: Mapping[str, Any]) -> Tokenizer:
    from data.tokenizer_sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer.from_folder(_path_of(spec))


def _hf(spec: Mapping[str, Any]) -> Tokenizer:
    from data.tokenizer_hf import HFTokenizer

    return HFTokenizer.from_folder(_path_of(spec))


BUILDERS: dict[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    "char": _char,
    "byte": _byte,
    "sentencepiece": _sentencepiece,
    "hf": _hf,
}
OPTIONS = {
    "char": ("alphabet", "specials", "pair", "path"),
    "byte": ("specials", "path"),
    "sentencepiece": ("path",),
    "hf": ("path",),
}


def build_tokenizer(spec: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer that a spec `{"kind": ..., options}` describes.

    Kinds: `char` (`alphabet`, `specials`, `pair`), `byte` (`specials`), `sentencepiece` (`path`) and `hf` (`path`, a
    folder in the Hub's layout). Options that are None or empty count as absent. `char` and `byte` with a
    `path` are loaded from there. Raises ValueError for an unknown kind or option and FileNotFoundError where
    a path holds no such tokenizer.
    """
    options = {key: spec[key] for key in spec if spec[key] is not None and spec[key] != ""}
    kind = options.pop("kind", None)
    if kind not in BUILDERS:
        raise unknown_name("tokenizer kind", kind, BUILDERS)
    check_options(f"tokenizer {kind!r}", options, OPTIONS[kind])
    if kind in ("char", "byte") and "path" in options:
        return _load_described(kind, options)
    return BUILDERS[kind](options)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Returns the tokenizer of a folder: what `save` wrote, a Hub folder or a `*.model` file.

    Raises FileNotFoundError that lists what the folder holds when there is no tokenizer in it.
    """
    path = Path(folder)
    if (path / DESCRIPTION_FILE).is_file():
        spec = read_description(path)
        return BUILDERS[spec["kind"]]({**spec, "path": path})
    if (path / "tokenizer.json").is_file():
        return _hf({"path": path})
    if list(path.glob("*.model")):
        return _sentencepiece({"path": path})
    raise missing_tokenizer(path, f"{DESCRIPTION_FILE}, tokenizer.json or *.model")


def missing_tokenizer(folder: Path, wanted: str) -> FileNotFoundError:
    """Returns the error for a folder without a tokenizer: what it holds and what was looked for."""
    found = ", ".join(sorted(child.name for child in folder.iterdir())[:12]) if folder.is_dir() else "no such folder"
    return FileNotFoundError(f"no tokenizer in {folder}: looked for {wanted}, found: {found or 'an empty folder'}")


def read_description(folder: Path) -> dict[str, Any]:
    """Returns the spec that `write_description` left in a folder; ValueError when it is not one."""
    description = read_json(folder / DESCRIPTION_FILE)
    if not isinstance(description, dict) or description.get("kind") not in BUILDERS:
        raise ValueError(f"{folder / DESCRIPTION_FILE} names no tokenizer kind; expected one of {', '.join(BUILDERS)}")
    return description


def write_description(folder: str | Path, spec: Mapping[str, Any]) -> None:
    """Writes a tokenizer's spec as JSON into a folder, which is made where it is missing."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(spec), indent=2, ensure_ascii=False) + "\n"
    (path / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def check_vocab(tokenizer: Tokenizer, model_vocab_size: int, pairs: bool = False) -> Tokenizer:
    """Returns the tokenizer for a model of `model_vocab_size` ids; `pairs`: the model knows pairs.

    ValueError when it makes ids that the model has no embedding for. Tokens added to a vocabulary that fits, such as
    a pad of its own, are no reason to refuse it: the tokenizer that is returned refuses texts with them.
    """
    if getattr(tokenizer, "pair", "") and not (pairs and tokenizer.vocab_size == model_vocab_size):
        raise ValueError(
            f"the tokenizer makes pairs of its {tokenizer.vocab_size} ids: set model.pairs, and model.vocab_size to"
            f" that number or 0; found pairs={pairs} and vocab_size={model_vocab_size}"
        )
    if tokenizer.vocab_size <= model_vocab_size:
        return tokenizer
    if isinstance(tokenizer, Extended) and tokenizer.base_size <= model_vocab_size:
        fitted = tokenizer.within(model_vocab_size)
        _ = fitted.eos_id
        return fitted
    raise ValueError(
        f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary holds {model_vocab_size}; "
        "use the model's own tokenizer, train a smaller one or build the model with a larger vocabulary"
    )


def find_stop(text: str, stops: str | Sequence[str]) -> int | None:
    """Returns where the earliest stop string begins, or None; the text before it is what counts.

    Stops are matched on text, not on ids, since a tokenizer may fuse them with their neighbours. ValueError
    for an empty one.
    """
    wanted = (stops,) if isinstance(stops, str) else tuple(stops)
    if "" in wanted:
        raise ValueError("an empty stop string would stop every text at once; leave it out")
    found = [index for index in (text.find(stop) for stop in wanted) if index >= 0]
    return min(found, default=None)


def _load_described(kind: str, options: Mapping[str, Any]) -> Tokenizer:
    path = _path_of(options)
    if len(options) > 1:
        raise ValueError(f"a {kind} tokenizer takes either a path or {', '.join(OPTIONS[kind][:-1])}, got both")
    if not (path / DESCRIPTION_FILE).is_file():
        raise missing_tokenizer(path, DESCRIPTION_FILE)
    found = read_description(path)["kind"]
    if found != kind:
        raise ValueError(f"{path} holds a {found} tokenizer, but the spec asks for kind {kind!r}")
    return load_tokenizer(path)


def _path_of(spec: Mapping[str, Any]) -> Path:
    if "path" not in spec:
        raise ValueError("this kind of tokenizer is read from a folder: give its `path`")
    return Path(spec["path"])
