"""Settings said over a recipe: where they hold, what they may be, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs import common, quickstart
from configs.pipelines import long_context
from train.pipeline import runs_of
from train.setting_types import as_type
from train.settings import flat, override, settings_read


def changed(config: ConfigDict, **settings: Any) -> list[ConfigDict]:
    """The runs of a config with other settings, `a__b` meaning a.b."""
    return runs_of(override(config, {name.replace("__", "."): value for name, value in settings.items()})[0])


def test_a_setting_holds_in_every_stage() -> None:
    sft, grpo = changed(quickstart.get_config(), rl__samples="4", rl__max_new_tokens="12", optimizer__lr="1e-3")
    assert (grpo.rl.samples, grpo.rl.max_new_tokens) == (4, 12)
    assert (sft.optimizer.lr, grpo.optimizer.lr) == (1e-3, 1e-3)
    assert {run.steps for run in changed(long_context.get_config(), steps="3")} == {3}
    assert {run.data.options.symbols for run in changed(long_context.get_config(), data__options__symbols=9)} == {9}


def test_a_setting_of_one_stage_holds_there_and_wins() -> None:
    sft, grpo = changed(quickstart.get_config(), stage__grpo__rl__samples="4", rl__samples="16", seed="5")
    assert (sft.rl.samples, grpo.rl.samples, sft.seed, grpo.seed) == (16, 4, 5, 5)
    sft, grpo = changed(quickstart.get_config(), stage__sft__optimizer__lr="0.5", stage__sft__data__options__digits="2")
    assert (sft.optimizer.lr, grpo.optimizer.lr) == (0.5, 3e-4)
    assert (sft.data.options.to_dict(), grpo.data.options.digits) == ({"digits": 2, "direct_share": 0.75}, 3)


def test_the_recipe_itself_is_left_alone() -> None:
    config = quickstart.get_config()
    before = dict(flat(config))
    override(config, {"rl.samples": 4, "data.options.digits": 2, "stage.sft.steps": 7})
    assert dict(flat(config)) == before


def test_a_stage_may_start_from_somewhere_else() -> None:
    config = override(quickstart.get_config(), {"stage.grpo.init_from": "runs/other", "init_from": "runs/base"})[0]
    assert [run.init_from for run in runs_of(config)] == ["runs/base", "runs/other"]
    assert [run.init_from for run in runs_of(config, Path("runs/q"))] == ["runs/base", "runs/other"], "of any folder"
    usual = quickstart.get_config()
    assert [run.init_from for run in runs_of(usual, Path("runs/q"))] == ["", "runs/q/sft"]
    anew = override(usual, {"stage.grpo.init_from": ""})[0]
    assert [run.init_from for run in runs_of(anew, Path("runs/q"))] == ["", ""], "a stage may begin with new weights"


def test_rewards_take_new_names_and_options() -> None:
    grpo = changed(quickstart.get_config(), rl__rewards__overlong__buffer="16", rl__rewards__overlong="0.2")[1]
    assert grpo.rl.rewards.overlong.to_dict() == {"weight": 0.2, "buffer": 16}
    grpo = changed(quickstart.get_config(), stage__grpo__rl__rewards__format="0.5")[1]
    assert grpo.rl.rewards.format == 0.5
    grpo = changed(quickstart.get_config(), rl__rewards__language="{'weight': 1.0, 'target': 'de'}")[1]
    assert grpo.rl.rewards.language.to_dict() == {"weight": 1.0, "target": "de"}
    grpo = changed(quickstart.get_config(), rl__rewards__accuracy=None, rl__rewards__mine__kind="format")[1]
    assert (grpo.rl.rewards.accuracy, grpo.rl.rewards.mine.kind) == (None, "format")


def test_options_take_what_the_task_takes() -> None:
    [run] = changed(common.base(), data__options__train_size="100", launch__options__account="me")
    assert (run.data.options.train_size, run.launch.options.account) == (100, "me")
    [run] = changed(common.base(), data__task="mbpp", data__options__allow_code="true")
    assert run.data.options.to_dict() == {"allow_code": True}
    [run] = changed(common.base(), data__task="gsm8k", data__options__valid_size="7")
    assert run.data.options.to_dict() == {"valid_size": 7}


def test_another_task_has_options_of_its_own() -> None:
    config, notes = override(quickstart.get_config(), {"data.task": "gsm8k"})
    assert [run.data.options.to_dict() for run in runs_of(config)] == [{}, {}]
    assert notes == ["data.task=gsm8k: options of addition in the recipe do not apply (digits=3, direct_share=0.75)"]
    assert override(quickstart.get_config(), {"data.task": "addition"})[1] == []
    sft, grpo = changed(quickstart.get_config(), stage__grpo__data__task="parity")
    assert (sft.data.options.digits, grpo.data.task, len(grpo.data.options)) == (3, "parity", 0)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.window", "128", 128),
        ("model.window", "128,None", (128, None)),
        ("model.window", "None", None),
        ("model.n_kv_heads", "None", None),
        ("model.n_kv_heads", "2", 2),
        ("model.rope.short_factor", "1.0,2", (1.0, 2.0)),
        ("model.rope.long_factor", "[1, 2]", (1.0, 2.0)),
        ("model.rope.attention_factor", "none", None),
        ("model.moe.aux_weight", "1e-3", 1e-3),
        ("model.mixer", "gqa,mla", "gqa,mla"),
        ("model.mixer", "('gqa', 'mla')", ("gqa", "mla")),
        ("model.peer.banks", "4,8", (4, 8)),
        ("rl.ratio_cap", "3", 3.0),
        ("eval.thoughts", "3", 3),
        ("eval.depths", "4", (4,)),
        ("data.stop", "END,\n", ("END",)),
        ("data.pack", "false", False),
        ("steps", "1e3", 1000),
        ("stages", "sft,grpo", ("sft", "grpo")),
        ("name", "None", "None"),
    ],
)
def test_text_becomes_what_the_setting_is(name: str, text: str, value: Any) -> None:
    config = override(common.base(), {name: text})[0]
    found = dict(flat(config))[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": "2.5"}, "steps is a whole number, found '2.5'"),
        ({"steps": True}, "steps is a whole number"),
        ({"steps": "None"}, "steps is a whole number"),
        ({"model.window": "wide"}, "model.window is a whole number or a tuple such as 1,2 or None, found 'wide'"),
        ({"data.pack": "perhaps"}, "data.pack is true or false"),
        ({"optimizer.lr": "fast"}, "optimizer.lr is a number"),
        ({"name": 3}, "name is text"),
        ({"optimizer.lrr": "1"}, "Did you mean 'optimizer.lr'"),
        ({"samples": "4"}, "Did you mean 'eval.samples' or 'log.samples' or 'rl.samples'"),
        ({"stage.sft": "1"}, "named stage.<stage>.<setting>"),
        ({"stage.sft.name": "x"}, "a stage has no name to choose"),
        ({"stage.sfft.steps": "1"}, "Did you mean 'sft'"),
        ({"data.task": "additoin"}, "Did you mean 'addition'"),
        ({"data.options.digitz": "1"}, "Did you mean 'digits'"),
        ({"data.options.train_size": "many"}, "data.options.train_size is a whole number"),
        ({"rl.rewards.overlong.a.b": "1"}, "rl.rewards.<reward>.<option>"),
        ({"rl.rewards.accuracy": "much"}, "rl.rewards.accuracy is a dict or a number or None"),
        ({"rl": "1"}, "rl is a group of settings"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        override(quickstart.get_config(), settings)
    assert words in str(error.value)


def test_settings_that_nobody_reads_are_left_out() -> None:
    config = common.base()
    read = settings_read(config)
    assert not [name for name in read if name.startswith(("rl.", "thoughts.", "model.moe.", "model.recurrent."))]
    assert {"model.rope.theta", "optimizer.lr", "mesh.fsdp", "data.task"} <= set(read)
    config.init_from = "runs/a"
    assert "model.moe.top_k" in settings_read(config), "what that model is, its folder tells"
    config.algorithm = "grpo"
    assert "rl.samples" in settings_read(config)


def test_a_value_of_the_type_stays_what_it_is() -> None:
    assert as_type((1, 2), tuple[int, ...], "x") == (1, 2)
    assert as_type(3, float, "x") == 3.0
    assert as_type({"a": 1}, dict, "x") == {"a": 1}
