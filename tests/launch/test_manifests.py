"""The files for clusters: whole slices, and commands that this repository accepts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import sweep
from launch.slices import Slice, slice_of
from train.cli import parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "manifests"
JOBSETS = ("train-jobset.yaml", "sweep-jobset.yaml")
GENERATIONS = {"tpu-v5-lite-podslice": "v5e"}  # as GKE's node pools call them


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository as the current folder: recipes are named from there."""
    monkeypatch.chdir(ROOT)


def document(name: str) -> dict[str, Any]:
    """A YAML file of one document."""
    [found] = yaml.safe_load_all((FOLDER / name).read_text())
    assert isinstance(found, dict)
    return found


def slice_in(pod: dict[str, Any]) -> Slice:
    """The TPU slice that a pod's node selector asks for."""
    selector = pod["nodeSelector"]
    generation = GENERATIONS[selector["cloud.google.com/gke-tpu-accelerator"]]
    return slice_of(f"{generation}:{selector['cloud.google.com/gke-tpu-topology']}")


def chips(pod: dict[str, Any]) -> int:
    """The chips that a pod's container is given."""
    [container] = pod["containers"]
    return int(container["resources"]["limits"]["google.com/tpu"])


def dry_script() -> str:
    """What the script for queued resources would do."""
    environment = {**os.environ, "DRY_RUN": "1", "PROJECT": "p", "ZONE": "z", "NFS": "n:/shared"}
    script = FOLDER / "queued-resources.sh"
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True).stdout


def commands() -> Iterator[list[str]]:
    """Everything the files give to `python -m`."""
    for name in JOBSETS:
        [job] = document(name)["spec"]["replicatedJobs"]
        [container] = job["template"]["spec"]["template"]["spec"]["containers"]
        yield container["command"]
    yield shlex.split(document("sweep-rayjob.yaml")["spec"]["entrypoint"])
    yield from (shlex.split(line) for line in dry_script().splitlines() if "-m launch.sweep" in line)
    [arguments] = re.findall(r"ARGUMENTS:-(.*)}", (FOLDER / "train.sbatch").read_text())
    yield ["python", "-m", "train", "--workdir=runs/gsm8k_sft", *shlex.split(arguments)]


def test_every_command_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    accepted = []
    for command in commands():
        module, flags = command[command.index("-m") + 1], command[command.index("-m") + 2 :]
        if module == "train":
            parse(["train", *flags], "")
        else:
            assert module == "launch.sweep"
            assert sweep.main([*flags, "--dry_run"]) == 0, capsys.readouterr().err
        accepted.append(module)
    assert accepted == ["train", "launch.sweep", "launch.sweep", "launch.sweep", "train"]


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_takes_a_whole_slice(name: str) -> None:
    found = document(name)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [job] = found["spec"]["replicatedJobs"]
    spec, pod = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    wanted = slice_in(pod)
    assert spec["parallelism"] == spec["completions"] == wanted.hosts
    assert chips(pod) == wanted.chips
    assert pod["restartPolicy"] == "Never" and spec["backoffLimit"] == 0, "all hosts begin again together"
    assert found["spec"]["failurePolicy"]["maxRestarts"] > 0
    mounted(pod)


def test_the_ray_cluster_has_whole_slices_of_the_kind_the_sweep_asks_for() -> None:
    found = document("sweep-rayjob.yaml")["spec"]
    [group] = found["rayClusterSpec"]["workerGroupSpecs"]
    wanted = slice_in(group["template"]["spec"])
    assert group["numOfHosts"] == wanted.hosts
    assert chips(group["template"]["spec"]) == wanted.chips
    assert f"--config.launch.tpu={wanted.generation}:{wanted.topology}" in found["entrypoint"]
    [container] = group["template"]["spec"]["containers"]
    assert f"--config.launch.cpus={container['resources']['limits']['cpu']}" in found["entrypoint"]
    for pod in (group["template"]["spec"], found["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]):
        mounted(pod)


def mounted(pod: dict[str, Any]) -> None:
    """Everything a container mounts is there, and runs are on the volume that all hosts share."""
    [container] = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    [mount] = container["volumeMounts"]
    assert mount["mountPath"] == "/shared"
    assert "persistentVolumeClaim" in volumes[mount["name"]]


def test_ray_is_the_one_that_is_tested() -> None:
    [pinned] = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert document("sweep-rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned


@pytest.mark.parametrize("name", ["complete.sh", "queued-resources.sh", "train.sbatch"])
def test_a_script_is_bash(name: str) -> None:
    subprocess.run(["bash", "-n", FOLDER / name], check=True)


@pytest.mark.parametrize(
    ("command", "code"),
    [('mkdir "$0"; touch "$0/result.json"', 0), ("exit 0", 1), ('mkdir "$0"; exit 3', 1)],
    ids=["complete", "stopped", "failed"],
)
def test_what_is_not_complete_is_an_error(command: str, code: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [FOLDER / "complete.sh", run, "bash", "-c", command, run]
    assert subprocess.run(arguments).returncode == code


def test_sigterm_reaches_the_run_which_is_waited_for(tmp_path: Path) -> None:
    save = "trap 'sleep .2; echo saved; exit 0' TERM; echo ready; for i in $(seq 600); do sleep .1; done"
    process = subprocess.Popen(
        [FOLDER / "complete.sh", tmp_path, "bash", "-c", save], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate()[0] == "saved\n"
    assert process.returncode == 1


def test_sigterm_is_not_lost_while_the_run_starts(tmp_path: Path) -> None:
    # As on a busy machine: the run is there some time before bash has noted its number.
    script = (FOLDER / "complete.sh").read_text()
    slow = tmp_path / "complete.sh"
    slow.write_text(script.replace('"$@" &\n', '"$@" & sleep .3\n'))
    assert slow.read_text() != script
    save = "trap 'echo saved; exit 0' TERM; kill -TERM $PPID; for i in $(seq 40); do sleep .05; done"
    command = ["bash", slow, tmp_path, "bash", "-c", save]
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout == "saved\n"
