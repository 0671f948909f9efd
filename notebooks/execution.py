"""Runs a notebook in a kernel of its own, and takes out of its outputs what differs from one run to the next."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
LONGEST = 300  # seconds that a cell may take
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

PROGRESS = re.compile(r"^.* \d+/\d+ \(\d+ %\), .*\n?", re.M)  # a line of train/progress.py
MASKS = (
    (re.compile(r"\b\d+(?:\.\d+)? s\b"), "... s"),
    (re.compile(r"(?<![\w.:/])/(?:[\w.@+-]+/)+[\w.@+-]*"), "<path>"),
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "0x..."),
)


def names() -> list[str]:
    """The notebooks there are, by their files' names without the ending."""
    return sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.ipynb"))


def path_of(name: str) -> Path:
    """The file of a notebook."""
    return FOLDER / f"{name}.ipynb"


def read(name: str) -> NotebookNode:
    """A notebook as it was committed."""
    return nbformat.read(path_of(name), as_version=4)


def execute(notebook: NotebookNode) -> NotebookNode:
    """A stripped copy of the notebook with the outputs of this run; CellExecutionError where a cell raises.

    The kernel is new, runs on CPU in the folder of the notebooks, as Jupyter's does, and imports the code of this
    checkout. It sees neither the user's IPython profile nor the XLA flags that a test may run under.
    """
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as own:
        files = {"connection_file": str(Path(own, "kernel.json")), "transport": "ipc"}
        manager = AsyncKernelManager(kernel_name=KERNEL["name"], **files)
        place = {"metadata": {"path": str(FOLDER)}}
        client = NotebookClient(copy, km=manager, timeout=LONGEST, resources=place, record_timing=False)
        client.execute(env=environment(own), cleanup_kc=True)
    return stripped(copy)


def environment(profile: str) -> dict[str, str]:
    """The environment variables of a kernel, whose IPython profile lies in a folder."""
    given = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
    return given | {
        "PYTHONPATH": str(FOLDER.parent),
        "IPYTHONDIR": profile,
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def stripped(notebook: NotebookNode) -> NotebookNode:
    """A copy without times, paths, addresses, progress, standard error and the metadata of an execution."""
    copy = nbformat.from_dict(notebook)
    copy.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in copy.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            shown = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = _joined([_output(output) for output in shown])
    return copy


def masked(text: str) -> str:
    """A text of an output without what differs from run to run."""
    text = PROGRESS.sub("", text)
    for pattern, instead in MASKS:
        text = pattern.sub(instead, text)
    return text


def _output(output: NotebookNode) -> NotebookNode:
    if output.output_type == "stream":
        return nbformat.from_dict({**output, "text": masked(output.text)})
    data = {kind: masked(value) if kind == "text/plain" else value for kind, value in output.data.items()}
    return nbformat.from_dict({**output, "data": data, "metadata": {}})


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs with pieces of a stream that follow one another as one: how they are cut is chance."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        elif output.output_type != "stream" or output.text:
            joined.append(output)
    return joined
