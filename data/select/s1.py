"""The rule that chose s1K (2501.19393, data/filter.ipynb): questions that are whole, hard and diverse, long traces.

The paper's Algorithm 1 has the filters and the uniform draws; the seed set, and the last draws by the mix of domains in
AIME and GPQA, stand in the published notebook alone. Both are here. Draws come from an explicit generator and rows are
taken in an order of their own, so that what is chosen depends on the rows and the seed alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from data.select.pool import Pool, Selection, Stage, check_number, flag, length, selection, sift, text

GPQA, AIME, LONG = "Idavidrein/gpqa", "qq8933/AIME_1983_2024", "qfq/openaimath"  # sources by their published names
LONG_TRACE = 5600  # tokens from which on a right trace of the source LONG belongs to the seed set
GPQA_SHARE = 0.5  # of AIME's mass in the mix of the last draws
# What a row holds beside the features that must all be known. A question without a solution has no grades either.
NOT_FEATURES = ("question", "solution", "cot", "cot_type", "source_type", "metadata")
PICTURE, IMAGE = "[asy]", "![Image]"
PAGE = re.compile(r"p[1-9][0-9]{0,2}\.")
BOLD_NUMBER = re.compile(r"\*\*(?=.*\d)[^\s\]]*\*\*")


@dataclass(frozen=True)
class S1:
    """How many are chosen, and up to which share of them domains are drawn alike; beyond it, by the benchmarks' mix."""

    number: int = 1000
    uniform: float = 0.7


class Draw(NamedTuple):
    """A row drawn from a domain, and its rank among what was left there: 0 is the longest trace."""

    domain: str
    row: int
    rank: int


def ranks(lengths: Sequence[float] | np.ndarray) -> np.ndarray:
    """The rank of each length [N], 0 for the longest; of equal ones the last is taken for the longest."""
    return len(lengths) - 1 - np.argsort(np.argsort(np.asarray(lengths), kind="stable"))


def rank_weights(lengths: Sequence[float] | np.ndarray) -> np.ndarray:
    """The probability of each length [N] in a draw: 2^-rank, divided by their sum."""
    weights = np.exp2(-ranks(lengths).astype(float))
    return weights / weights.sum()


def odd_text(question: str, source: str) -> str:
    """Why a question's text is left out, "" for none: pictures, places in books, numbers in bold.

    A question of AIME may hold a picture in code, whatever else it holds.
    """
    if PICTURE in question:
        return "" if "AIME" in source else f"{PICTURE} in the question"
    if IMAGE in question:
        return f"{IMAGE} in the question"
    if PAGE.search(question):
        return "p<number>. in the question"
    return "**<number>** in the question" if BOLD_NUMBER.search(question) else ""


def filtered(pool: Pool, rows: Sequence[int]) -> tuple[list[int], list[Stage]]:
    """The hard questions in an order of their own, and what was dropped: nulls, odd texts, what was solved, copies."""
    named = {pool.columns.get(role, role) for role in ("question", "source")} | set(NOT_FEATURES)
    for role in ("domain", "small", "large", "right", "length"):
        pool.values(role, rows, lambda value: value)  # a column that is not there is an error, and no null
    left, nulls = sift("no null", rows, partial(_null, pool, named))
    sources = pool.values("source", left, text)
    left, odd = sift("no odd text", left, lambda row: odd_text(pool.value("question", row, text), sources[row]))
    small, large = (pool.values(role, left, flag) for role in ("small", "large"))
    left, easy = sift("hard", left, lambda row: _solved(small[row], large[row]))
    first = {pool.value("question", row, text): row for row in reversed(pool.in_own_order(left))}
    left, copies = sift("once each", left, lambda row: _copy(row, first[pool.value("question", row, text)]))
    return pool.in_own_order(left), [nulls, odd, easy, copies]


def _null(pool: Pool, others: set[str], row: int) -> str:
    nulls = [name for name, value in pool.rows[row].items() if value is None and name not in others]
    return f"null: {', '.join(nulls)}" if nulls else ""


def _solved(small: bool, large: bool) -> str:
    by = [name for name, right in (("small", small), ("large", large)) if right]
    return f"solved by the {' and the '.join(by)} model" if by else ""


def _copy(row: int, first: int) -> str:
    return "" if row == first else "the question of another row"


def benchmark_mix(sources: Iterable[str], domains: Iterable[str]) -> dict[str, int]:
    """Weights of domains as in the benchmarks: counts of AIME's, and GPQA's scaled to half their mass and cut to whole.

    Domains in alphabetical order; {} where no row is AIME's.
    """
    pairs = list(zip(sources, domains, strict=True))
    aime, gpqa = (Counter(domain for source, domain in pairs if source == name) for name in (AIME, GPQA))
    ratio = GPQA_SHARE * aime.total() / gpqa.total() if gpqa else 0.0
    mix = aime + Counter({domain: int(count * ratio) for domain, count in gpqa.items()})
    return {domain: mix[domain] for domain in sorted(mix)}


