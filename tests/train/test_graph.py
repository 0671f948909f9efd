"""Stages as a graph: order, references, defaults, digests, and what cannot be meant."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import common
from train.graph import digests, drawn, graph_of, stage_config
from train.picture import arrows, layout
from train.settings import override

RECIPES = ("distill_r1", "journey", "limo", "r1", "r1_zero", "s1", "sky_t1", "small_students")


def pipeline(**stages: Any) -> ConfigDict:
    config = common.base()
    config.name, config.init_from = "p", "runs/start"
    config.stages = tuple(stages)
    config.stage = ConfigDict(stages)
    return config


BRANCHED = {
    "sft": {"algorithm": "sft"},
    "sample": {"algorithm": "sample"},
    "pairs": {"algorithm": "pairs", "data": "sample/kept.jsonl"},
    "reward": {"algorithm": "reward", "from": "base", "data": {"split": "pairs/pairs.jsonl"}},
    "rl": {
        "algorithm": "grpo",
        "from": "sft",
        "rl": {"rewards": {"model": {"weight": 1.0, "path": "reward"}}, "teacher": "merged"},
    },
    "merged": {"algorithm": "merge", "from": "sft", "merge": {"models": ("sft", "reward")}},
}


def test_stages_come_after_those_that_they_need() -> None:
    graph = graph_of(pipeline(**BRANCHED), Path("w"))
    assert [stage.name for stage in graph] == ["sft", "sample", "pairs", "reward", "merged", "rl"]
    by_name = {stage.name: stage for stage in graph}
    assert by_name["pairs"].edges == {"init_from": "sft", "data.split": "sample/kept.jsonl"}, "sample leaves no model"
    assert by_name["pairs"].config.data.split == "w/sample/kept.jsonl"
    assert by_name["pairs"].needs_files == ("sample",)
    assert by_name["reward"].config.init_from == "runs/start" and "init_from" not in by_name["reward"].edges
    assert by_name["sft"].config.init_from == "runs/start" and not by_name["sft"].needs
    assert set(by_name["rl"].needs) == {"sft", "reward", "merged"}
    assert by_name["rl"].config.rl.rewards.model.path == "w/reward"
    assert by_name["merged"].config.merge.models == ("w/sft", "w/reward")


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"a": {"from": "b"}, "b": {"from": "a"}}, "a -> b -> a"),
        ({"a": {"data": "b/x.jsonl"}, "b": {"data": "c/x.jsonl", "from": "base"}, "c": {"from": "b"}}, "b -> c -> b"),
        ({"base": {}}, "cannot be called 'base'"),
        ({"a": {"stepz": 1}}, "Did you mean 'steps'"),
        ({"a": {"seed": 1, "name": "x"}}, "no name to choose"),
    ],
)
def test_what_can_never_run_is_refused(stages: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        graph_of(pipeline(**stages))


def test_a_name_that_is_nearly_a_stage_is_told() -> None:
    stages = {"sample": {"algorithm": "sample"}, "sft": {"data": "sampel/kept.jsonl"}}
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'sample/kept\.jsonl'"):
        graph_of(pipeline(**stages))


def test_flags_know_the_short_names() -> None:
    config = pipeline(a={"algorithm": "sft"}, b={"from": "base", "data": "a/x.jsonl"})
    changed = override(config, {"stage.b.from": "a", "stage.b.data.split": "other.jsonl", "init_from": "runs/else"})[0]
    assert stage_config(changed, "b").init_from == "a"
    assert stage_config(changed, "b").data.split == "other.jsonl"
    assert graph_of(changed)[0].config.init_from == "runs/else", "the base is the pipeline's own"


def test_a_change_is_seen_by_all_that_comes_after_it(tmp_path: Path) -> None:
    def told(config: ConfigDict, folder: str = "w") -> dict[str, dict[str, str]]:
        return digests(graph_of(config, Path(folder)))

    first = told(pipeline(**BRANCHED))
    assert first == told(pipeline(**BRANCHED), "elsewhere"), "where the pipeline lies is no part of it"
    changed = pipeline(**BRANCHED)
    changed.stage.sample.sample = ConfigDict({"n": 3})
    second = told(changed)
    assert {name for name in first if first[name] != second[name]} == {"pairs", "reward", "rl", "merged"}
    executed = pipeline(**BRANCHED)
    executed.checkpoint.every = 7
    assert told(executed) == first, "how a run executes changes nothing"
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    outside = pipeline(a={"data": str(file)})
    before = told(outside)
    file.write_text("{}\n{}\n")
    assert before != told(outside), "files outside count by what they hold"


def test_the_graph_in_words_and_as_a_picture() -> None:
    graph = graph_of(pipeline(**BRANCHED), Path("w"))
    lines = drawn(graph, {stage.name: "new" for stage in graph})
    assert lines[2].split() == ["new", "pairs", "pairs", "from", "sft,", "data.split=sample/kept.jsonl"]
    places = layout(graph)
    assert len(set(places.values())) == len(graph)
    assert all(places[name][0] < places[stage.name][0] for stage in graph for name in stage.needs)
    found = arrows(next(stage for stage in graph if stage.name == "rl"), {"sft": {"accuracy": 0.5}})
    assert found == {"sft": ("accuracy 50.0%", False), "merged": ("teacher", True), "reward": ("path", True)}


@pytest.mark.parametrize("arg", ["", "hub"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_graph_whose_files_come_from_its_stages(name: str, arg: str, tmp_path: Path) -> None:
    config = importlib.import_module(f"configs.pipelines.{name}").get_config(arg)
    stages = graph_of(config, tmp_path)
    assert {stage.name for stage in stages} == set(config.stages)
    assert not [stage.inputs for stage in stages if stage.inputs], "of data.path splits are read by their names"
