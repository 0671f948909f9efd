"""ProsQA: the generator against the published rows, those rows themselves, both styles, shortcuts and verdicts."""

import json
import time
from collections import Counter, deque
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

from data.sources.examples import Example
from data.tasks import build_task
from data.tasks.base import MARK, ReasoningTask
from data.tasks.prosqa import (
    KINDS,
    NAMES,
    SYMBOL,
    ProsQA,
    edges,
    graph_features,
    shortcut_baseline,
    shortest_path,
)
from data.tokenizers.characters import CharTokenizer

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "prosqa"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the ProsQA files are not in {SHARED}")
HAND: Example = {
    "symbols": ["Tom", "Sally", "lempus", "gerpus", "impus"],
    "edges": [[3, 4], [1, 3], [0, 2], [1, 2]],
    "root": 1,
    "target": 4,
    "neg_target": 2,
    "path": [1, 3, 4],
    "options": [2, 4],
}
SMALL: dict[str, Any] = {"nodes": 11, "min_hops": 2, "max_hops": 3}
# Figures of the 800 published rows (specs/data.md, section 4), each with how far 1500 rows may be from it.
PUBLISHED = {
    "nodes": (22.8, 0.3),
    "edges": (36.0, 0.6),
    "hops": (3.77, 0.1),
    "shortest paths": (1.59, 0.13),
    "root 1": (0.64, 0.06),
    "first option": (0.505, 0.05),
    "3 hops": (0.407, 0.05),
    "4 hops": (0.438, 0.06),
    "5 hops": (0.131, 0.03),
    "6 hops": (0.024, 0.02),
    "0 parents": (0.027, 0.006),
    "1 parents": (0.479, 0.015),
    "2 parents": (0.304, 0.015),
    "3 parents": (0.133, 0.012),
    "4 parents": (0.042, 0.008),
    "root group": (0.531, 0.03),
    "other group": (0.383, 0.03),
    "both groups": (0.054, 0.015),
    "neither group": (0.031, 0.008),
}


def distances(example: Example, start: int) -> tuple[dict[int, int], dict[int, int]]:
    """Steps and numbers of shortest paths to all that can be reached from a node, breadth first."""
    steps, ways, queue = {start: 0}, Counter({start: 1}), deque([start])
    while queue:
        node = queue.popleft()
        for _, b in (edge for edge in edges(example) if edge[0] == node):
            if b not in steps:
                steps[b] = steps[node] + 1
                queue.append(b)
            if steps[b] == steps[node] + 1:
                ways[b] += ways[node]
    return steps, ways


def figures(rows: list[Example]) -> dict[str, float]:
    """The measured counterparts of PUBLISHED."""
    sums: Counter[str] = Counter()
    grown = nodes = 0
    for row in rows:
        (steps, ways), (others, _) = distances(row, row["root"]), distances(row, 1 - row["root"])
        parents = Counter(b for _, b in edges(row))
        grown, nodes = grown + len(row["symbols"]) - 2, nodes + len(row["symbols"])
        sums.update({"edges": len(row["edges"]), "hops": steps[row["target"]], "shortest paths": ways[row["target"]]})
        sums.update([f"{steps[row['target']]} hops", *["root 1"] * row["root"]])
        sums["first option"] += row["options"][0] == row["target"]
        sums.update(f"{parents[node]} parents" for node in range(2, len(row["symbols"])))
        names = {(True, False): "root", (False, True): "other", (True, True): "both"}
        for node in range(len(row["symbols"])):
            name = names.get((node in steps, node in others), "neither")
            sums[f"{name} group" if name != "both" else "both groups"] += 1
    per = {"parents": grown, "group": nodes, "groups": nodes}
    shares = {name: total / per.get(name.split()[1] if " " in name else "", len(rows)) for name, total in sums.items()}
    return shares | {"nodes": nodes / len(rows)}


@pytest.fixture(scope="module")
def generated() -> list[Example]:
    return ProsQA().examples("train")[:1500]


@pytest.fixture(scope="module")
def real() -> list[Example]:
    task = ProsQA(path=str(SHARED))
    return [*task.examples("real_valid"), *task.examples("real_test")]


