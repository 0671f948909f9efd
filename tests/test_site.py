"""The pages as a site: what they say runs, what they list is complete, every link of what is built leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data.tasks
import model.block
import rl.rewards
from data.tasks.base import Verdict
from model import build
from rl.reward_functions import Sample
from tests.documented import FENCE, ROOT

PACKAGES = ("analysis", "data", "infer", "launch", "model", "rl", "settings", "store", "train")
PAPER = re.compile(r"\b\d{4}\.\d{5}\b")


def loaded(name: str) -> ModuleType:
    """A Python file of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def typed(page: str, holding: str) -> dict[str, Any]:
    """The names that the Python of a page makes, of the block that holds a text."""
    blocks = [block for _, kind, block in FENCE.findall((ROOT / "docs" / page).read_text()) if kind == "python"]
    names: dict[str, Any] = {"jax": jax, "jnp": jnp, "nn": __import__("flax.linen").linen, "__name__": "model.mean"}
    sys.modules.setdefault("model.mean", ModuleType("model.mean"))
    exec(compile(next(block for block in blocks if holding in block), page, "exec"), names)
    return names


def test_the_task_of_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.tasks.TASKS, "reverse", typed("tasks.md", "class Reverse")["Reverse"])
    task = data.tasks.build_task("reverse", length=5)
    words = {split: {example["word"] for example in task.examples(split)[:200]} for split in task.splits}
    assert not words["train"] & words["test"]
    example = task.examples("test")[3]
    assert example == task.examples("test")[3] and set(task.prompt(example)) <= set(task.alphabet or "")
    verdicts = [task.verify(example, text) for text in (task.target(example), "abc", "a" * 10_000)]
    assert [verdict.score for verdict in verdicts] == [1, 0, 0]


def test_the_reward_of_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rl.rewards.REWARDS, "brevity", typed("rewards.md", "def brevity")["brevity"])
    score = rl.rewards.build_rewards({"accuracy": 1.0, "brevity": {"weight": 0.1, "most": 64}})
    sample = Sample({}, "1+1=", "2", Verdict(1.0, "2", "correct"), length=16, finished=True, limit=64)
    scores = score([sample], np.array([0]))
    assert not scores.complaints and scores.total[0] == pytest.approx(1 + 0.1 * 0.75)
    with pytest.raises(ValueError, match="most"):
        rl.rewards.build_reward("brevity")


