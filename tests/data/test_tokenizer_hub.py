"""Tokens that only the settings add, control tokens that are none, marks and halves of characters in files.

The expected ids are those of transformers 5.24 for the same folders.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from data.chat import prompt_tokens
from data.tokenizers.build import check_vocab, load_tokenizer
from data.tokenizers.tokenizer_json import HFTokenizer
from tests.data.toy_tokenizers import write_json

LETTERS = ["!", "a", "b", "c", "Ġ", "<", ">", "|", "i", "m", "_", "s", "t", "r"]
SETTINGS = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
BOM = "\ufeff".encode()


def token(text: str, **flags: bool) -> dict[str, Any]:
    usual = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": text, **usual, **flags}


def folder(path: Path, settings: dict[str, Any], **files: Any) -> Path:
    """A byte-level BPE of fourteen letters; `<s>` is 14 and `</s>` 15."""
    library = tokenizers.Tokenizer(models.BPE({text: index for index, text in enumerate(LETTERS)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    path.mkdir(exist_ok=True)
    library.save(str(path / "tokenizer.json"))
    write_json(path, "tokenizer_config.json", SETTINGS | settings)
    for name, content in files.items():
        write_json(path, f"{name}.json", content)
    return path


def load(path: Path, settings: dict[str, Any], **files: Any) -> HFTokenizer:
    return HFTokenizer.from_folder(folder(path, settings, **files))


def test_tokens_of_the_settings_are_added(tmp_path: Path) -> None:
    listed = {"14": token("<s>"), "15": token("</s>"), "16": token("<|im_start|>", rstrip=True)}
    listed |= {"17": token("ab", single_word=True, special=False), "18": token("<|x|>", special=False, lstrip=True)}
    tokenizer = load(tmp_path, {"added_tokens_decoder": listed, "pad_token": "<|im_start|>"})
    assert tokenizer.vocab_size == 19
    assert tokenizer.encode("a <|im_start|>  b") == [1, 4, 16, 2]
    assert tokenizer.encode("ab cabc ab") == [17, 4, 3, 1, 2, 3, 4, 17]
    assert tokenizer.encode("a  <|x|>c") == [1, 18, 3]
    assert tokenizer.pad_id == 16
    assert tokenizer.decode([16, 1, 18, 15, 14]) == "a<|x|><s>", "eos and pad are dropped, other tokens stay"
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").encode("a<|im_start|>ab") == tokenizer.encode("a<|im_start|>ab")


def test_eos_and_pad_may_stand_in_the_settings_alone(tmp_path: Path) -> None:
    listed = {"16": token("<|end|>"), "17": token("<|pad|>", special=False)}
    tokenizer = load(tmp_path, {"eos_token": "<|end|>", "pad_token": token("<|pad|>"), "added_tokens_decoder": listed})
    assert (tokenizer.eos_ids, tokenizer.pad_id) == ((16,), 17)
    assert tokenizer.decode([1, 16, 17]) == "a", "a token with a role is special"


def test_tokens_with_a_role_are_added_behind(tmp_path: Path) -> None:
    settings = {"pad_token": "<pad>", "additional_special_tokens": ["<e1>", token("<e2>")], "image_token": "<img>"}
    tokenizer = load(tmp_path, settings | {"unk_token": "!"})
    assert tokenizer.encode("a<pad><e1><e2><img>!") == [1, 16, 18, 19, 17, 0]
    assert tokenizer.special_tokens == {
        "eos_token": "</s>",
        "unk_token": "!",
        "pad_token": "<pad>",
        "image_token": "<img>",
    }


def test_a_token_that_exists_keeps_its_id_and_another_id_is_told(tmp_path: Path) -> None:
    settings = {"added_tokens_decoder": {"7": token("!"), "15": token("</s>", special=False), "30": token("<q>")}}
    with pytest.warns(UserWarning, match="gives '!' the id 7, but .* it is 0, .* so it is with 2 tokens"):
        tokenizer = load(tmp_path, settings)
    assert tokenizer.encode("a!</s><q>") == [1, 0, 15, 16]
    assert tokenizer.decode([1, 0, 15]) == "a!"


def test_older_files_name_tokens_too(tmp_path: Path) -> None:
    added, roles = {"<|q|>": 16, "<|p|>": 17, "<s>": 14}, {"eos_token": "<s>", "pad_token": token("<|p|>")}
    tokenizer = load(tmp_path, {}, added_tokens=added, special_tokens_map=roles)
    assert tokenizer.encode("a<|q|><|p|>") == [1, 16, 17]
    assert (tokenizer.eos_ids, tokenizer.pad_id) == ((14,), 17)
    assert tokenizer.decode([1, 16, 17, 14]) == "a<|q|>"
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").encode("<|q|>") == [16]


@pytest.mark.parametrize("listed", [{"15": "</s>"}, {"x": token("<q>")}, {"16": {"special": True}}])
def test_what_is_no_token_is_named(tmp_path: Path, listed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: added_tokens_decoder holds ids and objects"):
        load(tmp_path, {"added_tokens_decoder": listed})


@pytest.mark.parametrize("pad", [-1, 16, 10**12, 2**70, [-1, 99]])
def test_a_pad_that_is_no_id_is_eos(tmp_path: Path, pad: Any) -> None:
    tokenizer = load(tmp_path, {}, generation_config={"pad_token_id": pad, "eos_token_id": [15]})
    assert (tokenizer.pad_id, tokenizer.eos_ids) == (15, (15,))
    assert tokenizer.decode(tokenizer.encode("a!b")) == "a!b"


def test_only_special_tokens_are_dropped(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, {"bos_token": "<s>"}, config={"pad_token_id": 0, "eos_token_id": [15, 1]})
    assert (tokenizer.pad_id, tokenizer.eos_ids) == (0, (15, 1))
    assert tokenizer.decode([14, *tokenizer.encode("a!b"), 15]) == "a!b"


@pytest.mark.parametrize("ids", ["2", 1.5, ["</s>"], {"id": 1}])
def test_ids_that_are_no_numbers_are_named(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id=.*, expected ids"):
        load(tmp_path, {}, generation_config={"eos_token_id": ids})


def test_a_model_with_fewer_ids_takes_its_own_tokenizer(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, {"pad_token": "<pad>", "bos_token": "<b>", "add_bos_token": True})
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.base_size) == (18, 17, 14)
    fitted = check_vocab(tokenizer, 16)
    assert (fitted.vocab_size, fitted.pad_id, fitted.eos_ids) == (16, 15, (15,))
    assert fitted.encode("a</s>") == [1, 15]
    with pytest.raises(ValueError, match=r"'a<pad>' has the id 17 \('<pad>'\), which the model with 16 ids"):
        fitted.encode("a<pad>")
    with pytest.raises(ValueError, match=r"has the id 16 \('<b>'\)"):
        prompt_tokens(fitted, "a")
    assert check_vocab(tokenizer, 18) is tokenizer
    with pytest.raises(ValueError, match="the tokenizer has 18 ids, the model's vocabulary holds 13"):
        check_vocab(tokenizer, 13)
    with pytest.raises(ValueError, match="no end-of-text token"):
        check_vocab(tokenizer, 15)


def test_marks_in_front_of_files_count_for_nothing(tmp_path: Path) -> None:
    plain = folder(tmp_path, {"pad_token": "<s>"}, generation_config={"eos_token_id": 15}, special_tokens_map={})
    (plain / "chat_template.jinja").write_text("é{{ messages[0].content }}", encoding="utf-8")
    for file in plain.iterdir():
        file.write_bytes(BOM + file.read_bytes())
    tokenizer = HFTokenizer.from_folder(plain)
    assert (tokenizer.pad_id, tokenizer.eos_ids, tokenizer.encode("ab")) == (14, (15,), [1, 2])
    assert tokenizer.chat_template == "é{{ messages[0].content }}"
    tokenizer.save(tmp_path / "copy")
    description = tmp_path / "copy" / "sagax_tokenizer.json"
    description.write_bytes(BOM + description.read_bytes())
    assert load_tokenizer(tmp_path / "copy").encode("ab") == [1, 2]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff{}", b"[" * 100_000])
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (folder(tmp_path, {}) / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        HFTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\ude00\ud83d"])
def test_half_a_character_is_no_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        load(tmp_path, {}).encode(text)


def test_templates_by_name(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    assert load(tmp_path, {"chat_template": named}).chat_templates == {"default": "D", "tool_use": "T"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R")
    (tmp_path / "chat_template.jinja").write_text("J")
    tokenizer = HFTokenizer.from_folder(tmp_path)
    assert tokenizer.chat_templates == {"default": "J", "rag": "R"}, "files win over the settings"
    tokenizer.save(tmp_path / "copy")
    assert HFTokenizer.from_folder(tmp_path / "copy").chat_templates == {"default": "J", "rag": "R"}
    write_json(tmp_path, "tokenizer_config.json", SETTINGS | {"chat_template": ["D"]})
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "additional_chat_templates" / "rag.jinja").unlink()
    with pytest.raises(ValueError, match="a list of objects with name and template"):
        HFTokenizer.from_folder(tmp_path)


def steps(kind: str, *parts: dict[str, Any]) -> dict[str, Any]:
    names = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    return {kind: {"type": "Sequence", names[kind]: list(parts)}}


def replacing(pattern: str, content: str, **more: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content, **more}


BOMBS = {
    "replace": steps("normalizer", *[replacing("a", "a" * 1000)] * 4),
    "pattern": {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 10**8}},
    "nested": steps("normalizer", *[steps("normalizer", *[replacing("a", "aa")] * 9)["normalizer"]] * 5),
    "prepend": steps("normalizer", *[{"type": "Prepend", "prepend": "a" * 9000}] * 3),
    "untyped": {"normalizer": {"normalizers": [{"pattern": {"String": "a"}, "content": "a" * 1000}] * 4}},
    "byte_level": steps(
        "pre_tokenizer", *[{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}] * 40
    ),
    "decoder": steps("decoder", *[replacing("a", "a" * 1000)] * 4),
}


@pytest.mark.more_but("replace", "byte_level", "decoder")
@pytest.mark.parametrize("bomb", BOMBS)
def test_files_that_make_texts_too_long_are_refused(tmp_path: Path, bomb: str) -> None:
    file = folder(tmp_path, {}) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | BOMBS[bomb]))
    with pytest.raises(ValueError, match=r"tokenizer\.json may turn .* characters into"):
        HFTokenizer.from_folder(tmp_path).decode([*HFTokenizer.from_folder(tmp_path).encode("aaa é"), 1])


def test_worst_cases_that_do_not_happen_are_no_reason(tmp_path: Path) -> None:
    file = folder(tmp_path, {}) / "tokenizer.json"
    usual = steps("normalizer", *[{"type": "NFKC"}] * 4, replacing("é", "a" * 100), {"type": "Lowercase"})
    file.write_text(json.dumps(json.loads(file.read_text()) | usual))
    tokenizer = HFTokenizer.from_folder(tmp_path)
    assert len(tokenizer.encode("abc" * 1000)) == 3000
    with pytest.raises(ValueError, match="may turn"):
        tokenizer.encode("a</s>" * 1000)


BACKTRACKS = {"Regex": "(a+)+b"}


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Replace", "pattern": BACKTRACKS, "content": "x"}},
        {"pre_tokenizer": {"type": "Split", "pattern": BACKTRACKS, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Nonsense"}},
        {"decoder": {"type": "Replace", "pattern": BACKTRACKS, "content": "x"}},
    ],
)
def test_panics_are_errors_that_name_the_file(tmp_path: Path, part: dict[str, Any]) -> None:
    file = folder(tmp_path, {"added_tokens_decoder": {"16": token("a" * 40)}}) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | part))
    with pytest.raises(ValueError, match=r"tokenizer\.json is a tokenizer that fails"):
        HFTokenizer.from_folder(tmp_path).encode("a" * 39)
        HFTokenizer.from_folder(tmp_path).decode([16])
