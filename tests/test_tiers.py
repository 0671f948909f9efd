"""The tests' own rules: where compiled programs are kept, what a test may compile, which cases are left for later."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import ROOT, compilation_cache

FEW = """
import jax, pytest

def compile_two():
    for size in (3, 4):
        jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((size,), "float32")).compile()

@pytest.mark.programs(1)
def test_above_its_budget():
    compile_two()

@pytest.mark.programs(2)
def test_within_it():
    compile_two()

@pytest.mark.more
@pytest.mark.programs(1)
def test_without_one():
    compile_two()

@pytest.mark.more_but({kept!r})
@pytest.mark.parametrize("case", ["first", "second"])
def test_cases(case):
    pass
"""


@pytest.mark.parametrize("variable", ["JAX_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_programs_are_kept_where_every_clone_finds_them(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    own = Path("sagax", f"jax-{version('jax')}")
    below = {"JAX_CACHE": Path(), "XDG_CACHE_HOME": own, "HOME": ".cache" / own}
    assert compilation_cache() == tmp_path / below[variable]


@pytest.mark.parametrize("home", ["", "a file"])
def test_without_such_a_place_the_clone_keeps_its_own_and_says_so(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / home) if home else "")
    with pytest.warns(UserWarning, match=r"are kept in .*\.cache.jax, for this clone alone"):
        assert compilation_cache() == ROOT / ".cache" / "jax"


def run(folder: Path, kept: str, *options: str) -> str:
    """What pytest says of the few tests above."""
    (folder / "test_few.py").write_text(FEW.format(kept=kept))
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "tests.tiers", *options]
    environment = {name: value for name, value in os.environ.items() if name != "TEST_COSTS"}
    told = subprocess.run([*command, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True)
    return told.stdout + told.stderr


def test_a_test_above_its_budget_fails_unless_it_is_for_later(tmp_path: Path) -> None:
    told = run(tmp_path, "first")
    assert "compiled 2 programs, of which a test may have 1" in told and "1 failed, 4 passed" in told
    assert "1 failed, 2 passed, 2 deselected" in run(tmp_path, "first", "-m", "not more")


def test_a_case_that_there_is_not_is_told(tmp_path: Path) -> None:
    assert "test_cases has no case frist, which its mark `more_but` names" in run(tmp_path, "frist")
