"""Inputs like those of a test: what is read of it, and what is made from that."""

from __future__ import annotations

import numpy as np

from data.verify.inputs import arguments_like, first_call, texts_like


def test_the_call_of_a_test_is_read_and_never_run() -> None:
    names = ["f"]
    assert first_call("assert f(3, [1, 2]) == 4", names) == ("f", (3, [1, 2]))
    assert first_call("assert set(f((1, 2))) == set('a')\nassert f(7)", names) == ("f", ((1, 2),))
    assert first_call("def check(f):\n    assert f(k=1, n=[2]) == 4\ncheck(f)", names) == ("f", (1, [2]))
    for other in ("assert f(g(1)) == 2", "assert f(1) == f(2)", "assert f(x=y) == 1", "assert g(1)", "f(1)"):
        assert first_call(other, names) is None


def test_arguments_are_like_those_shown() -> None:
    shown = (3, [1, 2, 3], "abc", (1.5, True), None)
    found = arguments_like(np.random.default_rng(0), shown, 50)
    assert all([type(x) for x in given] == [type(x) for x in shown] for given in found)
    assert len({repr(given) for given in found}) > 40 and any(len(given[1]) == 2 for given in found)


def test_texts_keep_their_form() -> None:
    shown = "3 10\nabc 7\n"
    found = texts_like(np.random.default_rng(0), shown, 50)
    assert len(set(found)) > 20 and all(sorted(text.split("\n")[1].split()[0]) == ["a", "b", "c"] for text in found)
    for text in found:
        assert [len(word) for word in text.split()] == [1, 2, 3, 1] and text.count("\n") == 2
        assert "0" not in (word[0] for word in text.split())
