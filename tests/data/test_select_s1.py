"""The rule of s1K: golden weights, its filters, and the whole choice against the published notebook's steps."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.select.domains import check_domains, read_domains
from data.select.pool import Pool
from data.select.s1 import (
    AIME,
    GPQA,
    LONG,
    S1,
    benchmark_mix,
    by_domain,
    draw,
    filtered,
    generator,
    odd_text,
    rank_weights,
    ranks,
    s1,
)

MSC = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "s1_msc" / "msc.json"
PUBLISHED = {
    "source": "source_type",
    "small": "isqwen7bcorrect",
    "large": "isqwen32bcorrect",
    "right": "isgeminicorrect",
    "length": "gemini_length",
}
Row = dict[str, Any]


def fake(seed: int, size: int = 50) -> list[Row]:
    """Rows as the notebook joins them: some with nulls, odd texts and copies, in five domains."""
    rng = np.random.default_rng(seed)
    begins = ["What is", "[asy] What is", "See p12. for", "How much is", "Find **3** times", "![Image] What is"]
    rows = []
    for i in range(size):
        begin = begins[rng.choice(6, p=[0.3, 0.1, 0.05, 0.45, 0.05, 0.05])]
        grades = {name: bool(rng.random() < 0.15) for name in list(PUBLISHED.values())[1:3]}
        rows.append(
            {
                "question": f"{begin} {i if rng.random() < 0.95 else 0} + 1?",
                "solution": None if rng.random() < 0.2 else str(i + 1),
                "source_type": str(rng.choice(["made", AIME, GPQA, f"{LONG}/Algebra"], p=[0.6, 0.2, 0.1, 0.1])),
                "domain": str(rng.choice(["05", "11", "35", "60", "92"], p=[0.4, 0.3, 0.15, 0.1, 0.05])),
                **grades,
                "isgeminicorrect": None if rng.random() < 0.05 else bool(rng.random() < 0.4),
                "gemini_length": int(rng.integers(3000, 9000)),
            }
        )
    return rows


def notebook(rows: list[Row], number: int, seed: int) -> set[str]:
    """Cells 3 to 23 of data/filter.ipynb on rows in the order given, step by step, with an explicit generator.

    Sets, whose order Python leaves open, are in alphabetical order; the rest is the notebook's.
    """
    features = {row["question"]: row for row in rows}
    left = [q for q, row in features.items() if all(v is not None for k, v in row.items() if k != "solution")]
    kept = []
    for question in left:
        page = any(f"p{i}." in question for i in range(1, 1000))
        bold = re.search(r"\*\*(?=.*\d)[^\s\]]*\*\*", question)
        whole = "[asy]" not in question and "![Image]" not in question and not page and not bold
        if whole or ("[asy]" in question and "AIME" in features[question]["source_type"]):
            kept.append(question)
    hard = {q: features[q] for q in kept if not (features[q]["isqwen32bcorrect"] or features[q]["isqwen7bcorrect"])}
    chosen = set()
    for question, row in hard.items():
        if row["isgeminicorrect"]:
            long = LONG in row["source_type"] and row["gemini_length"] > 5600
            if row["source_type"] in (GPQA, AIME) or long:
                chosen.add(question)
    gpqa = Counter(row["domain"] for row in hard.values() if row["source_type"] == GPQA)
    aime = Counter(row["domain"] for row in hard.values() if row["source_type"] == AIME)
    larger = 0.5 * sum(aime.values()) / sum(gpqa.values())
    for domain in gpqa:
        gpqa[domain] = int(gpqa[domain] * larger)
    mix = gpqa + aime
    names = sorted(mix)
    weights = np.array([mix[name] for name in names]) / sum(mix.values())
    domains = sorted({row["domain"] for row in hard.values()})
    inside = {domain: {q: row for q, row in hard.items() if row["domain"] == domain} for domain in domains}
    rng = np.random.Generator(np.random.PCG64(seed))
    while len(chosen) < number:
        domain = rng.choice(domains) if len(chosen) < 0.7 * number else rng.choice(names, size=1, p=weights)[0]
        keys = list(inside[domain])
        lengths = np.array([inside[domain][key]["gemini_length"] for key in keys])
        order = len(lengths) - 1 - np.argsort(np.argsort(lengths))
        shares = np.power(2.0, -order)
        key = keys[rng.choice(len(keys), p=shares / shares.sum())]
        chosen.add(key)
        inside[domain].pop(key)
        if not inside[domain]:
            domains.remove(domain)
            if domain in names:
                weights = np.delete(weights, names.index(domain))
                weights = weights / weights.sum()
                names.remove(domain)
    return chosen


def asked(pool: Pool, chosen: list[int]) -> set[str]:
    return {pool.rows[row]["question"] for row in chosen}


def test_the_golden_weights() -> None:
    lengths = [100, 400, 50, 300]
    assert ranks(lengths).tolist() == [2, 0, 3, 1]
    assert rank_weights(lengths).round(4).tolist() == [0.1333, 0.5333, 0.0667, 0.2667]
    assert rank_weights([7] * 3000).sum() == pytest.approx(1), "weights of far ranks are 0, not an error"


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_notebooks(seed: int) -> None:
    pool = Pool(fake(seed), PUBLISHED)
    hard, _ = filtered(pool, range(len(pool)))
    # Of copies the notebook keeps the last, this rule the first in own order: the notebook gets one of each.
    unique = [row for row in range(len(pool)) if row in hard or pool.rows[row]["question"] not in asked(pool, hard)]
    rows = [pool.rows[row] for row in pool.in_own_order(unique)]
    number = len(hard) * 2 // 3
    found = s1(pool, range(len(pool)), S1(number), seed)
    assert len(found.chosen) == number
    assert asked(pool, found.chosen) == notebook(rows, number, seed)


@given(st.integers(0, 7), st.permutations(range(50)))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_pool_does_not_matter(seed: int, order: list[int]) -> None:
    pool = Pool(fake(seed), PUBLISHED)
    shuffled = Pool([pool.rows[row] for row in order], PUBLISHED)
    number = len(filtered(pool, range(50))[0]) * 2 // 3
    one, other = (s1(each, range(50), S1(number), seed) for each in (pool, shuffled))
    content = lambda rows: sorted(json.dumps(row) for row in rows)  # noqa: E731
    assert content(one.rows) == content(other.rows)
    assert [len(stage.dropped) for stage in one.stages] == [len(stage.dropped) for stage in other.stages]
    assert one.notes == other.notes


def test_a_seed_is_a_choice() -> None:
    pool = Pool(fake(0, 200), PUBLISHED)
    again = [s1(pool, range(200), S1(60), seed).chosen for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]


def test_every_filter_says_what_it_dropped() -> None:
    plain = {"source": "made", "domain": "05", "small": False, "large": False, "right": True, "length": 9}
    aime = plain | {"source": AIME}
    rows = [
        plain | {"question": "one"},
        plain | {"question": "two", "right": None},
        plain | {"question": "three", "solution": None},
        plain | {"question": "[asy] ![Image] four"},
        aime | {"question": "[asy] ![Image] five"},
        plain | {"question": "six", "large": True},
        plain | {"question": "seven", "small": True, "large": True},
        plain | {"question": "one", "length": 8},
    ]
    found = s1(Pool(rows), range(8), S1(3, uniform=1), 0)
    assert [(stage.name, stage.before, stage.after) for stage in found.stages] == [
        ("no null", 8, 7),
        ("no odd text", 7, 6),
        ("hard", 6, 4),
        ("once each", 4, 3),
    ]
    dropped = [reason for stage in found.stages for _, reason in sorted(stage.dropped.items())]
    assert dropped == [
        "null: right",
        "[asy] in the question",
        "solved by the large model",
        "solved by the small and the large model",
        "the question of another row",
    ]
    assert {row["question"] for row in found.rows} == {"one", "three", "[asy] ![Image] five"}
    assert found.notes[0].startswith("seed set: 1 ")


@pytest.mark.parametrize(
    ("question", "odd"),
    [
        ("see p7.", True),
        ("see p999.", True),
        ("see p1000.", False),
        ("see p07.", False),
        ("a **12** b", True),
        ("a **x1** b", True),
        ("a **x** b 1", True),  # the notebook's digit may stand anywhere behind
        ("a **x y** b 1", False),
        ("a **word** b", False),
        ("an ![Image]", True),
    ],
)
def test_odd_texts(question: str, odd: bool) -> None:
    assert bool(odd_text(question, "made")) == odd


def test_the_mix_of_the_benchmarks() -> None:
    domains = ["a", "a", "a", "b", "b", "c", "c", "c", "d"]
    sources = [AIME] * 4 + [GPQA] * 4 + ["made"]
    # Four of AIME: GPQA's four count half, b .5 -> 0 and c 1.5 -> 1.
    assert benchmark_mix(sources, domains) == {"a": 3, "b": 1, "c": 1}
    assert benchmark_mix([GPQA], ["a"]) == {} == benchmark_mix([], [])
    assert benchmark_mix([AIME], ["a"]) == {"a": 1}


def test_draws_empty_their_domains() -> None:
    left = by_domain({1: "b", 2: "a", 3: "b"})
    lengths = {1: 10.0, 2: 5.0, 3: 20.0}
    found = [draw(generator(0), left, lengths, {"b": 2, "c": 9}) for _ in range(2)]
    assert {each.row for each in found} == {1, 3} and list(left) == ["a"]
    assert sorted(each.rank for each in found) in ([0, 0], [0, 1])
    with pytest.raises(ValueError, match="no row left"):
        draw(generator(0), left, lengths, {"b": 2})


def test_ranks_are_drawn_by_their_law() -> None:
    lengths = dict(enumerate(np.random.default_rng(0).permutation(40).astype(float).tolist()))
    rng = generator(1)
    drawn = [draw(rng, {"a": list(lengths)}, lengths).rank for _ in range(2000)]
    shares = np.bincount(drawn, minlength=4)[:4] / 2000
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.125, 0.0625], atol=0.035)


def test_numbers_that_do_not_fit() -> None:
    plain = {"domain": "a", "small": False, "large": False, "right": True, "length": 9}
    seeds = Pool([plain | {"question": str(i), "source": AIME} for i in range(4)])
    with pytest.raises(
        ValueError,
        match=r"asked for 5 of 4 hard rows that are left \(no null 4 -> 4, no odd text 4 -> 4, hard 4 -> 4, ",
    ):
        s1(seeds, range(4), S1(5), 0)
    with pytest.raises(ValueError, match="the seed set alone has 4 rows"):
        s1(seeds, range(4), S1(3), 0)
    made = Pool([plain | {"question": str(i), "source": "made"} for i in range(4)])
    with pytest.raises(ValueError, match=r"after 3 of 4 rows .* --uniform=1"):
        s1(made, range(4), S1(4), 0)
    assert len(s1(made, range(4), S1(4, uniform=1), 0).chosen) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"small": "No"}, "pool, line 2: 'small' must be true or false, found 'No'"),
        ({"large": 2}, "'large' must be true or false, found 2"),
        ({"length": -1}, "'length' must be a length: a number from 0 up"),
        ({"length": float("inf")}, "'length' must be a length"),
        ({"domain": 5}, "'domain' must be a text, found 5"),
        ({"question": None}, "'question' must be a text, found None"),
    ],
)
def test_wrong_values_are_named(change: Row, says: str) -> None:
    plain = {"source": "m", "domain": "a", "small": False, "large": False, "right": True, "length": 9, "question": "x"}
    with pytest.raises(ValueError, match=re.escape(says)):
        s1(Pool([plain, plain | {"question": "y"} | change]), range(2), S1(2, uniform=1), 0)


def test_a_missing_column_is_named() -> None:
    row = {"question": "x", "source_tpye": "m"}
    with pytest.raises(ValueError, match=r"line 1 has no column 'source_type' .* Did you mean 'source_tpye'\?"):
        Pool([row], PUBLISHED).value("source", 0, str)


def test_domains_are_checked(tmp_path: Path) -> None:
    titles = {"05": "Combinatorics", "11": "Number theory"}
    rows = [
        {"question": "x", "domain": name} for name in ("Combinatorics", None, "Number theory", "Numbr theory", "05")
    ]
    check_domains(Pool(rows), range(3), titles)
    with pytest.raises(ValueError, match=r"line 4: unknown domain 'Numbr theory'.*Did you mean 'Number theory'"):
        check_domains(Pool(rows), range(4), titles)
    with pytest.raises(ValueError, match=r"line 5: '05' and 'Combinatorics' are one domain"):
        check_domains(Pool(rows), [0, 4], titles)
    (tmp_path / "msc.json").write_text('[{"code": "05"}]')
    with pytest.raises(ValueError, match="no JSON list of domains"):
        read_domains(tmp_path / "msc.json")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_domains(tmp_path / "none.json")


@pytest.mark.skipif(not MSC.is_file(), reason=f"the domains of s1K are not in {MSC}")
def test_the_published_domains() -> None:
    titles = read_domains(MSC)
    assert len(titles) == 61 and titles["05"] == "Combinatorics" and titles["97"] == "Mathematics education"
