"""Whether clusters find a right program among real ones: MBPP's solutions beside broken variants of themselves.

python -m analysis.studies.cluster_programs --allow_code <folder of mbpp.jsonl>     -> runs/clusters/programs.json

No model is at hand; in its place stands a proposer that writes the reference solution so many times and otherwise
variants with one place changed, each another one; with --popular the first of them more often than that: the control,
in which clusters alone have to lose to chance. Programs are run in the sandbox on inputs made from the public test's by
a rule, which validator programs, one of them wrong, may refuse. All tests of the problem say who is right.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from analysis.studies.clusters import shown as in_words
from data.sources.examples import Example
from data.tasks.mbpp import MBPP
from data.verify.inputs import Arguments, arguments_like, first_call, parse
from data.verify.outputs import function_outputs
from data.verify.pool import Judge, judge_of
from infer.strategies.clusters import Weights, kept_inputs, numbered
from infer.strategies.estimators import over_examples
from infer.strategies.submissions import Evidence, Rule, submit
from train.cli import guarded

NOTHING = Weights(scorer=0.0, errors=0.0, public=0.0, repeated=0.0)
FILTER = dataclasses.replace(NOTHING, public=10.0)
RULES = {
    "random": Rule(NOTHING, clustered=False),
    "filter": Rule(FILTER, clustered=False),
    "clusters alone": Rule(dataclasses.replace(NOTHING, size=1.0, repeated=1.0, errors=1.0)),
    "filter, clusters": Rule(dataclasses.replace(FILTER, size=1.0, repeated=1.0, errors=1.0)),
}
SECONDS = 2.0  # for all that a program is asked
TRIES = (1, 2, 3)  # submissions after which is told who was right
# Validators get the public test's arguments and the ones to judge; the last is wrong.
VALIDATORS = (
    "def valid(shown, given):\n    return [type(x) for x in shown] == [type(x) for x in given]",
    "def valid(shown, given):\n    return all(bool(x) or not y for x, y in zip(given, shown) if hasattr(y, '__len__'))",
    "def low(x):\n    return min(map(low, x), default=0) if isinstance(x, (list, tuple)) else"
    " x if isinstance(x, (int, float)) else 0\n"
    "def valid(shown, given):\n    return low(list(shown)) < 0 or low(list(given)) >= 0",
    "def valid(shown, given):\n    return len(repr(given)) % 2 == 0",
)
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
}


def variants(code: str) -> list[str]:
    """Every program that differs from this one in one place: a comparison or an operation is another one, a number is
    one more, `and` and `or` change places, a condition is denied, or a statement that is not needed is left out.
    """
    tree = parse(code)
    nodes = range(len(list(ast.walk(tree))))
    changed = (_variant(copy.deepcopy(tree), node) for node in nodes)
    return list(dict.fromkeys(ast.unparse(each) for each in changed if each is not None))


def _variant(tree: ast.Module, at: int) -> ast.Module | None:
    """The tree with its node of that number changed in place; None where there is no rule for it."""
    node = list(ast.walk(tree))[at]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.For) and len(node.body) > 1:
        del node.body[-1]
    else:
        return None
    return ast.fix_missing_locations(tree)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How often the reference is written (`right`), how many different variants (`broken`), how often the first of them
    (`popular`), and how many inputs are generated.
    """

    right: int = 3
    broken: int = 9
    popular: int = 1
    inputs: int = 32


def proposed(rng: np.random.Generator, code: str, sizes: Sizes) -> list[str] | None:
    """The candidates in random order; None where there are too few variants."""
    others = variants(code)
    if len(others) < sizes.broken:
        return None
    first, *rest = (others[i] for i in rng.choice(len(others), sizes.broken, replace=False))
    programs = [code] * sizes.right + [first] * sizes.popular + rest
    return [programs[i] for i in rng.permutation(len(programs))]


def outputs_of(task: MBPP, programs: Sequence[str], name: str, calls: Sequence[Arguments]) -> list[list[str | None]]:
    """What every program answers to every call, each distinct program run once."""
    known = {code: function_outputs(code, name, calls, task.limits, task.isolation) for code in dict.fromkeys(programs)}
    return [known[code] for code in programs]


