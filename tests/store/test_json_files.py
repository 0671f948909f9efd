"""Reading JSON: what is no object is told with the file's name, and surrogates end where text enters."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data.sources.examples import read_jsonl
from data.verify.verdict import Verdict
from store.json_files import cleaned, forgive_output, parse_json, read_json, read_json_lines, without_surrogates

HOSTILE = "a\ud800b\udfff\udc80"
CLEAN = "a\ufffdb\ufffd\ufffd"


def test_surrogates_are_replaced_one_by_one() -> None:
    assert without_surrogates(HOSTILE) == CLEAN and without_surrogates("ä\U0001f600\0") == "ä\U0001f600\0"
    value = {HOSTILE: [HOSTILE, {"x": (1, None, True, 2.5)}]}
    assert cleaned(value) == {CLEAN: [CLEAN, {"x": (1, None, True, 2.5)}]}
    assert parse_json(json.dumps({HOSTILE: [HOSTILE]})) == {CLEAN: [CLEAN]}
    assert parse_json(r'"\ud83d\ude00"') == "\U0001f600", "two halves that belong together are one character"
    assert parse_json(r'"\\ud800"') == r"\ud800"
    assert Verdict(0.0, HOSTILE, HOSTILE) == Verdict(0.0, CLEAN, CLEAN)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("{", "it is no JSON"),
        ('{"a": 1', "it is no JSON"),
        ("[" * 100_000, "it is nested too deep"),
        ("9" * 5000, "it holds a text"),
        ("\udcff", "it is no JSON"),
        ("[]", r"it holds a list (\[\]), expected an object with name, stages"),
        ("null", "it holds null"),
        ("true", "it holds true"),
        ("5", "it holds a whole number (5)"),
        ('"x"', 'it holds a text ("x")'),
        ("{}", "it has no name, stages; it has nothing"),
        ('{"name": "x"}', "it has no stages; it has name"),
        ('{"name": "x", "stages": {}}', "stages is an object ({}), expected a list"),
        ('{"name": null, "stages": []}', "name is null, expected a text"),
    ],
)
def test_what_is_no_object_is_told(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as found:
        read_json(path, {"name": str, "stages": list}, "delete it")
    assert str(path) in str(found.value) and words.replace("\\", "") in str(found.value)
    assert str(found.value).endswith("; delete it") and len(str(found.value)) < 400


def test_an_object_needs_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="an empty object"):
        read_json(tmp_path / "x.json")
    assert read_json(tmp_path / "x.json", {}) == {}


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    torn = '{"step": 3, "x": "ä'.encode()[:-1]
    path.write_bytes(b'{"step": 1, "x": "\\ud800"}\n\n{"step": 2}\n' + torn)
    assert read_json_lines(path, {"step": int}) == [{"step": 1, "x": "\ufffd"}, {"step": 2}]
    for line, words in (
        (torn, "line 2 is no JSON"),
        (b"[]", "line 2 cannot be used: it holds a list"),
        (b"{}", "step"),
    ):
        path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
        with pytest.raises(ValueError, match=f"{path}, {words}" if "line" in words else words):
            read_json_lines(path, {"step": int})


def test_rows_of_data_with_surrogates_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"question": "fine"}) + "\n" + json.dumps({"question": HOSTILE}) + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: .*half of a surrogate pair"):
        read_jsonl(path, ["question"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_printed(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    forgive_output()
    print(HOSTILE, "ä", "\u2028", flush=True)
    assert raw.getvalue().decode(encoding).startswith("a\\ud800b")


def test_a_notebook_prints_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = object()
    monkeypatch.setattr(sys, "stdout", stream)
    forgive_output()
