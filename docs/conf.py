"""The site's settings: `make docs` builds README.md, docs/ and notebooks/ into build/site, without a network.

The source folder is the root of the repository, so that every link between pages is the same here and on disk.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from docstrings import as_rst, plain_signature  # noqa: E402

PACKAGES = ("settings", "store", "data", "model", "infer", "rl", "train", "launch", "analysis")

project = "Sagax"
html_title = "Sagax"
copyright = "the authors of Sagax"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
include_patterns = ["README.md", "CHANGELOG.md", "docs/**.md", "notebooks/README.md", "notebooks/*.ipynb"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("docs", "notebooks")]

nitpicky = True
# What other libraries declare is not looked up: that needs their inventories from the network.
# Type variables are one letter.
nitpick_ignore_regex = [("py:.*", rf"(?!({'|'.join(PACKAGES)})\.).*"), ("py:.*", r".*\.[A-Z]")]
# Fields of named tuples have their types by bare name; the nearest of that name is taken.
suppress_warnings = ["ref.python"]
highlight_language = "none"
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True

smartquotes = False
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
toc_object_entries = False
maximum_signature_line_length = 100
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "special-members": "__call__",
    "ignore-module-all": True,
}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
# Extras that only some runs need.
autodoc_mock_imports = ["gcsfs", "ray", "submitit", "tensorboardX", "wandb"]

# caption -> pages, as the side bar lists them
CONTENTS = {
    "Tutorials": ["notebooks/README", "notebooks/[0-9]*"],
    "How to": [
        "docs/experiments",
        "docs/by_hand",
        "docs/tasks",
        "docs/rewards",
        "docs/pipelines",
        "docs/preferences",
        "docs/distillation",
        "docs/pretraining",
        "docs/selecting",
        "docs/test_time",
        "docs/lm_eval",
        "docs/mixers",
        "docs/hugging_face",
        "docs/looking_inside",
        "docs/probes",
        "docs/devices",
        "docs/pods",
    ],
    "Background": [
        "docs/architecture",
        "docs/objectives",
        "docs/reliability",
        "docs/security",
        "docs/testing",
        "docs/dependencies",
    ],
    "Reference": ["docs/capabilities", "All settings <docs/settings>", "docs/glossary"],
    "Packages": [f"docs/reference/{package}" for package in PACKAGES],
    "Results": ["docs/results", "docs/quickstart_sweep/table", "docs/papers", "CHANGELOG"],
}


def contents() -> str:
    """The side bar as Markdown."""
    lists = (
        "\n".join(["```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```"])
        for caption, pages in CONTENTS.items()
    )
    return "\n\n".join(lists)


def modules_of(package: str) -> list[str]:
    """The modules below a package in alphabetical order, command lines left out."""
    path = importlib.import_module(package).__path__
    below = sorted(module.name for module in pkgutil.walk_packages(path, f"{package}."))
    return [name for name in below if not name.rpartition(".")[2].startswith("_")]


def reference(module: str) -> str:
    """A module under a heading of its own."""
    return f"## {module}\n\n{described(module)}"


def described(module: str) -> str:
    """What a module says of itself and of what it holds."""
    shown = exported(module)
    return f"```{{eval-rst}}\n.. automodule:: {module}\n```" + (f"\n\nAlso here: {shown}." if shown else "")


def exported(module: str) -> str:
    """What a package hands on from the modules below it, as links."""
    parts = importlib.import_module(module)
    values = {name: getattr(parts, name) for name in getattr(parts, "__all__", ())}
    homes = {
        name: value.__module__ for name, value in values.items() if inspect.isroutine(value) or inspect.isclass(value)
    }
    return ", ".join(f"{{py:obj}}`{name} <{home}.{name}>`" for name, home in homes.items() if home != module)


def skip(_app: Sphinx, _what: str, _name: str, value: Any, *_: Any) -> bool | None:
    """Fields of named tuples say nothing beside the signature."""
    return True if str(getattr(value, "__doc__", "")).startswith("Alias for field number") else None


def complete(_app: Sphinx, page: str, source: list[str]) -> None:
    """Adds what is generated to the pages that are written."""
    if page == root_doc:
        source[0] += f"\n\n{contents()}\n"
    folder, _, name = page.rpartition("/")
    if not source[0].startswith("#") and name == "table":
        source[0] = f"# The table of {Path(folder).name}\n\n{source[0]}"
    if folder == "docs/reference":
        title, _, rest = source[0].partition("\n")
        source[0] = "\n\n".join([title, described(name), rest, *(reference(module) for module in modules_of(name)), ""])


def render(_app: Sphinx, _what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are written in plain Markdown."""
    lines[:] = as_rst(lines)


def shorten(
    _app: Sphinx, _what: str, _name: str, _value: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Signatures without what flax adds to them."""
    return plain_signature(signature), plain_signature(returns)


def start_page(app: Sphinx, error: Exception | None) -> None:
    """The README is what a browser opens first."""
    if error is None and app.builder.name == "html":
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Sphinx calls this before it reads a page."""
    app.connect("source-read", complete)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", render)
    app.connect("autodoc-process-signature", shorten)
    app.connect("build-finished", start_page)