def evidence_of(
    task: MBPP, judge: Judge, example: Example, rng: np.random.Generator, sizes: Sizes
) -> tuple[Evidence, np.ndarray] | None:
    """What is known of the programs for an example, and which are right [S]; None where it cannot be asked this way."""
    call, programs = first_call(example["tests"], example["names"]), proposed(rng, example["code"], sizes)
    if call is None or programs is None:
        return None
    name, shown = call
    calls = arguments_like(rng, shown, sizes.inputs)
    accepted = outputs_of(task, VALIDATORS, "valid", [(shown, given) for given in calls])
    kept = kept_inputs(np.array(accepted) == "1")
    distinct = list(dict.fromkeys(programs))
    texts = [f"```python\n{code}\n```" for code in distinct]
    public = task.public(example)
    assert public is not None, "the prompts of this study show a test"
    verdicts = judge([example] * len(texts) + [public] * len(texts), texts * 2)
    scores = np.array([verdict.score for verdict in verdicts]).reshape(2, -1)[:, [distinct.index(p) for p in programs]]
    outputs = numbered(outputs_of(task, programs, name, calls))
    none = np.zeros(len(programs))
    known = Evidence(outputs, none.astype(int), kept[None], np.zeros((1, 1), bool), none, 1 - scores[1])
    return known, scores[0] == 1


def tried(known: Evidence, right: np.ndarray, rule: Rule) -> list[bool]:
    """Whether a right program was among the first submissions, for each number in TRIES."""
    made = submit(known, lambda sample: right[sample : sample + 1], rule, max(TRIES))
    return [any(each.solved[0] for each in made[:most]) for most in TRIES]


def found_in(task: MBPP, seed: int, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """For every example that can be asked: its number, the share of right candidates, and what each rule found."""
    with judge_of(task) as judge:
        for example in task.examples("test"):
            rng = np.random.default_rng((seed, example["task_id"]))
            asked = evidence_of(task, judge, example, rng, sizes)
            if asked is not None and asked[1].any():
                found = {name: tried(*asked, rule) for name, rule in RULES.items()}
                yield {"task_id": example["task_id"], "right": float(asked[1].mean()), **found}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the share of examples solved after few submissions, with intervals, and the differences at one."""
    lines = ["| rule | " + " | ".join(f"{most} submissions" for most in TRIES) + " |", "|---" * (len(TRIES) + 1) + "|"]
    tries = {name: np.array([row[name] for row in rows]) for name in RULES}
    for name, found in tries.items():
        shares = " | ".join(in_words(over_examples(column)) for column in found.T)
        lines.append(f"| {name} | {shares} |")
    lines.append(f"{len(rows)} examples; a candidate is right with {np.mean([row['right'] for row in rows]):.3f}")
    for better, worse in (("filter", "random"), ("clusters alone", "random"), ("filter, clusters", "filter")):
        gap = over_examples(tries[better][:, 0].astype(int) - tries[worse][:, 0])
        lines.append(
            f"{'holds' if gap.low > 0 else 'DOES NOT HOLD'}: one submission: {better} > {worse}: {in_words(gap)}"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.cluster_programs`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.studies.cluster_programs", description="Clusters of real programs, run in the sandbox."
    )
    flags.add_argument("path", help="the folder of mbpp.jsonl")
    flags.add_argument("--allow_code", action="store_true", help="run the programs, in the sandbox (docs/security.md)")
    flags.add_argument("--examples", type=int, default=100)
    flags.add_argument("--right", type=int, default=Sizes.right, help="candidates that are the reference")
    flags.add_argument("--broken", type=int, default=Sizes.broken, help="candidates that are variants of it")
    flags.add_argument("--popular", type=int, default=Sizes.popular, help="times that the first variant is written")
    flags.add_argument("--inputs", type=int, default=Sizes.inputs, help="generated for each example")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--output", default="runs/clusters/programs.json")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def report() -> None:
        task = MBPP(options.path, allow_code=options.allow_code, seconds=SECONDS)
        sizes = Sizes(options.right, options.broken, options.popular, options.inputs)
        rows = list(islice(found_in(task, options.seed, sizes), options.examples))
        print(table(rows))
        output = Path(options.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(rows) + "\n")

    return guarded(report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
