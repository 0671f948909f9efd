"""Ids that end, begin and fill texts: merged from several files, checked, and the same after saving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data.tokenizers.build import load_tokenizer
from data.tokenizers.tokenizer_json import train_bpe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 300 ids at most, as the Hub has it."""
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(["the cat sat on the mat"], folder, 300)
    return folder


@pytest.fixture
def hub(trained: Path, tmp_path: Path) -> Path:
    """A folder of its own, whose tokenizer names an end and nothing else."""
    shutil.copy(trained / "tokenizer.json", tmp_path)
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<eos>"})
    return tmp_path


def write(folder: Path, name: str, content: dict) -> None:
    (folder / name).write_text(json.dumps(content))


def test_a_byte_order_mark_is_no_part_of_a_file(hub: Path) -> None:
    write(hub, "generation_config.json", {"eos_token_id": [1, 3], "top_p": 0.5})
    write(hub, "config.json", {"pad_token_id": 4})
    for name in ("config.json", "generation_config.json"):
        (hub / name).write_bytes(b"\xef\xbb\xbf" + (hub / name).read_bytes())
    load_tokenizer(hub).save(hub / "copy")
    for folder in (hub, hub / "copy"):
        assert (load_tokenizer(folder).eos_ids, load_tokenizer(folder).pad_id) == ((1, 3), 4)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"[]", b"", b'{"eos_token_id": [1', b"\xff\xfe", b"[" * 100_000])
def test_json_that_is_none_is_named(name: str, content: bytes, hub: Path) -> None:
    (hub / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"/{name}\b"):
        load_tokenizer(hub)


@pytest.mark.parametrize(
    ("config", "generation", "ends", "pad"),
    [
        ({"eos_token_id": [1, 3]}, {"temperature": 0.5}, (1, 3), 1),
        ({"eos_token_id": [1, 3], "pad_token_id": 4}, {"eos_token_id": None, "pad_token_id": None}, (1, 3), 4),
        ({"eos_token_id": 3, "pad_token_id": 2, "bos_token_id": 5}, None, (1, 3), 2),
        ({}, {"eos_token_id": [3, 1], "pad_token_id": 4}, (1, 3), 4),
        ({"eos_token_id": [5, 6], "pad_token_id": 7}, {"eos_token_id": 3, "pad_token_id": 4}, (1, 3), 4),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": [], "pad_token_id": [4]}, (1,), 4),
    ],
)
def test_ids_merged_from_several_files_survive_saving(
    config: dict, generation: dict | None, ends: tuple, pad: int, hub: Path
) -> None:
    """What was merged on reading is what is written, of eos, pad and bos; the file's other settings stay."""
    write(hub, "config.json", config)
    if generation is not None:
        write(hub, "generation_config.json", generation)
    tokenizer = load_tokenizer(hub)
    for copy in (hub / "copy", hub / "copy" / "again"):
        assert (tokenizer.eos_ids, tokenizer.pad_id) == (ends, pad)
        tokenizer.save(copy)
        tokenizer = load_tokenizer(copy)
        written = json.loads((copy / "generation_config.json").read_text())
        assert written.get("bos_token_id") == config.get("bos_token_id")
        assert written.get("temperature") == (generation or {}).get("temperature")


def test_a_generation_config_that_says_all_is_copied_as_it_is(hub: Path) -> None:
    text = '{ "eos_token_id": [1, 3],   "top_p": 0.9 }'
    (hub / "generation_config.json").write_text(text)
    write(hub, "config.json", {"eos_token_id": 2})
    load_tokenizer(hub).save(hub / "copy")
    assert (hub / "copy" / "generation_config.json").read_text() == text


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [-1, 10**13, 600, "abc", [1, -1], [1, "2"], True, 1.5, {"id": 1}], ids=str)
def test_an_end_id_that_is_none_is_named(name: str, value: object, hub: Path) -> None:
    write(hub, "config.json", {"vocab_size": 512})
    write(hub, name, {"vocab_size": 512, "eos_token_id": value})
    with pytest.raises(ValueError, match=rf"/{name}: eos_token_id=.*expected ids from 0 to 511, or null"):
        load_tokenizer(hub)


def test_an_end_id_of_the_models_vocabulary_alone_is_one(hub: Path) -> None:
    """Embeddings are often padded beyond the tokenizer; a run directory then holds the tokenizer alone."""
    write(hub, "config.json", {"vocab_size": 512, "eos_token_id": [1, 500]})
    tokenizer = load_tokenizer(hub)
    assert tokenizer.eos_id == 1
    tokenizer.save(hub / "run")
    assert load_tokenizer(hub / "run").eos_ids == tokenizer.eos_ids