def test_the_mixer_of_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a row at once and column by column are the same."""
    names = typed("mixers.md", "class Mean")
    row = model.block.Mixer(names["Mean"], names["mean_state"], lambda config: 0)
    monkeypatch.setitem(model.block.MIXERS, "mean", row)
    net = build(dict(vocab_size=16, d_model=16, n_layers=1, n_heads=2, d_ff=32, mixer="mean", positions="none"))

    @jax.jit
    def both(key: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        params, cache, steps = net.init(key), net.init_cache(2, 4), []
        for column in range(4):
            out = net.apply(params, tokens[:, column : column + 1], cache=cache)
            cache = out.cache
            steps.append(out.hidden)
        return net.apply(params, tokens).hidden, jnp.concatenate(steps, 1)

    whole, stepped = both(jax.random.key(0), jnp.arange(8).reshape(2, 4))
    np.testing.assert_allclose(whole, stepped, atol=1e-5)


def test_every_paper_that_the_code_cites_is_on_the_page() -> None:
    """And each of the page is cited in a file that its row names."""
    cited: dict[str, set[str]] = {}
    for path in (path for package in (*PACKAGES, "configs") for path in (ROOT / package).rglob("*.py")):
        for paper in PAPER.findall(path.read_text()):
            cited.setdefault(paper, set()).add(path.relative_to(ROOT).as_posix())
    rows = (ROOT / "docs" / "papers.md").read_text().splitlines()
    shown = {paper: set(re.findall(r"`([\w/]+\.py)`", row)) for row in rows for paper in PAPER.findall(row)}
    assert not cited.keys() - shown.keys()
    assert not [paper for paper, files in shown.items() if not files & cited.get(paper, set())]


def test_the_side_bar_has_every_page() -> None:
    """The build would stop at one that it lacks."""
    conf = loaded("conf")
    assert sorted(conf.PACKAGES) == list(PACKAGES)
    listed = {re.sub(r".*<(.*)>", r"\1", page) for pages in conf.CONTENTS.values() for page in pages}
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed - {"notebooks/README", "notebooks/[0-9]*", "CHANGELOG"} == pages


@pytest.mark.parametrize(
    ("text", "rst"),
    [
        ("A map of `x` [B, S]: **kwargs, a_ and |x|.", r"A map of ``x`` [B, S]\: \*\*kwargs, a\_ and \|x\|."),
        ("Rows of `B`s", r"Rows of ``B``\ s"),
        ("First:\n    kept   as it is", "First\\:\n\n::\n\n        kept   as it is"),
        ("| a | b |\n|---|---|", "::\n\n    | a | b |\n    |---|---|"),
        ("- Two\n  lines\n- and one", "- Two\n  lines\n- and one"),
    ],
)
def test_docstrings_become_what_autodoc_reads(text: str, rst: str) -> None:
    assert "\n".join(loaded("docstrings").as_rst(text.split("\n"))).strip() == rst


def test_signatures_lose_what_flax_adds() -> None:
    plain = loaded("docstrings").plain_signature
    assert plain("(config: ModelConfig, parent: Module | None = <x at 0x7f>, name: str | None = None)") == (
        "(config: ModelConfig)"
    )
    assert plain("(x: int)") == "(x: int)" and plain(None) is None


class Links(HTMLParser):
    """The anchors of a page, where it leads, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.leads: list[str] = []
        self.loads: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects what a tag names."""
        known = {name: value or "" for name, value in attrs}
        self.anchors |= {known[name] for name in ("id", "name") if name in known}
        target = known.get("href") or known.get("src")
        if target and not target.startswith("data:"):
            (self.leads if tag == "a" else self.loads).append(target)


def broken(site: Path) -> list[str]:
    """Links and anchors that lead nowhere, and what a page would load from the network."""
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    told = []
    for page, links in pages.items():
        told += [f"{page}: loads {target}" for target in links.loads if urlsplit(target).netloc]
        for target in (*links.leads, *links.loads):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages[there].anchors if there in pages else {""}
            if not there.exists() or (there.suffix == ".html" and unquote(parts.fragment) not in known):
                told.append(f"{page.relative_to(site.resolve())}: {target}")
    return told


@pytest.mark.more
def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    """With warnings as errors, and without a network."""
    if missing := [name for name in ("sphinx", "myst_nb", "furo") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed: make docs installs it (pip install -e '.[docs]')")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    flags = ("-n", "-W", "--keep-going", "-q", "-c", "docs", "-d", str(tmp_path / "doctrees"))
    command = [sys.executable, "-m", "sphinx", *flags, ".", str(tmp_path / "site")]
    told = subprocess.run(command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    site = tmp_path / "site"
    assert not broken(site)
    assert "quickstart" in (site / "index.html").read_text()
    reference = (site / "docs" / "reference" / "rl.html").read_text()
    assert 'id="rl.objectives.policy_loss"' in reference and "rl.objectives._" not in reference


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a><a href="c.html">c</a><a href="#y">y</a><p id="z">')
    (tmp_path / "b.html").write_text('<a href="a.html#z">a</a><a href="https://x.org">x</a><script src="//cdn/x.js">')
    told = "\n".join(broken(tmp_path))
    assert [words in told for words in ("b.html#x", "c.html", "#y", "//cdn/x.js", "#z", "x.org")] == [True] * 4 + [
        False
    ] * 2
