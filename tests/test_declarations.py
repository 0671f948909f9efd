"""Every setting is declared once: configs, their help and docs/settings.md come from there; nothing says it again."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import train.__main__
from configs import common
from data.thoughts import METHODS as THOUGHT_METHODS
from model.precision import PRECISIONS as RECIPES
from rl.grpo import grpo_objective
from rl.kl import KINDS as ESTIMATORS_OF_KL
from rl.rules import RolloutRules
from settings.data import METHODS
from settings.model import PRECISIONS
from settings.optimizer import OPTIMIZERS, SCHEDULES
from settings.rl import KL_KINDS, PolicyLossConfig
from settings.run import RunConfig, run_config
from settings.setting import bounds_in_words, check, default_of, setting
from settings.table import executing, of_trained, page, rows
from store.run_directory import MAY_CHANGE
from tests.conftest import ROOT
from tests.trunk import tiny
from train.optimizer import OPTIMIZERS as RULES
from train.optimizer import SCHEDULES as SHAPES
from train.settings import flat

OPEN = ("rl.rewards", "sample.least", "score.rewards")  # groups that are filled and take new names
ROOMS = ("data", "infer", "launch", "model", "rl", "store", "train")


def test_every_setting_of_a_config_is_declared() -> None:
    declared = {row.name for row in rows()}
    config = common.base()
    found = {next((group for group in OPEN if name.startswith(group)), name) for name, _ in flat(config)}
    assert found == declared


def test_defaults_are_within_their_own_bounds() -> None:
    for row in rows():
        if row.default not in row.rules.choices and row.rules.choices:
            entries = row.default if isinstance(row.default, tuple) else ()
            assert row.rules.unset == row.default or (entries and set(entries) <= set(row.rules.choices)), row.name
    run_config(common.base())


def test_every_setting_says_what_it_means() -> None:
    for row in rows():
        assert row.rules.meaning and not row.rules.meaning.endswith("."), row.name
        assert row.kind, row.name


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (OPTIMIZERS, RULES),
        (SCHEDULES, SHAPES),
        (KL_KINDS, ESTIMATORS_OF_KL),
        (METHODS, THOUGHT_METHODS),
        (PRECISIONS, RECIPES),
    ],
)
def test_choices_are_what_the_tables_hold(said: Any, known: Any) -> None:
    assert set(said) == set(known)


def defaults_of(path: Path) -> Iterator[tuple[str, str, ast.expr]]:
    """(function, parameter, default) of every function in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            plain = [*node.args.posonlyargs, *node.args.args]
            late = zip(plain[len(plain) - len(node.args.defaults) :], node.args.defaults, strict=True)
            named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            yield from ((node.name, a.arg, d) for a, d in (*late, *named) if d is not None)


def second_defaults(root: Path, place: str, groups: tuple[str, ...]) -> list[str]:
    """Parameters with the name of a setting whose default is another than the one declared."""
    declared: dict[str, list[Any]] = {}
    for row in (row for row in rows() if row.name.startswith(groups)):
        declared.setdefault(row.name.rpartition(".")[2], []).append(row.default)
    found = []
    for path in [root / place] if place.endswith(".py") else sorted((root / place).rglob("*.py")):
        for function, name, default in defaults_of(path):
            where = f"{path.relative_to(root)} {function} {name}"
            known = [value for value in declared.get(name, ()) if comparable(value, default)]
            if known and ast.literal_eval(default) not in known:
                found.append(f"{where} = {ast.unparse(default)}, and the setting's is {' or '.join(map(repr, known))}")
    return found


def comparable(declared: Any, default: ast.expr) -> bool:
    """Whether a literal could be meant as a setting's default: of its kind, where that has one."""
    if not isinstance(default, ast.Constant) or default.value is None:
        return False
    kinds = [isinstance(value, str) for value in (declared, default.value)]
    return declared is None or kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("place", "groups"),
    [
        ("rl", ("rl.",)),
        ("train", ("rl.",)),
        ("train/objectives", ("rl.", "data.")),
        ("train/objectives/thoughts.py", ("thoughts.",)),
        ("train/optimizer.py", ("optimizer.",)),
        ("train/sparse_tables.py", ("optimizer.",)),
        ("train/setup.py", ("data.", "eval.", "checkpoint.", "log.")),
        ("launch/needs.py", ("launch.",)),
    ],
)
def test_no_function_has_another_default(place: str, groups: tuple[str, ...]) -> None:
    assert second_defaults(ROOT, place, groups) == []


def test_another_default_is_found(tmp_path: Path) -> None:
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "a.py").write_text("def f(x, *, clip_high: float = 0.2, beta=0.0, level='token'): ...")
    assert second_defaults(tmp_path, "rl", ("rl.",)) == ["rl/a.py f clip_high = 0.2, and the setting's is 0.28"]


