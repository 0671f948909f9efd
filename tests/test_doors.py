"""The doors between the rooms: import-linter's contracts in pyproject.toml hold, catch what they should, no circles."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.conftest import ROOT

ROOMS = ("analysis", "configs", "data", "infer", "launch", "model", "rl", "settings", "store", "train")
COMPOSED = "from rl import grpo\nfrom rl.jobs import sample"
LINT = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports())"


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Checks the rooms of a folder by the contracts in its pyproject.toml."""
    return subprocess.run([sys.executable, "-c", LINT], cwd=root, capture_output=True, text=True)


def test_every_import_goes_through_a_door() -> None:
    told = lint(ROOT)
    assert told.returncode == 0, told.stdout


@pytest.mark.parametrize(
    ("path", "source", "contract"),
    [
        ("model/a.py", "import train.step", "A room imports those below it"),
        ("store/a.py", "def late() -> None:\n    import data.tasks", "A room imports those below it"),
        ("infer/a.py", "from rl import objectives", "A room imports those below it"),
        ("train/loop.py", "from rl import grpo", "A room imports those below it"),
        ("rl/a.py", "import analysis.a", "A room imports those below it"),
        ("model/a.py", "import store.disk", "The model imports nothing of ours but its settings"),
        ("rl/a.py", "import configs.common", "Only launch reads recipes"),
        ("configs/a.py", "import jax", "A recipe imports nothing heavy"),
        ("settings/a.py", "import numpy", "A recipe imports nothing heavy"),
        ("settings/a.py", "import store.disk", "A room imports those below it"),
        ("data/a.py", "def late() -> None:\n    import torch", "No other framework"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, source: str, contract: str) -> None:
    plant(tmp_path, path, source)
    told = lint(tmp_path)
    assert told.returncode != 0 and f"{contract} BROKEN" in told.stdout, told.stdout


def test_the_composition_root_may_name_what_it_composes(tmp_path: Path) -> None:
    plant(tmp_path, "train/algorithms.py", COMPOSED)
    told = lint(tmp_path)
    assert told.returncode == 0, told.stdout


def test_there_is_no_import_circle() -> None:
    """Module by module, wherever in a file the import stands."""
    graph = grimp.build_graph(*ROOMS, include_external_packages=False, cache_dir=None)
    left = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import one another in a circle, or what does: {sorted(left)}"


def plant(root: Path, path: str, source: str) -> None:
    """Rooms with one module each, the contracts of this repository, and one more source file."""
    for room in ROOMS:
        (root / room).mkdir()
        (root / room / "__init__.py").touch()
    modules = ("train/step", "train/algorithms", "data/tasks", "rl/objectives", "rl/grpo", "analysis/a", "store/disk")
    for module in (*modules, "configs/common"):
        (root / f"{module}.py").touch()
    (root / "rl" / "jobs").mkdir()
    for name in ("__init__", "sample"):
        (root / "rl" / "jobs" / f"{name}.py").touch()
    # The contracts ignore these imports, which have to be there.
    (root / "train" / "algorithms.py").write_text(COMPOSED)
    (root / path).write_text(source)
    shutil.copy(ROOT / "pyproject.toml", root)
