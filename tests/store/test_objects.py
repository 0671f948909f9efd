"""Runs in a bucket, against an emulator of Google Cloud Storage on this machine."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.runs import free_port
from store import objects
from store.checkpoint import Checkpoints
from store.holder import HeldError, here
from store.lock import locked
from store.manifest import COMMITTED, SUMS_OF_OBJECTS, checkpoint_steps, damage, newest_whole
from store.object_lock import take_object
from store.records import append_line, read_lines, truncate, write_json
from store.run_directory import LOCK
from tests.train.lives import ENVIRONMENT, repeatable
from tests.train.test_loop import small_state

NEEDED = ("gcsfs", "gcp_storage_emulator")
ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
with_bucket = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extras gcs and dev)")


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment in which clients find the emulator."""
    port = free_port()
    address = f"http://localhost:{port}"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("bucket.py")), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with suppress(OSError):
                urllib.request.urlopen(address, timeout=1)
                break
            time.sleep(0.1)
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own in the bucket."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return objects.place(f"gs://bucket/{request.node.name}")


def test_local_paths_stay_what_they_are(tmp_path: Path) -> None:
    """A file system's paths pass through unchanged, and other stores are refused."""
    assert objects.place(str(tmp_path)) == tmp_path and isinstance(objects.place("runs/x"), Path)
    assert objects.local_copy(tmp_path) is tmp_path and objects.on_disk(tmp_path) is tmp_path
    with objects.uploaded(tmp_path / "x") as file:
        assert file == tmp_path / "x"
    with pytest.raises(ValueError, match="gs://"):
        objects.place("s3://bucket/run")


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gcsfs the error says which extra brings it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"\.\[gcs\]"):
        objects.place("gs://bucket/run")


@with_bucket
def test_a_bucket_is_named() -> None:
    """gs:// alone is no place."""
    with pytest.raises(ValueError, match="names no bucket"):
        objects.place("gs://")


