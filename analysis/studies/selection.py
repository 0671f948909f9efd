"""Which families of a pool a rule of selection reaches, and whether s1's draws follow the law of their ranks.

python -m analysis.studies.selection --output=runs/selection.png     -> also runs/selection.json

200 of 10,000 made examples in eight families are chosen at random, the longest, spread over the families, and by the
rule of s1K. Families differ in how frequent and how long they are. No model is trained: what is measured is which rows
are chosen. Controls: a pool whose families are equally frequent and whose traces are equally long, where the rules must
not differ; and draws that do not look at lengths, which must not follow the law.

Source: 2501.19393, sections 2.2 and 5.1, and the published notebook (data/select/s1.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.pictures import save
from data.select.pool import Pool, Selection, length, text
from data.select.s1 import AIME, GPQA, S1, by_domain, draw, filtered, generator, s1, s1_draws
from data.select.simple import at_random, diverse, longest
from store.records import write_json
from train.cli import guarded

FAMILIES = ("sums", "products", "fractions", "equations", "areas", "counting", "logic", "sequences")
SHARES = 0.5 ** np.arange(8) / (0.5 ** np.arange(8)).sum()  # of the pool, in the order of FAMILIES
MEDIANS = 1000 * np.array([1.0, 1.3, 3.0, 1.6, 0.8, 2.2, 0.7, 1.1])  # tokens of a trace
SPREAD = 0.5  # deviation of a length's logarithm
BENCHMARKS = {AIME: (0.02, 4), GPQA: (0.01, 6)}  # share of the pool, and the families up to which they come from
WRONG = {"small": 0.7, "large": 0.6, "right": 0.4}  # how often the two weaker models and the trace are wrong
NULLS, ODD = 0.08, 0.05  # shares of rows without a grade and with a picture in their question
SIZE, NUMBER, BINS = 10_000, 200, 7
RULES = ("random", "longest", "diverse", "s1")
DRAWS = 10_000  # of a multinomial, for a p value
REFUSED = 0.01


class Measured(NamedTuple):
    """What a rule chose of one pool: rows by family [8], the families that are there, exp of their entropy, the share
    of hard rows, and the mean place of a row's length among those of its family, 0 the shortest and 1 the longest.
    """

    counts: np.ndarray
    covered: int
    effective: float
    hard: float
    place: float


def made_pool(seed: int, size: int = SIZE, alike: bool = False) -> Pool:
    """A pool of made examples; `alike`: equally frequent families, equally long traces, benchmarks from all of them."""
    rng = generator(seed)
    shares = np.full(8, 1 / 8) if alike else SHARES
    edges = np.round(size * np.cumsum(shares)).astype(int)
    family = np.searchsorted(edges, np.arange(size), side="right")
    lengths = np.full(size, 1000) if alike else np.rint(MEDIANS[family] * np.exp(SPREAD * rng.normal(size=size)))
    source = np.full(size, "made", dtype=object)
    for name, (share, families) in BENCHMARKS.items():
        below = 8 if alike else families
        source[(family < below) & (rng.random(size) < share / (edges[below - 1] / size))] = name
    right = {role: rng.random(size) >= often for role, often in WRONG.items()}
    null, odd = rng.random(size) < NULLS, rng.random(size) < ODD
    rows = [
        {
            "question": f"{'[asy] ' if odd[i] else ''}{FAMILIES[family[i]]} {seed}.{i}",
            "source": str(source[i]),
            "domain": FAMILIES[family[i]],
            **{role: None if null[i] else bool(values[i]) for role, values in right.items()},
            "length": int(lengths[i]),
        }
        for i in range(size)
    ]
    return Pool(rows, source="made pool")


def choose(pool: Pool, seed: int, number: int = NUMBER) -> dict[str, Selection]:
    """What each rule chooses of a pool."""
    rows = range(len(pool))
    return {
        "random": at_random(pool, rows, number, seed),
        "longest": longest(pool, rows, number),
        "diverse": diverse(pool, rows, number, seed),
        "s1": s1(pool, rows, S1(number), seed),
    }


def places(pool: Pool) -> np.ndarray:
    """The place of each row's length among those of its family [N], equal ones in the middle of theirs."""
    family, lengths = (np.array([row[name] for row in pool.rows]) for name in ("domain", "length"))
    found = np.zeros(len(pool))
    for name in FAMILIES:
        own = lengths[family == name]
        low, high = (np.searchsorted(np.sort(own), own, side=side) for side in ("left", "right"))
        found[family == name] = (low + high) / (2 * len(own))
    return found


def measure(pool: Pool, chosen: Sequence[int], place: np.ndarray) -> Measured:
    """What was chosen, in numbers; `place`: as `places` gives it."""
    rows = [pool.rows[row] for row in chosen]
    counts = np.array([sum(row["domain"] == name for row in rows) for name in FAMILIES])
    shares = counts[counts > 0] / counts.sum()
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    hard = np.mean([not (row["small"] or row["large"]) and row["small"] is not None for row in rows])
    return Measured(counts, int((counts > 0).sum()), effective, float(hard), float(place[list(chosen)].mean()))


