"""What a model or a recipe wrote cannot steer a terminal, whatever prints it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import infer.__main__ as command
from infer.sampling import SamplingParams
from store.json_files import without_surrogates
from store.terminal import one_line, visible
from train import cli
from train.console import Console

STEERS = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J",
    "C1": "\x9b31m",
    "return": "safe\rrm -rf",
    "delete": "ab\x7f\x08",
    "bidi": "\u202egnp.exe",
    "isolate": "\u2066x\u2069",
    "hidden": "pass\u200bword",
    "separator": "a\u2028b",
    "surrogate": "\ud800",
    "unassigned": "\u0378",
}
MARKUP = ("[/red]", "a[/]b", "[link=https://x]here[/link]", "[bold]", ":smile:", "\\[x]")


def harmless(text: str) -> bool:
    """Nothing but newlines and what is printed as itself."""
    return all(char == "\n" or (unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029") for char in text)


@pytest.mark.parametrize("name", STEERS)
def test_what_steers_is_written_out(name: str) -> None:
    assert harmless(visible(STEERS[name])) and visible(STEERS[name]).encode()
    assert visible("Grüße, 東京 🙂 \\n [x]\n") == "Grüße, 東京 🙂 \\n [x]\n"
    assert one_line("a\nb\tc") == r"a\nb\tc"


def finished(folder: Path, name: str, texts: list[tuple[str, str]]) -> tuple[dict[str, Any], Path]:
    """A result, and the directory of its run with samples: (prompt, completion)."""
    folder.mkdir(parents=True)
    records = [{"step": 1, "kind": "eval", "prompt": p, "completion": c, "score": 0.0} for p, c in texts]
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    stage = {"name": "sft", "accuracy": 0.5, "answer_loss": "nan", "seconds": 1.0}
    return {"status": "complete", "name": name, "stages": [stage]}, folder


@pytest.mark.parametrize("text", [*MARKUP, *STEERS.values(), "x\ny", "", " "])
def test_the_final_report_prints_any_text(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / one_line(text).replace("/", "-")[:40] / "run"
    cli.report(*finished(folder, f"name {text}", [(f"ask {text}", f"say {text}"), ("1+1=", "2")]))
    printed = capsys.readouterr().out
    read = one_line(without_surrogates(text))
    assert harmless(printed) and f"ask {read}" in printed and f"say {read}  (wrong)" in printed
    assert "nan" in printed and "Talk to it" in printed


def test_what_is_to_be_typed_is_typed_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.report(*finished(tmp_path / "a [b] $c", "x", [("\x1b[31m1+1=", "2"), ("it's [2]+2=", "4")]))
    printed = capsys.readouterr().out
    assert f"--run='{tmp_path / 'a [b] $c'}' --prompt='it'\"'\"'s [2]+2='" in printed


@pytest.mark.parametrize("text", [*MARKUP, *STEERS.values()])
def test_lines_and_errors_are_harmless(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Console(f"run {text}").say(f"step 3: {text}")

    def refuse() -> None:
        raise ValueError(f"no task {text}")

    assert cli.guarded(refuse) == 2
    assert command.main([f"--run={text}", "--prompt=x"]) == 2
    found = capsys.readouterr()
    assert harmless(found.out + found.err) and one_line(text).split()[0] in found.out


@pytest.mark.parametrize("text", STEERS.values())
def test_an_answer_cannot_steer(text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ending = SimpleNamespace(tokens=(), thoughts=0, after=1)
    loaded = SimpleNamespace(config={}, tokenizer=SimpleNamespace(eos_ids=()), ending=ending, model=None, params=None)
    monkeypatch.setattr(command, "_load", lambda options: (loaded, command.Asked(SamplingParams(4), None, None, {})))
    monkeypatch.setattr("data.chat.prompt_tokens", lambda *_: [1])
    monkeypatch.setattr("infer.sampler.generate", lambda *_, **__: SimpleNamespace(finished=[True, False]))
    monkeypatch.setattr("infer.evaluate.completion_texts", lambda *_: [f"one\n{text}", "two"])
    assert command.main(["--run=x", f"--prompt=ask {text} "]) == 0
    printed = capsys.readouterr().out
    assert harmless(printed)
    asked = f"ask {one_line(without_surrogates(text))}"
    assert printed == f"{asked} one\n{one_line(text)}\n{asked} two  [cut at 4 tokens]\n"
