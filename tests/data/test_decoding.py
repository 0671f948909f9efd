"""What a completion adds to its prompt's text, and a demonstration's ids where it goes on."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizers.base import Tokenizer
from data.tokenizers.characters import ByteTokenizer, CharTokenizer
from data.tokenizers.decoding import TAIL, encode_after, tail_of, text_of, token_texts
from data.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data.tokenizers.tokenizer_json import train_bpe
from tests.data import toy_tokenizers

LINE = "def f(a):\n"
BODY = "    return a"


def with_dummy_prefix(folder: Path) -> SentencePieceTokenizer:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["return a", "def f ( a ) : return b", "a b c d e f"] * 9),
        model_writer=file,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(file.getvalue())
    return SentencePieceTokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: Any) -> dict[str, Any]:
    def folder(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    return {
        "llama": toy_tokenizers.load(toy_tokenizers.llama(), folder("llama")),
        "metaspace": toy_tokenizers.load(toy_tokenizers.metaspace(), folder("metaspace")),
        "sentencepiece": with_dummy_prefix(folder("sentencepiece")),
        "byte_level": train_bpe(["the cat 漢漢"] * 3, folder("bpe"), 262),
        "byte": ByteTokenizer(),
    }


KINDS = ["llama", "metaspace", "sentencepiece", "byte_level", "byte"]
PREFIXED = KINDS[:3]


def continued(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """The ids of a prompt, and those that a text adds to them where both are one text."""
    asked, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
    assert whole[: len(asked)] == asked
    return asked, whole[len(asked) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [BODY, " return a", "return a", "\n    é漢", "", "\N{GRINNING FACE} a"])
def test_a_completion_keeps_its_first_spaces(kinds: dict[str, Any], kind: str, text: str) -> None:
    prompt, ids = continued(kinds[kind], LINE, text)
    assert text_of(ids, kinds[kind], prompt) == text
    assert "".join(token_texts(ids, kinds[kind], prompt)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_ends_in_a_control_token(kinds: dict[str, Any], kind: str) -> None:
    tokenizer = kinds[kind]
    prompt, ids = continued(tokenizer, LINE, BODY)
    for last in (tokenizer.eos_id, tokenizer.pad_id, *([4 - 1] if kind in ("llama", "metaspace") else [])):
        assert text_of(ids, tokenizer, [*prompt, *[last] * TAIL]) == BODY
    assert text_of([*ids, tokenizer.eos_id], tokenizer, prompt) == BODY
    assert text_of([tokenizer.eos_id, *ids], tokenizer, prompt) == BODY


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("char", ["é", "漢", "\N{GRINNING FACE}"])
@pytest.mark.parametrize("before", ["a", "漢", "漢漢漢漢漢漢漢漢漢漢漢漢漢漢"])
def test_a_character_whose_bytes_are_split(kinds: dict[str, Any], kind: str, char: str, before: str) -> None:
    tokenizer = kinds[kind]
    start, whole = tokenizer.encode(before), tokenizer.encode(before + char + "b")
    for cut in range(len(start), len(whole)):
        text = char + "b" if cut < len(whole) - 1 else "b"
        assert text_of(whole[cut:], tokenizer, whole[:cut]) == text, "the character is the completion's"


@pytest.mark.parametrize("kind", ["llama", "metaspace"])
@pytest.mark.parametrize("before", ["a", "漢", "漢字" * 40])
def test_half_a_character_leaves_the_prompt_as_it_is(kinds: dict[str, Any], kind: str, before: str) -> None:
    tokenizer = kinds[kind]
    prompt = tokenizer.encode(before)
    assert text_of([4 + 0xE6], tokenizer, prompt) == "\ufffd"
    assert text_of([4 + 0xE6, 4 + 0xBC], tokenizer, prompt) == "\ufffd\ufffd"


def test_ids_beyond_the_tokenizer_read_as_replacement_and_eat_nothing(kinds: dict[str, Any]) -> None:
    tokenizer = kinds["llama"]
    prompt, ids = continued(tokenizer, LINE, BODY)
    beyond = tokenizer.vocab_size + 3
    assert text_of([*ids, beyond, *ids], tokenizer, [beyond, *prompt, beyond]) == f"{BODY}\ufffd{BODY}"
    assert token_texts([beyond, *ids], tokenizer, prompt)[0] == "\ufffd"


def test_texts_of_tokens_are_those_they_add(kinds: dict[str, Any]) -> None:
    tokenizer = kinds["llama"]
    prompt, ids = continued(tokenizer, LINE, " 漢a")
    assert token_texts(ids, tokenizer, prompt) == [" ", "", "", "漢", "a"]
    assert token_texts([*ids, 4 + 0xE6], tokenizer, prompt)[-1] == "\ufffd"
    assert token_texts([], tokenizer, prompt) == []


def test_words_in_pieces_go_on(tmp_path: Path) -> None:
    tokenizer = toy_tokenizers.load(toy_tokenizers.word_piece(), tmp_path)
    prompt, ids = tokenizer.encode("a b"), tokenizer.encode("c")
    assert text_of(ids, tokenizer, prompt) == " c"
    assert text_of(ids, tokenizer) == "c"


def test_the_end_of_a_prompt_is_enough(kinds: dict[str, Any]) -> None:
    for tokenizer in kinds.values():
        long = tokenizer.encode("ab\n" * 4000)
        assert len(tail_of(long, tokenizer)) == TAIL
        assert tail_of(long[:5], tokenizer) == long[:5] and tail_of([], tokenizer) == []
    assert len(tail_of(kinds["llama"].encode("漢" * 30), kinds["llama"])) > TAIL, "not from inside a character"


@settings(max_examples=60, deadline=None)
@given(prompt=st.text("ab 漢\n", max_size=60), text=st.text("ab 漢é\n", max_size=20))
def test_prompt_and_completion_are_the_whole_text(kinds: dict[str, Any], prompt: str, text: str) -> None:
    for kind in ("llama", "sentencepiece", "byte_level", "byte"):
        tokenizer = kinds[kind]
        asked, ids = tokenizer.encode("a" + prompt), encode_after(text, tokenizer, tokenizer.encode("a" + prompt))
        assert text_of(ids, tokenizer, asked) == text
        assert tokenizer.decode([*asked, *ids]) == "a" + prompt + text


@pytest.mark.parametrize("kind", PREFIXED)
@pytest.mark.parametrize("text", ["a", BODY, "\na", " a", ""])
def test_a_demonstration_goes_on_without_another_space(kinds: dict[str, Any], kind: str, text: str) -> None:
    tokenizer = kinds[kind]
    prompt = tokenizer.encode(LINE)
    assert text_of(encode_after(text, tokenizer, prompt), tokenizer, prompt) == text


def test_other_tokenizers_encode_a_demonstration_alone(kinds: dict[str, Any]) -> None:
    pairs = CharTokenizer(pair="~", alphabet="ab\n")
    assert encode_after("a~bb", pairs, pairs.encode("b~a")) == pairs.encode("a~bb")
    for kind in ("byte_level", "byte"):
        for text in (BODY, "a", " a", "漢"):
            assert encode_after(text, kinds[kind], kinds[kind].encode(LINE)) == kinds[kind].encode(text)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), prompt=st.text("ab 漢\n", max_size=50))
def test_whatever_ids_a_model_samples(kinds: dict[str, Any], data: st.DataObject, prompt: str) -> None:
    for tokenizer in kinds.values():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=9))
        asked = tokenizer.encode(prompt)
        text, start, whole = text_of(ids, tokenizer, asked), tokenizer.decode(asked), tokenizer.decode([*asked, *ids])
        assert "".join(token_texts(ids, tokenizer, asked)) == text
        if start.strip() and whole.startswith(start):
            assert start + text == whole


def test_every_id_beyond_the_tokenizer_is_a_character_of_its_own() -> None:
    tokenizer = CharTokenizer("ab")
    beyond, (letter,) = tokenizer.vocab_size, tokenizer.encode("a")
    assert (
        text_of([beyond, beyond + 1, letter, beyond], tokenizer)
        == "\N{REPLACEMENT CHARACTER}" * 2 + "a\N{REPLACEMENT CHARACTER}"
    )
