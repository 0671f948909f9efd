"""Pairs of a better and a worse completion: by verdict, by length, by score, or as a judge model finds them (RLAIF)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.sources.examples import Example
from data.tasks.base import WRITTEN, example_key, hashed_split
from model.sharding import on_mesh
from rl.jobs.judge import Opinion, judge_of_pairs
from rl.jobs.texts import ABOUT, question_of, rows_of
from settings.stages import PairsConfig
from store.records import plain, replace_text
from train.console import Interrupt
from train.jobs.base import Job
from train.setup import Setup

PAIRS, HELD_OUT = "pairs.jsonl", "held_out.jsonl"


class Candidate(NamedTuple):
    """A text with what pairs are made by: whether it is right, its tokens, its scores."""

    text: str
    right: bool
    tokens: int
    scores: dict[str, float]


Sides = tuple[Candidate, Candidate, float | None]  # chosen, rejected, margin


@dataclass(frozen=True)
class Made:
    """A pair of an example, and by how much the chosen side is better."""

    example: Example
    chosen: Candidate
    rejected: Candidate
    margin: float | None = None


MEND = {
    "verdict": "sample more of each, and let the stage `sample` keep wrong ones too (sample.least={{}})",
    "length": "of each two right ones of different lengths are needed: sample more of each",
    "score": "of each two different scores {rules.score!r} (pairs.score) are needed: see what the stage `score` gave",
    "judge": "the judge preferred none by more than pairs.tie={rules.tie}: lower it, or sample more of each",
}


def run(setup: Setup, interrupt: Interrupt) -> dict[str, float]:
    """Writes pairs.jsonl, and held_out.jsonl where a share of prompts is held out; returns how many there are."""
    del interrupt
    rules, config = setup.config.pairs, setup.config
    rows, _ = rows_of(setup, config.data.split)
    prompts = candidates_of(setup, rows)
    if rules.by == "judge":
        opinions = on_mesh(setup.mesh)(judge_of_pairs(setup))
        made, told = by_judge(prompts, rules, opinions, config.seed)
    else:
        made = [pair for example, texts in prompts for pair in pairs_of(example, texts, rules)]
        told = {}
    if not made:
        raise RuntimeError(
            f"{config.data.split} gives no pair by {rules.by}: of {len(prompts)} prompts none has a better and a worse"
            " completion; " + MEND[rules.by].format(rules=rules)
        )
    files: dict[str, list[str]] = {PAIRS: [], HELD_OUT: []}
    for pair in made:
        held = hashed_split(example_key(pair.example), {"held_out": round(100 * rules.held_out)}) == "held_out"
        files[HELD_OUT if held else PAIRS].append(json.dumps(plain(row_of(pair, config.name)), ensure_ascii=False))
    for name, lines in files.items():
        if lines or name == PAIRS:
            replace_text(setup.workdir / name, "".join(f"{line}\n" for line in lines))
    counts = {"pairs": len(files[PAIRS]), "held_out": len(files[HELD_OUT]), "prompts": len(prompts)}
    used = len({example_key(pair.example) for pair in made})
    return {name: float(count) for name, count in counts.items()} | {"prompts_with_pairs": float(used)} | told


def row_of(pair: Made, stage: str) -> dict[str, Any]:
    """A pair as the stages `preference` and `reward` read it."""
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    about = {name: {"tokens": c.tokens, "right": c.right, "scores": c.scores} for name, c in sides.items()}
    margin = {} if pair.margin is None else {"margin": pair.margin}
    return {**pair.example, **{name: c.text for name, c in sides.items()}, **margin, "pair": {"stage": stage, **about}}


def candidates_of(setup: Setup, rows: Sequence[Example]) -> list[tuple[Example, list[Candidate]]]:
    """The different texts of every example, in the order of the file; those without a verdict are judged."""
    found: dict[str, tuple[Example, dict[str, Candidate]]] = {}
    unjudged = [n for n, row in enumerate(rows) if "score" not in row.get(ABOUT, {})]
    verdicts = setup.judge([question_of(rows[n]) for n in unjudged], [rows[n][WRITTEN] for n in unjudged])
    scores = dict(zip(unjudged, (verdict.score for verdict in verdicts), strict=True))
    for n, row in enumerate(rows):
        example, about, text = question_of(row), row.get(ABOUT, {}), row[WRITTEN]
        tokens = about.get("tokens") or len(setup.tokenizer.encode(text)) + 1
        right = scores.get(n, about.get("score", 0.0)) >= 1
        own = {**about.get("scores", {}), **row.get("scores", {})}
        found.setdefault(example_key(example), (example, {}))[1].setdefault(text, Candidate(text, right, tokens, own))
    return [(example, list(texts.values())) for example, texts in found.values()]


def pairs_of(example: Example, texts: Sequence[Candidate], rules: PairsConfig) -> list[Made]:
    """The pairs of one prompt, at most `rules.most`."""
    make = {"verdict": _by_verdict, "length": _by_length, "score": _by_score}[rules.by]
    found = [Made(example, *sides) for sides in make(texts, rules)]
    return found[: rules.most or None]


def _by_verdict(texts: Sequence[Candidate], rules: PairsConfig) -> Iterator[Sides]:
    """Every right text beside every wrong one, the n-th of each first."""
    right, wrong = [c for c in texts if c.right], [c for c in texts if not c.right]
    for shift in range(len(wrong)):
        for n, better in enumerate(right):
            yield better, wrong[(n + shift) % len(wrong)], None


def _by_length(texts: Sequence[Candidate], rules: PairsConfig) -> Iterator[Sides]:
    """The shortest right text beside the longest right one (Sky-T1-Flash)."""
    right = sorted((c for c in texts if c.right), key=lambda c: c.tokens)
    if len(right) > 1 and right[0].tokens < right[-1].tokens:
        yield right[0], right[-1], None


def _by_score(texts: Sequence[Candidate], rules: PairsConfig) -> Iterator[Sides]:
    """The best beside the worst, then the second best beside the second worst, and so on."""
    missing = [c for c in texts if rules.score not in c.scores]
    if missing:
        raise ValueError(
            f"pairs.score={rules.score!r} is no score of the texts, which have"
            f" {', '.join(missing[0].scores) or 'none'}: run the stage `score` on them first"
        )
    ranked = sorted(texts, key=lambda c: -c.scores[rules.score])
    for better, worse in zip(ranked, reversed(ranked), strict=True):
        apart = better.scores[rules.score] - worse.scores[rules.score]
        if apart <= rules.margin:
            return
        yield better, worse, apart


def by_judge(
    prompts: Sequence[tuple[Example, list[Candidate]]], rules: PairsConfig, opinions: Opinion, seed: int
) -> tuple[list[Made], dict[str, float]]:
    """Pairs of random candidates that the judge prefers one of, in both orders together, and how it judged."""
    rng, asked = np.random.default_rng(seed), list[tuple[Example, Candidate, Candidate]]()
    for example, texts in prompts:
        order = [texts[n] for n in rng.permutation(len(texts))]
        pairs = list(zip(order[::2], order[1::2], strict=False))[: rules.most or None]
        asked += [(example, first, second) for first, second in pairs]
    if not asked:
        return [], {}
    first, second = opinions([(example, a.text, b.text) for example, a, b in asked])
    better = (first + second) / 2  # the probability that the first is better, seen first and seen second
    made = []
    for (example, a, b), p in zip(asked, better, strict=True):
        if abs(p - 0.5) > rules.tie:
            chosen, rejected = (a, b) if p > 0.5 else (b, a)
            made.append(Made(example, chosen, rejected, float(abs(p - 0.5) * 2)))
    agreed = ((first > 0.5) == (second > 0.5)).mean()
    right = [pair.chosen.right for pair in made if pair.chosen.right != pair.rejected.right]
    told = {"judge/consistent": float(agreed), "judge/ties": 1 - len(made) / len(asked)}
    return made, told | ({"judge/right": float(np.mean(right))} if right else {})


def check(setup: Setup) -> None:
    """Raises ValueError for a judge that cannot be opened or answer."""
    if setup.config.pairs.by == "judge":
        judge_of_pairs(setup)


JOB = Job(run, check)
