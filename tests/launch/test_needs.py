"""What runs take of a cluster: read from their configs, refused where it cannot be."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from launch import sweep
from launch.launchers import check_installed, launcher
from launch.needs import Needs, needs_of
from launch.runs import Run, peers
from launch.slices import GENERATIONS, Slice, cubes, nearest, slice_of
from launch.sweep import plan
from store.run_directory import check_free, claim
from tests import tiny_config

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "tests/launch/sweep_config.py")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("v5e:1x1", (1, 1)),
        ("v5e:2x4", (1, 8)),
        ("v5e:4x4", (4, 4)),
        ("v6e:16x16", (64, 4)),
        ("v4:2x2x1", (1, 4)),
        ("v4:2x2x2", (2, 4)),
        ("v5p:8x8x16", (256, 4)),
        ("v5p:4x4x12", (48, 4)),
        ("v4:16x16x16", (1024, 4)),
        ("v2:2x2", (1, 4)),
        ("v3:32x32", (256, 4)),
    ],
)
def test_a_slice_has_hosts_and_chips(text: str, found: tuple[int, int]) -> None:
    generation, topology = text.split(":")
    assert slice_of(text) == Slice(generation, topology, *found)
    assert Needs(tpu=text).hosts == found[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tpu": "v5:4x4"}, "Did you mean 'v5"),
        ({"tpu": "v5e-16"}, "generation of launch.tpu"),
        ({"tpu": "v5e:16"}, "a generation and a topology such as 'v5e:4x4', found 'v5e:16'"),
        ({"tpu": "v5e:0x4"}, "found 'v5e:0x4'"),
        (
            {"tpu": "v5p:4x4"},
            "such as 'v5p:4x4x4', found 'v5p:4x4'.* have 3 sides; the nearest that exists is v5p:2x2x4",
        ),
        ({"tpu": "v4:3x3x1"}, "9 chips, which do not fill hosts of 4; the nearest that exists is v4:2x2x2"),
        ({"tpu": "v5e:4x4", "gpus": 1}, "leave launch.gpus and launch.nodes"),
        ({"tpu": "v5e:4x4", "nodes": 4}, "leave launch.gpus and launch.nodes"),
        ({"cpus": 0}, "launch.cpus must be at least 1, found 0"),
        ({"gpus": -1}, "launch.gpus must be at least 0, found -1"),
        ({"nodes": 0}, "launch.nodes must be at least 1"),
        ({"memory_gb": -2.0}, "launch.memory_gb must be at least 0"),
        ({"hours": 0.0}, "launch.hours must be more than 0"),
    ],
)
def test_what_cannot_be_had_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Needs(**settings)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        *(("v5e:4x5", "v5e:4x4"), ("v5e:512x512", "v5e:16x16"), ("v5e:4x2", "v5e:2x4"), ("v5e:16x8", "v5e:8x16")),
        *(("v5e:0x4", "v5e:2x2"), ("v5e:3x3", "v5e:2x4"), ("v5e:2x2x1", "v5e:2x2"), ("v6e:1x2", "v6e:1x1")),
        *(("v5p:2x2", "v5p:2x2x1"), ("v5p:1x1x1", "v5p:2x2x1"), ("v5p:8x4x4", "v5p:4x4x8"), ("v5p:2x2x3", "v5p:2x2x4")),
        *(
            ("v5p:16x16x32", "v5p:16x16x24"),
            ("v4:4x4x6", "v4:4x4x8"),
            ("v4:16x16x20", "v4:16x16x16"),
            ("v3:2x4", "v3:2x2"),
        ),
    ],
)
def test_slices_that_do_not_exist_are_refused_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"the nearest that exists is {near}$"):
        slice_of(text)
    with pytest.raises(ValueError, match=f"^--topology.*the nearest that exists is {near}$"):
        slice_of(text, "--topology")
    assert slice_of(near)


@pytest.mark.parametrize(
    "text", ["v5e:", "v5e", "v5e:4X4", "v5e:4x", "v5e:-4x4", "v5e:٤x٤", f"v5e:{'9' * 5000}x4", "v5e:4x4 "]
)
def test_what_is_no_topology_is_told_from_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"launch\.tpu is a generation and a topology such as 'v5e:4x4', found"):
        slice_of(text)


def test_the_table_of_slices() -> None:
    for name, generation in GENERATIONS.items():
        for sides in generation.all()[::8]:
            found = slice_of(f"{name}:{'x'.join(map(str, sides))}")
            assert found.hosts * found.chips == math.prod(sides) and nearest(sides, generation.all()) == sides
    assert cubes(128) == ((4, 4, 4), (4, 4, 8)) and cubes(0) == ()
    assert slice_of("v5e:04x04") == slice_of("v5e:4x4")


def test_the_defaults_are_those_of_the_configs() -> None:
    assert needs_of(tiny_config.get_config().to_dict()) == Needs()


def test_runs_have_the_needs_of_their_flags(tmp_path: Path) -> None:
    flags = ["--config.launch.gpus=8", "--config.launch.nodes=2", "--config.launch.partition=large"]
    runs = plan(CONFIG, tmp_path / "runs", flags)
    assert [run.needs for run in runs] == [Needs(gpus=8, nodes=2, partition="large")] * 2
    assert str(runs[0].needs) == "2 x (1 core, 8 GPUs), partition large, 24 h"
    assert str(Needs(cpus=8, tpu="v5e:4x4", hours=0.5)) == "4 x (8 cores, 4 TPU chips), a slice v5e:4x4, 0.5 h"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.launch.gpu=8"], "Did you mean 'launch.gpus'"),
        (["--config.launch.gpus=many"], "gpus"),
        (["--config.launch.tpu=v5e:4x5", "--launcher=ray"], "the nearest that exists is v5e:4x4"),
        (["--config.launch.tpu=v9:4x4", "--launcher=ray"], "unknown generation of launch.tpu 'v9'"),
        (["--config.launch.hours=-1"], "launch.hours must be more than 0"),
        (["--config.launch.nodes=2"], "is to train on 2 hosts, and --launcher=local has this one"),
        (["--launcher=slurm", "--config.launch.tpu=v5e:4x4"], "--launcher=slurm has GPUs and cores"),
        (["--launcher=slurm", "--workdir=runs/%j"], "Slurm takes '%' in '%j' for a pattern such as %j"),
    ],
)
def test_bad_needs_are_one_paragraph_before_anything_starts(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main([f"--config={CONFIG}", f"--workdir={tmp_path / 'runs'}", *flags]) == 2
    text = capsys.readouterr().err
    assert words in text and text.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_tells_what_a_cluster_would_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--config={CONFIG}", f"--workdir={tmp_path / 'runs'}", "--dry_run", "--launcher=ray"]
    assert sweep.main([*flags, "--config.launch.tpu=v5e:4x4"]) == 0
    assert capsys.readouterr().out.count("4 x (1 core, 4 TPU chips), a slice v5e:4x4, 24 h") == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_names_the_extra_it_needs(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda found: None)
    with pytest.raises(ValueError, match=rf"needs {package}; pip install -c constraints.txt -e '.\[{name}\]'"):
        check_installed(name)


def test_slurm_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda found: True)
    monkeypatch.setattr("shutil.which", lambda found: None)
    with pytest.raises(ValueError, match="start the sweep on a login node"):
        check_installed("slurm")


PATTERNS = ("%j", "%A", "%a", "%t", "%J", "%N", "%n", "%s", "%u", "%x", "%b", "%%", "%4j", "100%")


@pytest.mark.parametrize("name", [*PATTERNS, "a\\b", "a\nb"])
def test_folders_that_slurm_would_expand_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder above, in the sweep's own, in a run's, and in the one that relative paths start from."""
    sign = next(sign for sign in ("%", "\\", "\n") if sign in name)
    for folder in (
        tmp_path / name / "sweep" / "run",
        tmp_path / f"x{name}" / "run",
        tmp_path / "sweep" / f"{name},seed=0",
    ):
        with pytest.raises(ValueError, match=rf"Slurm takes {re.escape(repr(sign))} in .* choose another --workdir"):
            launcher("slurm", [Run(folder, {}, ())])
        assert launcher("local", [Run(folder, {}, ())]) and launcher("ray", [Run(folder, {}, ())])
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(ValueError, match="choose another --workdir"):
        launcher("slurm", [Run(Path("sweep/run"), {}, ())])
    monkeypatch.chdir(tmp_path)
    assert launcher("slurm", [Run(Path("sweep/lr=0.1,seed=0 [x]"), {}, ())])


def test_a_run_may_be_resumed_with_other_resources(tmp_path: Path) -> None:
    config = tiny_config.get_config()
    claim(tmp_path, config)
    config.launch.gpus = 8
    check_free(tmp_path, config)
    config.seed += 1
    with pytest.raises(ValueError, match="differs in seed"):
        check_free(tmp_path, config)


def test_processes_of_several_hosts_are_told_where_the_others_are() -> None:
    assert peers("one:1", 1, 0) == {}
    assert peers("one:1", 4, 3) == {
        "JAX_COORDINATOR_ADDRESS": "one:1",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
    }
