"""The measured studies: what is looked at where, planted answers are found, and the tables and pictures are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from analysis.probes import Features, Plan, linear_probe, predict, predict_each
from analysis.studies import iterations, thoughts
from analysis.studies.iterations import Seen, bits_alone, distinct_rows, held_from, look, readable
from analysis.studies.thoughts import Row, compare, kinds_of, problems, question_features, thoughts_of, written
from data.sources.thoughts import SPECIALS
from data.tasks import build_task
from data.tokenizers.characters import CharTokenizer
from infer.load import Loaded
from model import build

SIZES: dict[str, Any] = {"d_model": 16, "n_layers": 3, "n_heads": 2, "d_ff": 24, "max_length": 48, "init_std": 0.2}
DATA = {"path": "", "template": "none", "system": "", "stop": ()}
PACKED = {"style": "packed", "nodes": 11, "min_hops": 2, "max_hops": 2, "fair": True, "kinds": 10}


def automaton_run(depth: str = "recurrent") -> Loaded:
    """An untrained model that answers rows of eight bits after up to three steps."""
    options = {"width": 8, "max_steps": 3}
    tokenizer = CharTokenizer(build_task("automaton", **options).alphabet or "")
    model = build(SIZES | {"vocab_size": tokenizer.vocab_size, "depth": depth, "recurrent": {"mean": 2}})
    config = {"seed": 0, "data": {**DATA, "task": "automaton", "options": options}}
    return Loaded(model, jax.jit(model.init)(jax.random.key(0)), tokenizer, config)


def thinking_run() -> Loaded:
    """An untrained model that thinks twice about graphs of two hops."""
    task = build_task("prosqa", **PACKED)
    tokenizer = CharTokenizer(task.alphabet or "", SPECIALS, "~")
    model = build(SIZES | {"n_layers": 2, "vocab_size": tokenizer.vocab_size, "pairs": True, "positions": "none"})
    latent = tokenizer.encode("<|latent|>")
    config = {
        "seed": 0,
        "data": {**DATA, "task": "prosqa", "options": PACKED},
        "thoughts": {"thoughts_per_step": 1},
        "ending": {"tokens": latent * 2, "thoughts": 2},
    }
    return Loaded(model, jax.jit(model.init)(jax.random.key(0)), tokenizer, config)


def test_many_probes_are_those_fitted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    values, others = rng.normal(size=(2, 60, 5)), rng.normal(size=(2, 30, 5))
    labels = np.stack([values[0, :, 0] > 0.6, values[1, :, 1] > 0]).astype(int)
    said = predict_each(values, labels, others, Plan(steps=50))
    assert said.shape == (2, 2, 30)
    for layer in range(2):
        fitted, asked = (Features(x[layer].astype(np.float32), ("x",), np.zeros(5, int)) for x in (values, others))
        for number, each in enumerate(labels):
            np.testing.assert_array_equal(
                said[layer, number], predict(linear_probe(fitted, each, Plan(steps=50)), asked)
            )
    with pytest.raises(ValueError, match=r"found \(2, 60, 5\), \(2, 60\) and \(1, 30, 5\)"):
        predict_each(values, labels, others[:1])
    with pytest.raises(ValueError, match="all 60 labels are the same"):
        predict_each(values, labels * 0, others)


def test_states_are_those_of_the_bits_columns() -> None:
    run = automaton_run()
    rows = distinct_rows(run, ["train"], 5)
    assert len(set(rows)) == 5
    seen = look(run, run.params, rows, 3, range(4, 8), 2)
    assert seen.names == ("embedding", "layer 0", "iteration 1", "iteration 2", "layer 2")
    assert seen.states.shape == (5, 3, 5, 4, 16)
    task = run.task()
    answers = [task.target({"row": row, "steps": 3}) for row in rows]
    texts = [f"3:{row}={answer}" for row, answer in zip(rows, answers, strict=True)]
    at_bit = {letter: run.params["embed"][run.tokenizer.encode(letter)[0]] for letter in "01="}
    for n, text in enumerate(texts):
        for i, bit in enumerate(range(4, 8)):
            for place, column in enumerate((2 + bit, 3 + bit, 10 + bit)):
                np.testing.assert_allclose(seen.states[0, place, n, i], at_bit[text[column]], rtol=1e-5)
    np.testing.assert_array_equal(seen.rows[0], [[int(x) for x in row[4:]] for row in rows])
    np.testing.assert_array_equal(seen.rows[3], [[int(x) for x in answer[4:]] for answer in answers])


def planted(rng: np.random.Generator, count: int) -> Seen:
    """Three states, of which number i holds the bits after i steps in a direction of its own."""
    rows = rng.integers(0, 2, (3, count, 2))
    directions = np.random.default_rng(9).normal(size=(3, 8))
    states = (2 * rows - 1)[..., None] * directions[:, None, None] + 0.3 * rng.normal(size=(3, count, 2, 8))
    return Seen(("first", "second", "third"), states[:, None], rows)


def test_a_planted_step_is_read_where_it_is() -> None:
    rng = np.random.default_rng(0)
    fitted, measured = planted(rng, 200), planted(rng, 100)
    right = readable(fitted, measured)
    assert right.shape == (1, 3, 3, 2)
    means = right[0].mean(-1)
    assert (np.diag(means) > 0.97).all()
    assert (means[~np.eye(3, dtype=bool)] < 0.65).all()
    assert held_from(means, fitted.names) == ["first", "second", "third"]
    assert held_from(0 * means, fitted.names) == ["never"] * 3
    assert abs(readable(fitted, measured, shuffles=4).mean() - 0.5) < 0.06
    kept, shares = iterations.selected(fitted, measured)
    assert kept.shape == (3,) and shares.shape == (3, 3) and (shares.argmax(1) == np.arange(3)).all()


def test_what_is_left_of_a_bit() -> None:
    seen = bits_alone(["101"], [0, 2], np.zeros((1, 1, 2)))
    assert seen.states[0, 0].tolist() == [[[0, 0, 1], [1, -1, 1]]]


def found_of_run(value: float) -> dict[str, Any]:
    names, shape = ("embedding", "layer 0", "iteration 1"), (3, 2, 3)
    arrays = ("trained", "one step asked", "before training", "shuffled labels")
    return {
        "states": names,
        "rows": [8, 4],
        "bits": [4, 5],
        "by bit": np.full((*shape, 2), value),
        **{name: np.full(shape, value) for name in arrays},
        "bits alone": np.full(2, value),
        "head2toe": np.full(2, value),
        "head2toe shares": np.full((2, 3), 1 / 3),
    }


def test_iterations_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(iterations, "load_run", float)
    monkeypatch.setattr(iterations, "study", lambda run, options: found_of_run(run))
    assert iterations.main(["0.5", "0.9", f"--output={tmp_path / 'x.png'}"]) == 0
    told = capsys.readouterr().out
    assert "step 1: 0.70±0.28" in told
    assert "['never', 'never'], ['embedding', 'embedding']" in told
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "x.json").read_text())[1]["trained"][0][0][0] == 0.9


def test_runs_without_iterations_or_of_another_task() -> None:
    with pytest.raises(ValueError, match="plain stack"):
        iterations.state_names(automaton_run("stack").model, 2)
    run = thinking_run()
    with pytest.raises(ValueError, match="task 'prosqa'; this study takes 'automaton'"):
        distinct_rows(run, ["train"], 4)
    run.config["ending"] = None
    with pytest.raises(ValueError, match="no thoughts"):
        problems(run, "test", 4)


def test_thoughts_and_written_steps_are_those_of_their_columns() -> None:
    run = thinking_run()
    asked = problems(run, "test", 6)
    fed, layers = thoughts_of(run, run.params, asked), written(run, run.params, asked)
    assert fed.shape == (2, 6, 1, 16)
    assert [len(each) for each in layers] == [4, 4], "embedding, two layers, final norm"
    length = len(asked.chains[0].question)
    same = [n for n, chain in enumerate(asked.chains) if len(chain.question) == length]
    texts = [[*asked.chains[n].question, *asked.chains[n].steps[0], *asked.chains[n].steps[1]] for n in same]
    hidden = jax.jit(lambda p, t: run.model.apply(p, t).hidden)(run.params, np.array(texts))
    np.testing.assert_allclose(fed[0][same][:, 0], hidden[:, length - 1], rtol=0, atol=1e-4)
    for step in range(2):
        np.testing.assert_allclose(layers[step][-1][same], hidden[:, length + step], rtol=0, atol=1e-4)


def test_what_is_known_of_a_question() -> None:
    table = question_features(["aab", "abb"], last=2)
    assert table.tolist() == [[2, 1, 1, 0], [1, 2, 0, 1]], "how often a and b, and what stands last but one"


def test_planted_thoughts_align_with_their_steps_and_not_by_the_question() -> None:
    rng = np.random.default_rng(0)
    questions, *meanings = (rng.normal(size=(80, 4)) for _ in range(3))
    mixed = lambda *parts: sum(part @ rng.normal(size=(4, 12)) for part in parts)  # noqa: E731
    steps = [[mixed(questions), mixed(questions, meaning)] for meaning in meanings]
    fed = np.stack([mixed(questions, meaning) for meaning in meanings])[:, :, None]
    rows = compare(fed, [layers[1:] for layers in steps], questions, k=5, permutations=40)
    by_pair = {(row.question, row.thought, row.step): row for row in rows}
    assert len(rows) == 8
    for j in (1, 2):
        assert by_pair["beyond", j, j].score > 2 * by_pair["beyond", j, 3 - j].score
        assert by_pair["beyond", j, j].p < 0.05 < by_pair["beyond", j, 3 - j].p
    assert by_pair["whole", 1, 2].p < 0.05, "what they share is the question"
    kinds = kinds_of(rows, "trained", "beyond")
    scores = {pair: by_pair["beyond", *pair].score for pair in ((1, 1), (1, 2), (2, 1), (2, 2))}
    assert kinds["same step"] == pytest.approx((scores[1, 1] + scores[2, 2]) / 2)
    assert (kinds["next step"], kinds["step before"]) == (scores[1, 2], scores[2, 1])
    assert kinds["same step"] > 2 * kinds["shuffled problems"]


def test_alignments_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def rows(value: float, options: Any) -> list[Row]:
        models, pairs = ("before training", "trained"), [(1, 1), (1, 2), (2, 1), (2, 2)]
        return [
            Row(model, kept, *pair, [value, 0.1], value, 0.05, 0.01)
            for model in models
            for kept in ("whole", "beyond")
            for pair in pairs
        ]

    monkeypatch.setattr(thoughts, "load_run", float)
    monkeypatch.setattr(thoughts, "study", rows)
    assert thoughts.main(["0.3", "0.5", f"--output={tmp_path / 'x.png'}"]) == 0
    assert "thought 1, step 2: 0.400 ± 0.141, shuffled 0.050" in capsys.readouterr().out
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "x.json").read_text())[1][0]["layers"] == [0.5, 0.1]


@pytest.mark.more
@pytest.mark.programs(60)
def test_a_whole_study_of_iterations() -> None:
    """An untrained model: the bit itself is in its column, and what is not linear in the question is nowhere."""
    options = iterations.parser().parse_args(["run", "--rows=60"])
    found = iterations.study(automaton_run(), options)
    assert (found["trained"][0, 0] == 1).all()
    np.testing.assert_array_equal(found["trained"], found["before training"])
    assert found["trained"][0, 2:].max() < 0.85
    assert found["bits alone"][0] == 1


@pytest.mark.more
@pytest.mark.programs(60)
def test_a_whole_study_of_thoughts() -> None:
    """An untrained model, whose two halves are the same."""
    options = thoughts.parser().parse_args(["run", "--examples=80", "--permutations=4"])
    rows = thoughts.study(thinking_run(), options)
    assert [row._replace(model="") for row in rows[:8]] == [row._replace(model="") for row in rows[8:]]
