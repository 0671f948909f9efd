"""Files that users give: byte-order marks, other encodings, and halves of characters in JSON."""

import json
from pathlib import Path

import pytest

from data.sources.examples import read_jsonl
from data.tasks import build_task
from infer.load import open_origin
from infer.samples import read
from store.files import parse_json, read_json, read_json_object, read_text

BOM = "\ufeff".encode()
ROW = {"question": "Wie viel? é", "answer": "#### 2"}
LINE = json.dumps(ROW, ensure_ascii=False).encode()


@pytest.mark.parametrize("content", [BOM + LINE, LINE + b"\n" + BOM + LINE + b"\n\n", BOM + LINE + b"\r\n" + LINE])
def test_marks_in_front_of_lines_count_for_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    assert read_jsonl(file) == [ROW] * content.count(b"question")


def test_marks_inside_a_text_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(BOM + BOM + b"a" + BOM)
    assert read_text(tmp_path / "a.txt") == "\ufeffa\ufeff"
    (tmp_path / "a.jsonl").write_bytes(BOM + b'{"a": "\xef\xbb\xbfb"}')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": "\ufeffb"}]


@pytest.mark.parametrize(("name", "row"), [("gsm8k", ROW), ("math", {"problem": "1+1?", "answer": "2"})])
def test_tasks_read_marked_files(name: str, row: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(BOM + json.dumps(row).encode())
    assert len(build_task(name, path=str(tmp_path)).examples("train")) == 1


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00", "\\ud83d\\u0041", "\\ude00\\ud83d"])
@pytest.mark.parametrize("row", ['{"a": "b%s"}', '{"%s": "b"}', '{"a": [{"b": "%s"}]}'])
def test_half_a_character_is_named_with_its_line(tmp_path: Path, half: str, row: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": "\\ud83d\\ude00"}\n' + row.replace("%s", half))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: \\ud[e8]..? after .* is half of a surrogate pair"):
        read_jsonl(file)


def test_whole_pairs_are_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "\\ud83d\\ude00 \\\\ud83d \\ufffd"}')
    assert read_jsonl(tmp_path / "a.jsonl") == [{"a": "\N{GRINNING FACE} \\ud83d \N{REPLACEMENT CHARACTER}"}]


def test_other_encodings_are_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINE + b'\n{"a": "\xe9"}')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: byte 0xe9 is not UTF-8"):
        read_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.json").write_text("{}", encoding="utf-16")
    with pytest.raises(ValueError, match=r"b\.json, line 1: byte 0xff is not UTF-8"):
        read_json(tmp_path / "b.json")


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.json is not JSON \(it is nested too deeply"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json holds a list, expected a JSON object"):
        read_json_object(tmp_path / "a.json")
    with pytest.raises(ValueError, match="here: not JSON"):
        parse_json("{", "here")


def test_a_folders_config_and_a_runs_samples(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"vocab_size": 20, "intermediate_size": 8, "max_position_embeddings": 16, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_bytes(BOM + json.dumps(config).encode())
    assert open_origin(tmp_path).model.config.vocab_size == 20
    for content in (b"{", b"[]", b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json"):
            open_origin(tmp_path)
    sample = {"step": 1, "prompt": "1+1=", "completion": "2"}
    (tmp_path / "samples.jsonl").write_bytes(BOM + json.dumps(sample).encode() + b"\n")
    assert read(tmp_path) == [sample]
