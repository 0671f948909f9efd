"""The notebooks: their form, and that they still say what they said."""

from __future__ import annotations

import ast
import re
import sys

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from notebooks.comparison import MEASURED, SAMPLED, differences, same_claim
from notebooks.execution import MASKS, PROGRESS, execute, masked, names, read, stripped
from tests.test_house import ROOMS

QUICK = ("01_tour", "04_why_is_my_loss_zero")
# What a user imports: the rooms, what they are built on, matplotlib, and the standard library.
IMPORTED = {*ROOMS, "jax", "flax", "numpy", "optax", "matplotlib", "safetensors", *sys.stdlib_module_names}
IMPORTED |= {"transformers", "torch"}  # where they are installed
LONGEST = 30  # lines of a cell


def code_of(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def made(*cells: str) -> NotebookNode:
    """A notebook of these cells of code."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])


def with_text(text: str, *tags: str) -> NotebookNode:
    """A notebook of one cell that printed a text."""
    notebook = made("print()")
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text=text)]
    notebook.cells[0].metadata = nbformat.from_dict({"tags": list(tags)})
    return notebook


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.more) for n in names()])
def test_a_notebook_says_what_it_said(name: str) -> None:
    committed = read(name)
    told = differences(committed, execute(committed))
    assert not told, "\n\n".join(told)


def test_the_quick_ones_exist() -> None:
    assert set(QUICK) <= set(names())


@pytest.mark.parametrize("name", names())
def test_form(name: str) -> None:
    """A title and one sentence at the start, an assertion at the end, short cells, each run once and in order."""
    notebook = read(name)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == "markdown"
    assert re.fullmatch(r"# .+\n\nThis notebook shows [^.]+\.", re.sub(r"`[^`]*`", "", first.source))
    assert any(isinstance(node, ast.Assert) for node in ast.parse(last.source).body)
    assert all(len(source.splitlines()) <= LONGEST for source in code_of(notebook))
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    tags = {tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    assert tags <= {MEASURED, SAMPLED}


@pytest.mark.parametrize("name", names())
def test_only_public_names(name: str) -> None:
    """Nothing private, nothing of the tests, nothing that a user would not import."""
    tree = ast.parse("\n".join(code_of(read(name))))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [node.module for node in imports if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names]
    assert {str(module).split(".")[0] for module in modules} <= IMPORTED
    used = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used += [part for module in modules for part in str(module).split(".")]
    used += [alias.name for node in imports for alias in node.names]
    assert not [name for name in used if name.startswith("_")]


@pytest.mark.parametrize("name", names())
def test_committed_outputs_are_stripped(name: str) -> None:
    """No times, paths, addresses or metadata of an execution: stripping once more changes nothing."""
    notebook = read(name)
    assert stripped(notebook) == notebook
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [text for text in texts for pattern in (PROGRESS, *(p for p, _ in MASKS)) if pattern.search(text)]


def test_masks() -> None:
    text = (
        "sft 120/400 (30 %), 4.1/s, 1:08 left\n[q] ready after 12.5 s in /tmp/x1/sft: <f at 0x7f00aa00>, 3/4 and/or\n"
    )
    assert masked(text) == "[q] ready after ... s in <path>: <f at 0x...>, 3/4 and/or\n"


def test_stripped_keeps_what_is_said() -> None:
    notebook = made("print(1)")
    cell = notebook.cells[0]
    cell.metadata = nbformat.from_dict({"tags": [MEASURED], "execution": {"iopub.execute_input": "2024-01-01"}})
    pieces = [("stdout", "one\n"), ("stderr", "warned in /home/x\n"), ("stdout", "two\n")]
    cell.outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
    [cell] = stripped(notebook).cells
    assert cell.metadata == {"tags": [MEASURED]}
    assert [output.text for output in cell.outputs] == ["one\ntwo\n"]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("loss 0.50 at 3", "loss  0.501 at 3", True),
        ("loss 0.50 at 3", "loss 0.52 at 3", False),
        ("loss 0.50", "reward 0.50", False),
        ("agree: True", "agree: False", False),
        ("0.0", "0.00001", True),
    ],
)
def test_claims(before: str, after: str, same: bool) -> None:
    assert same_claim(before, after) == same


def test_tags() -> None:
    """Of what training decides the words are compared, or that there is something."""
    assert differences(with_text("loss 1.0"), with_text("loss 2.0"))
    assert not differences(with_text("loss 1.0", MEASURED), with_text("loss 2.0"))
    assert differences(with_text("loss 1.0", MEASURED), with_text("reward 1.0"))
    assert not differences(with_text("an answer", SAMPLED), with_text("another"))
    assert differences(with_text("an answer", SAMPLED), made("print()"))


def test_a_kernel_is_clean() -> None:
    """It has no flags of the tests, and what raises in it is raised."""
    notebook = execute(made("import os; x = 1; print(os.environ.get('XLA_FLAGS'), os.environ['JAX_PLATFORMS'])"))
    assert notebook.cells[0].outputs[0].text == "None cpu\n"
    with pytest.raises(CellExecutionError, match="NameError"):
        execute(made("x"))
