"""Plans end to end: small runs on eight CPU devices, and on a pod that is not here where its compiler is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from configs.models import PRESETS, get_preset
from launch import chips, compiling, plan
from launch.advice import advice
from launch.chips import CHIPS, GB, Missing, check_compiler, chip_of, devices_of
from launch.compiling import bytes_of
from launch.cost import Message
from launch.planned import rows_of
from launch.programs import Program, decode_plan, decode_step, model_flops, setup_of, training_state
from launch.roofline import seconds_of
from model import build
from model.sharding import make_mesh
from tests.tiny_config import get_config
from train.state import make_state

ROOT = Path(__file__).resolve().parents[2]


def has_libtpu() -> bool:
    """Whether pods can be compiled for here."""
    try:
        check_compiler()
    except Missing:
        return False
    return True


needs_libtpu = pytest.mark.skipif(not has_libtpu(), reason="libtpu is not installed: pip install 'sagax[plan]'")


def test_a_small_run_is_planned_on_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = f"--config={ROOT / 'tests/tiny_config.py'}:sft"
    assert plan.main([recipe, "--topology=cpu", "--program=train", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    step = found["programs"][0]
    kinds = {(line["kind"], line["axes"]) for line in step["traffic"]}
    assert ("all-gather", "fsdp") in kinds and step["fits"] and step["cost"]["unknown_loops"] == 0
    assert step["memory"]["arguments"] == pytest.approx(step["state"], rel=0.05)
    assert 0.5 < step["model_flops"] / step["cost"]["flops"] < 1.0
    assert step["mfu"] is None and step["roofline"]["compute"] is None


@needs_libtpu
def test_the_decode_step_is_planned_for_a_pod(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = f"--config={ROOT / 'tests/tiny_config.py'}:sft"
    assert plan.main([recipe, "--topology=v5e:2x2", "--program=decode"]) == 0
    printed = capsys.readouterr().out
    for words in ("decode step on v5e:2x2", "of 16.91 GB", "all-gather over fsdp", "bound by", "MFU allowed", "2ND"):
        assert words in printed, printed


def test_caches_are_planned_as_they_lie() -> None:
    """Rows of slots and of prompts that have been read are spread over the devices, as the sampler spreads them."""
    config = get_config("grpo")
    config.rl.slots = config.rl.prompts = 8
    params, ready, state = decode_step(setup_of(config, make_mesh({"fsdp": 8}))).arguments
    for cache in (ready.cache, state.cache):
        assert cache.layers and {
            leaf.sharding.shard_shape(leaf.shape)[0] for leaf in jax.tree.leaves(cache.layers)
        } == {1}
    assert params["embed"].sharding.shard_shape(params["embed"].shape)[1] == params["embed"].shape[1] // 8


@needs_libtpu
def test_what_does_not_fit_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """A vocabulary whose table alone is larger than a chip's memory."""
    recipe = f"--config={ROOT / 'tests/tiny_config.py'}:sft"
    sizes = ["--config.model.vocab_size=33554432", "--config.model.d_model=256", "--config.mesh.data=4"]
    flags = [*sizes, "--config.mesh.fsdp=1", "--topology=v5e:2x2", "--program=train"]
    assert plan.main([recipe, *flags]) == 1
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "of 16.91 GB" in printed and "change: more of the mesh for fsdp" in printed


def test_the_compilers_words_are_read() -> None:
    words = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (64.00G)"
    assert compiling.figures(words + " exceeds available HBM (15.75G).") == (64 * 2**30, 15.75 * 2**30)
    assert compiling.figures("Used 17.5M of 15.75G hbm.") == (17.5 * 2**20, 15.75 * 2**30)
    assert compiling.figures("something else") == (None, None)