def law(bins: int = BINS) -> np.ndarray:
    """The probability of ranks 0, 1, ... in a draw from many rows, the last bin all that is beyond."""
    return np.append(0.5 ** np.arange(1, bins), 0.5 ** (bins - 1))


def rank_counts(ranks: Sequence[int], bins: int = BINS) -> np.ndarray:
    """How often each rank was drawn [bins], those beyond in the last."""
    return np.bincount(np.minimum(ranks, bins - 1), minlength=bins)


def p_value(counts: np.ndarray, shares: np.ndarray, draws: int = DRAWS) -> float:
    """How likely draws of these shares lie at least as far from them as the counts (Pearson's sum, by simulation)."""
    total = int(counts.sum())
    simulated = generator(0).multinomial(total, shares, draws)
    return _beyond(counts, simulated, total * shares)


def p_exchanged(counts: np.ndarray, draws: int = DRAWS) -> float:
    """How likely the sum over seeds of counts [seeds, families] is as uneven, if each seed's families change names.

    Exact where families are alike, however much a rule's counts scatter from seed to seed; 1 for a single seed.
    """
    changed = generator(0).permuted(np.broadcast_to(counts, (draws, *counts.shape)), axis=2).sum(1)
    return _beyond(counts.sum(0), changed, np.full(counts.shape[1], counts.sum() / counts.shape[1]))


def _beyond(counts: np.ndarray, simulated: np.ndarray, expected: np.ndarray) -> float:
    """The share of simulated counts [draws, K] at least as far from what is expected as the counts are."""
    far, own = (((found - expected) ** 2 / expected).sum(-1) for found in (simulated, counts))
    return float((1 + (far >= own - 1e-9).sum()) / (1 + len(simulated)))


def drawn_ranks(pool: Pool, seed: int, number: int = NUMBER, by_length: bool = True) -> list[int]:
    """The ranks of s1's draws; `by_length=False`: of as many draws that do not look at lengths."""
    hard, _ = filtered(pool, range(len(pool)))
    _, draws = s1_draws(pool, hard, S1(number), seed)
    if by_length:
        return [each.rank for each in draws]
    rng, left = generator(seed), by_domain(pool.values("domain", hard, text))
    lengths = pool.values("length", hard, length)
    return [draw(rng, left, lengths, by_length=False).rank for _ in draws]


def study(seeds: Sequence[int], size: int = SIZE, number: int = NUMBER) -> dict[str, Any]:
    """Everything measured: by pool, rule and seed; p values of families over all seeds, and of the law of ranks."""
    found: dict[str, Any] = {"seeds": list(seeds), "families": FAMILIES, "pools": {}, "ranks": {}}
    for name in ("uneven", "alike"):
        pools = [made_pool(seed, size, alike=name == "alike") for seed in seeds]
        rules: dict[str, list[Measured]] = {rule: [] for rule in RULES}
        for pool, seed in zip(pools, seeds, strict=True):
            place = places(pool)
            for rule, chosen in choose(pool, seed, number).items():
                rules[rule].append(measure(pool, chosen.chosen, place))
        shares = np.bincount([FAMILIES.index(row["domain"]) for row in pools[0].rows], minlength=8) / size
        every = {rule: np.array([one.counts for one in ones]) for rule, ones in rules.items()}
        found["pools"][name] = {
            "shares": shares,
            "rules": rules,
            "p": {rule: p_value(each.sum(0), shares) for rule, each in every.items()},
            "p alike": {rule: p_exchanged(each) for rule, each in every.items()},
        }
    pools = [made_pool(seed, size) for seed in seeds]
    for name, by_length in (("s1", True), ("without lengths", False)):
        ranks = [drawn_ranks(pool, seed, number, by_length) for pool, seed in zip(pools, seeds, strict=True)]
        counts = rank_counts([rank for each in ranks for rank in each])
        found["ranks"][name] = {"counts": counts, "p": p_value(counts, law())}
    return found


def verdicts(found: Mapping[str, Any]) -> dict[str, bool]:
    """What was predicted before it was measured, and whether it is so; in every seed, where seeds are compared."""
    uneven, alike, ranks = found["pools"]["uneven"], found["pools"]["alike"], found["ranks"]
    rules, seeds = uneven["rules"], range(len(found["seeds"]))

    def beats(field: str, *others: str) -> bool:
        value = lambda rule, i: getattr(rules[rule][i], field)  # noqa: E731
        return all(value("s1", i) > max(value(other, i) for other in others) for i in seeds)

    return {
        "s1 covers all families": all(one.covered == len(FAMILIES) for one in rules["s1"]),
        "s1 is more even than random and longest": beats("effective", "random", "longest"),
        "s1 has longer traces of a family than random and diverse": beats("place", "random", "diverse"),
        "s1 alone chooses hard rows only": beats("hard", *RULES[:3]) and all(one.hard == 1 for one in rules["s1"]),
        "random alone keeps the pool's shares": [rule for rule in RULES if uneven["p"][rule] > REFUSED] == ["random"],
        "diverse alone takes families alike": [r for r in RULES if uneven["p alike"][r] > REFUSED] == ["diverse"],
        "control: where families are alike, all rules take them alike": min(alike["p alike"].values()) > REFUSED,
        "ranks follow their law": ranks["s1"]["p"] > REFUSED,
        "control: they do not where lengths are not looked at": ranks["without lengths"]["p"] <= REFUSED,
    }


