"""Choices that rules are compared with (2501.19393, section 5.1): at random, the longest, spread over the domains."""

from __future__ import annotations

from collections.abc import Sequence

from data.select.pool import Pool, Selection, check_number, length, selection, text
from data.select.s1 import by_domain, draw, generator, spread


def at_random(pool: Pool, rows: Sequence[int], number: int, seed: int) -> Selection:
    """So many rows, each as likely as any other; more of the same seed are these and others."""
    check_number(number, rows)
    own = pool.in_own_order(rows)
    return selection(pool, [own[place] for place in generator(seed).permutation(len(own))[:number]])


def longest(pool: Pool, rows: Sequence[int], number: int) -> Selection:
    """The rows of the greatest `length`; of equal ones the first in an order of their own."""
    check_number(number, rows)
    lengths = pool.values("length", rows, length)
    kept = sorted(pool.in_own_order(rows), key=lambda row: lengths[row], reverse=True)[:number]
    return selection(pool, kept, notes=[f"lengths: {lengths[kept[-1]]:g} to {lengths[kept[0]]:g}"])


def diverse(pool: Pool, rows: Sequence[int], number: int, seed: int) -> Selection:
    """Rows of domains drawn alike, within a domain each as likely as any other; more are these and others."""
    check_number(number, rows)
    own = pool.in_own_order(rows)
    rng, left = generator(seed), by_domain(pool.values("domain", own, text))
    chosen = [draw(rng, left, dict.fromkeys(own, 0), by_length=False).row for _ in range(number)]
    return selection(pool, chosen, notes=[spread(pool, chosen)])