def test_a_refusal_is_reported_with_what_is_known(monkeypatch: Any) -> None:
    config = get_config("sft")
    mesh = make_mesh({"fsdp": 8})
    setup = setup_of(config, mesh)

    def refuse() -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: needs (20.00G) exceeds available HBM (15.75G)")

    program = Program("training step", refuse, (training_state(setup),), 192, True)
    found = compiling.compiled(program, config, mesh, setup.model)
    assert not found.fits and found.needs == 20 * 2**30 and found.capacity == 15.75 * 2**30
    assert found.state > 0 and found.advice
    assert rows_of(found)[0] == ("does not fit", "needs 21.47 GB", "of 16.91 GB")


def test_memory_is_told_though_the_text_cannot_be_read() -> None:
    config, mesh = get_config("sft"), make_mesh({"fsdp": 8})
    made = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((4, 4), np.float32)).compile()
    other = SimpleNamespace(as_text=lambda: "in another form", memory_analysis=made.memory_analysis)
    program = Program("x", lambda: SimpleNamespace(compile=lambda: other), (), 1, True)  # type: ignore[arg-type, return-value]
    found = compiling.compiled(program, config, mesh, setup_of(config, mesh).model)
    assert found.fits and found.memory is not None and found.memory.arguments == 64
    assert ("costs", "not read", "ValueError: this is no text of a compiled program: it has no ENTRY") in rows_of(found)


def test_a_fault_of_another_kind_is_not_swallowed() -> None:
    config = get_config("sft")
    mesh = make_mesh({"fsdp": 8})

    def fail() -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        compiling.compiled(Program("x", fail, (), 1, True), config, mesh, setup_of(config, mesh).model)


@pytest.mark.parametrize(("carry", "lanes", "samples"), [(0, 8, 16), (1, 1, 18)])
def test_decoding_is_planned_in_the_lanes_of_the_sampler(carry: int, lanes: int, samples: int) -> None:
    """One alone where samples may be interrupted, and the groups in flight besides."""
    config, mesh = get_config("grpo"), make_mesh({"fsdp": 8})
    config.rl.update(prompts=8, samples=2, slots=0, carry=carry)
    found = decode_plan(setup_of(config, mesh))
    assert (found.lanes, found.slots, found.samples) == (lanes, samples, samples)


def test_the_state_is_that_of_the_trainer() -> None:
    """Shapes, types and shardings leaf by leaf; its bytes on one device."""
    config, mesh = get_config("sft"), make_mesh({"fsdp": 4, "data": 2})
    setup = setup_of(config, mesh)
    planned = training_state(setup)
    shardings = setup.model.shardings(mesh)
    params = jax.jit(setup.model.init, out_shardings=shardings)
    real = make_state(lambda: params(jax.random.key(0)), setup.optimizer, config, mesh, setup.rows)
    described = [(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(real)]
    assert [(x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(planned)] == described
    assert bytes_of(planned) == sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(real))


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("llama3_1_8b", {}, 6 * (8_030_261_248 - 128_256 * 4096)),
        ("qwen2_5_0_5b", {}, 6 * 494_032_768),
        # 12.88 billion parameters are active in a token's pass (2401.04088), less the input embedding.
        ("mixtral_8x7b", {}, 6 * (46_702_792_704 - 32_000 * 4096 - 32 * 3 * 6 * 4096 * 14_336)),
    ],
)
def test_six_n_d(preset: str, changes: dict[str, Any], expected: int) -> None:
    """The published counts of parameters, less the vectors of norms and biases, which take part in no product."""
    model = build(get_preset(preset) | changes)
    expected -= 6 * sum(leaf.size for leaf in jax.tree.leaves(model.abstract()) if leaf.ndim < 2)
    assert model_flops(model, Program("", lambda: None, (), 1, True)) == expected
    assert model_flops(model, Program("", lambda: None, (), 1, False)) == expected / 3


