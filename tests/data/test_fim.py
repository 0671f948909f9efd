"""Filling in the middle: the properties of 2207.14255, sentinels, pieces of rows; and fused tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.fim import NAMES, OWN, Fim, Sentinels, cut, rearranged, sentinels_of
from data.sources.fused import fused_tokens, split_fused
from data.tokenizers.characters import ByteTokenizer, CharTokenizer

BYTES = ByteTokenizer(OWN)
PRE, SUF, MID = sentinels_of(BYTES)


@given(st.text(max_size=40).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)), st.integers(0, 99))
def test_parts_put_together_are_the_text(text: str, seed: int) -> None:
    parts = cut(text, np.random.default_rng(seed))
    assert "".join(parts) == text
    for spm in (False, True):
        ids = rearranged(parts, BYTES.encode, Sentinels(PRE, SUF, MID), spm)
        assert len(ids) == len(text.encode()) + 3 and [ids.count(s) for s in (PRE, SUF, MID)] == [1, 1, 1]
        prefix, middle, suffix = (list(part.encode()) for part in parts)
        wanted = [PRE, SUF, *suffix, MID, *prefix, *middle] if spm else [PRE, *prefix, SUF, *suffix, MID, *middle]
        assert ids == wanted


def test_both_cuts_are_even_over_all_places() -> None:
    rng, seen = np.random.default_rng(0), np.zeros((5, 5))
    for _ in range(5000):
        prefix, middle, _ = cut("abcd", rng)
        seen[len(prefix), len(prefix) + len(middle)] += 1
    off, on = seen[np.triu_indices(5, 1)] / 5000, np.diag(seen) / 5000
    assert abs(off - 2 / 25).max() < 0.02 and abs(on - 1 / 25).max() < 0.015


def test_shares_are_those_asked_for() -> None:
    fim, rng = Fim(0.5, 0.25, Sentinels(PRE, SUF, MID)), np.random.default_rng(1)
    made = [fim.tokens("abcdef", BYTES.encode, rng) for _ in range(4000)]
    changed = [ids for ids in made if PRE in ids]
    assert abs(len(changed) / 4000 - 0.5) < 0.03
    # The suffix comes first in SPM, and in PSM where the prefix is empty, as either cut stands before all characters.
    first = sum(ids[1] == SUF for ids in changed) / len(changed)
    assert abs(first - (0.25 + 0.75 * (1 - (6 / 7) ** 2))) < 0.04
    assert all(ids == list(b"abcdef") for ids in made if PRE not in ids)
    assert Fim(0.0, 0.0, fim.sentinels).tokens("abc", BYTES.encode, rng) == list(b"abc")


def test_special_tokens_are_not_cut() -> None:
    chars = CharTokenizer("ab", specials=("<think>", *OWN))
    fim, rng = Fim(1.0, 0.0, sentinels_of(chars)), np.random.default_rng(0)
    made = [fim.tokens("a<think>b", chars.encode, rng) for _ in range(200)]
    assert all(len(ids) == 6 for ids in made) and len({tuple(ids) for ids in made}) == 10
    with pytest.raises(ValueError, match="not in the alphabet"):
        fim.tokens("a<thin", chars.encode, rng)


def test_pieces_of_rows_stay_where_characters_are_broken() -> None:
    fim = Fim(1.0, 0.0, Sentinels(PRE, SUF, MID))
    whole, broken = "aé".encode(), "aé".encode()[:-1]
    rng = np.random.default_rng(0)
    assert sorted(fim.of_tokens(list(whole), BYTES, rng))[:-3] == sorted(whole)
    assert fim.of_tokens(list(broken), BYTES, rng) == list(broken)


def test_sentinels_of_families() -> None:
    for names in NAMES:
        made = sentinels_of(ByteTokenizer(names))
        assert made == (258, 259, 260), "prefix, suffix, middle in the order of NAMES"
    with pytest.raises(ValueError, match=r"single tokens, one of.*corpus\.fim=0"):
        sentinels_of(CharTokenizer("abc"))


def test_fused_tokens_are_split_into_both() -> None:
    class Words:
        """A vocabulary by hand."""

        texts = (".", "\n", ".\n", ");", "\n\n", ");\n\n", "a.\n", "!\n", "")
        vocab_size, eos_id = len(texts), 8

        def decode(self, ids: list[int]) -> str:
            return "".join(self.texts[i] for i in ids)

        def encode(self, text: str) -> list[int]:
            raise NotImplementedError

    fused = fused_tokens(Words())  # type: ignore[arg-type]
    assert fused == {2: (0, 1), 5: (3, 4)}, "letters do not fuse, and both parts must be tokens"
    rng = np.random.default_rng(0)
    assert split_fused([2, 0, 5], fused, 1.0, rng) == [0, 1, 0, 3, 4] and split_fused([2], fused, 0.0, rng) == [2]
    share = np.mean([len(split_fused([2], fused, 0.3, rng)) == 2 for _ in range(2000)])
    assert abs(share - 0.3) < 0.03
    with pytest.raises(ValueError, match="no token of punctuation"):
        fused_tokens(ByteTokenizer())
