"""Checkpoints that were truncated, flipped, half copied: found, reported, moved aside, and never believed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from infer.load import load_run, open_origin
from store.checkpoint import Checkpoints
from store.manifest import METADATA, SUMS, WITHOUT_SUM, checkpoint_steps, damage, newest_whole
from store.records import read_metrics
from store.run_directory import check_free
from tests.train.lives import assert_same_run
from tests.train.test_loop import config, small_state, snapshot
from train.loop import run

Harm = Callable[[Path, random.Random], None]
GOOD, LAST = 5, 7


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield patch


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the checkpoints 5 and 7, both with metrics."""
    folder = tmp_path_factory.mktemp("twice")
    checkpoints = Checkpoints(folder)
    for step in (GOOD, LAST):
        checkpoints.save(small_state(step), {"at": step}, {"accuracy": step / 10}, {"kept": {"a": np.arange(step)}})
    checkpoints.close()
    return folder


@pytest.fixture
def copy(twice: Path, tmp_path: Path) -> Path:
    """The same for one test to harm."""
    return Path(shutil.copytree(twice, tmp_path / "run"))


def data_of(step: Path) -> Path:
    """The largest file of the parameters."""
    return max((path for path in (step / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path, rng: random.Random) -> None:
    """Turns one bit of a file around."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    """Leaves the beginning of a file."""
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path: Path, rng: random.Random) -> None:
    """Leaves nothing of a file."""
    path.unlink()


HARMS: dict[str, Harm] = {
    "a flipped bit": lambda step, rng: flip(data_of(step), rng),
    "a truncated file": lambda step, rng: cut(data_of(step), rng),
    "a missing file": lambda step, rng: remove(data_of(step), rng),
    "half of the files": lambda step, rng: shutil.rmtree(step / "rest"),
    "a list of sums cut off": lambda step, rng: cut(step / SUMS, rng),
    "no list of sums": lambda step, rng: remove(step / SUMS, rng),
    "no metadata": lambda step, rng: remove(step / METADATA, rng),
    "a file of another save": lambda step, rng: shutil.copy(
        data_of(step.with_name(str(GOOD))), step / "params" / "new"
    ),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damage_is_reported_moved_aside_and_stepped_back_from(harm: Harm, copy: Path, parity_seed: int) -> None:
    last = copy / "checkpoints" / str(LAST)
    harm(last, random.Random(parity_seed))
    before, said = snapshot(last), []
    checkpoints = Checkpoints(copy, say=said.append)
    state, source, held = checkpoints.restore(small_state(0))
    checkpoints.close()
    assert (int(state.step), source, len(held["kept"]["a"])) == (GOOD, {"at": GOOD}, GOOD)
    [line] = said
    assert line.startswith(f"checkpoint {LAST} is damaged: ") and f"{copy}/checkpoints/{LAST}" in line
    assert line.endswith(f"moved to {copy}/damaged/{LAST}")
    assert checkpoint_steps(copy) == [GOOD]
    assert snapshot(copy / "damaged" / str(LAST)) == before


@pytest.mark.parametrize("harm", [flip, cut, remove])
def test_no_file_can_change_unseen(harm: Harm, copy: Path, parity_seed: int) -> None:
    """But for the two that Orbax writes after the sums: nothing of the state is in them."""
    rng, step = random.Random(parity_seed), copy / "checkpoints" / str(LAST)
    files = [path for path in sorted(step.rglob("*")) if path.is_file()]
    assert len(files) > 20
    for path in files:
        if path.parent == step and path.name in WITHOUT_SUM and path.name != SUMS:
            continue
        kept = path.read_bytes()
        harm(path, rng)
        assert damage(copy, LAST), path
        path.write_bytes(kept)
    assert damage(copy, LAST) is None
    flip(step / "source" / "metadata", rng)
    assert damage(copy, LAST, "params") is None, "inference needs no more than the parameters"


def test_an_end_of_line_of_the_list_cannot_change_unseen(copy: Path) -> None:
    """A line feed with its last bit turned around is a vertical tab, at which str.splitlines would part lines, too."""
    sums = copy / "checkpoints" / str(LAST) / SUMS
    sums.write_bytes(sums.read_bytes().replace(b"\n", b"\v", 1))
    assert damage(copy, LAST)


def test_the_list_is_one_that_sha256sum_reads(copy: Path) -> None:
    if not shutil.which("sha256sum"):
        pytest.skip("there is no program sha256sum")
    step = copy / "checkpoints" / str(LAST)
    check = ["sha256sum", "--check", "--quiet", SUMS]
    assert subprocess.run(check, cwd=step).returncode == 0
    flip(data_of(step), random.Random(0))
    assert subprocess.run(check, cwd=step, capture_output=True).returncode == 1


def test_an_older_checkpoint_whose_metrics_are_damaged_is_no_obstacle(copy: Path) -> None:
    cut(copy / "checkpoints" / str(GOOD) / METADATA, random.Random(0))
    checkpoints = Checkpoints(copy, say=lambda line: None)
    assert int(checkpoints.restore(small_state(0))[0].step) == LAST
    checkpoints.close()
    assert (copy / "damaged" / str(GOOD)).is_dir()


def test_when_nothing_is_whole_nothing_changes_and_the_run_says_so(copy: Path) -> None:
    for step in (GOOD, LAST):
        flip(data_of(copy / "checkpoints" / str(step)), random.Random(step))
    before = snapshot(copy)
    for _ in range(2):  # the second attempt must not begin anew either
        with pytest.raises(
            RuntimeError, match=r"no checkpoint of .* is whole \(steps \[5, 7\]\).*SHA-256.*Nothing was"
        ):
            Checkpoints(copy)
    assert snapshot(copy) == before


def test_what_is_damaged_twice_is_kept_twice(copy: Path) -> None:
    shutil.copytree(copy / "checkpoints" / str(LAST), copy / "damaged" / str(LAST))
    flip(data_of(copy / "checkpoints" / str(LAST)), random.Random(0))
    Checkpoints(copy, say=lambda line: None).close()
    assert sorted(path.name for path in (copy / "damaged").iterdir()) == ["7", "7.1"]


def test_checkpoints_from_before_there_were_sums_are_read(copy: Path) -> None:
    for step in (GOOD, LAST):
        (copy / "checkpoints" / str(step) / SUMS).unlink()
    checkpoints = Checkpoints(copy)
    assert int(checkpoints.restore(small_state(0))[0].step) == LAST
    checkpoints.close()
    last = copy / "checkpoints" / str(LAST)
    shutil.rmtree(last / "params")
    before = snapshot(copy)
    checkpoints = Checkpoints(copy)
    with pytest.raises(RuntimeError, match=rf"{last} cannot be read.*continue from the one before"):
        checkpoints.restore(small_state(0))
    checkpoints.close()
    assert snapshot(copy) == before
    last.rename(copy / "away")
    checkpoints = Checkpoints(copy)
    assert int(checkpoints.restore(small_state(0))[0].step) == GOOD
    checkpoints.close()


def test_what_a_killed_process_left_is_cleaned_up(copy: Path) -> None:
    half = copy / "checkpoints" / "9.orbax-checkpoint-tmp"
    (half / "params").mkdir(parents=True)
    (half / "params" / "data").write_text("half")
    checkpoints = Checkpoints(copy, say=lambda line: pytest.fail(line))
    assert int(checkpoints.restore(small_state(0))[0].step) == LAST
    checkpoints.close()
    assert not half.exists()


def test_a_run_killed_as_it_begins_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / ".config.json.part").write_text('{"name": "ru')
    check_free(tmp_path, config())
    (tmp_path / "config.jsonl").write_text("something of the user's")
    with pytest.raises(ValueError, match=r"is no run directory \(it holds config\.jsonl, tokenizer\)"):
        check_free(tmp_path, config())


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("sft", marks=pytest.mark.skipif(not os.environ.get("SAGAX_FULL"), reason="make test-all runs it")),
        "grpo",
    ],
)
def test_a_run_that_stepped_back_ends_as_if_nothing_had_happened(
    kind: str, tmp_path: Path, parity_seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines of metrics, samples and accuracies are cut back, too; inference warns, training from it refuses."""
    changes: dict[str, Any] = {"checkpoint__every": 1, "eval__every": 2, "steps": 4, "optimizer__ema": 0.9}
    whole, harmed = tmp_path / "whole", tmp_path / "harmed"
    run(config(kind, **changes), whole)
    shutil.copytree(whole, harmed)
    (harmed / "result.json").unlink()
    last = harmed / "checkpoints" / "4"
    flip(max((last / "ema").rglob("*"), key=lambda path: path.stat().st_size), random.Random(parity_seed))
    with pytest.warns(UserWarning, match=r"checkpoint 4 of .* is damaged.*Step 3 is read instead"):
        load_run(harmed)
    with pytest.raises(RuntimeError, match=r"checkpoint 4 of .* is damaged.*result\.json"):
        open_origin(harmed).params()
    assert newest_whole(harmed)[0] == 3
    run(config(kind, **changes), harmed)
    assert "resumed at step 3 of 4" in capsys.readouterr().out
    assert_same_run(harmed, whole, 4)
    assert [r["step"] for r in read_metrics(harmed) if "eval/accuracy" in r] == [2, 4]