def test_a_recurrent_core_counts_as_often_as_it_runs() -> None:
    model = build(get_preset("huginn_3_5b"))
    small = build(get_preset("huginn_3_5b") | {"recurrent": {**get_preset("huginn_3_5b")["recurrent"], "mean": 8}})
    deep, shallow = (model_flops(m, Program("", lambda: None, (), 1, True)) for m in (model, small))
    again = [model.abstract()[name] for name in ("injection", *(f"layer_{i}" for i in range(2, 6)))]
    core = sum(leaf.size for leaf in jax.tree.leaves(again) if leaf.ndim > 1)
    assert deep - shallow == 2 * 24 * core  # the other 24 iterations have no backward pass


def torus(shape: tuple[int, ...], mesh: dict[str, int]) -> Any:
    """A mesh of devices that know their place alone, in the order of a slice."""
    places = [SimpleNamespace(coords=tuple(int(x) for x in place)) for place in np.ndindex(*shape)]
    devices = np.array(places, object).reshape(tuple(mesh.values()))
    return SimpleNamespace(devices=devices, axis_names=tuple(mesh), shape=mesh)


def test_links_of_a_torus() -> None:
    """A ring has two links, a line one, and both sides of a square add up."""
    chip = CHIPS["v5e"]
    mesh = torus((16, 16), {"fsdp": 16, "tensor": 16})
    rows = Message("all-gather", tuple(range(16)))
    assert seconds_of(rows, 100 * GB, mesh, chip) == pytest.approx(1.0)
    assert seconds_of(Message("all-gather", tuple(range(256))), 100 * GB, mesh, chip) == pytest.approx(0.5)
    small = torus((4, 4), {"fsdp": 4, "tensor": 4})
    assert seconds_of(Message("all-gather", (0, 1, 2, 3)), 100 * GB, small, chip) == pytest.approx(2.0)
    quarter = 100 * GB * 15 / 16
    gathered, exchanged = (
        seconds_of(Message(kind, rows.group), quarter, mesh, chip) for kind in ("all-gather", "all-to-all")
    )
    assert exchanged == pytest.approx(gathered * 16 / 15 * 16 / 4)


