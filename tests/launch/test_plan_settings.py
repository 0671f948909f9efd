"""What a setting changes in a plan, told by shapes alone; what no plan can know is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch import plan, programs
from launch.compiling import bytes_of
from launch.decoding import prompt_columns
from launch.planned import Memory, Planned, gigabytes, rows_of
from launch.programs import Program, decode_plan, decode_step, evaluation_step, setup_of, training_step
from launch.stages import stages_of
from model.sharding import make_mesh
from tests.tiny_config import get_config
from train.state import HOST, make_state

ROOT = Path(__file__).resolve().parents[2]
MIXTURE = dict(ffn="moe", moe=dict(n_experts=4, top_k=2, d_expert=16))
RECURRENT = dict(depth="recurrent", n_layers=3, recurrent=dict(mean=3, draw="poisson"))


def changed(kind: str, **settings: Any) -> ConfigDict:
    """A tiny config with settings by dotted name, `__` for the dot."""
    config = get_config(kind)
    for name, value in settings.items():
        *path, last = name.split("__")
        part = config
        for key in path:
            part = part[key]
        if isinstance(value, dict):
            part[last].update(value)
        else:
            part[last] = value
    return config


def step_of(config: ConfigDict) -> Program:
    """Its training step on eight devices, with the state and the batch; nothing is compiled."""
    return training_step(setup_of(config, make_mesh({"fsdp": 8})))


def test_moments_in_host_memory_are_not_counted_on_the_chip() -> None:
    """Leaf by leaf as the trainer has them."""
    config, mesh = changed("sft", optimizer__memory="host"), make_mesh({"fsdp": 8})
    setup = setup_of(config, mesh)
    state = programs.training_state(setup)
    on_device, on_host = (bytes_of(step_of(get_config("sft")).arguments[0]), bytes_of(state, HOST))
    assert on_host and bytes_of(state) == on_device - on_host
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim}
    assert kinds == {HOST}
    params = jax.jit(setup.model.init, out_shardings=setup.model.shardings(mesh))
    real = make_state(lambda: params(jax.random.key(0)), setup.optimizer, config, mesh, setup.rows)
    same = [(x.shape, x.dtype, x.sharding.memory_kind) for x in jax.tree.leaves(real)]
    assert [(x.shape, x.dtype, x.sharding.memory_kind) for x in jax.tree.leaves(state)] == same
    found = plan.plan(config, "cpu", ["train"])[0]
    assert found.on_host == on_host and found.state + on_host == plan.plan(get_config("sft"), "cpu", ["train"])[0].state
    assert ("on the host", gigabytes(on_host)) in [row[:2] for row in rows_of(found)]


def test_an_unknown_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown optimizer.memory 'hots'"):
        step_of(changed("sft", optimizer__memory="hots"))


def test_routes_are_part_of_the_batch_and_of_the_slots() -> None:
    for share in (True, False):
        config = changed("grpo", model=MIXTURE, rl__replay_routes=True, rl__share_prompts=share)
        config.rl.update(prompts=8, samples=2)
        batch = step_of(config).arguments[1]
        for part in (batch, batch.shared):
            assert part.routes.shape == (*part.tokens.shape, config.model.n_layers, 2) and part.routes.dtype == np.int16
    setup = setup_of(config, make_mesh({"fsdp": 8}))
    assert decode_plan(setup).routes and decode_step(setup).arguments[2].out_routes is not None
    with pytest.raises(ValueError, match="routes require a plain stack whose tokens choose their experts"):
        step_of(changed("grpo", rl__replay_routes=True))


def test_what_lies_beside_a_program_counts() -> None:
    config = changed("grpo", rl__prompts=8)
    setup = setup_of(config, make_mesh({"fsdp": 8}))
    state = programs.training_state(setup)
    params = bytes_of(state.params)
    beside = lambda program: {name: bytes_of(tree) for name, tree in program.beside.items()}  # noqa: E731
    assert beside(training_step(setup)) == {}
    assert beside(decode_step(setup)) == {"the optimiser's state": bytes_of((state.optimizer, state.rows))}
    for name in ("beta", "track_kl"):
        more = changed("grpo", rl__prompts=8, **{f"rl__{name}": True if name == "track_kl" else 0.1})
        program = training_step(setup_of(more, make_mesh({"fsdp": 8})))
        assert beside(program) == {"the reference": params}
        assert f"rl.{name}: log-probs of a rollout" in program.left_out[0]
    whole = changed("grpo", rl__prompts=8, rl__overlap=True, optimizer__ema=0.9, optimizer__memory="host")
    setup = setup_of(whole, make_mesh({"fsdp": 8}))
    decoding = decode_step(setup)
    counted = beside(decoding)
    assert counted["the optimiser's state"] < 64, "scalars that steer it"
    assert counted["the average"] == counted["parameters that are trained meanwhile"] == params
    assert beside(training_step(setup)) == {"the rollout under way": bytes_of(decoding.arguments)}


def test_a_program_and_what_lies_beside_it_have_to_fit() -> None:
    fields = dict(name="x", trains=False, tokens=1, seconds=0.0, peak_rss=0, model_flops=0.0, state=1)
    memory = Memory(1, 1, 1, 1, 10)
    for beside, fits in (({}, True), ({"the reference": 3}, False)):
        found = Planned(**fields, capacity=12, memory=memory, beside=beside)
        assert found.fits == fits
    assert ("beside it the reference", "0.00 MB", "kept meanwhile") in rows_of(found)
    assert rows_of(found)[5][0] == "does not fit"


def test_depths_that_are_drawn_take_caches_as_deep_as_they_may_be() -> None:
    mesh = make_mesh({"fsdp": 8})
    for settings, depth in (({}, 3), ({"depth": "drawn"}, 6), ({"depth": "drawn", "max_depth": 4}, 4)):
        config = changed("grpo", model=RECURRENT)
        config.rl.update(prompts=8, samples=2, **settings)
        setup = setup_of(config, mesh)
        found = decode_plan(setup)
        assert found.recurrence is not None and found.recurrence.depth == depth
        assert (found.recurrence.varied, found.group) == ((True, 1) if settings else (False, 2))
        # A rollout of a recurrent model tells the depth of every sample, drawn or not.
        spent = training_step(setup).arguments[1].depth
        assert (spent.shape, spent.dtype) == ((16,), np.int32)
    assert step_of(changed("grpo", rl__prompts=8)).arguments[1].depth is None
    assert decode_step(setup).arguments[1].budget is not None
    with pytest.raises(ValueError, match=r"takes a recurrent model with recurrent\.draw"):
        step_of(changed("grpo", rl__depth="drawn"))


def test_evaluations_are_planned_by_their_own_settings() -> None:
    config = changed("grpo", model=RECURRENT)
    config.eval.update(examples=8, samples=2, depth=2, warm_start="raw")
    setup = setup_of(config, make_mesh({"fsdp": 8}))
    assert evaluation_step(setup).name == "decode step of evaluations"
    found = decode_plan(setup, rollout=False)
    assert (found.samples, found.truncation.greedy) == (16, True)
    assert found.recurrence is not None and (found.recurrence.depth, found.recurrence.warm) == (2, "raw")
    config.eval.update(depths=(1, 5), warm_start="")
    found = decode_plan(setup_of(config, make_mesh({"fsdp": 8})), rollout=False)
    assert found.recurrence is not None and (found.recurrence.depth, found.recurrence.varied) == (5, True)
    config.eval.update(depths=(), exit="kl", exit_threshold=0.5)
    found = decode_plan(setup_of(config, make_mesh({"fsdp": 8})), rollout=False)
    assert found.recurrence is not None and found.recurrence.exit is not None and found.recurrence.exit.threshold == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eval__depth": 2}, "eval.depth is for recurrent models"),
        ({"eval__exit": "kl"}, "eval.exit is for recurrent models"),
        ({"eval__thoughts": 2}, "eval.thoughts=2 is for models with thoughts"),
        ({"eval__examples": 0, "eval__loss_batches": 1}, "eval.examples=0: this run decodes nothing"),
    ],
)
def test_what_no_evaluation_can_do_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluation_step(setup_of(changed("sft", **settings), make_mesh({"fsdp": 8})))


def test_prompts_leave_room_for_what_follows() -> None:
    mesh = make_mesh({"fsdp": 8})
    for settings, longest in (({}, 24), ({"max_prompt_length": 12}, 16), ({"max_new_tokens": 60}, 8)):
        config = changed("grpo", rl=settings)
        assert prompt_columns(setup_of(config, mesh), rollout=True) == longest
    for changes in ({"max_prompt_length": 60}, {"max_new_tokens": 64}):
        with pytest.raises(ValueError, match="do not fit the model's context of 64"):
            step_of(changed("grpo", rl=changes))


def test_a_run_that_decodes_nothing_has_no_plan_of_decoding() -> None:
    assert plan.usual(changed("sft", eval__examples=0)) == ["train"]
    assert plan.usual(changed("grpo", eval__examples=0)) == plan.usual(get_config("sft")) == ["train", "decode"]
    assert "eval.loss_batches" in step_of(changed("sft", eval__loss_batches=2)).left_out[0]


def test_groups_in_flight_are_read_again_with_what_they_have_said() -> None:
    config = changed("grpo", rl__prompts=8, rl__samples=2, rl__carry=3)
    found = decode_plan(setup := setup_of(config, make_mesh({"fsdp": 8})))
    assert (found.samples, found.lanes) == (22, 1)
    ready = decode_step(setup).arguments[1]
    assert ready.hidden.shape[0] == 11 + 8, "a row for each of six samples, of which the number is a power of two"
    assert (
        ready.prefixes is not None
        and ready.prefixes.tokens.shape == (22, 6)
        and found.prompt_length == prompt_columns(setup, True) + 6
    )


def test_the_model_is_that_of_the_folder_where_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, mesh = changed("sft", init_from=str(tmp_path)), make_mesh({"fsdp": 8})
    asked: list[str] = []

    def trained(config: ConfigDict, *_: Any) -> tuple[str, None]:
        asked.append(config.init_from)
        return "its model", None

    monkeypatch.setattr(programs, "make_model", trained)
    assert programs.model_of(config, mesh) == "its model" and asked == [str(tmp_path)]
    config.init_from, config.model.vocab_size = str(tmp_path / "elsewhere"), 20
    assert programs.model_of(config, mesh).config.d_model == 32, "the sizes of the recipe"


def test_a_model_with_thoughts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.thoughts import Ending

    monkeypatch.setattr(programs, "open_origin", lambda _: type("Origin", (), {"ending": Ending((1, 2, 2, 3), 2)}))
    with pytest.raises(ValueError, match=r"init_from=.* is a model with 2 thoughts"):
        step_of(changed("grpo", init_from=str(tmp_path)))


def test_stages_are_planned_one_by_one_or_by_name() -> None:
    config = get_config("stages")
    assert [stage.name for stage in stages_of(config)] == ["tiny-stages/sft", "tiny-stages/grpo"]
    [stage] = stages_of(config, "grpo")
    assert stage.algorithm == "grpo" and not stage.stages
    assert stages_of(get_config("sft"))[0].name == "tiny-sft"
    assert step_of(stage).arguments[1].tokens.shape[0] == 8


def test_a_stage_has_the_vocabulary_of_the_first() -> None:
    config = get_config("stages")
    config.stage.grpo.tokenizer = ConfigDict(dict(kind="byte"))
    first, second = (setup_of(stage, make_mesh({"fsdp": 8})).model.config for stage in stages_of(config))
    assert first.vocab_size == second.vocab_size


def test_a_stage_after_thoughts_is_refused() -> None:
    config = get_config("stages")
    config.stage.sft.algorithm = "coconut"
    with pytest.raises(ValueError, match=r"stage 'grpo' starts from .* stage 'sft' \(algorithm coconut\)"):
        stages_of(config, "grpo")


def test_the_command_plans_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--config={ROOT / 'tests/tiny_config.py'}:stages", "--topology=cpu", "--program=train", "--json"]
    assert plan.main([*flags, "--stage=sft", f"--text={tmp_path}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "tiny-stages/sft" and found["programs"][0]["fits"]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-stages_sft_training_step.txt"]