def check_structure(row: Example) -> None:
    """What holds for every row, published or generated."""
    pairs, names = edges(row), row["symbols"]
    ends, starts = {b for _, b in pairs}, {a for a, _ in pairs}
    assert all(a < b for a, b in pairs) and len(set(pairs)) == len(pairs)
    assert ends | starts | {0, 1} == set(range(len(names))) and len(set(names)) == len(names)
    assert all((name in NAMES) == (node not in ends) for node, name in enumerate(names))
    steps, _ = distances(row, row["root"])
    others, _ = distances(row, 1 - row["root"])
    assert row["root"] in (0, 1) and not {row["target"], row["neg_target"]} & starts
    assert row["target"] in steps and row["target"] not in others
    assert row["neg_target"] in others and row["neg_target"] not in steps
    path = row["path"]
    assert (path[0], path[-1]) == (row["root"], row["target"]) and len(path) - 1 == steps[row["target"]]
    assert set(pairwise(path)) <= set(pairs)
    assert sorted(row["options"]) == sorted([row["target"], row["neg_target"]])


def test_generated_statistics(generated: list[Example]) -> None:
    measured = figures(generated)
    wrong = {name: measured[name] for name, (value, by) in PUBLISHED.items() if abs(measured[name] - value) > by}
    assert not wrong
    assert {len(row["path"]) - 1 for row in generated} == {3, 4, 5, 6}
    assert min(len(row["symbols"]) for row in generated) >= 12
    assert max(len(row["symbols"]) for row in generated) <= 28


@needs_data
def test_published_statistics(real: list[Example]) -> None:
    """The table itself, so that the generator is held against what is true."""
    measured = figures(real)
    assert len(real) == 800
    assert {name: round(measured[name], 3) for name in PUBLISHED} == {
        name: pytest.approx(value, abs=0.0051 if value < 1 else 0.05) for name, (value, _) in PUBLISHED.items()
    }


@needs_data
@pytest.mark.parametrize("split", ["valid", "test"])
def test_published_rows_come_out_word_for_word(split: str) -> None:
    task = ProsQA(path=str(SHARED))
    rows = json.loads((SHARED / f"prosqa_{split}.json").read_text())
    examples = task.examples(f"real_{split}")
    assert len(examples) == len(rows) == {"valid": 300, "test": 500}[split]
    for row, example in zip(rows, examples, strict=True):
        assert task.prompt(example) == row["question"] + "\n"
        assert (task.steps(example), task.answer(example)) == (row["steps"], row["answer"])
        check_structure(example)
        assert sorted(map(list, edges(example))) == sorted(row["edges"])


def test_generated_structure(generated: list[Example]) -> None:
    for row in generated[:300]:
        check_structure(row)
        assert json.loads(json.dumps(row)) == row
    for row in ProsQA(**SMALL, kinds=20).examples("test")[:200]:
        check_structure(row)
        assert 2 <= len(row["path"]) - 1 <= 3
        assert set(row["symbols"]) <= set(NAMES + KINDS[:20])


def test_words_symbols_and_demonstrations() -> None:
    words, symbols = ProsQA(), ProsQA(style="symbols")
    facts = "Every gerpus is a impus. Sally is a gerpus. Tom is a lempus. Sally is a lempus."
    assert words.prompt(HAND) == f"{facts} Is Sally a lempus or impus?\n"
    assert words.steps(HAND) == ["Sally is a gerpus.", "Every gerpus is a impus."]
    assert words.target(HAND) == "Sally is a gerpus.\nEvery gerpus is a impus.\n### Sally is a impus."
    tom, sally, lempus, gerpus, impus = (SYMBOL[word] for word in HAND["symbols"])
    facts = gerpus + impus + sally + gerpus + tom + lempus + sally + lempus
    assert symbols.prompt(HAND) == f"{facts}?{sally}{lempus}{impus}\n"
    assert symbols.target(HAND) == f"{sally}{gerpus}\n{gerpus}{impus}\n### {impus}"


