"""The untrained tokenizers, the builders, and the helpers for vocabularies and stop strings."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tokenizers.base import find_stop
from data.tokenizers.build import build_tokenizer, check_vocab, load_tokenizer
from data.tokenizers.characters import ByteTokenizer, CharTokenizer

ALPHABET = "0123456789+=,"


def test_char_gives_one_id_per_character_and_special() -> None:
    tokenizer = CharTokenizer(ALPHABET)
    assert tokenizer.vocab_size == 2 + 2 + len(ALPHABET)
    ids = tokenizer.encode("<think>1+2</think>3")
    assert len(ids) == 6
    assert len(set(ids)) == 6
    assert tokenizer.decode(ids) == "<think>1+2</think>3"


def test_char_names_the_unknown_character_and_the_alphabet() -> None:
    with pytest.raises(ValueError, match=r"'x' \(U\+0078\) at position 2 .*0123456789"):
        CharTokenizer(ALPHABET).encode("12x")


def test_the_text_of_a_control_token_never_becomes_its_id() -> None:
    tokenizer = build_tokenizer({"kind": "char"})
    for text in ("<eos>", "<pad>", "</s>"):
        ids = tokenizer.encode(text)
        assert not {tokenizer.pad_id, tokenizer.eos_id} & set(ids)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("tokenizer", [CharTokenizer(ALPHABET), ByteTokenizer()])
def test_decode_drops_pad_and_eos_and_keeps_other_specials(tokenizer: CharTokenizer | ByteTokenizer) -> None:
    ids = [tokenizer.pad_id, *tokenizer.encode("<think>1"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "<think>1"


@pytest.mark.parametrize("tokenizer", [CharTokenizer(ALPHABET), ByteTokenizer()])
def test_decode_refuses_ids_outside_the_vocabulary(tokenizer: CharTokenizer | ByteTokenizer) -> None:
    for index in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside the tokenizer's vocabulary"):
            tokenizer.decode([index])


@given(st.text())
def test_bytes_round_trip_any_text(text: str) -> None:
    tokenizer = ByteTokenizer(("<think>", "</think>", "<th"))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.sampled_from([*ALPHABET, "<think>", "</think>"])).map("".join))
def test_characters_round_trip_their_alphabet(text: str) -> None:
    tokenizer = CharTokenizer(ALPHABET)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_specials_are_matched_longest_first() -> None:
    tokenizer = ByteTokenizer(("<a", "<a>"))
    assert tokenizer.encode("<a><a") == [259, 258]


def test_a_tokenizer_may_have_no_specials() -> None:
    assert ByteTokenizer(()).encode("<think>") == list(b"<think>")
    assert CharTokenizer("ab", ()).encode("ba") == [3, 2]


@pytest.mark.parametrize("tokenizer", [CharTokenizer(ALPHABET, ("<x>",)), ByteTokenizer(("<x>", "<y>"))])
def test_saved_and_loaded_tokenizers_are_equal(tokenizer: CharTokenizer | ByteTokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path / "new" / "folder")
    assert load_tokenizer(tmp_path / "new" / "folder") == tokenizer
    kind = "char" if isinstance(tokenizer, CharTokenizer) else "byte"
    assert build_tokenizer({"kind": kind, "path": str(tmp_path / "new" / "folder")}) == tokenizer


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "chars"}, "Did you mean 'char'"),
        ({"kind": "char", "alfabet": "ab"}, "Did you mean 'alphabet'"),
        ({}, "a tokenizer needs a kind, one of"),
        ({"kind": "char", "alphabet": "aba"}, "repeated: \\['a'\\]"),
        ({"kind": "byte", "specials": "<think>"}, "list of strings"),
        ({"kind": "byte", "specials": ["<a>", "<a>"]}, "distinct"),
        ({"kind": "byte", "specials": ["a"]}, "two or more characters"),
        ({"kind": "hf"}, "give its `path`"),
    ],
)
def test_wrong_specs_are_refused(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tokenizer(spec)


def test_absent_options_may_be_written_as_none() -> None:
    assert build_tokenizer({"kind": "char", "alphabet": None, "path": ""}) == CharTokenizer()


def test_a_folder_without_a_tokenizer_says_what_it_holds(tmp_path) -> None:
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(FileNotFoundError, match=r"found: weights\.bin"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_tokenizer(tmp_path / "absent")


def test_a_folder_of_another_kind_is_refused(tmp_path) -> None:
    ByteTokenizer().save(tmp_path)
    with pytest.raises(ValueError, match="holds a byte tokenizer"):
        build_tokenizer({"kind": "char", "path": str(tmp_path)})
    with pytest.raises(ValueError, match="got both"):
        build_tokenizer({"kind": "byte", "path": str(tmp_path), "specials": ["<x>"]})


def test_a_broken_description_is_refused(tmp_path) -> None:
    (tmp_path / "sagax_tokenizer.json").write_text(json.dumps({"kind": "morse"}))
    with pytest.raises(ValueError, match="names no tokenizer kind"):
        load_tokenizer(tmp_path)


def test_check_vocab() -> None:
    check_vocab(ByteTokenizer(), 260)
    with pytest.raises(ValueError, match="260 ids, the model's vocabulary holds 259"):
        check_vocab(ByteTokenizer(), 259)


def test_find_stop_gives_the_earliest() -> None:
    assert find_stop("abc\n\nQuestion", ["Question", "\n\n"]) == 3
    assert find_stop("abc", ["x"]) is None
    assert find_stop("abc", ()) is None
    assert find_stop("abc", "c") == 2
    with pytest.raises(ValueError, match="empty stop"):
        find_stop("abc", [""])


def test_joined_characters_are_one_id_behind_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(ALPHABET, ("<think>",), "~")
    size = tokenizer.vocab_size
    assert size == CharTokenizer(ALPHABET, ("<think>",)).vocab_size
    ids = tokenizer.encode("<think>1~22~1+~+3")
    one, two, plus, three = (tokenizer.encode(char)[0] for char in "12+3")
    assert ids[1:] == [size + one * size + two, size + two * size + one, size + plus * size + plus, three]
    assert tokenizer.decode(ids) == "<think>1~22~1+~+3"
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path) == tokenizer
    with pytest.raises(ValueError, match="outside the tokenizer's vocabulary"):
        tokenizer.decode([size + size * size])


@pytest.mark.parametrize("text", ["~1", "1~", "1~~2", "1~x", "<think>~1"])
def test_a_joiner_without_two_characters_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not in the alphabet"):
        CharTokenizer(ALPHABET, ("<think>",), "~").encode(text)


def test_a_joiner_is_one_character_outside_the_alphabet() -> None:
    for pair in ("+", "->"):
        with pytest.raises(ValueError, match="one character outside the alphabet"):
            CharTokenizer(ALPHABET, pair=pair)


def test_pairs_want_a_model_that_knows_them() -> None:
    tokenizer = CharTokenizer(ALPHABET, pair="~")
    check_vocab(tokenizer, tokenizer.vocab_size, pairs=True)
    for size, pairs in ((tokenizer.vocab_size, False), (tokenizer.vocab_size + 1, True)):
        with pytest.raises(ValueError, match=r"set model\.pairs"):
            check_vocab(tokenizer, size, pairs)
