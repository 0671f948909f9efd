"""Two real processes on loopback train what one does; one that dies stops the other; what they saved is anyone's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest

from store.processes import gathered, share
from store.records import METRICS, read_lines, read_metrics
from tests.conftest import ROOT
from tests.tiny_config import get_config
from train.hosts import Hosts, hosts_of
from train.loop import run

LONGEST = 240  # seconds that two hosts may take on a busy machine
DEVICES = 4  # of each
SAME = 1e-5
# Who notices first that a host is gone: our loop, the coordinator's client, or Gloo (the CPU's network, whose own ranks
# in this process then wait for one another); the latter two end the process themselves.
ENDS = ("this host has lost another one", "another task died", "[enforce fail at external/gloo")

pytestmark = pytest.mark.skipif(jax.device_count() != 2 * DEVICES, reason="needs eight devices")


@contextmanager
def two(kind: str, workdir: Path, *flags: tuple[str, ...]) -> Iterator[list[subprocess.Popen[str]]]:
    """Both hosts of a run, each with its own `flags`; whatever is left at the end is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    xla = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    environment = {**os.environ, **cache, "XLA_FLAGS": xla, "SAGAX_NO_RESTART": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "train", f"--config=tests/tiny_config.py:{kind}", f"--workdir={workdir}"]
    hosts = []
    for i in range(2):
        own = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}", *(flags[i] if flags else ())]
        hosts.append(
            subprocess.Popen(
                [*command, *own],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    try:
        yield hosts
    finally:
        for host in hosts:
            host.kill()
            host.wait()


def figures(workdir: Path) -> list[dict[str, float]]:
    """The metrics of every step, but for times and what belongs to one host."""
    own = ("time", "step_time", "skipped_examples")
    return [
        {name: value for name, value in record.items() if not name.startswith(own)} for record in read_metrics(workdir)
    ]


def assert_alike(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=SAME, abs=SAME)


def alone(kind: str, workdir: Path, **changes: Any) -> list[dict[str, float]]:
    config = get_config(kind)
    config.update(changes)
    assert run(config, workdir)["status"] == "complete"
    return figures(workdir)


@pytest.mark.more
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_two_hosts_learn_what_one_does(kind: str, tmp_path: Path) -> None:
    with two(kind, tmp_path / "two") as hosts:
        told = [host.communicate(timeout=LONGEST)[0] for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0], told
    assert "Talk to it" in told[0], "the first host tells how it went"
    assert "Talk to it" not in told[1], "and no other does"
    assert_alike(figures(tmp_path / "two"), alone(kind, tmp_path / "one"))


@pytest.mark.more
def test_a_dead_host_stops_the_other_and_one_process_goes_on(tmp_path: Path) -> None:
    """Killed in the middle, resumed by a single process on another mesh: the run that nobody interrupted."""
    more = ("--config.checkpoint.every=1", "--config.steps=400")
    with two("sft", tmp_path / "two", more, more) as hosts:
        until = time.monotonic() + LONGEST
        while not (tmp_path / "two" / "checkpoints" / "3").is_dir():
            assert time.monotonic() < until, "no checkpoint"
            assert hosts[0].poll() is None, hosts[0].communicate()[0]
            time.sleep(0.1)
        hosts[1].send_signal(signal.SIGKILL)
        died = time.monotonic()
        told = hosts[0].communicate(timeout=60)[0]
        assert time.monotonic() - died < 60
    assert hosts[0].returncode not in (0, None)
    assert any(words in told for words in ENDS), told
    config = {"steps": 400, "checkpoint": {"every": 1}, "mesh": {"fsdp": 4, "data": 2}}
    reached = max(int(path.name) for path in (tmp_path / "two" / "checkpoints").iterdir() if path.name.isdigit())
    steps = json.loads((tmp_path / "two" / "config.json").read_text())
    (tmp_path / "two" / "config.json").write_text(json.dumps(steps | {"steps": reached + 3}))
    wanted = alone("sft", tmp_path / "one", **(config | {"steps": reached + 3}))
    assert_alike(alone("sft", tmp_path / "two", **(config | {"steps": reached + 3})), wanted)


@pytest.mark.more
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path: Path) -> None:
    more = ("--config.steps=4000",)
    with two("sft", tmp_path / "two", more, more) as hosts:
        until = time.monotonic() + LONGEST
        while not read_lines(tmp_path / "two" / METRICS):
            assert time.monotonic() < until, "no step"
            assert hosts[0].poll() is None, hosts[0].communicate()[0]
            time.sleep(0.1)
        hosts[1].send_signal(signal.SIGTERM)
        told = [host.communicate(timeout=LONGEST)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], told
    reached = read_metrics(tmp_path / "two")[-1]["step"]
    assert f"stopped at step {reached}; resume with:" in told[0]
    assert (tmp_path / "two" / "checkpoints" / str(reached)).is_dir()


def test_hosts_with_different_configs_never_begin(tmp_path: Path) -> None:
    with two("sft", tmp_path / "two", (), ("--config.optimizer.lr=0.5",)) as hosts:
        told = [host.communicate(timeout=LONGEST)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [2, 2], told
    assert all("the hosts were given different configs: process 0 has another than [1]" in words for words in told)
    assert not (tmp_path / "two").exists()


def test_hosts_from_flags_and_environment() -> None:
    flags = ["train", "--coordinator=a:1", "--processes=4", "--process=2", "--config=x"]
    assert hosts_of(flags, {}) == (Hosts("a:1", 4, 2), ["train", "--config=x"])
    named = {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    assert hosts_of(["train"], named) == (Hosts("b:2", 2, 0), ["train"])
    assert hosts_of(["train"], {}) == (None, ["train"])
    with pytest.raises(ValueError, match=r"missing: --processes \(or JAX_NUM_PROCESSES\), --process "):
        hosts_of(["--coordinator=a:1"], {})
    with pytest.raises(ValueError, match=r"--process=4 is not in 0\.\.3"):
        hosts_of([*flags[:3], "--process=4"], {})


def test_shares_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gathered([1, "a"]) == [1, "a"]
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    parts = []
    for host in range(3):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        parts += list(range(10))[share(10)]
    assert parts == list(range(10))
