"""Tokenizers from the libraries: Hub folders, sentencepiece models, and training small ones."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from data.tokenizers.base import Tokenizer
from data.tokenizers.build import build_tokenizer, load_tokenizer
from data.tokenizers.sentencepiece_model import train_sentencepiece
from data.tokenizers.tokenizer_json import HFTokenizer, train_bpe
from data.tokenizers.words import translated

TEXTS = [
    "the cat sat on the mat\nand 12 + 34 = 46",
    "what is 7 * 8? it is 56.",
    "the mat is flat, the cat is fat",
] * 3
SAMPLES = ["the cat 123+456=579", "<think>1\n\n2</think> é 漢字 \t", "", "  two  spaces ", "\U0001f600"]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Tokenizer:
    return train_bpe(TEXTS, tmp_path_factory.mktemp("bpe"), 300)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> Tokenizer:
    return train_sentencepiece(TEXTS, tmp_path_factory.mktemp("spm"), 320)


@pytest.fixture(params=["bpe", "sentencepiece"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", SAMPLES)
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_specials_and_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("<think></think>")) == 2
    assert len(tokenizer.encode("<think>123</think>")) == 5


def test_decode_drops_control_ids_only(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.pad_id, *tokenizer.encode("<think>cat"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "<think>cat"
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, None)


def test_saved_and_loaded_tokenizers_agree(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert (loaded.pad_id, loaded.eos_ids) == (tokenizer.pad_id, tokenizer.eos_ids)
    assert [loaded.encode(text) for text in SAMPLES] == [tokenizer.encode(text) for text in SAMPLES]


def test_decode_refuses_foreign_ids(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="outside the tokenizer's vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def test_the_vocabulary_stays_within_its_limit(bpe: Tokenizer, sentencepiece: Tokenizer) -> None:
    assert 256 < bpe.vocab_size <= 300
    assert 256 < sentencepiece.vocab_size <= 320


@settings(max_examples=50)
@given(text=st.text(max_size=40))
def test_bpe_round_trips_any_text(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize("train", [train_bpe, train_sentencepiece])
def test_a_vocabulary_too_small_for_the_bytes_is_refused(train, tmp_path) -> None:
    with pytest.raises(ValueError, match="256 bytes"):
        train(TEXTS, tmp_path, 200)


def test_training_without_text_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no text"):
        train_sentencepiece(["", "\n"], tmp_path, 300)


def test_sentencepiece_folders_without_our_description_load(sentencepiece: Tokenizer, tmp_path) -> None:
    sentencepiece.save(tmp_path)
    (tmp_path / "sagax_tokenizer.json").unlink()
    assert load_tokenizer(tmp_path).encode("cat") == sentencepiece.encode("cat")
    assert build_tokenizer({"kind": "sentencepiece", "path": str(tmp_path)}).vocab_size == sentencepiece.vocab_size


def test_a_file_that_is_no_model_is_refused(tmp_path) -> None:
    (tmp_path / "bad.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        load_tokenizer(tmp_path)


@pytest.fixture
def hub(bpe: Tokenizer, tmp_path) -> Path:
    bpe.save(tmp_path)
    (tmp_path / "sagax_tokenizer.json").unlink()
    (tmp_path / "special_tokens_map.json").unlink()
    return tmp_path


def write(folder: Path, name: str, content: dict) -> None:
    (folder / name).write_text(json.dumps(content))


def test_eos_may_be_a_list_in_the_generation_config(hub: Path) -> None:
    write(hub, "tokenizer_config.json", {"eos_token": {"content": "<eos>"}})
    write(hub, "generation_config.json", {"eos_token_id": [2, 1], "pad_token_id": 3, "bos_token_id": 0})
    tokenizer = load_tokenizer(hub)
    assert tokenizer.eos_ids == (1, 2)
    assert tokenizer.pad_id == 3
    assert tokenizer.bos_id is None, "a bos that is only mentioned must not be put in front"
    assert tokenizer.decode([1, 2, 3, *tokenizer.encode("cat")]) == "cat"


def test_eos_may_stand_in_the_model_config_alone(hub: Path) -> None:
    write(hub, "tokenizer_config.json", {})
    (hub / "generation_config.json").unlink(missing_ok=True)
    write(hub, "config.json", {"eos_token_id": 1})
    tokenizer = load_tokenizer(hub)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (1, 1)
    tokenizer.save(hub / "copy")
    assert load_tokenizer(hub / "copy").eos_ids == (1,)


def test_a_folder_without_eos_is_refused(hub: Path) -> None:
    write(hub, "tokenizer_config.json", {})
    (hub / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="no end-of-text token"):
        load_tokenizer(hub)


def test_a_control_token_that_is_not_in_the_vocabulary_is_refused(hub: Path) -> None:
    write(hub, "tokenizer_config.json", {"eos_token": "<nowhere>"})
    with pytest.raises(ValueError, match="<nowhere>"):
        load_tokenizer(hub)


def test_bos_is_taken_where_the_tokenizer_adds_it(hub: Path) -> None:
    write(hub, "tokenizer_config.json", {"eos_token": "<eos>", "bos_token": "<pad>", "add_bos_token": True})
    assert load_tokenizer(hub).bos_id == 0


def test_chat_templates_are_found(hub: Path) -> None:
    settings_ = {
        "eos_token": "<eos>",
        "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}],
    }
    write(hub, "tokenizer_config.json", settings_)
    assert load_tokenizer(hub).chat_template == "D"
    (hub / "chat_template.jinja").write_text("J")
    assert load_tokenizer(hub).chat_template == "J"
    load_tokenizer(hub).save(hub / "copy")
    assert load_tokenizer(hub / "copy").chat_template == "J"


def test_a_broken_settings_file_is_named(hub: Path) -> None:
    (hub / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(hub)


def test_a_file_can_be_overwritten_by_saving_in_place(hub: Path) -> None:
    tokenizer = load_tokenizer(hub)
    tokenizer.save(hub)
    assert load_tokenizer(hub).encode("cat") == tokenizer.encode("cat")


# --- many texts at once

# What DeepSeek-V3 and what Qwen and Llama 3 cut texts by.
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
HOSTILE = [
    "",
    " ",
    "\0the\0cat\x1c \x1fsat\x85on\u2028the mat",
    "the <think>cat</think> <eos>sat <pad>",
    "the cat\r\n\r\n  sat \r on\t\t\n the mat \n\n",
    "I'll, he'S the ''s cat'll 'the'rest 12345 3.14 1 2  3",
    "the \U0001f600\U0001f469\u200d\U0001f680 cat sat on é e\u0301 the mat ² ٣ Ⅷ 漢字 the ſ cat",
    "“the cat” – sat on the mat … cat\u0301 the\u0301 mat",
    "a_b __c__ $x+=~y (z)[0]{1}<2> \\n a||b&&c --- ***",
    "the" * 40 + " " * 90 + "=" * 70,
]
PARTS = [*"ab1 \n\r\t'\"_$^\x1c\x85é中\u0301²🙂", " a", "a b", "'ll", "<think>", "\r\n"]


def cut_by(patterns: tuple[str, ...], path: Path, **parts: object) -> HFTokenizer:
    """A trained tokenizer with other steps before its words."""
    train_bpe([*TEXTS, *HOSTILE], path, 400)
    library = Library.from_file(str(path / "tokenizer.json"))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*splits, level])
    for name, part in parts.items():
        setattr(library, name, part)
    library.save(str(path / "tokenizer.json"))
    return HFTokenizer.from_folder(path)


@pytest.fixture(scope="module", params=["bpe", "deepseek", "qwen", "unsure"])
def batching(request, tmp_path_factory) -> HFTokenizer:
    path = tmp_path_factory.mktemp(request.param)
    match request.param:
        case "deepseek":
            return cut_by(DEEPSEEK, path, normalizer=normalizers.Sequence([]))
        case "qwen":
            return cut_by(QWEN, path, normalizer=normalizers.NFC())
        case "unsure":
            return cut_by((r"\w+|\s+",), path, normalizer=normalizers.Lowercase())
    return train_bpe(TEXTS, path, 300)


def test_words_are_remembered_where_that_is_sure(batching: HFTokenizer, request) -> None:
    assert (batching._library._words is None) == ("unsure" in request.node.name)


def test_tokens_that_normal_forms_may_hide_are_left_to_the_library(tmp_path: Path) -> None:
    made = cut_by(QWEN, tmp_path, normalizer=normalizers.NFKC())
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    library.add_tokens(["ffo bar"])
    library.save(str(tmp_path / "tokenizer.json"))
    more = HFTokenizer.from_folder(tmp_path)
    assert made._library._words is not None and more._library._words is None
    text = "the cat ﬀo bar"
    assert more.encode_batch([text])[0].tolist() == more.encode(text) != made.encode_batch([text])[0].tolist()


def test_many_texts_have_the_ids_of_each(batching: HFTokenizer) -> None:
    for texts in (HOSTILE, HOSTILE[::-1], [text * 9 for text in HOSTILE], ["\n".join(HOSTILE)], []):
        found = batching.encode_batch(texts)
        assert [ids.tolist() for ids in found] == [batching.encode(text) for text in texts]
        assert all(ids.dtype == "uint32" for ids in found)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(st.lists(st.sampled_from(PARTS)).map("".join), st.text(max_size=30)), max_size=4))
def test_random_texts_have_the_ids_of_each(batching: HFTokenizer, texts: list[str]) -> None:
    texts = [text.encode(errors="replace").decode() for text in texts]
    assert [ids.tolist() for ids in batching.encode_batch(texts)] == [batching.encode(text) for text in texts]


def test_many_texts_are_refused_as_each(batching: HFTokenizer) -> None:
    for half in ("\ud800", "the cat \udfff sat"):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            batching.encode_batch(["the cat", half])
    with pytest.raises(ValueError, match="no embedding for"):
        batching.within(20).encode_batch(["<think>", "the cat"])


def test_words_may_be_forgotten(bpe: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("data.tokenizers.words.MOST_WORDS", 5)
    monkeypatch.setattr("data.tokenizers.library.GROUP", 8)
    assert [ids.tolist() for ids in bpe.encode_batch(SAMPLES * 2)] == [bpe.encode(text) for text in SAMPLES * 2]


@pytest.mark.parametrize(
    "pattern", [r"\w+", "a.", "^a", "a$", r"\p{N}{1,3}+", "[a[b]]", "[a-z&&[^b]]", r"\p{Han}", r"\bx"]
)
def test_patterns_that_python_may_read_otherwise_are_left_alone(pattern: str) -> None:
    assert translated(pattern) is None
