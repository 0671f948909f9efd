"""From a spec or a folder to a tokenizer: `build_tokenizer`, `load_tokenizer`, `check_vocab`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.names import check_options, unknown_name
from data.tokenizers.base import DESCRIPTION_FILE, Extended, Tokenizer, missing_tokenizer
from store.files import read_json


def _char(spec: Mapping[str, Any]) -> Tokenizer:
    from data.tokenizers.characters import CharTokenizer

    return CharTokenizer.from_spec(spec)


def _byte(spec: Mapping[str, Any]) -> Tokenizer:
    from data.tokenizers.characters import ByteTokenizer

    return ByteTokenizer.from_spec(spec)


def _sentencepiece(spec: Mapping[str, Any]) -> Tokenizer:
    from data.tokenizers.sentencepiece_model import SentencePieceTokenizer

    return SentencePieceTokenizer.from_folder(_path_of(spec))


def _hf(spec: Mapping[str, Any]) -> Tokenizer:
    from data.tokenizers.tokenizer_json import HFTokenizer

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
    if kind is None:
        raise ValueError(f"a tokenizer needs a kind, one of {', '.join(BUILDERS)}; found none among {dict(spec)}")
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


def read_description(folder: Path) -> dict[str, Any]:
    """Returns the spec that `write_description` left in a folder; ValueError when it is not one."""
    description = read_json(folder / DESCRIPTION_FILE)
    if not isinstance(description, dict) or description.get("kind") not in BUILDERS:
        raise ValueError(f"{folder / DESCRIPTION_FILE} names no tokenizer kind; expected one of {', '.join(BUILDERS)}")
    return description


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


def _load_described(kind: str, options: Mapping[str, Any]) -> Tokenizer:
    path = _path_of(options)
    if len(options) > 1:
        raise ValueError(f"a {kind} tokenizer takes either a path or {', '.join(OPTIONS[kind][:-1])}, got both")
    if not (path / DESCRIPTION_FILE).is_file():
        raise missing_tokenizer(path, DESCRIPTION_FILE)
    described = read_description(path)["kind"]
    if described != kind:
        raise ValueError(f"{path} holds a {described} tokenizer, but the spec asks for kind {kind!r}")
    return load_tokenizer(path)


def _path_of(spec: Mapping[str, Any]) -> Path:
    if "path" not in spec:
        raise ValueError("this kind of tokenizer is read from a folder: give its `path`")
    return Path(spec["path"])
