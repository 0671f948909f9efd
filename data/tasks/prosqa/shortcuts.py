"""What can be seen of ProsQA's answers without following a path."""

from collections.abc import Sequence

from data.sources.examples import Example
from data.tasks.prosqa.words import NAMES


def edges(example: Example) -> list[tuple[int, int]]:
    """Returns the pairs (a, b) of nodes, a < b, in the order of the facts."""
    return [(a, b) for a, b in example["edges"]]


def graph_features(example: Example, node: int) -> dict[str, int]:
    """Returns what can be seen of a node without following a path.

    `parents`: how many; `names`: how many of them have names; `grandparents`: how many edges end in the parents;
    `number`: minus the node's number, for nodes further down have higher ones (the text does not show them).
    """
    pairs = edges(example)
    parents = [a for a, b in pairs if b == node]
    names = sum(example["symbols"][parent] in NAMES for parent in parents)
    return {
        "parents": len(parents),
        "names": names,
        "grandparents": sum(b in parents for _, b in pairs),
        "number": -node,
    }


def shortcut_baseline(examples: Sequence[Example], feature: str = "parents") -> float:
    """Returns the accuracy of choosing the option whose feature (see `graph_features`) is less, ties counting half.

    A model has to beat this before it can be said to reason; far below one half is a shortcut as well. Measured on the
    800 published rows / 2000 generated / 2000 with `fair`: parents .66 / .68 / .50, names .60 / .60 / .50, grandparents
    .62 / .63 / .50, number .60 / .61 / .50. With nodes=11, min_hops=2, max_hops=3: names .85, grandparents .31, and
    .50 to .51 with `fair`.
    """
    score = 0.0
    for example in examples:
        right, wrong = (graph_features(example, example[name])[feature] for name in ("target", "neg_target"))
        score += 0.5 * (1 + (right < wrong) - (right > wrong))
    return score / len(examples)
