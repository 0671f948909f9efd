"""Sweeps on a real Ray of two machines, which are two processes of this one."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import sweep
from launch.needs import Needs
from launch.on_ray import on_ray
from launch.runs import DONE, FAILED, RUNNING, STOPPED
from tests.launch.dummies import FINISH, dummy, gone, states

ray = pytest.importorskip("ray", reason="pip install 'sagax[ray]' to start sweeps on Ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

ROOT = Path(__file__).parents[2]
SHOW = "print(*(os.environ.get(name) for name in ('JAX_PROCESS_ID', 'JAX_NUM_PROCESSES', 'JAX_COORDINATOR_ADDRESS')))"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two machines of two cores, together one TPU slice; it is joined by whoever asks for a cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("XLA_FLAGS", "")
        patch.setenv("TPU_NAME", "slice-0")  # what a host of a slice is asked for
        machines = cluster_utils.Cluster()
        for worker in range(2):
            labels = {"slice-name": "slice-0", "worker-id": str(worker), "pod-type": "v4-16", "topology": "2x2x2"}
            machines.add_node(
                num_cpus=2,
                include_dashboard=False,
                resources={"TPU": 4, **({} if worker else {"TPU-v4-16-head": 1})},
                labels={f"ray.io/tpu-{name}": value for name, value in labels.items()},
            )
        ray.init(address=machines.address, log_to_driver=False)
        yield
        ray.shutdown()
        machines.shutdown()


@pytest.mark.more
def test_runs_go_side_by_side_and_report_their_states(tmp_path: Path) -> None:
    meet = "[time.sleep(.01) for _ in range(9000) if not pathlib.Path({!r}).exists()]"
    marks = [str(tmp_path / name) for name in ("one", "two")]
    scripts = [f"open({own!r}, 'w'); {meet.format(other)}; {FINISH}" for own, other in (marks, reversed(marks))]
    runs = [dummy(tmp_path, f"run{n}", script) for n, script in enumerate([*scripts, "sys.exit(3)", "print('saved')"])]
    seen = states(on_ray, runs, len(runs))
    assert [found[-1] for found in seen.values()] == [DONE, DONE, FAILED, STOPPED]
    assert RUNNING in seen["run0"]
    assert runs[3].log.read_text() == "saved\n"


@pytest.mark.more
def test_a_run_is_trained_by_the_very_command(tmp_path: Path) -> None:
    config = "tests/launch/sweep_config.py"
    assert sweep.main([f"--config={config}", f"--workdir={tmp_path}", "--filter=0.003", "--launcher=ray"]) == 0
    result = json.loads((tmp_path / "lr=0.003,seed=0" / "result.json").read_text())
    assert result["status"] == "complete"
    assert result["command"].startswith(f"python -m train --config={config}")


def test_a_stopped_sweep_lets_its_runs_save_first(tmp_path: Path) -> None:
    save = f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'saved')!r}, 'w'), sys.exit(0)))"
    wait = f"open({str(tmp_path / 'ready')!r}, 'w'); time.sleep(120)"
    runs = [dummy(tmp_path, "a", f"{save}; {wait}"), dummy(tmp_path, "waits", FINISH, Needs(gpus=1))]

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    seen = states(on_ray, runs, 2)
    assert (tmp_path / "saved").exists()
    # Between two looks it may have gone from waiting to stopped.
    assert seen["a"][-1] == STOPPED and set(seen["a"]) <= {"waiting", RUNNING, STOPPED}
    assert seen["waits"] == ["waiting", STOPPED], "there is no GPU"


def test_a_run_begins_again_where_its_machine_is_lost(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    lose = f"open({str(mark)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), signal.SIGKILL); time.sleep(120)"
    run = dummy(tmp_path, "a", f"exec({FINISH!r}) if pathlib.Path({str(mark)!r}).exists() else exec({lose!r})")
    assert states(on_ray, [run], 1)["a"][-1] == DONE
    assert run.log.read_text().startswith("a machine was lost; the run begins again")
    assert gone(int(mark.read_text())), "what is left of the first attempt must not write beside the second"


@pytest.mark.parametrize("needs", [Needs(nodes=2, memory_gb=0.25), Needs(tpu="v4:2x2x2")], ids=["nodes", "slice"])
def test_a_run_on_two_machines_has_a_process_on_each(needs: Needs, tmp_path: Path) -> None:
    run = dummy(tmp_path, "a", SHOW, needs)
    assert states(on_ray, [run], 1)["a"][-1] == STOPPED
    first, second = (path.read_text().split() for path in (run.log, run.log.with_suffix(".1.log")))
    assert (first[:2], second[:2]) == (["0", "2"], ["1", "2"])
    assert first[2] == second[2] and ":" in first[2]


def test_a_process_that_fails_ends_those_of_the_other_machines(tmp_path: Path) -> None:
    run = dummy(tmp_path, "a", "os.environ['JAX_PROCESS_ID'] == '1' and sys.exit(3); time.sleep(120)", Needs(nodes=2))
    assert states(on_ray, [run], 1)["a"][-1] == FAILED
