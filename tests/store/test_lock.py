"""The lock of a run directory: who may train there, and what becomes of locks whose holders are gone."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from store.holder import HeldError, Holder, began, here, runs
from store.lock import locked
from store.run_directory import LOCK, check_free
from tests.conftest import ROOT
from tests.tiny_config import get_config
from train.loop import run

# Takes the lock of its first argument, calls itself its second, and stays until it is told to end.
HOLDING = """
import socket, sys, time
from pathlib import Path
from store import lock
socket.gethostname = lambda: sys.argv[2]
with lock.locked(Path(sys.argv[1]), beat=0.1):
    print("held", flush=True)
    while True:  # a signal between two instructions is heard after the sleep that follows
        time.sleep(0.05)
"""


def leave(folder: Path, holder: Holder, age: float = 0.0) -> Path:
    """A lock as that holder would have left it, so many seconds ago."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(dataclasses.asdict(holder)))
    then = time.time() - age
    os.utime(folder / LOCK, (then, then))
    return folder


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Another process."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def holding(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `tmp_path`/run, on this host or the one of the parameter."""
    host = getattr(request, "param", here().host)
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "run"), host]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def dead() -> Holder:
    """A process of this machine that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return dataclasses.replace(here(), process=process.pid, began=1)


def test_a_lock_goes_with_its_run_and_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with locked(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK]
        check_free(folder, get_config())
    assert not (tmp_path / "a").exists()
    with pytest.raises(KeyError), locked(folder):
        (folder / "kept").touch()
        raise KeyError
    with locked(folder):  # a notebook runs its cell once more
        pass
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_living_process_of_this_machine_keeps_its_lock(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    holder = dataclasses.replace(here(), process=sleeper.pid, began=began(sleeper.pid) or 0)
    folder = leave(tmp_path / "run", holder, age=1e6)
    with pytest.raises(HeldError, match=rf"process {sleeper.pid} on {holder.host} .*delete {folder / LOCK}"):
        locked(folder).__enter__()
    assert (folder / LOCK).is_file()


def test_one_process_does_not_train_twice_in_a_directory(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match=rf"process {os.getpid()} on"), locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("kind", ["dead", "number given out again", "another's boot, long ago", "unreadable, long ago"])
def test_locks_of_the_dead_are_taken_over_at_once(tmp_path: Path, sleeper: subprocess.Popen[bytes], kind: str) -> None:
    holders = {
        "dead": dead(),
        "number given out again": dataclasses.replace(here(), process=sleeper.pid, began=1),
        "another's boot, long ago": dataclasses.replace(here(), boot="another"),
    }
    folder = leave(tmp_path / "run", holders.get(kind, Holder()), age=1000 if "ago" in kind else 0)
    if "unreadable" in kind:
        (folder / LOCK).write_text("")
        os.utime(folder / LOCK, (1, 1))
    said: list[str] = []
    start = time.monotonic()
    with locked(folder, said.append):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
    assert time.monotonic() - start < 5 and list(folder.iterdir()) == []
    assert len(said) == 1 and "taken over" in said[0]


@pytest.mark.parametrize("content", ["", "[]", "{}", "5", '{"process": "x", "host": 3}', "\0\udcff", "[" * 10_000])
def test_a_young_lock_that_nobody_can_read_is_watched_until_it_is_old(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_bytes(content.encode(errors="surrogateescape"))
    said: list[str] = []
    with locked(tmp_path, said.append, silence=0.6):
        assert "unknown host" in said[0] and "waiting up to" in said[0] and "taken over" in said[1]


def test_a_lock_of_another_host_is_watched(tmp_path: Path) -> None:
    """Without a sign of life it is taken over, whatever the clocks of the two hosts say."""
    folder = leave(tmp_path, dataclasses.replace(here(), host="elsewhere", process=7), age=0.2)
    said: list[str] = []
    with locked(folder, said.append, silence=0.8):
        assert "held by process 7 on elsewhere" in said[0]


@pytest.mark.parametrize("holding", ["elsewhere"], indirect=True)
def test_a_living_process_of_another_host_keeps_its_lock(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    start = time.monotonic()
    with pytest.raises(HeldError, match=f"process {holding.pid} on elsewhere"):
        locked(tmp_path / "run", silence=60.0).__enter__()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("holding", ["elsewhere"], indirect=True)
def test_the_lock_of_a_killed_process_of_another_host(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    holding.kill()
    with locked(tmp_path / "run", silence=0.5):
        pass


def test_the_lock_of_a_killed_process(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    with pytest.raises(HeldError, match=f"process {holding.pid} on"):
        locked(tmp_path / "run").__enter__()
    holding.kill()
    holding.wait()
    assert (tmp_path / "run" / LOCK).is_file()
    with locked(tmp_path / "run"):
        pass


def test_sigterm_takes_the_lock_along(tmp_path: Path, holding: subprocess.Popen[str]) -> None:
    holding.terminate()
    assert holding.wait(30) == -signal.SIGTERM
    assert not (tmp_path / "run").joinpath(LOCK).exists()


def test_sigterm_takes_the_locks_of_a_stage_and_its_pipeline_along(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from store.lock import locked; top = Path(sys.argv[1])\n"
        "with locked(top), locked(top / 'sft'): os.kill(os.getpid(), signal.SIGTERM)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, timeout=100)
    assert done.returncode == -signal.SIGTERM
    assert [path.name for path in tmp_path.rglob("*")] == ["sft"]


def test_handlers_of_others_are_left_alone(tmp_path: Path) -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with locked(tmp_path):
            signal.raise_signal(signal.SIGTERM)
            assert (tmp_path / LOCK).is_file(), "whoever hears the signal may go on"
    finally:
        signal.signal(signal.SIGTERM, old)
    assert seen == [signal.SIGTERM]


def test_a_lock_that_was_taken_over_is_not_removed_by_the_one_who_lost_it(tmp_path: Path) -> None:
    with locked(tmp_path, beat=0.05):
        leave(tmp_path, dataclasses.replace(here(), token="another"), age=50)
        time.sleep(0.3)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime > 40, "nor renewed"
    assert (tmp_path / LOCK).is_file()


def test_of_many_who_take_over_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    gone = dead()
    for n in range(20):
        folder, ready, tried = leave(tmp_path / str(n), gone), threading.Barrier(8), threading.Barrier(8)

        def take(folder: Path = folder, ready: threading.Barrier = ready, tried: threading.Barrier = tried) -> bool:
            ready.wait()
            try:
                with locked(folder, lambda _: None):
                    tried.wait()
                return True
            except HeldError:
                tried.wait()
                return False

        with ThreadPoolExecutor(8) as pool:
            got = [task.result() for task in [pool.submit(take) for _ in range(8)]]
        assert sum(got) == 1 and list(folder.iterdir()) == []


def test_what_is_known_of_processes() -> None:
    me = here()
    assert runs(me, me) and me.began and me.boot and me.space
    assert runs(dataclasses.replace(me, host="elsewhere"), me) is None
    assert runs(dataclasses.replace(me, space="pid:[1]"), me) is None
    assert runs(dataclasses.replace(me, process=2**40), me) is False
    assert runs(dead(), me) is False
    with subprocess.Popen(["true"]) as zombie:
        until = time.monotonic() + 10
        while began(zombie.pid) is not None and time.monotonic() < until:
            time.sleep(0.01)
        assert began(zombie.pid) is None, "a zombie writes no more"


def test_a_second_run_in_a_directory_is_wrong_use(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """And costs nothing: it is refused before anything is built; the same for a pipeline and for a stage of one."""
    config = get_config("stages")
    holder = dataclasses.replace(here(), process=sleeper.pid, began=began(sleeper.pid) or 0)
    leave(tmp_path / "run", holder)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for kind in (get_config(), config):
        with pytest.raises(HeldError, match=f"process {sleeper.pid} on {holder.host}"):
            run(kind, tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied", str(tmp_path / LOCK))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match=LOCK), locked(tmp_path):
        pass
