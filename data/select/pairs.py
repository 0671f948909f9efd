"""Preference pairs of short and long right answers: less to say for the same result (Sky-T1-Flash)."""

from __future__ import annotations

from collections.abc import Sequence

from data.select.pool import Pool, Selection, flag, keep, length, sift, text


def pairs(pool: Pool, rows: Sequence[int]) -> Selection:
    """For each question the shortest right response as `chosen`, the longest right one as `rejected`, in TRL's names.

    Roles: question, response, right, length; where the length's column is the response's own, words are counted.
    Questions come in the order in which the pool first has them, and of equally long responses the first by their
    letters counts. A question without two right responses, or with none shorter than another, is left out.
    """
    right = pool.values("right", rows, flag)
    left, wrong = sift("right", rows, lambda row: "" if right[row] else "a wrong response")
    asked = pool.values("question", left, text)
    said, lengths = pool.values("response", left, text), pool.values("length", left, length)
    groups: dict[str, list[int]] = {}
    for row in left:
        groups.setdefault(asked[row], []).append(row)
    left, lone = sift("two right", left, lambda row: _unpaired([lengths[other] for other in groups[asked[row]]]))
    made, chosen = [], []
    for question in dict.fromkeys(asked[row] for row in left):
        ends = sorted(groups[question], key=lambda row: (lengths[row], said[row]))
        short = ends[0]
        long = next(row for row in ends if lengths[row] == lengths[ends[-1]])
        made.append({"prompt": question, "chosen": said[short], "rejected": said[long]})
        chosen += [short, long]
    left, between = keep("shortest and longest", left, chosen, "neither the shortest nor the longest")
    shares = [lengths[a] / lengths[b] for a, b in zip(chosen[::2], chosen[1::2], strict=True)]
    notes = [f"pairs: {len(made)}" + (f", chosen {sum(shares) / len(shares):.0%} as long as rejected" if made else "")]
    return Selection(made, left, [wrong, lone, between], notes)


def _unpaired(lengths: Sequence[float]) -> str:
    if len(lengths) < 2:
        return "the only right response to its question"
    return "all right responses are equally long" if min(lengths) == max(lengths) else ""