def test_no_dataclass_of_a_room_declares_a_setting_again() -> None:
    """A class with the fields of a setting's class inherits them."""
    own = {field.name for field in dataclasses.fields(PolicyLossConfig)}
    assert {f.name for f in dataclasses.fields(RolloutRules)} > own and issubclass(RolloutRules, PolicyLossConfig)
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                fields = {
                    n.target.id
                    for n in node.body
                    if isinstance(n, ast.AnnAssign) and n.value is not None and isinstance(n.target, ast.Name)
                }
                assert len(fields & own) < 2, f"{path}: {node.name} declares {sorted(fields & own)}"


def test_what_may_change_is_what_executes() -> None:
    assert set(executing()) == {"eval", "checkpoint", "log", "launch", "max_bad_steps", "mesh", "sharding"}
    assert set(executing()) < set(MAY_CHANGE)
    nested = [row.name for row in rows() if row.rules.executes and row.name.partition(".")[0] not in executing()]
    assert not nested, "the run directory compares groups at the top"


def test_what_a_trained_model_lets_change() -> None:
    own, free = of_trained("own"), of_trained("change")
    assert set(own) == {
        "dtype",
        "param_dtype",
        "remat",
        "layers",
        "attention",
        "recurrent.exit_stage",
        "recurrent.ramp",
    }
    assert {"max_length", "rope.theta", "moe.dispatch", "recurrent.mean"} <= set(free)
    assert not {"d_model", "moe.n_experts", "recurrent.core", "peer.heads", "qk_norm"} & set(free)


def test_the_page_is_current() -> None:
    found = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert found == page(), "python -m settings > docs/settings.md"


def test_help_says_what_every_setting_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.__main__.main(["train", "--config=configs/quickstart.py", "--help_settings"]) == 0
    told = capsys.readouterr().out
    assert "  rl.clip_high = 0.28  (number, at least 0) the ratio is at most 1 + clip_high\n" in told
    assert (
        "  stage.grpo.algorithm = 'grpo'  (default 'sft'; text) a name of ALGORITHMS in train/algorithms.py\n" in told
    )
    assert "  rl.surrogate = 'clip'  (clip, cispo, sapo, gmpo) the form of the objective\n" in told
    assert "\n  data.options.digits = 3\n" in told, "a task's options have their meaning there"
    assert all(f"  {row.name} = " in told or row.name in (*OPEN, "data.options", "stage") for row in rows())


def test_settings_import_nothing_heavy() -> None:
    code = "import sys, configs.quickstart; print([m for m in ('jax', 'numpy', 'flax', 'optax') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"


def test_a_config_becomes_frozen_settings() -> None:
    config = common.base()
    config.data.options.digits = 2
    config.rl.rewards.format = 0.5
    model = tiny().config
    run = run_config(config, model)
    assert run.model is model and run.rl.rewards["format"] == 0.5 and run.data.options == {"digits": 2}
    assert json.loads(config.to_json())["optimizer"]["lr"] == run.optimizer.lr
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.steps = 3  # type: ignore[misc]


def test_bounds_and_choices() -> None:
    @dataclasses.dataclass(frozen=True)
    class Some:
        share: float = setting(0.5, "a share", above=0, high=1)
        count: int | None = setting(None, "a count", low=1, why="0 is nothing")
        kinds: tuple[str, ...] = setting(("a",), "kinds", choices=("a", "bee"))

    check(Some())
    for wrong, words in (
        (Some(share=0.0), r"x.share must lie in \(0, 1\], found 0.0"),
        (Some(share=float("nan")), "x.share must lie"),
        (Some(count=0), "x.count must be at least 1, found 0: 0 is nothing"),
        (Some(count=True), "x.count must be at least 1, found True"),
        (Some(kinds=("a", "be")), "unknown x.kinds 'be'. Did you mean 'bee'"),
    ):
        with pytest.raises(ValueError, match=words):
            check(wrong, "x.")


def test_the_loss_of_a_run_takes_every_setting_of_it() -> None:
    loss = PolicyLossConfig(aggregate="sequence_mean")
    assert grpo_objective(tiny(), **vars(loss))
    assert {row.name for row in rows(RunConfig) if row.name.startswith("rl.")} >= {
        f"rl.{field.name}" for field in dataclasses.fields(PolicyLossConfig)
    }
    assert bounds_in_words(next(row.rules for row in rows() if row.name == "rl.gamma")) == "lie in (0, 1]"
    assert default_of(next(f for f in dataclasses.fields(PolicyLossConfig) if f.name == "clip_low")) == 0.2
