"""ProsQA (2412.06769): which of two kinds does someone belong to, given a graph of facts about made-up kinds."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from math import exp
from pathlib import Path
from typing import Any, NamedTuple

from data.names import unknown_name
from data.sources.examples import Example, Generated
from data.tasks.base import JOINER, Verdict, chain_of_thought, check_split, hashed_split, judge_marked, stable_hash
from store.files import read_json

SHARES = {"test": 10, "valid": 5}
STYLES = ("words", "symbols", "packed")
_NAMES = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren"
_KINDS = (
    "bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus jelpus jompus"
    " kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus storpus terpus timpus tumpus"
    " vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus"
)
NAMES, KINDS = tuple(_NAMES.split()), tuple(_KINDS.split())
NAME_SYMBOLS = "ABCDEFGHIJKLMNOPQ"
KIND_SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789+-"
SYMBOL = dict(zip(NAMES + KINDS, NAME_SYMBOLS + KIND_SYMBOLS, strict=True))

# How the graphs grow; chosen so that they have the published rows' statistics.
MEAN_PARENTS = 1.5
# Parents come from below the first root alone, from below the second alone (up to here), or from anywhere.
FIRST_ONLY, SECOND_ONLY = 0.35, 0.35 + 0.46
DEPTH_WEIGHT = 1.5
FIRST, SECOND, BOTH = 1, 2, 3

FACT = re.compile(r"(?:Every )?(\w+) is a (\w+)\.")
QUESTION = re.compile(r" Is (\w+) a (\w+) or (\w+)\?")


@dataclass(frozen=True)
class ProsQA:
    """Prompt `Bob is a yerpus. Every yerpus is a impus. ... Is Bob a impus or zumpus?`, steps a path, `Bob is a impus.`

    The rows are "prosqa-like": the authors' generator is not public, and this one was fitted to the 800 published rows
    (their figures / those of 2000 rows here): nodes 22.8 / 22.8, edges 36.0 / 36.0, hops 3.77 / 3.78, shortest paths
    1.59 / 1.63, the root is node 1 in 64 % / 61 %; the tests compare more. Edges lead from lower to higher numbers;
    target and negative target are leaves, the negative one out of the root's reach; who has no parents has a name.

    `nodes`: how many are grown, before those without any edge are dropped (a fifth of them). `min_hops`, `max_hops`:
    limits of the target's distance. `fair`: both options have as many parents and are as far from their roots, or else
    features of the graph alone answer two questions of three, and six of seven in small graphs: `shortcut_baseline`.
    `style`: `words`, or for tiny models `symbols`, a character for each node: `BhhdDr...?Bdr`, steps `Bh` and `hd`,
    answer `d`; `packed`: each fact as one position, `B~hh~dD~r...?drB`, for models with `pairs`; a step is
    the node it leads to, and the root stands last: whatever token or thought comes last is the node to go on from.
    `kinds`: how many of the made-up words are in use. `path`: the folder with prosqa_valid.json and
    prosqa_test.json, for the splits `real_valid` and `real_test`. A graph belongs to one split whatever the seed, the
    names and the question. `train_size`, `valid_size`, `test_size`: lengths of the generated splits.
    """

    nodes: int = 28
    min_hops: int = 3
    max_hops: int = 6
    fair: bool = False
    style: str = "words"
    kinds: int = len(KINDS)
    path: str = ""
    seed: int = 0
    train_size: int = 200_000
    valid_size: int = 1000
    test_size: int = 2000

    splits = ("train", "valid", "test", "real_valid", "real_test")

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise unknown_name("style of 'prosqa'", self.style, STYLES)
        if not 1 <= self.min_hops <= min(self.max_hops, 4):
            raise ValueError(f"1 <= min_hops <= max_hops, 4 must hold, got {self.min_hops} and {self.max_hops}")
        least, most = max(6, 6 * self.min_hops - 1), self.kinds + 2
        if not least <= self.nodes <= most:
            raise ValueError(
                f"nodes must lie in {least}..{most} for min_hops={self.min_hops} and kinds={self.kinds}, "
                f"got {self.nodes}"
            )
        if self.kinds > len(KINDS) or (self.path and self.kinds < len(KINDS)):
            raise ValueError(f"kinds must be at most {len(KINDS)}, and that for real rows, got {self.kinds}")

    @property
    def alphabet(self) -> str:
        """Every character of the style."""
        if self.style != "words":
            return NAME_SYMBOLS + KIND_SYMBOLS[: self.kinds] + "?#\n "
        return "".join(sorted(set("".join(NAMES + KINDS) + "Every Is is a or.?#\n")))

    def examples(self, split: str) -> Sequence[Example]:
        """Returns `{"symbols", "edges", "root", "target", "neg_target", "path", "options"}`, made on demand or read.

        `symbols`: the names of the nodes; `edges`: pairs of nodes in the order of the facts; `path`: nodes from the
        root to the target. FileNotFoundError and ValueError for real rows that are missing or malformed.
        """
        check_split("prosqa", split, self.splits)
        if split.startswith("real_"):
            return _read(self.path, split.removeprefix("real_"))
        size = {"train": self.train_size, "valid": self.valid_size, "test": self.test_size}[split]
        return Generated(size, partial(self._example, split))

    def prompt(self, example: Example) -> str:
        """Returns the facts, the question and a newline."""
        first, second = (self._name(example, node) for node in example["options"])
        root = self._name(example, example["root"])
        joiner = JOINER if self.style == "packed" else ""
        facts = [self._fact(example, a, b, joiner) for a, b in example["edges"]]
        if self.style == "packed":
            return f"{''.join(facts)}?{first}{second}{root}"
        if self.style == "symbols":
            return f"{''.join(facts)}?{root}{first}{second}\n"
        return f"{' '.join(facts)} Is {root} a {first} or {second}?\n"

    def target(self, example: Example) -> str:
        """Returns the steps and the marked answer."""
        return chain_of_thought(self.steps(example), self.answer(example), self.separator)

    @property
    def separator(self) -> str:
        """What ends a step: nothing where it is a single character."""
        return "" if self.style == "packed" else "\n"

    def steps(self, example: Example) -> list[str]:
        """Returns the facts along the path, or where each leads, if a fact is one position."""
        path = example["path"]
        if self.style == "packed":
            return [self._name(example, node) for node in path[1:]]
        return [self._fact(example, a, b) for a, b in pairwise(path)]

    def answer(self, example: Example) -> str:
        """Returns that the root is of the target's kind."""
        if self.style != "words":
            return self._name(example, example["target"])
        return self._fact(example, example["root"], example["target"])

    def verify(self, example: Example, text: str) -> Verdict:
        """Scores 1 when the text after the last `#` is exactly the answer."""
        return judge_marked(self.answer(example), text)

    def _name(self, example: Example, node: int) -> str:
        word = str(example["symbols"][node])
        return word if self.style == "words" else SYMBOL[word]

    def _fact(self, example: Example, a: int, b: int, joiner: str = "") -> str:
        first, second = self._name(example, a), self._name(example, b)
        if self.style != "words":
            return first + joiner + second
        return f"{first} is a {second}." if first in NAMES else f"Every {first} is a {second}."

    def _example(self, split: str, index: int) -> Example:
        draw = random.Random(stable_hash("prosqa", self.seed, split, index))
        while True:
            graph = grow(draw, self.nodes)
            if graph.parents.count([]) > len(NAMES):
                continue
            asked = ask(draw, graph, range(self.min_hops, self.max_hops + 1), self.fair)
            if asked and hashed_split(f"prosqa {graph.parents}", SHARES) == split:
                return _dress(draw, graph, asked, self.kinds)


