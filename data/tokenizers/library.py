"""The library tokenizers, with its panics as errors that name the file and a bound on what it writes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizers.growth import MOST_TEXT, Part, check_growth, most_characters, stages_of
from data.tokenizers.words import Words, as_bytes, words_of
from store.files import parse_json, read_text

GROUP = 1 << 20  # characters that are encoded at once
NOTHING = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}


class Library:
    """A `tokenizer.json` as the library runs it; every error is a ValueError that names the file."""

    def __init__(self, file: Path) -> None:
        """Reads the file; ValueError when it is none, or its normalizer would make its own tokens too long."""
        self.file = file
        text = read_text(file).removeprefix("\ufeff")
        content = parse_json(text, str(file))
        if not isinstance(content, Mapping):
            raise ValueError(f"{file} holds a {type(content).__name__}, expected an object")
        self._normalizer = stages_of(content.get("normalizer"))
        self._decoder = stages_of(content.get("decoder"))
        self._before = stages_of(content.get("pre_tokenizer"))
        self._stages = dict[str, Any]()
        added = [token for token in content.get("added_tokens") or [] if isinstance(token, Mapping)]
        self._apart = [str(token.get("content")) for token in added if not token.get("normalized")]
        # Tokens are normalized as the file is read.
        for token in added:
            self._check(str(token.get("content")), pieces=False)
        with self._guarded():
            self._tokenizer = import_tokenizers().Tokenizer.from_str(text)
            # What a checkpoint set for batches of its own must not cut or fill ours.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()

    @cached_property
    def vocab(self) -> dict[str, int]:
        """All tokens, the added ones included, and their ids."""
        with self._guarded():
            return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def added(self) -> dict[int, Any]:
        """Returns the added tokens by id, as the library's AddedToken."""
        with self._guarded():
            return dict(self._tokenizer.get_added_tokens_decoder())

    def add(self, tokens: Sequence[Any]) -> None:
        """Adds tokens (AddedToken): those that have an id keep it, others get the next ones."""
        for token in tokens:
            self._check(token.content, pieces=False)
            self._apart += [] if token.normalized else [token.content]
        with self._guarded():
            self._tokenizer.add_tokens(list(tokens))
        self.__dict__.pop("vocab", None)
        self.__dict__.pop("_words", None)

    def id_of(self, token: str) -> int | None:
        """Returns a token's id, or None."""
        with self._guarded():
            return self._tokenizer.token_to_id(token)

    def token(self, index: int) -> str | None:
        """Returns the token of an id, or None."""
        with self._guarded():
            return self._tokenizer.id_to_token(index)

    def encode(self, text: str, add_special_tokens: bool = False) -> Any:
        """Returns the library's Encoding (`ids`, `offsets`) of a text."""
        self._check(text)
        with self._guarded():
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of many texts, uint32, as `encode` has them."""
        for text in texts:
            self._check(text)
        encode = self._arrays if self._words is None else self._words.encode
        return [ids for group in grouped(texts) for ids in encode(group)]

    def _arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(as_bytes(encoding), np.uint32) for encoding in self._encodings(texts)]

    @cached_property
    def _words(self) -> Words | None:
        if getattr(self._tokenizer.model, "dropout", None):
            return None
        added = list(self.added().values())
        return words_of(self._normalizer, self._before, added, self._splits, self._encodings)

    def _encodings(self, texts: Sequence[str]) -> Any:
        # The fast call leaves offsets out, and nothing else.
        with self._guarded():
            return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def _splits(self, text: str) -> list[str]:
        with self._guarded():
            found = self._tokenizer.pre_tokenizer.pre_tokenize_str(text)
            return [text[start:end] for _, (start, end) in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids."""
        longest = len(ids) * self._longest
        if longest > MOST_TEXT:
            longest = sum(len(self.token(index) or "") for index in ids)
        check_growth(longest + len(ids), self._decoder, f"the decoder of {self.file}")
        with self._guarded():
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.vocab), default=0)

    def _check(self, text: str, pieces: bool = True) -> None:
        """Raises ValueError for a text that the library cannot take, or that would grow too long in it."""
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = ord(error.object[error.start])
                raise ValueError(
                    f"a text to encode holds \\u{half:04x}, half of a surrogate pair and no character: {text[:60]!r}"
                ) from None
        if most_characters(len(text), [*self._normalizer, *self._before]) > MOST_TEXT:
            self._check_by_steps(text, pieces and any(token in text for token in self._apart))

    def _check_by_steps(self, text: str, pieces: bool) -> None:
        """Raises ValueError for a text that may become too long, worst case after what earlier steps really make of it.

        A text with added tokens is normalized in the `pieces` between them: there it is the worst case of all steps.
        """
        steps = [] if pieces else self._normalizer
        for stage in steps:
            check_growth(len(text), [stage], f"the normalizer of {self.file}")
            text = self._normalized(stage, text)
        rest = [] if steps else self._normalizer
        check_growth(len(text), [*rest, *self._before], f"the normalizer or pre-tokenizer of {self.file}")

    def _normalized(self, stage: Part, text: str) -> str:
        """A text after one step of the normalizer."""
        key = json.dumps(stage)
        with self._guarded():
            if key not in self._stages:
                alone = json.dumps(NOTHING | {"normalizer": stage})
                self._stages[key] = import_tokenizers().Tokenizer.from_str(alone).normalizer
            return str(self._stages[key].normalize_str(text))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # The library's panics are no Exception, and its errors are nothing more special than that.
            if type(error).__name__ != "PanicException" and type(error) is not Exception:
                raise
            raise ValueError(f"{self.file} is a tokenizer that fails ({error}); is the file whole?") from None


def grouped(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in groups of about GROUP characters, since a hundred bytes are in use for each token of a group."""
    group, held = list[str](), 0
    for text in texts:
        if group and held + len(text) > GROUP:
            yield group
            group, held = [], 0
        group.append(text)
        held += len(text)
    yield group


def import_tokenizers() -> Any:
    """Returns the library, with its modules; ImportError that says what to install."""
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ImportError("this tokenizer needs the library tokenizers: pip install tokenizers") from error
    return tokenizers
