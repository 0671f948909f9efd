"""The doors between the rooms (docs/architecture.md): every import of every package is read and checked."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOORS: dict[str, set[str]] = {
    "model": set(),
    "data": set(),
    "infer": {"model", "data"},
    "train": {"model", "data", "infer"},
    "rl": {"train", "infer", "model", "data"},
    "analysis": {"train", "infer", "model", "data"},
    "configs": set(),
    "launch": {"configs", "rl", "train", "infer", "model"},
}
COMPOSITION_ROOT = Path("train/algorithms.py")
OUTSIDE_OF_CONFIGS = {"ml_collections"} | set(sys.stdlib_module_names)
OTHER_FRAMEWORKS = {"torch", "transformers", "tensorflow"}


def constant_import(node: ast.AST) -> str | None:
    """The module named by import_module("...") or __import__("..."), or None."""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    value = node.args[0].value
    return value if name in {"import_module", "__import__"} and isinstance(value, str) else None


def from_import(node: ast.ImportFrom, path: Path) -> str:
    """The absolute module an `from ... import` reads, for a file at `path` relative to the root."""
    if not node.level:
        return node.module or ""
    package = path.parent.parts[: len(path.parent.parts) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def imports(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import in the source, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [from_import(node, path)]
        elif module := constant_import(node):
            names = [module]
        yield from ((getattr(node, "lineno", 0), name.split(".")[0]) for name in names)


def allowed(path: Path, package: str) -> bool:
    """Whether the file at `path` (relative to the root) may import the top-level `package`."""
    room = path.parts[0]
    if package == room:
        return True
    if room == "configs":
        return package in OUTSIDE_OF_CONFIGS
    if package in OTHER_FRAMEWORKS:
        return False
    doors = DOORS[room] | ({"rl"} if path == COMPOSITION_ROOT else set())
    return package not in DOORS or package in doors


def violations(root: Path) -> list[str]:
    """One line `file:line: room imports package` for every import through a wall."""
    found = []
    for path in sorted(file for room in DOORS for file in (root / room).rglob("*.py")):
        relative = path.relative_to(root)
        for line, package in imports(path.read_text(), relative):
            if not allowed(relative, package):
                found.append(f"{relative}:{line}: {relative.parts[0]} imports {package}")
    return found


def test_every_import_goes_through_a_door() -> None:
    assert not violations(ROOT), "\n".join(violations(ROOT))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/a.py", "import train.step"),
        ("model/hf/a.py", "from ...data import tasks"),
        ("data/a.py", "def late() -> None:\n    import torch"),
        ("infer/a.py", "from rl.objectives import policy_loss"),
        ("train/loop.py", "import importlib\nimportlib.import_module('rl.grpo')"),
        ("rl/a.py", "import configs.common"),
        ("configs/a.py", "import jax"),
        ("model/b.py", "__import__('transformers')"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, source: str) -> None:
    plant(tmp_path, path, source)
    assert len(violations(tmp_path)) == 1, violations(tmp_path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("train/algorithms.py", "from rl import grpo"),
        ("model/a.py", "from . import config\nfrom .config import ModelConfig\nimport jax"),
        ("model/hf/a.py", "from ..config import ModelConfig"),
        ("configs/sft/a.py", "import ml_collections\nfrom configs import common\nimport math"),
        ("rl/a.py", "from train import losses\nfrom infer import sampler"),
    ],
)
def test_an_open_door_is_no_violation(tmp_path: Path, path: str, source: str) -> None:
    plant(tmp_path, path, source)
    assert not violations(tmp_path)


def plant(root: Path, path: str, source: str) -> None:
    """Write one source file below `root`."""
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