@pytest.mark.parametrize("style", ["words", "symbols"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_demonstrations_are_right_and_stay_in_the_alphabet(split: str, style: str) -> None:
    task: ReasoningTask = ProsQA(style=style, **SMALL)
    assert task.alphabet is not None
    CharTokenizer(task.alphabet)
    for row in task.examples(split)[:50]:
        assert set(task.prompt(row) + task.target(row)) <= set(task.alphabet)
        assert task.target(row) == "".join(f"{step}\n" for step in task.steps(row)) + MARK + task.answer(row)
        assert task.verify(row, task.target(row)).score == 1.0
        assert task.verify(row, task.answer({**row, "target": row["neg_target"]})).score == 0.0


def test_alphabets_are_no_larger_than_needed(generated: list[Example]) -> None:
    task = ProsQA()
    texts = [task.prompt(row) + task.target(row) for row in generated]
    assert set(chain.from_iterable(texts)) == set(task.alphabet)
    assert len(ProsQA(style="symbols").alphabet) == len(NAMES) + len(KINDS) + 4
    assert max(len(ProsQA(style="symbols").prompt(row)) for row in generated) < 160


@pytest.mark.parametrize("options", [{}, SMALL, SMALL | {"fair": True}, {"nodes": 6, "min_hops": 1, "fair": True}])
def test_rows_depend_on_seed_split_and_index_alone(options: dict[str, Any]) -> None:
    task, again = ProsQA(**options).examples("valid"), ProsQA(**options).examples("valid")
    assert [again[i] for i in (7, 2)] == [task[i] for i in (7, 2)]
    assert task[-1] == task[len(task) - 1]
    assert ProsQA(**options, seed=1).examples("valid")[:5] != task[:5]
    assert ProsQA(**options).examples("train")[:5] != task[:5]


def test_no_graph_is_in_two_splits_whatever_the_seed() -> None:
    """So few nodes that every split draws its own graphs again and again."""
    tiny = {"nodes": 6, "min_hops": 1}
    graphs = {}
    for split in ("train", "valid", "test"):
        rows = [row for seed in (0, 1) for row in ProsQA(**tiny, seed=seed).examples(split)[:600]]
        graphs[split] = {tuple(sorted(edges(row))) for row in rows}
    assert len(set.union(*graphs.values())) == sum(map(len, graphs.values()))
    assert min(map(len, graphs.values())) > 10


def test_sizes_of_splits() -> None:
    task = ProsQA(train_size=7, valid_size=5, test_size=3)
    assert [len(task.examples(split)) for split in ("train", "valid", "test")] == [7, 5, 3]
    with pytest.raises(IndexError):
        task.examples("test")[3]


def test_features_of_a_hand_made_graph() -> None:
    assert graph_features(HAND, 4) == {"parents": 1, "names": 0, "grandparents": 1, "number": -4}
    assert graph_features(HAND, 2) == {"parents": 2, "names": 2, "grandparents": 0, "number": -2}
    assert [shortcut_baseline([HAND], name) for name in ("parents", "grandparents")] == [1.0, 0.0]
    assert shortcut_baseline([{**HAND, "neg_target": 3}]) == 0.5


def test_shortcuts_are_worth_what_the_docstring_says(generated: list[Example]) -> None:
    """Parents alone answer two of three, as in the published rows; nothing does better than chance with `fair`."""
    expected = {"parents": 0.68, "names": 0.60, "grandparents": 0.63, "number": 0.61}
    assert {name: shortcut_baseline(generated, name) for name in expected} == pytest.approx(expected, abs=0.05)
    small = ProsQA(**SMALL).examples("train")[:800]
    assert shortcut_baseline(small, "names") == pytest.approx(0.85, abs=0.05)
    for options in ({}, SMALL):
        fair = ProsQA(**options, fair=True).examples("train")[:600]
        assert shortcut_baseline(fair) == 0.5
        measured = {name: shortcut_baseline(fair, name) for name in expected}
        assert measured == pytest.approx(dict.fromkeys(expected, 0.5), abs=0.06)


@needs_data
def test_shortcuts_in_the_published_rows(real: list[Example]) -> None:
    expected = {"parents": 0.66, "names": 0.60, "grandparents": 0.62, "number": 0.60}
    assert {name: shortcut_baseline(real, name) for name in expected} == pytest.approx(expected, abs=0.005)


def test_words_and_their_place_in_the_question_tell_nothing(generated: list[Example]) -> None:
    hits = Counter[str]()
    for row in generated:
        target, other = row["symbols"][row["target"]], row["symbols"][row["neg_target"]]
        hits.update({"word": target < other, "place": row["options"][0] == row["target"]})
    assert {name: hits[name] / len(generated) for name in hits} == pytest.approx({"word": 0.5, "place": 0.5}, abs=0.05)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("### Sally is a impus.", 1.0),
        ("Sally is a impus.", 1.0),
        ("#Sally is a impus.\n", 1.0),
        ("nonsense\n### Sally is a lempus. # Sally, is a impus.", 1.0),
        ("### Sally is a impus", 0.0),
        ("### sally is a impus.", 0.0),
        ("### Sally is a lempus.", 0.0),
        ("### Sally is a impus. Sally is a lempus.", 0.0),
        ("### Sally is a impus. ###", 0.0),
        ("<think>### Sally is a impus.</think>", 0.0),
        ("", 0.0),
        ("###", 0.0),
        (", ,", 0.0),
        ("#" * 1_000_000, 0.0),
        ("a" * 10_000_000, 0.0),
        ("," * 10_000_000, 0.0),
        ("(" * 1_000_000, 0.0),
        ("### __import__('os').abort()", 0.0),
        ("\ud800", 0.0),
        ("\x00", 0.0),
    ],
)
def test_verdicts(text: str, score: float) -> None:
    start = time.perf_counter()
    verdict = ProsQA().verify(HAND, text)
    assert time.perf_counter() - start < 2
    assert verdict.score == score and verdict.reason
    assert verdict.parsed is None or 0 < len(verdict.parsed) <= 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"style": "word"}, "Did you mean 'words'"),
        ({"hop": 3}, "unknown option of task 'prosqa' 'hop'"),
        ({"min_hops": 0}, "min_hops <= max_hops"),
        ({"min_hops": 4, "max_hops": 3}, "got 4 and 3"),
        ({"min_hops": 5}, "got 5 and 6"),
        ({"nodes": 16}, r"nodes must lie in 17\.\.40 for min_hops=3"),
        ({"nodes": 41}, "got 41"),
        ({"nodes": 28, "kinds": 20}, r"nodes must lie in 17\.\.22"),
        ({"kinds": 39}, "kinds must be at most 38"),
        ({"kinds": 30, "path": "x"}, "that for real rows, got 30"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_task("prosqa", **options)


def test_wrong_places_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        ProsQA().examples("trian")
    with pytest.raises(FileNotFoundError, match="need path="):
        ProsQA().examples("real_test")
    with pytest.raises(FileNotFoundError, match=r"no file .*prosqa_test\.json"):
        ProsQA(path=str(tmp_path)).examples("real_test")
    with pytest.raises(ValueError, match="no path leads from node 0 to node 2"):
        shortest_path(None, [[1, 2]], 0, 2)  # type: ignore[arg-type]


def published(**changes: Any) -> dict[str, Any]:
    """HAND as it would stand in a file."""
    task = ProsQA()
    row = {name: HAND[name] for name in ("edges", "root", "target", "neg_target")}
    row |= {"question": task.prompt(HAND).strip(), "steps": task.steps(HAND), "answer": task.answer(HAND)}
    return {**row, "idx_to_symbol": HAND["symbols"], **changes}


def test_a_row_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "prosqa_valid.json").write_text(json.dumps([published()]))
    assert ProsQA(path=str(tmp_path)).examples("real_valid") == [HAND]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("[", "not JSON"),
        ("{}", "expected a list of rows, found dict"),
        ("[]", "expected a list of rows"),
        (json.dumps([published(), {}]), "row 2: not a row of ProsQA"),
        (json.dumps([published(), 3]), "row 2: not a row of ProsQA"),
        (json.dumps([published(edges=[[0, 2]])]), "row 1: .*its facts are not its edges"),
        (json.dumps([published(question="Is it?")]), "row 1: .*no question"),
        (json.dumps([published(answer="Sally is a lempus.")]), "row 1: its question, steps and answer"),
        (json.dumps([published(steps=["Sally is a lempus."])]), "row 1: its question, steps and answer"),
        (json.dumps([published(steps=["so"])]), "row 1: its question, steps and answer"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, rows: str, words: str) -> None:
    (tmp_path / "prosqa_test.json").write_text(rows)
    with pytest.raises(ValueError, match=rf"prosqa_test\.json.*{words}"):
        ProsQA(path=str(tmp_path)).examples("real_test")
