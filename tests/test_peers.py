"""The comparison with other libraries: contenders in turns, noise on stdout, a contender that dies, the flags."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers

FAKE = f"""
import os, sys, time
sys.path.insert(0, {str(peers.SCRIPTS["sagax"].parent)!r})
from wire import Wire

wire = Wire()
print("a library prints")
os.system("echo and so does a program")
wire.ready(version="1")
for n in range(100):
    wire.begin()
    print("again")
    if n == wire.setting.get("dies"):
        raise SystemExit("out of memory, say")
    time.sleep(wire.setting["pause"])
    wire.generated([wire.case["new"]] * 4)
    wire.end()
"""


@pytest.fixture
def pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Interpreters of two contenders, both fakes."""
    script = tmp_path / "fake_step.py"
    script.write_text(FAKE)
    monkeypatch.setattr(peers, "SCRIPTS", dict.fromkeys(peers.SCRIPTS, script))
    return {"sagax": sys.executable, "trl": sys.executable}


def compared(pythons: dict[str, str], **trl: dict[str, Any]) -> dict[str, Any]:
    """`compare` with these settings of the second."""
    settings = {
        "sagax": {"only": {"pause": 0.05, "environment": {}}},
        "trl": {name: {"environment": peers.LARGE_PAGES} | options for name, options in trl.items()},
    }
    return peers.compare(pythons, peers.case_of("fixed"), settings, repeats=3, tries=1, warm_up=1)


def test_the_fastest_setting_is_compared_in_turns(pythons: dict[str, str]) -> None:
    found = compared(pythons, slow={"pause": 0.8}, fast={"pause": 0.3}, broken={"pause": 0.0, "dies": 0})
    ours, theirs = found["contenders"]["sagax"], found["contenders"]["trl"]
    assert theirs["setting"] == "fast"
    assert set(found["tried"]["trl"]) == {"slow", "fast", "broken"}
    assert "out of memory, say" in found["tried"]["trl"]["broken"]["failed"]
    assert ours["version"] == "1"
    assert len(ours["all_seconds"]) == len(theirs["all_seconds"]) == 3
    assert ours["mean_length"] == ours["longest"] == 64
    assert theirs["seconds"] == pytest.approx(theirs["generate"] + theirs["update"], abs=2e-3)
    assert found["ratios"]["sagax / trl"]["median_of_rounds"] > 1.5
    assert all(share < 0.5 for share in found["machine"]["cores_taken_by"]["contenders_between_steps"].values())


def test_a_dead_contender_tells_why(pythons: dict[str, str]) -> None:
    with pytest.raises(peers.ContenderError, match=r"(?s)trl ended with code 1; .*again\nout of memory, say"):
        compared(pythons, only={"pause": 0.0, "dies": 2})


def test_the_report_names_the_peer_left_out(
    pythons: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {peer: {"only": {"pause": 0.01, "environment": {}}} for peer in peers.SETTINGS}
    monkeypatch.setattr(peers, "SETTINGS", settings)
    assert peers.main([f"--trl={sys.executable}", "--repeats=1", "--warm-up=0", "--case=ragged"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["left_out"], found["case"]) == (["tunix"], "ragged")
    assert found["contenders"]["trl"]["mean_length"] == 512


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "pip install trl=="),
        (["--trl=/nowhere/python"], "is no program"),
        ([f"--tunix={sys.executable}", "--tunix-settings=fp8"], "no setting 'fp8'"),
    ],
)
def test_wrong_flags_are_explained(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(flags)
    assert said in capsys.readouterr().err
