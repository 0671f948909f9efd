"""A pipeline that branches and joins: it runs, resumes bit for bit, names what is stale, and runs side by side."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import launch.pipeline
import rl.jobs.sample
from infer.load import load_run
from store.run_directory import read_result
from tests.tiny_config import get_config
from tests.trunk import trees_equal
from train.graph import graph_of
from train.loop import run
from train.pipeline import Choice, dry_run, states

ARRAYS = ("sft", "reward", "dpo", "rejected", "merged")
LINES = ("sample/kept.jsonl", "sample/samples.jsonl", "pairs/pairs.jsonl")


@pytest.fixture(scope="module")
def done(one_device: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "p"
    assert run(get_config("graph"), folder)["status"] == "complete"
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(left: Path, right: Path) -> bool:
    """Whether two pipelines made the same models and files; where they lie is told in their rows."""
    arrays = all(trees_equal(load_run(left / name).params, load_run(right / name).params) for name in ARRAYS)
    texts = [[(root / name).read_text().replace(str(root), "") for name in LINES] for root in (left, right)]
    return arrays and texts[0] == texts[1]


def test_every_stage_leaves_what_the_next_one_reads(done: Path) -> None:
    result = read_result(done)
    assert [row["name"] for row in result["stages"]] == list(get_config("graph").stages)
    kept = rows(done / "sample" / "kept.jsonl")
    assert len(kept) == 24 * 4 and kept[0]["sample"]["key"] == [0, 0] and kept[-1]["sample"]["chunk"] == 2
    assert {"a", "b", "completion"} <= set(kept[0])
    pairs = rows(done / "pairs" / "pairs.jsonl")
    assert all(pair["pair"]["chosen"]["right"] and not pair["pair"]["rejected"]["right"] for pair in pairs)
    assert (done / "graph.png").is_file() and (done / "curves.png").is_file()
    assert load_run(done).model.config.score.size == 0, "of all stages the last one that speaks"


def test_merged_is_the_average_and_the_export_is_the_same_model(done: Path) -> None:
    parts = [load_run(done / name).params for name in ("dpo", "rejected")]
    merged = load_run(done / "merged")
    wanted = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), merged.params, wanted)
    hub = load_run(done / "hub" / "model")
    assert trees_equal(hub.params, merged.params)
    assert hub.tokenizer.encode("1+2=") == merged.tokenizer.encode("1+2=")


def test_a_pipeline_that_is_stopped_and_killed_goes_on_bit_for_bit(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = tmp_path / "p", get_config("graph")
    assert run(config, folder, Choice(until="sft"))["status"] == "partial"
    judged = rl.jobs.sample.Sampler.rows

    def killed(self: Any, found: Any, number: int) -> Any:
        """The first chunk is whole; of the second lines are written and nothing says so."""
        records, kept, counts = judged(self, found, number)
        if number == 1:
            with open(folder / "sample" / "kept.jsonl", "a") as file:
                file.write('{"half": ')
            raise RuntimeError("power cut")
        return records, kept, counts

    monkeypatch.setattr(rl.jobs.sample.Sampler, "rows", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        run(config, folder)

    def asked(self: Any, found: Any, number: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return judged(self, found, number)

    monkeypatch.setattr(rl.jobs.sample.Sampler, "rows", asked)
    assert run(config, folder)["status"] == "stopped", "a signal is heard after a chunk"
    monkeypatch.undo()
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    assert run(config, folder)["status"] == "complete"
    assert same(done, folder)


def test_a_changed_stage_makes_stale_what_depends_on_it(done: Path, tmp_path: Path) -> None:
    config = get_config("graph")
    config.stage.pairs.pairs = ConfigDict({"most": 1})
    found = {name: state for name, (state, _) in states(graph_of(config, done)).items()}
    assert found["pairs"] == "changed" and found["sample"] == found["rejected"] == "complete"
    assert {name for name, state in found.items() if state == "stale"} == {"reward", "dpo", "merged", "hub"}
    with pytest.raises(ValueError, match=r"stale: reward .*--redo=stale moves the folders of pairs, reward"):
        run(config, done)
    assert "stale" in dry_run(config, done)
    with (done / "sample" / "kept.jsonl").open() as file:
        text = file.read()
    assert text, "nothing on the disk was touched"


@pytest.mark.more
def test_stages_are_run_anew_with_what_depends_on_them(done: Path, tmp_path: Path) -> None:
    folder, config = tmp_path / "p", get_config("graph")
    run(config, folder, Choice(until="pairs"))
    before = (folder / "pairs" / "pairs.jsonl").read_bytes()
    config.stage.pairs.pairs = ConfigDict({"most": 1})
    run(config, folder, Choice(until="dpo", redo=("stale",)))
    assert (folder / "pairs.1" / "pairs.jsonl").read_bytes() == before
    assert len((folder / "pairs" / "pairs.jsonl").read_bytes()) < len(before)
    assert not (folder / "sft.1").exists()


def test_choices_that_there_are_not(done: Path, tmp_path: Path) -> None:
    config = get_config("graph")
    for choice in (Choice(only=("dpoo",)), Choice(until="dpoo"), Choice(redo=("dpoo",))):
        with pytest.raises(ValueError, match="Did you mean 'dpo'"):
            run(config, done, choice)
    with pytest.raises(ValueError, match=r"needs sft, sample, which has not ended.*--only=sft,sample,pairs"):
        run(config, tmp_path / "p", Choice(only=("pairs",)))
    assert not (tmp_path / "p").exists()
    with pytest.raises(ValueError, match="has no stages to choose among"):
        run(get_config("sft"), tmp_path / "q", Choice(only=("sft",)))


def test_a_file_that_was_changed_by_hand_makes_stale_what_read_it(one_device: Any, tmp_path: Path) -> None:
    config, folder = get_config("graph"), tmp_path / "p"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"a": n, "b": 1, "think": False}) + "\n" for n in range(8)))
    config.stages = ("sft",)
    config.stage.sft = ConfigDict({"algorithm": "sft", "steps": 1, "data": str(data)})
    run(config, folder)
    data.write_text(data.read_text() + '{"a": 9, "b": 1, "think": false}\n')
    with pytest.raises(ValueError, match=f"stale: sft .made of {data}"):
        run(config, folder)


@pytest.mark.more
def test_independent_stages_run_side_by_side(done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--config=tests/tiny_config.py:graph", f"--workdir={tmp_path / 'p'}", "--parallel=2"]
    assert launch.pipeline.main([*flags, "--dry_run"]) == 0
    assert "--only=dpo" in capfd.readouterr().out
    assert launch.pipeline.main(flags) == 0, capfd.readouterr()
    assert read_result(tmp_path / "p")["status"] == "complete"
    assert [row["name"] for row in read_result(tmp_path / "p")["stages"]] == list(get_config("graph").stages)
    shutil.rmtree(tmp_path / "p" / "hub")
    assert launch.pipeline.main(flags) == 0, "what is left is done again"


@pytest.mark.more
def test_what_comes_after_a_stage_that_failed_is_not_begun(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--config=tests/tiny_config.py:graph", f"--workdir={tmp_path / 'p'}", "--config.stage.sft.data.length=3"]
    assert launch.pipeline.main(flags) == 1
    said = capfd.readouterr().err
    assert "sft: " in said and "not started: sft did not finish" in (tmp_path / "p" / "sample.log").read_text()
