"""A run in a real notebook kernel: its table updates in place, and the kernel's interrupt saves and returns."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import Any

import pytest

from store.records import METRICS, read_lines
from tests.train.lives import ENVIRONMENT, ROOT

CELL = """
from tests.tiny_config import get_config
from train.loop import run
config = get_config("sft")
config.steps = 400
config.eval.examples = 4
result = run(config, {folder!r})
print(result["status"], result["step"])
"""


def executed(client: Any, code: str, during: Any = lambda: None) -> list[dict[str, Any]]:
    """The messages of one cell; `during` is called whenever there is none for a while."""
    asked, heard = client.execute(code), []
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=0.2)
        except queue.Empty:
            during()
            continue
        if message["parent_header"].get("msg_id") == asked:
            heard.append(message)
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return heard
        during()
    raise TimeoutError(f"the cell did not end; it said {heard[-3:]}")


@pytest.mark.more
def test_an_interrupt_saves_and_returns(tmp_path: Path) -> None:
    manager_module = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    manager, client = manager_module.start_new_kernel(kernel_name="python3", cwd=str(ROOT), env=ENVIRONMENT)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted and len(read_lines(tmp_path / "run" / METRICS)) >= 3:
            interrupted = True
            manager.interrupt_kernel()

    try:
        heard = executed(client, CELL.format(folder=str(tmp_path / "run")), interrupt)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    errors = [message["content"] for message in heard if message["msg_type"] == "error"]
    assert interrupted and not errors
    said = "".join(message["content"]["text"] for message in heard if message["msg_type"] == "stream")
    assert "interrupted: saving after this step" in said
    assert said.splitlines()[-1].startswith("stopped ")
    assert "run(config, workdir), or by_hand(config, workdir), with the same directory" in said
    shown = [m for m in heard if m["msg_type"] in ("display_data", "update_display_data")]
    assert shown[0]["msg_type"] == "display_data"
    assert {m["msg_type"] for m in shown[1:]} == {"update_display_data"}, "one table, in place"
    final = shown[-1]["content"]["data"]
    assert "text/html" in final
    assert "loss" in final["text/plain"] and "left" not in final["text/plain"]
