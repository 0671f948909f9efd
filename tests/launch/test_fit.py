"""python -m launch.report --fit=sigmoid: runs written by hand, whose curves are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.scaling import Sigmoid
from launch import fit, report
from launch.results import choose_metrics, grouped, measure, read_results, spent

CURVE = Sigmoid(before=0.2, asymptote=0.6, steepness=1.5, middle=100e9)


def write_run(
    folder: Path, curve: Sigmoid, seed: int = 0, points: int = 40, noise: float = 0.0, start: bool = True
) -> None:
    """A complete run that logs every other step, and is evaluated after every third."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    steps, flops = 3 * points, lambda step: 1000e9 * step / (3 * points)
    lines = [{"step": 0, "eval/accuracy": curve.before, "compute/flops": 0.0}] if start else []
    for step in range(1, steps + 1):
        cost = {"compute/flops": flops(step), "time/compute": 2.0 * step}
        lines += [{"step": step, "num_samples": 8, **cost}] if step % 2 == 0 else []
        share = float(np.clip(curve.at(flops(step)) + noise * rng.standard_normal(), 0, 1))
        lines += [{"step": step, "eval/accuracy": share, **cost}] if step % 3 == 0 else []
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"name": "x", "seed": seed, "steps": steps}))
    result = {"evaluation": {"accuracy": lines[-1]["eval/accuracy"]}, "parameters": 100, "equivalent_parameters": 100}
    (folder / "result.json").write_text(json.dumps(result))


def rows(path: Path) -> dict[str, dict[str, str]]:
    """The table of fit.md, by the name of the run."""
    lines = [line.strip("| ").split(" | ") for line in path.read_text().splitlines() if line.startswith("| ")]
    return {line[0]: dict(zip(lines[0][1:], line[1:], strict=False)) for line in lines[2:]}


def test_a_run_and_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        write_run(tmp_path / f"seed={seed}", CURVE, seed, noise=0.002)
    flags = [str(tmp_path), "--fit=sigmoid", "--skip=.05", "--until=.5", "--metrics=eval/accuracy"]
    assert report.main(flags) == 0
    found, said = rows(tmp_path / "fit.md"), capsys.readouterr().out
    assert list(found) == ["seed=0", "seed=1", "seed=2", "x, 3 runs"]
    for name in ("seed=0", "seed=1", "seed=2"):
        own = {column: float(value) for column, value in found[name].items()}
        assert (own["points"], own["R0"]) == (38, 0.2), "of 40 two lie within the first twentieth"
        assert own["A"] == pytest.approx(0.6, abs=0.01) and own["B"] == pytest.approx(1.5, abs=0.1)
        assert own["Cmid"] == pytest.approx(100e9, rel=0.05)
        assert own["at the end"] == pytest.approx(0.58774, abs=0.01)
        assert own["error"] == pytest.approx(own["predicted"] - own["at the end"], abs=2e-4)
        assert abs(own["error"]) < 0.02
    mean, deviation = map(float, found["x, 3 runs"]["A"].split(" ± "))
    assert mean == pytest.approx(0.6, abs=0.005) and 0 < deviation < 0.01
    assert "C = compute/flops" in said and "fit.md, fit.png in" in said
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert "fit.png" in (tmp_path / "report.html").read_text()


def test_the_first_part_does_not_see_the_rest(tmp_path: Path) -> None:
    """A run that falls back after its half is predicted as if it had not, and the error says it."""
    write_run(tmp_path / "a", CURVE)
    path = tmp_path / "a" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "eval/accuracy" in line and line["step"] > 60:
            line["eval/accuracy"] -= 0.1
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    [group] = grouped(read_results(tmp_path)[0])
    [[found]] = fit.fit_groups([group], fit.Asked(skip=0.0))
    assert found.figures()["predicted"] == pytest.approx(0.58774, abs=1e-3)
    assert found.figures()["error"] == pytest.approx(0.1, abs=1e-3)


