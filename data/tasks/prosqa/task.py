"""ProsQA (2412.06769): which of two kinds does someone belong to, given a graph of facts about made-up kinds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from data.names import unknown_name
from data.sources.examples import Example, Generated
from data.tasks.base import JOINER, Verdict, chain_of_thought, check_split, hashed_split, judge_marked, stable_hash
from data.tasks.prosqa.graphs import Asked, Graph, ask, grow, shortest_path
from data.tasks.prosqa.published import read_published
from data.tasks.prosqa.words import KIND_SYMBOLS, KINDS, NAME_SYMBOLS, NAMES, SYMBOL

SHARES = {"test": 10, "valid": 5}
STYLES = ("words", "symbols", "packed")


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
            return read_published(self.path, split.removeprefix("real_"), ProsQA())
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
