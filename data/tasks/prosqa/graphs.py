"""Graphs that grow as ProsQA's do, questions about them, and shortest paths."""

import random
from collections.abc import Sequence
from math import exp
from typing import NamedTuple

# How the graphs grow; chosen so that they have the published rows' statistics.
MEAN_PARENTS = 1.5
# Parents come from below the first root alone, from below the second alone (up to here), or from anywhere.
FIRST_ONLY, SECOND_ONLY = 0.35, 0.35 + 0.46
DEPTH_WEIGHT = 1.5
FIRST, SECOND, BOTH = 1, 2, 3


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
