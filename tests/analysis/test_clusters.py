"""Simulated contests and broken programs: the proposer is as right as it says, and the studies tell what they found."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.studies import cluster_programs, clusters
from analysis.studies.contest import Contest, Problem, problem, problems
from data.expressions import evaluate, text
from data.verify.confined import Limits, unavailable
from data.verify.outputs import program_outputs
from infer.strategies.clusters import FAILED, numbered
from infer.strategies.clusters import clusters as clusters_of

SMALL = Contest(limits=(8, 30), depths=(2, 2), right=(0.5, 0.3), samples=30, inputs=24)
works = pytest.mark.skipif(bool(unavailable("namespaces")), reason=f"no sandbox here: {unavailable('namespaces')}")


def drawn(seed: int = 0, **changes: Any) -> Problem:
    return problem(dataclasses.replace(SMALL, **changes), np.random.default_rng(seed))


def test_what_is_said_to_be_right_is_right_everywhere_and_nothing_else() -> None:
    for seed in range(3):
        found = drawn(seed)
        for subtask, limit in enumerate(SMALL.limits):
            x = np.arange(1, limit + 1)
            wanted, exists = evaluate(found.program, x)
            assert exists.all()
            for sample, program in enumerate(found.programs):
                values, exist = evaluate(program, x)
                assert found.judge(sample)[subtask] == (exist.all() and np.array_equal(values, wanted))


def test_the_proposer_is_right_as_often_as_it_says() -> None:
    found = [drawn(seed, samples=200) for seed in range(4)]
    easy, hard = (np.concatenate([p.solved[p.subtask_of == t, t] for p in found]).mean() for t in (0, 1))
    assert abs(easy - 0.5) < 0.06 and abs(hard - 0.15) < 0.05


def test_validators_keep_the_inputs_of_each_subtask_although_one_is_wrong() -> None:
    found = drawn(inputs=60)
    known = found.evidence()
    for subtask, limit in enumerate(SMALL.limits):
        assert (known.valid[subtask] == (found.x <= limit)).all()
        assert not found.accepted[subtask, -1].all()
    assert (found.x > 30).any() and found.evidence(validated=False).valid.sum() == 120


def test_beyond_its_limit_a_right_program_says_whatever_it_likes() -> None:
    found = drawn(right=(1.0, 1.0), samples=10)
    known = found.evidence()
    own = known.outputs[known.subtask_of == 0]
    assert len(set(clusters_of(own[:, known.valid[0]]))) == 1
    assert len(set(clusters_of(own))) > 5


def test_a_popular_error_is_the_largest_cluster() -> None:
    found = drawn(popular=1.0, right=(0.9, 0.1), samples=60)
    known = found.evidence()
    hard = known.subtask_of == 1
    sizes = np.bincount(clusters_of(known.outputs[hard][:, known.valid[1]]))
    largest = clusters_of(known.outputs[hard][:, known.valid[1]]) == sizes.argmax()
    assert largest.mean() > 0.5 and not found.solved[hard][largest, 1].any()


def test_problems_are_functions_of_seed_and_number() -> None:
    one, again = (list(islice(problems(SMALL, 3), 2)) for _ in range(2))
    assert [p.pieces for p in one] == [p.pieces for p in again] and one[0].pieces != one[1].pieces
    assert next(problems(SMALL, 4)).pieces != one[0].pieces


@works
def test_the_sandbox_finds_the_clusters_that_arrays_do() -> None:
    found = drawn(limits=(8, 12), samples=4)
    inputs = [3, 8, 11]
    limits = Limits(seconds=20.0)
    written = [
        program_outputs(f"x = int(input())\nprint({text(p)})", list(map(str, inputs)), limits, "namespaces")
        for p in found.programs
    ]
    values = [evaluate(program, np.array(inputs)) for program in found.programs]
    mine = [[int(v) if e else None for v, e in zip(*each, strict=True)] for each in values]
    assert numbered(written).tolist() == numbered(mine).tolist()
    assert len(set(clusters_of(numbered(written)))) > 1 and FAILED not in numbered(written)[0]


def test_a_small_study_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(clusters, "Contest", lambda: SMALL)
    assert clusters.main(["--problems=4", "--past=2", "--draws=2", f"--output={tmp_path / 'x.png'}"]) == 0
    told = capsys.readouterr().out
    assert "| independent |" in told and "correlated, 3 submissions: scorer > size" in told
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "x.json").read_text())
    assert set(kept["solved"]["correlated"]) >= {*clusters.FIXED, "mean", "mean + size, not validated"}


def test_clusters_beat_chance_and_lose_to_the_scorer_where_errors_are_the_same() -> None:
    contest = dataclasses.replace(SMALL, noise=(0.3, 0.2), samples=40)
    found = {
        name: clusters.measure(dataclasses.replace(contest, popular=popular), 0, 20, clusters.FIXED)
        for name, popular in (("independent", 0.0), ("correlated", 0.9))
    }
    first = {name: {arm: rows[:, 1].mean() for arm, rows in curves.items()} for name, curves in found.items()}
    assert first["independent"]["random"] < first["independent"]["filter"] < first["independent"]["size"]
    assert first["correlated"]["size"] < first["correlated"]["scorer"]
    late = {arm: rows[:, 6].mean() for arm, rows in found["correlated"].items()}
    assert late["majority"] < late["size"], "what was submitted in vain is left alone"


def test_a_claim_that_fails_is_said() -> None:
    names = [*clusters.FIXED, "mean", "mean + size"]
    flat = {name: np.ones((3, 51)) for name in names}
    told = clusters.table(dict.fromkeys(clusters.CONDITIONS, flat), 3)
    assert told.count("DOES NOT HOLD") == len(clusters.claims(dict.fromkeys(clusters.CONDITIONS, flat))) == 8


CODE = """def f(n, xs):
    total = 0
    for x in xs:
        if x > n and x % 2 == 0:
            total += x
    return total"""


def test_variants_differ_in_one_place() -> None:
    found = cluster_programs.variants(CODE)
    assert len(found) == len(set(found)) == 9
    for wanted in ("x >= n", "x > n or x", "x // 2", "total -= x", "total = 1", "not (x > n"):
        assert sum(wanted in code for code in found) == 1, wanted


@works
def test_clusters_of_real_programs(tmp_path: Path, capsys: Any) -> None:
    row = {"text": "Sum.", "code": CODE, "task_id": 11, "test_setup_code": ""}
    row["test_list"] = ["assert f(2, [1, 4, 5, 6]) == 10", "assert f(0, []) == 0", "assert f(5, [6, 5, 8]) == 14"]
    rows = (row, row | {"task_id": 12}, row | {"task_id": 13, "test_list": ["assert f(*[0, []]) == 0"]})
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    common = [str(tmp_path), f"--output={tmp_path / 'x.json'}", "--right=3", "--broken=5", "--inputs=12"]
    assert cluster_programs.main(common) == 1
    assert "give allow_code=True" in capsys.readouterr().err
    assert cluster_programs.main([*common, "--allow_code"]) == 0
    assert "2 examples" in capsys.readouterr().out, "the third has no literals to go by"
    found = json.loads((tmp_path / "x.json").read_text())
    assert all(each["filter, clusters"][0] and 0.3 < each["right"] < 0.7 for each in found)
