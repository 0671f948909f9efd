"""Beam search and lookahead over steps of an answer, breadth by breadth (2408.03314, section 3.2).

All partial answers of all examples go on together, each child from the keys of its parent, whatever the scorer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from data.tokenizers.base import find_stop
from data.tokenizers.decoding import vocabulary_texts
from infer.asking import Asker, Candidates, completion_texts, prompts_of
from infer.branches import Branches, advance, branch
from infer.continuation import Continuation, empty_continuation
from infer.decode import LONG
from infer.plan import FEWEST
from infer.sampler import Rollout
from infer.strategies.base import Answers, Strategy, judging
from infer.strategies.votes import best_of
from settings.strategies import Beam

Examples = Sequence[dict[str, Any]]
MOST_STOP_IDS = 64  # tokens that end a step, above which its separator is looked for in the text


@dataclasses.dataclass(frozen=True)
class Node:
    """A partial answer to an example: its tokens with their log-probs, its text, whether it has `ended` by itself or
    has no room for more (`full`), the sample that it is (`slot`), and its score.
    """

    example: int
    tokens: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    text: str = ""
    ended: bool = False
    full: bool = False
    slot: int = 0
    score: float = 0.0

    @property
    def open(self) -> bool:
        """Whether it can go on."""
        return not (self.ended or self.full)


def beam(strategy: Strategy, asker: Asker, examples: Examples, key: jax.Array) -> Answers:
    """Keeps the `width` best partial answers of each example, lets each go on by a step in `expand` ways, and so on.

    Ended answers stay in the beam as long as they are among the best; the best of those that have ended answers. Nodes
    with the same tokens are one.
    """
    options, each = options_of(strategy), strategy.options.width * strategy.options.expand  # type: ignore[attr-defined]
    beams, drawn, nodes, calls = [[Node(e)] for e in range(len(examples))], np.zeros(len(examples), np.int64), 0, 0
    grow = Growing(strategy, asker, prompts_of(examples), each)
    while any(node.open for kept in beams for node in kept):
        parents = seated(beams, options)
        children = grow(parents, key)
        for parent, child in zip([node for node in parents if node], children, strict=True):
            drawn[child.example] += len(child.tokens) - len(parent.tokens)
        children, asked = rated(strategy, asker, examples, children, key)
        nodes, calls = nodes + len(children), calls + asked
        over = [[node for node in kept if not node.open] for kept in beams]
        new: list[list[Node]] = [[] for _ in beams]
        for child in children:
            new[child.example].append(child)
        beams = [best_nodes([*old, *young], options.width) for old, young in zip(over, new, strict=True)]
    candidates = candidates_of([node for kept in beams for node in kept])
    scores = np.array([node.score for kept in beams for node in kept])
    # What has not ended answers only where nothing has.
    chosen = best_of(np.where(candidates.finished, scores, scores - 2 * np.ptp(scores) - 1), candidates.example_of)
    pruned = drawn - np.bincount(candidates.example_of, candidates.own, len(examples)).astype(np.int64)
    return Answers(candidates, chosen, scores, scores[chosen], calls=calls, pruned=pruned, nodes=nodes)


def options_of(strategy: Strategy) -> Beam:
    """The options of a beam search."""
    assert isinstance(strategy.options, Beam)
    return strategy.options


def seated(beams: Sequence[Sequence[Node]], options: Beam) -> list[Node | None]:
    """The parents of width x expand samples for each example; None where fewer go on.

    Of one node, as at first, all samples are children. Their number is the same in every step, for each is a program.
    """
    rows, most = list[Node | None](), options.width * options.expand
    for kept in beams:
        open_ = [node for node in kept if node.open]
        times = options.expand if [node for node in open_ if node.tokens] else most
        parents = [node for node in open_ for _ in range(times)]
        rows += [*parents, *[None] * (most - len(parents))]
    return rows


def best_nodes(nodes: Sequence[Node], width: int) -> list[Node]:
    """The best of them, each of its tokens once; of equal scores the first."""
    distinct: dict[tuple[int, ...], Node] = {}
    for node in nodes:
        distinct.setdefault(node.tokens, node)
    return sorted(distinct.values(), key=lambda node: -node.score)[:width]


class Growing:
    """Called with parents, gives their children, a step longer, in order; a parent that is None has none.

    From step to step the keys of the parents stay where they are, or are copied (infer/branches.py). They are read anew
    where the columns are used up, and where a step's end is found in the text, some tokens late.
    """

    def __init__(self, strategy: Strategy, asker: Asker, prompts: list[list[int]], each: int) -> None:
        """Reads nothing yet; `each` samples a prompt."""
        options, sampling = options_of(strategy), strategy.sampling
        self._asker, self._prompts, self._each, self._step = asker, prompts, each, options.step_tokens
        stop = step_stops(asker, options.separator)
        self._exact = not any(isinstance(entry, str) for entry in stop)
        self._sampling = dataclasses.replace(sampling, n=each, stop=(*sampling.stop, *stop))
        self._branches: Branches | None = None

    def __call__(self, parents: Sequence[Node | None], key: jax.Array) -> list[Node]:
        """The children of as many parents as there are samples; each has the noise of its place among them."""
        length, numbers = self._sampling.max_new_tokens, np.arange(len(parents))
        if self._branches is None or not self._exact or self._branches.room < self._step:
            start = continuation(parents, self._each, length, self._step)
            branches, until = self._asker.branches(self._prompts, self._sampling, start), start.until
        else:
            numbers, parents = self._going(parents)
            branches = branch(self._branches, np.array([parent.slot if parent else -1 for parent in parents]))
            until = np.array([min(len(parent.tokens) + self._step, length) if parent else 0 for parent in parents])
        assert until is not None
        self._branches, rollout = advance(branches, key, until, numbers)
        return went_on(self._asker, parents, rollout)

    def _going(self, parents: Sequence[Node | None]) -> tuple[np.ndarray, list[Node | None]]:
        """The places of the parents that there are, and these, in as few slots as a sampler that shrinks would take."""
        places = [place for place, parent in enumerate(parents) if parent]
        slots, times = len(parents), self._sampling.execution.shrink
        left = self._sampling.max_new_tokens - min(len(parent.tokens) for parent in parents if parent)
        while times and left >= LONG and slots // times >= max(len(places), FEWEST):
            slots //= times
        more = slots - len(places)
        return np.array([*places, *[0] * more]), [*(parents[place] for place in places), *[None] * more]


def continuation(nodes: Sequence[Node | None], n: int, length: int, more: int) -> Continuation:
    """Samples that start from nodes, n for each prompt, and draw at most so many `more` tokens; None has ended."""
    start = empty_continuation(len(nodes), length, np.repeat(np.arange(len(nodes) // n), n))
    lengths = np.array([len(node.tokens) if node else 0 for node in nodes], np.int32)
    for row, node in enumerate(nodes):
        if node:
            start.tokens[row, : lengths[row]], start.logps[row, : lengths[row]] = node.tokens, node.logps
    ended = np.array([not (node and node.open) for node in nodes])
    return dataclasses.replace(start, lengths=lengths, finished=ended, until=np.minimum(lengths + more, length))


def went_on(asker: Asker, nodes: Sequence[Node | None], rollout: Rollout) -> list[Node]:
    """What the samples that started from nodes have become, in order: ended where the model ended them, not where a
    step or the room did.
    """
    sampling, tokenizer, found = asker.sampling, asker.spec.tokenizer, list[Node]()
    ends = (*tokenizer.eos_ids, *sampling.stop_ids)
    for row, (node, text) in enumerate(zip(nodes, completion_texts(rollout, tokenizer), strict=True)):
        if node:
            length, at = int(rollout.lengths[row]), find_stop(text, sampling.stop_strings)
            tokens, logps = (tuple(x[row, :length].tolist()) for x in (rollout.tokens, rollout.logps))
            ended = at is not None or tokens[-1] in ends
            found.append(Node(node.example, tokens, logps, text[:at], ended, length >= sampling.max_new_tokens, row))
    return found


def step_stops(asker: Asker, separator: str) -> tuple[int | str, ...]:
    """What ends a step: the tokens that hold its separator where each does alone and few do, else its text."""
    if len(separator) != 1:
        return (separator,)
    texts = vocabulary_texts(asker.spec.tokenizer)[: asker.model.config.vocab_size]
    ids = [token for token, text in enumerate(texts) if separator in text]
    if not ids:
        raise ValueError(f"separator={separator!r} is in no token of this tokenizer: no step would end")
    return tuple(ids) if len(ids) <= MOST_STOP_IDS else (separator,)


def rated(
    strategy: Strategy, asker: Asker, examples: Examples, nodes: Sequence[Node], key: jax.Array
) -> tuple[list[Node], int]:
    """The nodes with their scores, and how many the verifier or the reward model was asked for."""
    options = options_of(strategy)
    if options.scorer in ("logp", "mean_logp"):
        per = [len(node.tokens) if options.scorer == "mean_logp" else 1 for node in nodes]
        return [dataclasses.replace(node, score=sum(node.logps) / n) for node, n in zip(nodes, per, strict=True)], 0
    ahead = looked_ahead(strategy, asker, examples, nodes, key) if options.lookahead else nodes
    asked, texts = [examples[node.example]["example"] for node in ahead], [node.text for node in ahead]
    if options.scorer == "verifier":
        with judging(strategy.spec) as judge:
            scores = np.array([verdict.score for verdict in judge(asked, texts)])
    else:
        assert strategy.reward is not None
        scores = np.asarray(strategy.reward(asked, texts), np.float64)
    if np.isnan(scores).any():
        raise ValueError(f"the scorer gave NaN for the partial answer {texts[int(np.isnan(scores).argmax())]!r}")
    scored = [dataclasses.replace(node, score=float(score)) for node, score in zip(nodes, scores, strict=True)]
    return scored, len(nodes)


def looked_ahead(
    strategy: Strategy, asker: Asker, examples: Examples, nodes: Sequence[Node], key: jax.Array
) -> list[Node]:
    """The nodes with `lookahead` further tokens, the likeliest ones."""
    options = options_of(strategy)
    each = options.width * options.expand
    rows: list[list[Node | None]] = [[] for _ in examples]
    for node in nodes:
        rows[node.example].append(node)
    flat = [node for row in rows for node in [*row, *[None] * (each - len(row))]]
    greedy = dataclasses.replace(strategy.sampling, n=each, temperature=0.0)
    start = continuation(flat, each, greedy.max_new_tokens, options.lookahead)
    return went_on(asker, flat, asker.rollout(prompts_of(examples), key, greedy, continuation=start))


def candidates_of(nodes: Sequence[Node]) -> Candidates:
    """Nodes as candidates, in order."""
    nothing = np.zeros(len(nodes), np.int64)
    return Candidates(
        tuple(node.text for node in nodes),
        np.array([node.example for node in nodes]),
        np.array([sum(node.logps) for node in nodes]),
        nothing,
        np.array([len(node.tokens) for node in nodes]),
        nothing,
        np.array([node.ended for node in nodes]),
    )
