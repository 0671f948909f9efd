"""No page names a module, a recipe, a stage, a flag, a setting or a target of make that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documented import FENCE, ROOT, UNCHECKED, commands_in, problems, text_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
IMPORT = re.compile(r"^(?:from ([\w.]+) )?import ([\w., ]+)", re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_can_be_typed(page: Path) -> None:
    """Each is read as its own command line reads it; none is started."""
    told = problems(text_of(page))
    assert not told, "\n".join(told)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_looked_at(page: Path) -> None:
    """None stands outside of code, where it would not be read, nor behind another on one line."""
    text = text_of(page)
    looked_at = sum(" ".join(words).count("python -m ") for words in commands_in(text))
    assert len(re.findall(r"python\s+-m\s", text)) == looked_at


def test_few_commands_are_not_checked() -> None:
    assert list(UNCHECKED) == ["pytest"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("`python -m infer.sample runs/x`", "no module infer.sample"),
        ("```\npython -m infer --run=x --promt=1\n```", "does not take --promt"),
        ("`python -m infer ... --promt=1`", "does not take --promt"),
        ("`python -m infer --prompt=1`", "required: --run"),
        ("`python -m infer --run=x --max_new=3`", "does not take --max_new"),
        ("`python -m infer --run=x --task=adition`", "not adition"),
        ("`python -m analysis.exits runs/x --examples=many`", "invalid int value"),
        ("`python -m benchmarks stf`", "not stf"),
        ("`python -m settings --json`", "takes no flags"),
        ("`make quikstart`", "the Makefile has no quikstart"),
        ("`python -m train --config=configs/quikstart.py --workdir=x`", "quikstart.py"),
        ("`python -m train --config=configs/sft/gsm8k.py:scrach`", "scrach"),
        ("`python -m train --config=... --config.rl.sample=3`", "rl.sample"),
        ("`python -m train --config=... --config.rl.samples=few`", "rl.samples"),
        ("`python -m train --config=configs/quickstart.py --config.stage.dpo.steps=3`", "stage"),
        ("`python -m train --config=configs/quickstart.py --step=3`", "--step"),
        ("`python -m launch.sweep --config=configs/sft/gsm8k.py --workdir=x`", "no sweep()"),
        ("`python -m launch.sweep --config=configs/quickstart.py --workdir=x --filter=seed=99`", "seed=99"),
        ("`python -m launch.sweep --config=configs/quickstart.py --workdir=x --launcher=slum`", "not slum"),
        ("`python -m launch.plan --config=configs/quickstart.py --topology=v5e:3x3`", "3x3"),
        ("`python -m launch.plan --config=configs/quickstart.py --topology=cpu --stage=dpo`", "dpo"),
        ("```\nA=1 python -m launch.report a && python -m launch.report b --mean\n```", "does not take --mean"),
        ("```\npython -m launch.report \\\n    runs/x --mean  # --median\n```", "does not take --mean"),
        ("`--config.model.moe.experts=4`", "moe.experts"),
        ("`--config.mode.*`", "no settings mode"),
        ("`--lanucher=ray`", "no command has --lanucher"),
    ],
)
def test_what_cannot_be_typed_is_told(text: str, told: str) -> None:
    found = problems(text)
    assert len(found) == 1 and told in found[0], found


@pytest.mark.parametrize(
    "text",
    [
        "`python -m train --config=configs/quickstart.py --workdir=runs/<name> --config.seed=$seed`",
        "`python -m train ... --coordinator=host0:1234 --processes=4 --process=2`",
        "`python -m infer --run=runs/x --draft ...`",
        "`--config.stage.grpo.steps=3` of `configs/quickstart.py`, `--config.rl.<flag>`, `--config.mesh.*`",
        "`make PYTHON=/usr/bin/python3.12 test` and `make test-more`",
        "```python\n# python -m infer --nothing\n```",
        "```\nfor s in 0 1; do python -m train --config=configs/quickstart.py --workdir=$s --config.seed=$s; done\n```",
    ],
)
def test_what_can_be_typed_is_not_told(text: str) -> None:
    assert not problems(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_imports_exists(page: Path) -> None:
    """Names that the Python of a page imports from the packages of this repository."""
    names: dict[str, object] = {}
    for _, kind, block in FENCE.findall(text_of(page)):
        for line in IMPORT.finditer(block) if kind == "python" else ():
            exec(line[0], names)
