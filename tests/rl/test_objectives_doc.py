"""docs/objectives.md says only what exists: its snippet runs, its rows are called, its flags are in the config."""

import functools
import inspect
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from rl.advantages import advantages
from rl.control import adapt_entropy_coef, gated_entropy_coef, sync_reference
from rl.kl import KINDS, kl
from rl.masks import top_entropy_mask
from rl.objectives import importance_weights, policy_loss
from rl.returns import kl_in_reward, reinforce_pp, reinforce_pp_baseline, reward_at_end

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
BY_TOKEN = (reinforce_pp, reinforce_pp_baseline)
CONTROL = (sync_reference, adapt_entropy_coef, gated_entropy_coef)
FUNCTIONS = {f.__name__: f for f in (policy_loss, advantages, *BY_TOKEN, *CONTROL)}
ROWS = jnp.linspace(-2.0, -0.5, 24).reshape(6, 4)
REWARDS = jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
NAMES: dict[str, Any] = {
    "importance_weights": importance_weights,
    "top_entropy_mask": top_entropy_mask,
    "kl_in_reward": kl_in_reward,
    "reward_at_end": reward_at_end,
    "old_logps": ROWS - 0.02,
    "sampler_logps": ROWS - 0.03,
    "ref_logps": ROWS + 0.1,
    "entropies": -ROWS,
    "mask": jnp.ones_like(ROWS).at[1, 2:].set(0),
    "rewards": REWARDS,
    "row_rewards": REWARDS.reshape(-1),
    "params": {"w": jnp.ones(2)},
    "limit": 8,
    "inf": math.inf,
}


def tables() -> list[list[list[str]]]:
    """Every table of the page as rows of cells, the header first."""
    blocks = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in b.splitlines()] for b in blocks]
    return [[table[0], *table[2:]] for table in rows]


def calls() -> list[tuple[str, str, str]]:
    """(paper, function, arguments) of every cell that names arguments."""
    found = []
    for header, *body in tables():
        named = {i: name.strip("`") for i, name in enumerate(header) if name.strip("`") in FUNCTIONS}
        for row in body:
            if header[1:3] == ["function", "arguments"]:
                found.append((row[0], row[1].strip("`"), row[2]))
            found += [(row[0], name, row[i]) for i, name in named.items()]
    return found


def flags() -> list[tuple[str, str]]:
    """(paper, name=value) of every flag in the last table."""
    header, *body = tables()[-1]
    assert "--config.rl." in header[1]
    return [(row[0], flag) for row in body for flag in re.findall(r"`([^`]+)`", row[1])]


def arguments(cell: str) -> dict[str, Any]:
    """What a cell's one span of code says, as keyword arguments."""
    if cell == "defaults":
        return {}
    [code] = re.findall(r"^`([^`]+)`$", cell)
    return eval(f"dict({code})", {**NAMES, "__builtins__": {"dict": dict}})


@pytest.mark.parametrize(("paper", "function", "cell"), calls())
def test_a_row_can_be_called(paper: str, function: str, cell: str) -> None:
    given = arguments(cell)
    unknown = set(given) - set(inspect.signature(FUNCTIONS[function]).parameters)
    assert not unknown, f"{paper}: {function} has no argument {sorted(unknown)}"
    fixed: dict[str, Any] = {}
    if function == "policy_loss":
        fixed = dict(logps=ROWS, old_logps=NAMES["old_logps"], advantages=ROWS[:, 0] + 1, mask=NAMES["mask"])
    elif function == "advantages":
        fixed = {"rewards": REWARDS}
    arrays = {name: value for name, value in (fixed | given).items() if isinstance(value, jax.Array)}
    settings = {name: value for name, value in (fixed | given).items() if name not in arrays}
    found = jax.jit(functools.partial(FUNCTIONS[function], **settings))(**arrays)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), paper


def test_the_page_has_its_rows() -> None:
    named = [function for _, function, _ in calls()]
    assert named.count("policy_loss") >= 20 and set(named) == set(FUNCTIONS)


def test_the_kinds_of_kl_are_those() -> None:
    [table] = [table for table in tables() if table[0][0] == "`kind`"]
    assert [row[0].strip("`") for row in table[1:]] == list(KINDS)
    assert list(inspect.signature(kl).parameters)[-1] == "kind"


@pytest.mark.parametrize(("paper", "flag"), flags())
def test_a_flag_is_in_the_config(paper: str, flag: str) -> None:
    name, _, value = flag.partition("=")
    config = common.base().rl
    assert name in config, f"{paper}: config.rl has no {name}"
    config[name] = config.get_type(name)(value)


def test_arguments_that_settle_a_difference_exist() -> None:
    [table] = [table for table in tables() if table[0][-1] == "here"]
    parameters = {name for f in (policy_loss, advantages) for name in inspect.signature(f).parameters}
    assert len(table) == 11
    assert set(re.findall(r"`(\w+)`", " ".join(cell for row in table for cell in row))) <= parameters


def test_every_new_word_of_the_loss_is_explained() -> None:
    words = set(inspect.signature(policy_loss).parameters) - {"logps", "kl_kind"}
    assert not [word for word in sorted(words) if word not in PAGE]


def test_the_snippet_runs() -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert np.isfinite(names["loss"]) and names["count"] == 37
