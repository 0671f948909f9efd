"""The study of selection: made pools, its measures and tests on planted counts, and the whole of it in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.studies.selection import (
    BENCHMARKS,
    FAMILIES,
    RULES,
    SHARES,
    drawn_ranks,
    law,
    made_pool,
    main,
    measure,
    p_exchanged,
    p_value,
    places,
    rank_counts,
    seeds_of,
    study,
    verdicts,
)
from data.select.pool import Pool


def test_a_made_pool_is_as_it_says() -> None:
    pool, alike = made_pool(0, 4000), made_pool(0, 4000, alike=True)
    assert pool.rows == made_pool(0, 4000).rows != made_pool(1, 4000).rows
    counts = [sum(row["domain"] == name for row in pool.rows) for name in FAMILIES]
    np.testing.assert_allclose(np.array(counts) / 4000, SHARES, atol=1e-3)
    assert [sum(row["domain"] == name for row in alike.rows) for name in FAMILIES] == [500] * 8
    assert {row["length"] for row in alike.rows} == {1000}
    for name, (share, families) in BENCHMARKS.items():
        rows = [row for row in pool.rows if row["source"] == name]
        assert abs(len(rows) / 4000 - share) < 0.01
        assert {row["domain"] for row in rows} <= set(FAMILIES[:families])
    assert len({row["question"] for row in pool.rows}) == 4000


def test_places_and_measures() -> None:
    rows = [
        {"domain": FAMILIES[f], "length": n, "small": small, "large": False}
        for f, n, small in ((0, 1, False), (0, 3, True), (0, 2, None), (1, 5, False), (1, 5, False))
    ]
    place = places(Pool(rows))
    np.testing.assert_allclose(place, [1 / 6, 5 / 6, 1 / 2, 1 / 2, 1 / 2])
    found = measure(Pool(rows), [0, 1, 2, 3], place)
    assert found.counts.tolist() == [3, 1, 0, 0, 0, 0, 0, 0] and found.covered == 2
    assert found.effective == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert found.hard == 0.5 and found.place == pytest.approx(0.5)


def test_p_values_find_what_is_planted() -> None:
    shares = np.array([0.5, 0.3, 0.2])
    assert p_value(np.array([50, 30, 20]), shares) == 1
    assert p_value(np.array([30, 30, 40]), shares) < 0.001
    assert 0.05 < p_value(np.array([45, 33, 22]), shares) < 0.95
    # Counts that scatter more than draws do, but prefer no family: their sum is not uneven for what they are.
    scattered = np.array([[20, 5, 5], [20, 5, 5], [5, 20, 5], [5, 5, 20], [20, 5, 5]])
    assert p_exchanged(scattered) > 0.3 > 0.01 > p_value(scattered.sum(0), np.full(3, 1 / 3))
    assert p_exchanged(np.array([[16, 8, 6]] * 5)) < 0.01
    assert p_exchanged(np.array([[16, 8, 6]])) == 1


def test_ranks_follow_their_law_and_others_do_not() -> None:
    assert law().sum() == 1 and law()[:2].tolist() == [0.5, 0.25]
    assert rank_counts([0, 0, 1, 9, 40], 4).tolist() == [2, 1, 0, 2]
    pool = made_pool(0, 3000)
    ranks, others = (drawn_ranks(pool, 0, 100, by_length) for by_length in (True, False))
    assert len(ranks) == len(others)
    assert p_value(rank_counts(ranks), law()) > 0.01 > p_value(rank_counts(others), law())


def test_a_whole_study_in_small(tmp_path: Path, capsys: Any) -> None:
    where = tmp_path / "x.png"
    assert main(["--seeds=3,4,5", "--size=2500", "--number=100", f"--output={where}"]) == 0
    told = capsys.readouterr().out
    assert where.read_bytes().startswith(b"\x89PNG") and str(where) in told
    kept = json.loads(where.with_suffix(".json").read_text())
    assert kept["seeds"] == [3, 4, 5] and set(kept["pools"]["uneven"]["rules"]) == set(RULES)
    assert kept["pools"]["alike"]["rules"]["s1"][0]["hard"] == 1
    said = kept["verdicts"]
    assert all(holds for what, holds in said.items() if "control" in what or "law" in what), said
    assert [line[:3] for line in told.splitlines() if line[5:] in said] == [
        "yes" if h else "NO " for h in said.values()
    ]


@pytest.mark.more
def test_predictions_can_fail() -> None:
    """Where the pool of families that differ is exchanged for the control, the predictions do not come true."""
    found = study([0, 1, 2], 2500, 100)
    found["pools"]["uneven"] = found["pools"]["alike"]
    found["ranks"]["s1"] = found["ranks"]["without lengths"]
    failed = [what for what, holds in verdicts(found).items() if not holds]
    assert {"random alone keeps the pool's shares", "diverse alone takes families alike"} < set(failed)
    assert "ranks follow their law" in failed


def test_wrong_seeds_are_told(capsys: Any) -> None:
    assert seeds_of("3,1") == [3, 1]
    assert main(["--seeds=a"]) == 2 and "--seeds takes whole numbers" in capsys.readouterr().err