@with_bucket
def test_lines_are_uploaded_together(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appended lines are uploaded by `flush`, by a reader in this process, by a result, and after the time."""
    path = bucket / "metrics.jsonl"
    append_line(path, {"step": 1, "text": "ä\u2028"})
    assert not path.is_file()
    assert read_lines(path) == [{"step": 1, "text": "ä\u2028"}]
    append_line(path, {"step": 2})
    assert len(path.read_bytes().splitlines()) == 1
    write_json(bucket / "result.json", {"status": "complete"})
    assert path.read_bytes().count(b"\n") == 2
    monkeypatch.setattr(objects, "UPLOAD_SECONDS", 0.0)
    append_line(path, {"step": 3})
    assert path.read_bytes().count(b"\n") == 3
    truncate(path, 1)
    append_line(path, {"step": 2, "again": True})
    assert [record["step"] for record in read_lines(path)] == [1, 2]


@with_bucket
def test_folders_travel_whole(bucket: Path, tmp_path: Path) -> None:
    """What a library writes to a folder is uploaded, and a copy holds the same files."""
    with objects.uploaded(bucket / "tokenizer") as folder:
        (folder / "inner").mkdir(parents=True)
        (folder / "a.json").write_text("{}")
        (folder / "inner" / "b.bin").write_bytes(b"\x00\xff")
    copy = objects.local_copy(bucket / "tokenizer")
    assert (copy / "a.json").read_text() == "{}" and (copy / "inner" / "b.bin").read_bytes() == b"\x00\xff"
    objects.remove(bucket / "tokenizer")
    assert not (bucket / "tokenizer").is_dir()


@with_bucket
def test_one_holds_the_lock(bucket: Path) -> None:
    """Whoever comes second is refused, and afterwards nothing is left."""
    with locked(bucket), pytest.raises(HeldError, match="is in use"), locked(bucket):
        pass
    assert not (bucket / LOCK).is_file()


@with_bucket
def test_a_dead_lock_is_taken_over(bucket: Path) -> None:
    """One of a process of this machine that has ended at once, one from elsewhere after silence; a renewed one not."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here_before = {**here().__dict__, "process": ended.pid, "began": 1}
    elsewhere = {**here().__dict__, "host": "elsewhere", "token": "other"}
    said: list[str] = []
    for holder in (here_before, elsewhere):
        write_json(bucket / LOCK, holder)
        with locked(bucket, said.append, silence=0.5):
            pass
    assert sum("taken over" in line for line in said) == 2
    write_json(bucket / LOCK, elsewhere)
    lock = objects.stamp(bucket / LOCK)
    assert lock is not None

    def alive(words: str) -> None:
        objects.renew(bucket / LOCK, lock.generation)

    with pytest.raises(HeldError, match="elsewhere"), locked(bucket, alive, silence=5):
        pass


@with_bucket
def test_a_lost_lock_is_left_alone(bucket: Path) -> None:
    """Who lost a lock neither renews nor removes that of the next one."""
    first = take_object(bucket / LOCK, here(), print, 1)
    assert objects.delete(bucket / LOCK, first.generation)
    second = take_object(bucket / LOCK, here(), print, 1)
    with pytest.raises(OSError):
        first.renew()
    first.remove()
    second.renew()
    assert objects.stamp(bucket / LOCK)
    second.remove()
    assert objects.stamp(bucket / LOCK) is None


@with_bucket
def test_checkpoints_in_a_bucket(bucket: Path) -> None:
    """They are read back, listed with sums once they are whole; damaged ones move aside, half ones do not count."""
    append_line(bucket / "metrics.jsonl", {"step": 1})
    checkpoints = Checkpoints(bucket)
    for step in (5, 7):
        checkpoints.save(small_state(step), {"at": step}, {"accuracy": step / 10}, {"kept": {"a": np.arange(step)}})
    checkpoints.wait()
    assert (bucket / "metrics.jsonl").is_file()  # no checkpoint before its lines
    state, position, arrays = checkpoints.restore(small_state(0))
    checkpoints.close()
    assert int(state.step) == 7 and position == {"at": 7} and arrays["kept"]["a"].tolist() == list(range(7))
    assert checkpoint_steps(bucket) == [5, 7] and newest_whole(bucket) == (7, {})
    sums = bucket / "checkpoints" / "7" / SUMS_OF_OBJECTS
    assert len(sums.read_text().splitlines()) > 5
    name = next(name for name in objects.checksums(bucket / "checkpoints" / "7") if "/d/" in name)
    content = (bucket / "checkpoints" / "7" / name).read_bytes()
    (bucket / "checkpoints" / "7" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "CRC32C" in str(damage(bucket, 7))
    objects.remove(bucket / "checkpoints" / "7" / name)
    assert "is missing" in str(damage(bucket, 7))
    said: list[str] = []
    again = Checkpoints(bucket, say=said.append)
    assert again.latest() == 5 and "is damaged" in said[0]
    assert (bucket / "damaged" / "7" / SUMS_OF_OBJECTS).is_file() and not (bucket / "checkpoints" / "7").is_dir()
    again.close()
    objects.remove(bucket / "checkpoints" / "5" / COMMITTED)
    assert checkpoint_steps(bucket) == []


def command(module: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One of our commands in a process of its own, on one device."""
    return subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def without_clocks(content: bytes) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl without what depends on the clock."""
    records = [json.loads(line) for line in content.splitlines()]
    return [repeatable(record) for record in records]


@pytest.mark.more
@with_bucket
def test_a_killed_pipeline_goes_on_in_a_bucket(server: dict[str, str], bucket: Path, tmp_path: Path) -> None:
    """SFT, then GRPO, killed while it saves: the same command goes on, and ends with what a local run has.

    Its lock was left and is taken over; then the run is complete, speaks, and can be reported on; a checkpoint that
    has lost an object is moved aside when the run is to go on.
    """
    flags = ("--config=tests/tiny_config.py:stages", "--config.checkpoint.every=1")
    whole = command("train", *flags, f"--workdir={tmp_path / 'run'}")
    assert whole.returncode == 0, whole.stderr
    killed = command("tests.train.killed", "SIGKILL", "summed", "3", "0", *flags, f"--workdir={bucket}", **server)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (bucket / LOCK).is_file() and not (bucket / "result.json").is_file()
    resumed = command("train", *flags, f"--workdir={bucket}", **server)
    assert resumed.returncode == 0, resumed.stderr
    assert "taken over" in resumed.stdout + resumed.stderr
    assert not (bucket / LOCK).is_file()
    for name in ("samples.jsonl", "sft/samples.jsonl", "grpo/samples.jsonl", "grpo/accuracy.jsonl"):
        assert (bucket / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    for name in ("sft/metrics.jsonl", "grpo/metrics.jsonl"):
        local = without_clocks((tmp_path / "run" / name).read_bytes())
        assert without_clocks((bucket / name).read_bytes()) == local, name
    assert (bucket / "curves.png").read_bytes().startswith(b"\x89PNG")
    spoken = command("infer", f"--run={bucket}", "--prompt=1+2=", "--temperature=0", **server)
    alike = command("infer", f"--run={tmp_path / 'run'}", "--prompt=1+2=", "--temperature=0")
    assert spoken.returncode == 0 and spoken.stdout == alike.stdout, spoken.stderr
    reported = command("launch.report", str(bucket), **server)
    assert reported.returncode == 0, reported.stderr
    assert (bucket / "report.html").is_file() and (bucket / "table.csv").is_file()
    damaged_checkpoint_moves_aside(bucket / "grpo", server)


def damaged_checkpoint_moves_aside(run: Path, server: dict[str, str]) -> None:
    """The last checkpoint loses an object: it is named, and moved aside when the run is trained on."""
    *_, last = checkpoint_steps(run)
    assert damage(run, last) is None
    assert (run / "checkpoints" / str(last) / SUMS_OF_OBJECTS).is_file()
    name = next(name for name in objects.checksums(run / "checkpoints" / str(last)) if "/d/" in name)
    objects.remove(run / "checkpoints" / str(last) / name)
    assert "is missing" in str(damage(run, last))
    objects.remove(run / "result.json")
    objects.remove(run.parent / "result.json")
    flags = ("--config=tests/tiny_config.py:stages", "--config.checkpoint.every=1")
    again = command("train", *flags, f"--workdir={run.parent}", **server)
    assert again.returncode == 0, again.stderr
    assert (run / "damaged" / str(last)).is_dir() and damage(run, last) is None