def test_the_control_is_flat(tmp_path: Path) -> None:
    write_run(tmp_path / "learns", CURVE, noise=0.005)
    write_run(tmp_path / "permuted", Sigmoid(0.2, 0.2, 1.0, 1e9), seed=1, noise=0.005)
    runs = grouped(read_results(tmp_path)[0])
    found = fit.fit_groups(runs, fit.Asked())
    by_name = {one.name: one.figures() for own in found for one in own}
    assert by_name["permuted"]["A"] == pytest.approx(0.2, abs=0.01)
    told = fit.table(runs, found, fit.Asked())
    assert "Flat, A is not told from R0: permuted\n" in told


def test_runs_that_were_not_evaluated_enough_are_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "sweep" / "few", CURVE, points=7)
    flags = [str(tmp_path / "sweep"), "--fit=sigmoid"]
    assert report.main(flags) == 2
    assert "few, from 0.1 to 1 of the run: 7 points, and a sigmoid takes 8 or more" in capsys.readouterr().err
    assert not (tmp_path / "sweep" / "fit.md").exists()
    write_run(tmp_path / "sweep" / "some", CURVE, seed=1, points=14)
    assert report.main(flags) == 0
    text = (tmp_path / "sweep" / "fit.md").read_text()
    assert "Not fitted: few, from 0.1 to 1 of the run: 7 points" in text
    assert "Not fitted: some, from 0.1 to 0.5 of the run: 6 points" in text
    some = rows(tmp_path / "sweep" / "fit.md")["some"]
    assert float(some["A"]) == pytest.approx(0.6, abs=0.01) and not some.get("error", "").strip()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "was not evaluated before its first step, so R0 is not known"),
        (["--before=.2", "--metrics=eval/accuracy,compute/flops"], "is of one metric"),
        (["--before=.2", "--skip=.6"], "0 <= skip < until < 1"),
        (["--before=.2", "--metrics=num_samples"], "between 0 and 1"),
        (["--before=.2", "--over=num_sample"], "num_samples"),
    ],
    ids=["no start", "two metrics", "skip", "no share", "unknown"],
)
def test_wrong_use(tmp_path: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", CURVE, start=False)
    assert report.main([str(tmp_path), "--fit=sigmoid", *flags]) == 2
    assert words in capsys.readouterr().err


def test_other_measures_of_compute(tmp_path: Path) -> None:
    """Samples add up; FLOPs and seconds are read, for they count from the start. R0 may be given."""
    write_run(tmp_path / "a", CURVE, start=False)
    [run], _ = read_results(tmp_path)
    assert spent(run, "num_samples")[120] == 8 * 60
    assert spent(run, "compute/flops")[60] == 500e9 and spent(run, "time/compute")[120] == 240
    for over, middle in (("time/compute", 24.0), ("num_samples", 48.0)):
        assert report.main([str(tmp_path), "--fit=sigmoid", f"--over={over}", "--before=.2"]) == 0
        assert float(rows(tmp_path / "fit.md")["a"]["Cmid"]) == pytest.approx(middle, rel=0.1)
    assert measure(run, "compute/flops") == 1000e9, "at the end, no mean"
    assert measure(run, "compute/flops:time/compute") == pytest.approx(1000e9 / 240)


def test_sizes_are_columns_where_runs_differ_or_loop(tmp_path: Path) -> None:
    for seed, sizes in enumerate([(100, 100), (100, 100), (100, 150), (200, 200)]):
        write_run(tmp_path / str(seed), CURVE, seed)
        path = tmp_path / str(seed) / "result.json"
        found = json.loads(path.read_text()) | dict(zip(("parameters", "equivalent_parameters"), sizes, strict=True))
        path.write_text(json.dumps(found))
    runs = read_results(tmp_path)[0]
    assert choose_metrics(runs[:2]) == ["eval/accuracy"]
    assert choose_metrics(runs[:3]) == ["eval/accuracy", "parameters", "equivalent_parameters"]
    assert choose_metrics([runs[0], runs[3]]) == ["eval/accuracy", "parameters"]
    assert measure(runs[2], "equivalent_parameters") == 150
