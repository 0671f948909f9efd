"""What the documentation names exists: files, and the pages that it links to."""

import re
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "notebooks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
]
# `model/lm.py`, `lm.py` beside a name that has its folder, `configs/grpo/gsm8k.py:scratch`
NAMED = re.compile(r"`([\w./-]+\.(?:py|md|html|toml|yaml|sh))(?::\w+)?`")
LINKED = re.compile(r"\]\((?!https?:)([^)#:\s]+)[^)\s]*\)")
ROOMS = (
    "analysis",
    "benchmarks",
    "configs",
    "data",
    "infer",
    "launch",
    "model",
    "notebooks",
    "rl",
    "settings",
    "store",
    "tests",
    "train",
)
OTHERS = {"main.py"}  # the name that a program has in the sandbox


def files() -> set[str]:
    """Every file of the repository by its path from the root."""
    folders = (ROOT / room for room in (*ROOMS, "docs"))
    inside = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in (*inside, *ROOT.glob("*.*"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    """Every file that a page names is there, under that path or at the end of a longer one."""
    present = files()
    ends = {path[start:] for path in present for start in [0, *(m.end() for m in re.finditer("/", path))]}
    named = set(NAMED.findall(page.read_text(encoding="utf-8"))) - OTHERS
    assert not sorted(name for name in named if name not in ends)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_pages_exist(page: Path) -> None:
    """Every relative link of a page leads to a file."""
    links = LINKED.findall(page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_readme_is_short() -> None:
    """A page that is read in a minute."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_wrap(page: Path) -> None:
    """Prose wraps at 120 columns; tables and code have lines of their own length."""
    code, long = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if len(line) > 120 and not code and not line.lstrip().startswith("|") and " " in line.strip():
            long.append(number)
    assert not long


def run_examples(page: str, count: int) -> dict[str, Any]:
    """Runs the `count` examples of a page, one after the other as a reader would type them; the names they leave."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    assert len(examples) == count
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example.replace("range(50)", "range(2)"), page, "exec"), names)
    return names


@pytest.mark.programs(250)
def test_the_python_of_the_readme_runs() -> None:
    assert float(run_examples("README.md", 2)["metrics"]["loss"]) > 0


@pytest.mark.more
def test_the_python_of_the_page_on_looking_inside_runs() -> None:
    names = run_examples("docs/looking_inside.md", 3)
    assert names["effect"].shape == (2, 10, 4)
    assert names["norms"].shape == (4,)
    assert (names["patched"].hidden != names["out"].hidden).any()


@pytest.mark.more
def test_the_python_of_the_page_on_training_by_hand_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    monkeypatch.chdir(tmp_path)
    names = run_examples("docs/by_hand.md", 2)
    assert names["metrics"]["loss"] > 0
    assert names["rollout"].tokens.shape == (1, 8)


@pytest.mark.more
def test_the_python_of_the_page_on_probes_runs() -> None:
    """What it finds is what the page says it finds."""
    names = run_examples("docs/probes.md", 2)
    assert names["reached"] > 0.9 > 0.65 > names["last"]
    assert names["beyond"].p < 0.05 < names["unrelated"].p