class Graph(NamedTuple):
    """A grown graph: `parents`, sorted, `groups` and `depths` of each node; nodes 0 and 1 are the roots.

    `groups`: the roots a node lies below, FIRST, SECOND, BOTH or 0. `depths`: steps from the root, 0 for BOTH.
    """

    parents: list[list[int]]
    groups: list[int]
    depths: list[int]

    def leaves(self, group: int) -> list[int]:
        """Returns the nodes of a group that are no parents, roots aside."""
        inner = {0, 1}.union(*self.parents)
        return [node for node, of in enumerate(self.groups) if of == group and node not in inner]

    def shape(self, node: int) -> tuple[int, int]:
        """Returns how many parents a node has and its depth."""
        return len(self.parents[node]), self.depths[node]


class Asked(NamedTuple):
    """A question about a graph, as its nodes."""

    root: int
    target: int
    neg_target: int


def grow(draw: random.Random, nodes: int) -> Graph:
    """Returns a graph to which nodes were added one after the other, each with Poisson many parents.

    Parents are drawn without replacement, deeper nodes more often, from one group alone or from all nodes. Nodes that
    end up without any edge are dropped, a fifth of them.
    """
    graph = Graph([[], []], [FIRST, SECOND], [0, 0])
    for node in range(2, nodes):
        parents = _pick(draw, graph, _poisson(draw, MEAN_PARENTS), _candidates(draw, graph, node))
        group = 0
        for parent in parents:
            group |= graph.groups[parent]
        above = [graph.depths[parent] for parent in parents if graph.groups[parent]]
        graph.parents.append(sorted(parents))
        graph.groups.append(group)
        graph.depths.append(1 + min(above) if group in (FIRST, SECOND) else 0)
    return _pruned(graph)


def ask(draw: random.Random, graph: Graph, hops: range, fair: bool = False) -> Asked | None:
    """Returns a question about two leaves of different groups, or None where the graph gives none.

    The target is a deepest leaf whose depth is one of `hops` (from 1), of either group; the negative target any leaf of
    the other group, if `fair` one that has as many parents as the target and is as far from its own root.
    """
    leaves = {group: graph.leaves(group) for group in (FIRST, SECOND)}
    pairs = [
        (target, other)
        for group in (FIRST, SECOND)
        for target in leaves[group]
        for other in leaves[BOTH - group]
        if graph.depths[target] in hops and not (fair and graph.shape(target) != graph.shape(other))
    ]
    if not pairs:
        return None
    deepest = max(graph.depths[target] for target, _ in pairs)
    target, other = draw.choice([pair for pair in pairs if graph.depths[pair[0]] == deepest])
    return Asked(graph.groups[target] - 1, target, other)


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