def test_the_table_of_chips() -> None:
    for name, chip in CHIPS.items():
        assert chip.source.startswith("https://"), name
        assert 1e14 < chip.flops < 1e16 and 1e10 < chip.hbm < 1e12 and 1e11 < chip.bandwidth < 1e13, name
        assert chip.torus in (0, 2, 3) and 1e10 < chip.link < 1e12, name
    kinds = {
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "NVIDIA H100 80GB HBM3": "h100",
    }
    for kind, name in kinds.items():
        assert chip_of(SimpleNamespace(device_kind=kind)) is CHIPS[name]
    assert chip_of(SimpleNamespace(device_kind="cpu")) is None


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v5p", "--topology is cpu, gpu, or a pod such as"),
        ("v5q:2x2x1", "unknown kind of pod 'v5q'"),
        ("v5p:4x4", "slices of v5p have 3 sides"),
        ("v5e:4x5", "--topology='v5e:4x5' is no slice that exists; the nearest that exists is v5e:4x4"),
        ("v5e:0x4", "the nearest that exists is v5e:2x2"),
        ("v5e:512x512", "the nearest that exists is v5e:16x16"),
        ("v5e:3x3", "9 chips, which do not fill hosts of 4"),
        ("v5e:٤x٤", "--topology is cpu, gpu, or a pod such as"),
        ("v9:4x4", "unknown kind of pod 'v9'"),
        ("v4:2x2x1", "unknown kind of pod 'v4'"),
        ("gpu", "and there are none"),
    ],
)
def test_wrong_topologies_are_told(topology: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        devices_of(topology)


def test_without_the_compiler_the_extra_is_named(monkeypatch: Any) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(chips.importlib.metadata, "version", version)
    with pytest.raises(Missing, match=r"pip install 'sagax\[plan\]'"):
        check_compiler()
    monkeypatch.setattr(chips.importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(Missing, match=r"libtpu 0\.0\.1 is here, but JAX .* reads programs of libtpu 0\.0\.\d+"):
        check_compiler()


def test_wrong_use_is_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = f"--config={ROOT / 'tests/tiny_config.py'}"
    for flags, words in (
        (["--topology=cpu", "--program=trian"], "Did you mean 'train'"),
        (["--topology=cpu", "--config.mesh.fsdp=3"], "does not multiply to the 8 devices"),
        (["--topology=cpu", "--config.data.batch_size=12"], "a batch of 12 rows cannot be split evenly"),
        (["--topology=cpu", "--config.algorithm=coconut"], "unknown algorithm with a plan 'coconut'"),
        (["--topology=cpu", "--config.model.d_model=0"], "a plan needs the model's sizes"),
    ):
        assert plan.main([f"{recipe}:sft", *flags]) == 2
        assert words in capsys.readouterr().err
    for arg, flag, words in (
        ("stages", "--stage=grp", "unknown stage 'grp'. Did you mean 'grpo'? Choices: sft, grpo"),
        ("sft", "--stage=sft", "--stage=sft: 'tiny-sft' has no stages"),
        ("stages", "--config.stage.grpo.algorithm=coconut", "tiny-stages/grpo: unknown algorithm with a plan"),
        ("sft", "--config.launch.tpu=v5e:4x5", "the nearest that exists is v5e:4x4"),
    ):
        topology = [] if "tpu" in flag else ["--topology=cpu"]
        assert plan.main([f"{recipe}:{arg}", *topology, flag, "--program=train"]) == 2
        assert words in capsys.readouterr().err


def test_advice_follows_the_figures() -> None:
    config, mesh = get_config("sft"), make_mesh({"fsdp": 4, "data": 2})
    assert advice(config, mesh, 1 * GB, 10 * GB, 16 * GB) == []
    config.model.n_layers = 32
    config.data.batch_size = 64
    much = advice(config, mesh, 1 * GB, 20 * GB, 16 * GB)
    assert [sentence.split(":")[0].split("=")[0] for sentence in much] == ["model.layers", "model.remat", "micro_batch"]
    assert "micro_batch=48" in much[-1]  # 8 rows on a chip, 19 GB of temporaries, 4 too many
    heavy = advice(config, mesh, 15 * GB, 18 * GB, 16 * GB)
    assert heavy[0].startswith("more of the mesh for fsdp: 15.0 GB of state a chip are spread over 4 of 8 chips")


def test_advice_on_decoding_is_about_keys() -> None:
    config, mesh = get_config("sft"), make_mesh({"fsdp": 4, "data": 2})
    config.eval.update(examples=64, slots=0, samples=1, max_new_tokens=100)
    config.model.update(depth="recurrent", recurrent=dict(mean=8))
    names = lambda found: [sentence.split(":")[0] for sentence in found]  # noqa: E731
    assert names(advice(config, mesh, 1 * GB, 20 * GB, 16 * GB, trains=False)) == [
        "eval.slots=48",
        "model.recurrent.kv_slots=4",
        "eval.max_new_tokens below 100",
    ]
    config.model.depth, config.eval.slots = "stack", 8
    alone = advice(config, mesh, 1 * GB, 20 * GB, 16 * GB, trains=False)
    assert names(alone) == ["eval.max_new_tokens below 100", "mesh.tensor=2"]


def test_every_planned_preset_is_there() -> None:
    assert {"llama3_1_8b", "llama2_70b", "mixtral_8x7b", "deepseek_v3", "huginn_3_5b", "qwen2_5_7b"} <= set(PRESETS)


@pytest.mark.skipif(not os.environ.get("SAGAX_FULL"), reason="make test-all runs it")
@needs_libtpu
def test_the_command_line_as_a_user_types_it() -> None:
    command = [
        sys.executable,
        "-m",
        "launch.plan",
        f"--config={ROOT / 'tests/tiny_config.py'}:grpo",
        "--topology=v5e:2x2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "training step" in done.stdout and "decode step" in done.stdout
