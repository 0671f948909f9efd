"""`python -m data.select`: what it tells, what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.select.__main__ import main, parser
from data.select.pool import read_pool
from data.select.rules import RULES
from data.select.s1 import AIME

Row = dict[str, Any]
PLAIN = {"source": "made", "domain": "a", "small": False, "large": False, "right": True, "length": 9}


def lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [PLAIN | {"question": f"What is {i} + {i}?", "domain": "ab"[i % 2], "length": i} for i in range(20)]
    rows[3]["source"] = AIME
    rows[4]["small"] = True
    rows[5]["right"] = None
    rows[6]["question"] = "one two three four five six seven eight nine"
    return lines(tmp_path / "pool.jsonl", rows)


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    return lines(tmp_path / "test.jsonl", [{"problem": "zero One two three four five six seven EIGHT"}])


def test_a_choice_is_told_stage_by_stage_and_written(
    pool: Path, test_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "chosen.jsonl"
    flags = [str(pool), "--rule=s1", "--number=6", f"--against={test_set}", "--against_column=problem", f"--out={out}"]
    assert main([*flags, "--uniform=1"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[:12] == [
        f"{pool}: 20 rows",
        f"against {test_set}: 20 -> 19",
        f"       1  8 words in a row are in {test_set}, too",
        "          line 7: 'one two three four five six seven eight nine',"
        " 'one two three four five six seven eight' is in number 1 there",
        "no null: 19 -> 18",
        "       1  null: right",
        "          line 6: 'What is 5 + 5?'",
        "no odd text: 18 -> 18",
        "hard: 18 -> 17",
        "       1  solved by the small model",
        "          line 5: 'What is 4 + 4?'",
        "once each: 17 -> 17",
    ]
    assert "s1 with seed 0: 6 rows" in told and "seed set: 1 " in told and told.endswith(f"written to {out}\n")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 6 and rows[0]["question"] == "What is 3 + 3?"
    assert all(row in read_pool(pool).rows for row in rows)
    first = out.read_bytes()
    assert main([*flags, "--uniform=1"]) == 2 and "is there already" in capsys.readouterr().err
    assert main([*flags, "--uniform=1", "--overwrite"]) == 0 and out.read_bytes() == first
    assert main([*flags, "--uniform=1", "--overwrite", "--seed=1"]) == 0 and out.read_bytes() != first
    assert [path.name for path in out.parent.iterdir()] == ["chosen.jsonl"]


def test_columns_have_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"problem": f"{i}", "topic": "ab"[i % 2], "trace": "word " * i} for i in range(6)]
    file = tmp_path / "pool.json"
    file.write_text(json.dumps(rows))
    out = tmp_path / "out.jsonl"
    given = [str(file), "--rule=longest", "--number=2", "--columns=question=problem,length=trace", f"--out={out}"]
    assert main(given) == 0
    assert [json.loads(line)["problem"] for line in out.read_text().splitlines()] == ["4", "5"]
    assert "lengths: 4 to 5" in capsys.readouterr().out
    assert (
        main([str(file), "--rule=diverse", "--number=6", "--columns=question=problem", "--columns=domain=topic"]) == 0
    )
    assert "domains: 2 (a 3, b 3)" in capsys.readouterr().out


def test_the_report_counts_both_sides(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = lines(tmp_path / "t.jsonl", [{"question": "what is 7 + 7"}, {"question": "What is 8 + 8?"}] * 2)
    assert main([str(pool), "--rule=report", "--against", str(test), "--words=4"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{pool} (20 rows) and {test} (4 rows)"
    assert [line.split() for line in told if line.startswith("  ") and not line.startswith("     ")] == [
        ["exact", "text", "1", "rows,", "2", "of", "the", "tests"],
        ["letters", "and", "digits", "2", "rows,", "4", "of", "the", "tests"],
        ["4", "words", "2", "rows,", "4", "of", "the", "tests"],
    ]
    assert "          line 9: 'What is 8 + 8?', like line 2 there" in told


def test_decontamination_alone(pool: Path, test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    flags = [str(pool), "--rule=decontaminate", f"--against={test_set}", "--against_column=problem", f"--out={out}"]
    assert main(flags) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        row for number, row in enumerate(read_pool(pool).rows) if number != 6
    ]


def test_near_duplicates_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasketch", reason="pip install 'sagax[select]' to find near-duplicates")
    long = [f"w{i}" for i in range(60)]
    asked = [" ".join(words) for words in (long, [*long[:-1], "end"], reversed(long), [f"v{i}" for i in range(60)])]
    file = lines(tmp_path / "pool.jsonl", [{"question": text} for text in asked])
    # It shares most runs of five words with the last row, and no run of sixty.
    test = lines(tmp_path / "test.jsonl", [{"question": f"more {asked[3]}.", "other": 1}])
    out = tmp_path / "out.jsonl"
    assert main([str(file), "--rule=near", f"--against={test}", f"--out={out}", "--words=5"]) == 0
    told = capsys.readouterr().out
    assert f"against {test}: 4 -> 3" in told and "near another row" in told and " alike " in told
    assert len(out.read_text().splitlines()) == 2
    assert main([str(file), "--rule=near", f"--against={test}", "--words=60"]) == 0
    assert "no near-duplicate: 4 -> 4" in capsys.readouterr().out
    assert main([str(file), "--rule=near", "--threshold=.99"]) == 0
    assert "no near-duplicate: 4 -> 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rule=s2"], "unknown rule 's2'"),
        (["--rule=randm", "--number=3"], "Did you mean 'random'"),
        (["--rule=random"], "needs --number"),
        (["--rule=random", "--number=0"], "--number must be at least 1"),
        (["--rule=random", "--number=21"], "asked for 21 of 20 rows"),
        (["--rule=limr"], "line 1 has no column 'accuracies' for the accuracies; it has source, domain"),
        (["--rule=longest", "--number=3", "--columns=length=lenght"], "Did you mean 'length'?"),
        (["--rule=longest", "--number=3", "--columns=lenght=length"], "Did you mean 'length'?"),
        (["--rule=longest", "--number=3", "--columns=length"], "--columns takes role=column, found 'length'"),
        (["--rule=report"], "needs a test set"),
        (["--rule=decontaminate"], "needs a test set"),
        (["--rule=random", "--number=3", "--out=x.json"], "must end in .jsonl"),
        (["--rule=report", "--against={test}", "--out=x.jsonl"], "nothing to write"),
        (["--rule=random", "--number=3", "--against={test}"], "test.jsonl, line 1 has no column 'question'"),
        (["--rule=random", "--number=3", "--against=none.jsonl"], "no file none.jsonl"),
        (["--rule=random", "--number=3", "--overwrite", "--out={pool}"], "is a file that is read"),
        (["--rule=diverse", "--number=3", "--domains=none.json"], "no file none.json"),
    ],
)
def test_wrong_use_is_told(
    flags: list[str], says: str, pool: Path, test_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pool.read_bytes()
    assert main([str(pool), *(flag.format(pool=pool, test=test_set) for flag in flags)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said and len(said.splitlines()) == 1
    assert pool.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("[]", "is an empty list"),
        ("[1]", "item 1 of the list is no object"),
        ('{"question": "a"}\n{"question"\n', "line 2"),
        ('{"question": 5}\n', "line 1: 'question' must be a text, found 5"),
    ],
)
def test_broken_pools_are_told(content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_text(content)
    out = tmp_path / "out.jsonl"
    assert main([str(file), "--rule=random", "--number=1", f"--out={out}"]) == 2
    assert says in capsys.readouterr().err and not out.exists()
    assert main([str(tmp_path / "none.jsonl"), "--rule=random", "--number=1"]) == 2
    assert "no file" in capsys.readouterr().err


def test_nothing_left_is_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "pool.jsonl", [{"question": "a b", "response": "c", "right": True, "length": 1}])
    out = tmp_path / "out.jsonl"
    assert main([str(file), "--rule=pairs", f"--out={out}"]) == 2
    found = capsys.readouterr()
    assert "the only right response" in found.out and "no row of" in found.err and not out.exists()
    assert main([str(file), "--rule=limr", f"--against={file}", f"--out={out}"]) == 2
    found = capsys.readouterr()
    assert "1 -> 0" in found.out and "no row of" in found.err and not out.exists()


def test_a_steering_text_is_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "\x1b[31m a\nb", "domain": "\x1b[2J"}, {"question": "x" * 200, "domain": "d"}]
    file, test = lines(tmp_path / "pool.jsonl", rows), lines(tmp_path / "test.jsonl", rows[1:])
    assert main([str(file), "--rule=diverse", "--number=1", f"--against={test}"]) == 0
    assert main([str(file), "--rule=report", f"--against={file}"]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told and "xxx...'" in told


def test_the_help_names_every_rule_and_its_columns() -> None:
    told = parser().format_help()
    assert all(name in told and rule.says in told and ", ".join(rule.roles) in told for name, rule in RULES.items())


def test_chat_messages_are_texts(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"{i} + 1?"}]} for i in range(3)]
    out = tmp_path / "out.jsonl"
    flags = ["--rule=random", "--number=2", "--columns=question=prompt", f"--out={out}"]
    assert main([str(lines(tmp_path / "pool.jsonl", rows)), *flags]) == 0
    assert len(out.read_text().splitlines()) == 2