def table(found: Mapping[str, Any]) -> str:
    """Measures by pool and rule, mean ± deviation over seeds; ranks beside their law; verdicts."""
    heads = "".join(f"{name:>14}" for name in ("families", "effective", "hard", "place", "p as pool", "p alike"))
    lines = [f"{'pool':8}{'rule':8}{heads}"]
    for name, pool in found["pools"].items():
        for rule, ones in pool["rules"].items():
            cells = [_spread([getattr(one, field) for one in ones]) for field in Measured._fields[1:]]
            cells += [f"{pool[p][rule]:.4f}" for p in ("p", "p alike")]
            lines.append(f"{name:8}{rule:8}" + "".join(f"{cell:>14}" for cell in cells))
    lines.append("rank     " + "".join(f"{rank:>8}" for rank in [*range(BINS - 1), f"{BINS - 1}.."]))
    lines.append("law      " + "".join(f"{share:8.3f}" for share in law()))
    for name, ranks in found["ranks"].items():
        shares = ranks["counts"] / ranks["counts"].sum()
        lines.append(f"{name:9.9}" + "".join(f"{s:8.3f}" for s in shares) + f"  p {ranks['p']:.4f}")
    return "\n".join([*lines, *(f"{'yes' if holds else 'NO ':4} {what}" for what, holds in verdicts(found).items())])


def _spread(values: Sequence[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.2f} ± {deviation:.2f}"


def picture(found: Mapping[str, Any]) -> Any:
    """A matplotlib figure: shares of families by rule in both pools, and the ranks of draws beside their law."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    titles = {"uneven": "families of the pool", "alike": "control: families alike"}
    for axes, (name, pool) in zip(panels, found["pools"].items(), strict=False):
        for number, (rule, ones) in enumerate(pool["rules"].items()):
            shares = np.mean([one.counts / one.counts.sum() for one in ones], 0)
            axes.bar(np.arange(8) + 0.2 * (number - 1.5), shares, 0.18, label=rule)
        axes.step(np.arange(-1, 9), np.pad(pool["shares"], 1, mode="edge"), where="mid", color="0.3", linewidth=1)
        axes.set_xlim(-0.6, 7.6)
        axes.set_xticks(range(8), FAMILIES, rotation=45, ha="right", fontsize=8)
        axes.set_title(titles[name], loc="left", fontsize=10, fontweight="bold")
    panels[1].set_ylim(0, 0.3)
    panels[0].set_ylabel("share of what is chosen (line: of the pool)")
    panels[0].legend(frameon=False, fontsize=8)
    for name, ranks in found["ranks"].items():
        panels[2].plot(ranks["counts"] / ranks["counts"].sum(), marker="o", markersize=4, label=name)
    panels[2].plot(law(), color="0.3", linestyle="--", label=r"law: 2^-(rank + 1)")
    panels[2].set_xticks(range(BINS), [*map(str, range(BINS - 1)), f"{BINS - 1}.."])
    panels[2].set_xlabel("rank of a drawn trace (0: longest)")
    panels[2].set_title("draws of s1", loc="left", fontsize=10, fontweight="bold")
    panels[2].legend(frameon=False, fontsize=8)
    for axes in panels:
        axes.grid(color="0.92", axis="y")
        axes.set_axisbelow(True)
    return figure


def record(found: Mapping[str, Any]) -> dict[str, Any]:
    """All that was measured and the verdicts, as JSON takes it."""
    pools = {
        name: pool | {"rules": {rule: [one._asdict() for one in ones] for rule, ones in pool["rules"].items()}}
        for name, pool in found["pools"].items()
    }
    return {**found, "pools": pools, "verdicts": verdicts(found)}


def parser() -> argparse.ArgumentParser:
    """The flags of `python -m analysis.studies.selection`."""
    flags = argparse.ArgumentParser(
        "python -m analysis.studies.selection", description="Which families rules of selection reach."
    )
    flags.add_argument("--seeds", default="0,1,2,3,4,5,6,7,8,9", help="of pools and draws")
    flags.add_argument("--size", type=int, default=SIZE, help="rows of a pool")
    flags.add_argument("--number", type=int, default=NUMBER, help="rows chosen")
    flags.add_argument("--output", default="runs/selection.png", help="the PNG; the numbers go beside it as JSON")
    return flags


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 1 for a fault, 2 for wrong use."""
    options = parser().parse_args(arguments)

    def run() -> None:
        seeds = seeds_of(options.seeds)
        found = study(seeds, options.size, options.number)
        print(table(found))
        where = Path(options.output)
        save(picture(found), where)
        write_json(where.with_suffix(".json"), record(found))

    return guarded(run)


def seeds_of(words: str) -> list[int]:
    """Seeds of a text such as "0,1,2"; ValueError for another."""
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise ValueError(f"--seeds takes whole numbers such as 0,1,2, found {words!r}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