def _poisson(draw: random.Random, mean: float) -> int:
    count, product = 0, draw.random()
    while product > exp(-mean):
        count, product = count + 1, product * draw.random()
    return count


def _candidates(draw: random.Random, graph: Graph, node: int) -> list[int]:
    """The nodes before this one that may be its parents."""
    share = draw.random()
    if share >= SECOND_ONLY:
        return list(range(node))
    group = FIRST if share < FIRST_ONLY else SECOND
    return [other for other in range(node) if graph.groups[other] == group]


def _pick(draw: random.Random, graph: Graph, count: int, candidates: list[int]) -> list[int]:
    """So many of the candidates (all where there are fewer), the deeper the likelier."""
    picked: list[int] = []
    for _ in range(min(count, len(candidates))):
        weights = [DEPTH_WEIGHT * graph.depths[node] + 1 for node in candidates]
        picked.append(draw.choices(candidates, weights)[0])
        candidates.remove(picked[-1])
    return picked


def _pruned(graph: Graph) -> Graph:
    """The graph without nodes that have no edge, roots aside, the others numbered anew in the same order."""
    used = {0, 1}.union(*graph.parents) | {node for node, parents in enumerate(graph.parents) if parents}
    number = {node: place for place, node in enumerate(sorted(used))}
    return Graph(
        [[number[parent] for parent in graph.parents[node]] for node in number],
        [graph.groups[node] for node in number],
        [graph.depths[node] for node in number],
    )


def _dress(draw: random.Random, graph: Graph, asked: Asked, kinds: int) -> Example:
    """The example: words for the nodes, facts and options in random order."""
    bare = [not parents for parents in graph.parents]
    names, words = iter(draw.sample(NAMES, sum(bare))), iter(draw.sample(KINDS[:kinds], len(bare) - sum(bare)))
    pairs = [[parent, node] for node, parents in enumerate(graph.parents) for parent in parents]
    draw.shuffle(pairs)
    return {
        "symbols": [next(names) if named else next(words) for named in bare],
        "edges": pairs,
        **asked._asdict(),
        "path": shortest_path(draw, pairs, asked.root, asked.target),
        "options": draw.sample([asked.target, asked.neg_target], 2),
    }


def shortest_path(draw: random.Random, pairs: Sequence[Sequence[int]], root: int, target: int) -> list[int]:
    """Returns the nodes of a shortest path, one of them where there are several; ValueError where there is none."""
    distance, front = {target: 0}, [target]
    while front and root not in distance:
        front = list({a for a, b in pairs if b in front and a not in distance})
        distance |= dict.fromkeys(front, max(distance.values()) + 1)
    if root not in distance:
        raise ValueError(f"no path leads from node {root} to node {target}")
    path = [root]
    while path[-1] != target:
        closer = [b for a, b in pairs if a == path[-1] and distance.get(b) == distance[path[-1]] - 1]
        path.append(draw.choice(sorted(closer)))
    return path


@lru_cache(maxsize=4)
def _read(path: str, split: str) -> list[Example]:
    if not path:
        raise FileNotFoundError(
            "the real rows of prosqa need path=<folder>: the one with prosqa_valid.json and prosqa_test.json of "
            "github.com/facebookresearch/coconut"
        )
    file = Path(path) / f"prosqa_{split}.json"
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; put it there or give another path")
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file}: expected a list of rows, found {type(rows).__name__}")
    return [_real_row(f"{file}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _real_row(where: str, row: Mapping[str, Any]) -> Example:
    """A published row as an example that renders to the row's own words; ValueError where it would not."""
    try:
        example = _parsed(row)
        task = ProsQA()
        texts = task.prompt(example), task.steps(example), task.answer(example)
        same = (f"{row['question']}\n", row["steps"], row["answer"]) == texts
        same = same and example["path"][-1] == example["target"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a row of ProsQA ({type(error).__name__}: {error})") from None
    if not same:
        raise ValueError(f"{where}: its question, steps and answer are not those of its graph")
    return example


def _parsed(row: Mapping[str, Any]) -> Example:
    symbols = list(row["idx_to_symbol"])
    number = {word: node for node, word in enumerate(symbols)}
    question = QUESTION.search(row["question"])
    if question is None or not set(symbols) <= set(SYMBOL):
        raise ValueError("no question 'Is name a kind or kind?', or a word that is not ProsQA's")
    facts = [FACT.fullmatch(step) for step in row["steps"]]
    path = [row["root"], *[number[fact[2]] for fact in facts if fact]]
    pairs = [[number[a], number[b]] for a, b in FACT.findall(row["question"])]
    if sorted(pairs) != sorted(map(list, row["edges"])):
        raise ValueError("its facts are not its edges")
    options = [number[question[2]], number[question[3]]]
    return {"symbols": symbols, "edges": pairs, "path": path, "options": options} | {
        name: row[name] for name in ("root", "target", "neg_target")
    }