def draw(
    rng: np.random.Generator,
    left: dict[str, list[int]],
    lengths: Mapping[int, float],
    mix: Mapping[str, int] | None = None,
    by_length: bool = True,
) -> Draw:
    """Draws a domain and one of its rows, which is taken out of `left`, as is a domain that has no more.

    `mix`: weights of domains, None for all alike; `by_length`: rows by `rank_weights`, else all alike. Raises
    ValueError where no domain of the mix has a row left.
    """
    names = [name for name in sorted(left) if mix is None or mix.get(name)]
    if not names:
        raise ValueError("the domains to draw from have no row left")
    weights = None if mix is None else np.array([mix[name] for name in names]) / sum(mix[name] for name in names)
    domain = names[rng.choice(len(names), p=weights)]
    rows = left[domain]
    own = [lengths[row] for row in rows]
    place = int(rng.choice(len(rows), p=rank_weights(own) if by_length else None))
    rank = int(ranks(own)[place])
    found = Draw(domain, rows.pop(place), rank)
    if not rows:
        del left[domain]
    return found


def by_domain(domains: Mapping[int, str]) -> dict[str, list[int]]:
    """The rows of each domain, in the order of the mapping."""
    left: dict[str, list[int]] = {}
    for row, domain in domains.items():
        left.setdefault(domain, []).append(row)
    return left


def generator(seed: int) -> np.random.Generator:
    """The generator of a seed, by name: NumPy may give its default another algorithm."""
    return np.random.Generator(np.random.PCG64(seed))


def s1_draws(pool: Pool, hard: Sequence[int], plan: S1, seed: int) -> tuple[set[int], list[Draw]]:
    """The seed set and the draws that fill it up to `plan.number`, from hard rows in an order of their own.

    As published, the seed set stays among what is drawn from: a draw may give nothing new. Raises ValueError where the
    rows, the seed set or the mix do not fit the numbers of the plan.
    """
    domains, sources = (pool.values(role, hard, text) for role in ("domain", "source"))
    lengths, right = pool.values("length", hard, length), pool.values("right", hard, flag)
    seeds = {row for row in hard if right[row] and _seeds(sources[row], lengths[row])}
    if len(seeds) > plan.number:
        raise ValueError(f"the seed set alone has {len(seeds)} rows: give a larger --number than {plan.number}")
    mix = benchmark_mix(sources.values(), domains.values())
    rng, left, chosen, draws = generator(seed), by_domain(domains), set(seeds), list[Draw]()
    while len(chosen) < plan.number:
        uniform = len(chosen) < plan.uniform * plan.number
        if not uniform and not any(mix.get(name) for name in left):
            named = ", ".join(sorted(set(sources.values()))[:5])
            raise ValueError(
                f"after {len(chosen)} of {plan.number} rows domains are drawn by the mix of the sources {AIME} and"
                f" {GPQA}, and no domain of theirs has a row left (sources here: {named}): --uniform=1 draws all"
                " domains alike"
            )
        draws.append(draw(rng, left, lengths, None if uniform else mix))
        chosen.add(draws[-1].row)
    return seeds, draws


def _seeds(source: str, tokens: float) -> bool:
    return source in (GPQA, AIME) or (LONG in source and tokens > LONG_TRACE)


def s1(pool: Pool, rows: Sequence[int], plan: S1, seed: int) -> Selection:
    """Chooses by the rule of s1K among rows of a pool with these roles: question, source, domain, small, large, right,
    length.

    `small`, `large`, `right`: whether the two weaker models and the writer of the trace answered right.
    """
    hard, stages = filtered(pool, rows)
    check_number(plan.number, hard, "hard rows", stages)
    seeds, draws = s1_draws(pool, hard, plan, seed)
    chosen = seeds | {each.row for each in draws}
    repeated = len(seeds) + len(draws) - len(chosen)
    notes = [
        f"seed set: {len(seeds)} (right, and of {GPQA}, {AIME} or, with a trace beyond {LONG_TRACE}, {LONG})",
        f"drawn: {len(draws)} from {len({each.domain for each in draws})} domains, {repeated} of them seeds already",
        spread(pool, chosen),
    ]
    return selection(pool, chosen, stages, notes)


def spread(pool: Pool, rows: Iterable[int]) -> str:
    """How many rows each domain has, in words, the most first, equal ones in alphabetical order."""
    counts = Counter(sorted(pool.values("domain", rows, text).values())).most_common()
    shown = ", ".join(f"{name} {count}" for name, count in counts[:8])
    return f"domains: {len(counts)} ({shown}{', ...' if len(counts) > 8 else ''})"
