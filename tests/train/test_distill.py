"""Learning from a teacher's distributions: whole vocabularies and kept top tokens, other architectures, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from data.tokenizers.characters import CharTokenizer
from infer.load import load_run
from store.records import read_metrics
from tests.tiny_config import get_config
from tests.trunk import assert_trees_close, trees_equal
from train.loop import by_hand, run
from train.teacher import difference


@pytest.fixture(scope="module")
def teacher(one_device: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    found = get_config("sft")
    found.steps, found.model.d_model, found.model.tied = 20, 48, False
    run(found, folder)
    return folder


def config(teacher: Path, **changes: Any) -> ConfigDict:
    found = get_config("sft")
    found.algorithm, found.distill.teacher = "distill", str(teacher)
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(folder) if "distance" in record]


def test_a_student_comes_nearer_and_goes_on_bit_for_bit(teacher: Path, tmp_path: Path) -> None:
    found = config(teacher, steps=16, optimizer__lr=1e-2)
    run(found, tmp_path / "whole")
    told = metrics(tmp_path / "whole")
    assert told[-1]["distance"] < 0.5 * told[0]["distance"]
    assert told[0]["loss"] == pytest.approx(told[0]["distance"], rel=1e-6)
    with by_hand(found, tmp_path / "cut") as trainer:
        for _ in range(5):
            trainer.step()
    run(found, tmp_path / "cut")
    assert trees_equal(load_run(tmp_path / "whole").params, load_run(tmp_path / "cut").params)


def test_a_teacher_is_its_own_best_student(teacher: Path, tmp_path: Path) -> None:
    for beta in (0.0, 0.5, 1.0):
        found = config(teacher, steps=1, init_from=str(teacher), distill__beta=beta, model__d_model=0)
        run(found, tmp_path / f"{beta}")
        assert metrics(tmp_path / f"{beta}")[0]["distance"] == pytest.approx(0, abs=1e-5)


def test_kept_top_tokens_of_a_whole_vocabulary_are_the_whole(teacher: Path, tmp_path: Path) -> None:
    """Also once more from what was kept, without the teacher."""
    size = load_run(teacher).model.config.vocab_size
    rows = tmp_path / "rows.jsonl"
    made = [{"a": a, "b": b, "think": False} for a in range(4) for b in range(4)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    found = config(teacher, steps=3, data__split=str(rows), distill__top_k=size, distill__tail=False)
    run(found, tmp_path / "kept")
    found.distill.top_k = 0
    run(found, tmp_path / "live")
    assert_trees_close(load_run(tmp_path / "kept").params, load_run(tmp_path / "live").params, 1e-5)
    assert [path.name for path in (tmp_path / "kept").glob("teacher-*.npz")]


@pytest.mark.more_but("recurrent")
@pytest.mark.parametrize("kind", ["moe", "recurrent"])
def test_teacher_and_student_may_differ(teacher: Path, tmp_path: Path, kind: str) -> None:
    found = config(teacher, steps=2)
    if kind == "moe":
        found.model.ffn = "moe"
        found.model.moe.update(n_experts=4, top_k=2, d_expert=16)
    else:
        found.model.update(n_layers=3, depth="recurrent")
        found.model.recurrent.update(mean=2)
    run(found, tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["distance"] > 0


def test_a_mesh_changes_nothing(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(teacher, steps=3), tmp_path / "alone")
    monkeypatch.setattr(jax, "device_count", jax.local_device_count)
    run(config(teacher, steps=3, mesh__data=2, mesh__fsdp=4), tmp_path / "mesh")
    assert_trees_close(load_run(tmp_path / "alone").params, load_run(tmp_path / "mesh").params, 2e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill__teacher": ""}, "distill.teacher names no folder"),
        ({"distill__teacher": "nowhere"}, "there is no folder nowhere"),
        ({"distill__top_k": 4, "distill__beta": 1.0}, "take beta below 1"),
        ({"distill__top_k": 4, "distill__temperature": 2.0}, "temperature 1"),
        ({"distill__top_k": 4, "data__pack": True}, "data.pack=False"),
        ({"tokenizer__kind": "byte"}, "another vocabulary.*vocab_size is"),
    ],
)
def test_wrong_settings(teacher: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(config(teacher, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_differs_between_vocabularies_is_told() -> None:
    one, other, longer = (CharTokenizer(letters) for letters in ("abc", "acb", "abcd"))
    assert difference(one, CharTokenizer("abc")) == ""
    assert "token" in difference(one, other) and "'c' there and 'b' here" in difference(one, other)
    assert "vocab_size" in difference(one, longer)
