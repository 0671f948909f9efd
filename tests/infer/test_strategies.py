"""Strategies on the one sampler: with one sample each is plain sampling, and each keeps what it promises."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

from data.sources.prompts import fixed_examples
from data.tasks.addition import Addition
from data.verify.verdict import Verdict
from infer.evaluate import TaskSpec, evaluate, evaluate_strategy
from infer.sampler import compilations
from infer.sampling import Execution, SamplingParams
from infer.scoring import score
from infer.strategies import METHODS, STRATEGIES, Answers, answer, build_strategy
from model import build
from settings.strategies import option_fields
from tests.trunk import TINY, TOKENIZER, tiny, tiny_params

TASK = Addition(digits=1, direct_share=1.0)
EXAMPLES = fixed_examples(TASK, TOKENIZER, "test", 5)
SPEC = TaskSpec(TASK, TOKENIZER)
N, T = 8, 6
ONE: dict[str, dict[str, Any]] = {
    "sample": {},
    "majority": {},
    "best_of_n": {},
    "clusters": {},
    "rejection": {"attempts": 1, "longest": T},
    "beam": {"width": 1, "expand": 1, "separator": "+", "step_tokens": 2},
    "repair": {"attempts": 1},
}


def answered(
    name: str, n: int = 1, *, key: int = 3, spec: TaskSpec = SPEC, reward: Any = None, **options: Any
) -> Answers:
    sampling = SamplingParams(T, n=n, execution=Execution(chunk=2))
    strategy = build_strategy(name, spec, sampling, reward=reward, **options)
    return answer(strategy, tiny(), tiny_params(), EXAMPLES, jax.random.key(key))


@functools.cache
def plain(n: int = 1) -> Answers:
    return answered("sample", n)


def test_every_strategy_has_a_method() -> None:
    assert list(METHODS) == list(STRATEGIES)
    assert set(ONE) | {"budget"} | {name for name in STRATEGIES if name.endswith("_conditional")} == set(STRATEGIES)


@dataclasses.dataclass(frozen=True)
class AsPrograms(Addition):
    """Answers are taken for programs: of an input they give the character at that place, which may be missing."""

    def public(self, example: Any) -> Any:
        return example | {"public": True}

    def inputs(self, example: Any, rng: np.random.Generator, count: int) -> list[int]:
        return [int(place) for place in rng.integers(0, 2, count)]

    def outputs(self, example: Any, text: str, inputs: Any) -> list[str | None]:
        return [text[place] if place < len(text) else None for place in inputs]

    def verify(self, example: Any, text: str) -> Verdict:
        return Verdict(float("=" in text or not example.get("public")), text, "")


PROGRAMS = TaskSpec(AsPrograms(digits=1, direct_share=1.0), TOKENIZER)


@pytest.mark.parametrize("name", ONE)
def test_one_sample_and_no_budget_is_plain_sampling(name: str) -> None:
    found = answered(name, spec=PROGRAMS if name == "clusters" else SPEC, **ONE[name])
    assert found.texts == plain().texts and len(set(found.texts)) > 1
    np.testing.assert_allclose(found.candidates.logps, plain().candidates.logps, atol=2e-5)
    np.testing.assert_array_equal(found.thought + found.written, plain().written)


def test_of_several_plain_samples_the_first_is_chosen() -> None:
    assert plain(N).chosen.tolist() == [e * N for e in range(len(EXAMPLES))] and plain(N).every


# --- votes


@dataclasses.dataclass(frozen=True)
class FirstDigit(Addition):
    """What counts is the first digit of an answer, so that random samples agree now and then; 7 and 2 are the same."""

    def verify(self, example: Any, text: str) -> Verdict:
        digit = text[:1] if text[:1].isdigit() else None
        return Verdict(float(digit == "7"), digit, "read" if digit else "no digit")

    def comparison(self, reference: str, answer: str) -> tuple[Any, str]:
        return {"reference": reference}, answer


@dataclasses.dataclass(frozen=True)
class Compared(FirstDigit):
    """Also judges whether two digits are one."""

    def verify(self, example: Any, text: str) -> Verdict:
        if "reference" not in example:
            return super().verify(example, text)
        return Verdict(float({example["reference"], text} == {"7", "2"}), text, "compared")


VOTED = dataclasses.replace(SPEC, task=Compared(digits=1, direct_share=1.0))


def winner(texts: list[str]) -> str:
    """By hand: the first text of the class with most votes, of classes with as many the first."""
    votes = Counter("7" if t[0] == "2" else t[0] for t in texts if t[:1].isdigit())
    first = {("7" if t[0] == "2" else t[0]): t for t in reversed(texts) if t[:1].isdigit()}
    return first[max(votes, key=lambda digit: votes[digit])] if votes else texts[0]


def test_a_vote_counts_equal_answers_together() -> None:
    found = answered("majority", N, spec=VOTED)
    rows = [list(found.candidates.texts[e * N : (e + 1) * N]) for e in range(len(EXAMPLES))]
    assert [winner(row) for row in rows] == found.texts and found.candidates.texts == plain(N).candidates.texts
    assert found.calls == 0 and (found.support > 0).all() and (found.support <= 1).all()


def test_a_vote_that_is_settled_draws_no_more_and_chooses_the_same() -> None:
    whole, early = answered("majority", N, spec=VOTED), answered("majority", N, spec=VOTED, at_once=2)
    assert early.texts == whole.texts and 2 * len(EXAMPLES) <= len(early.candidates.texts) < len(whole.candidates.texts)
    for e in range(len(EXAMPLES)):
        mine = [t for t, of in zip(early.candidates.texts, early.candidates.example_of, strict=True) if of == e]
        assert mine == list(whole.candidates.texts[e * N : e * N + len(mine)])


def test_weights_are_scores() -> None:
    found = answered("majority", N, spec=VOTED, weights="mean_logp")
    assert np.isclose(found.scores.reshape(-1, N).sum(1), 1).all() and len(set(found.scores.tolist())) > N


def test_a_vote_over_nothing_readable_says_so() -> None:
    found = answered("majority", 2, spec=dataclasses.replace(SPEC, task=Unread(digits=1)))
    assert found.texts == [found.candidates.texts[2 * e] for e in range(len(EXAMPLES))]
    assert (found.support == 0).all() and set(found.notes) == set(range(len(EXAMPLES)))


@dataclasses.dataclass(frozen=True)
class Unread(Addition):
    """Reads nothing."""

    def verify(self, example: Any, text: str) -> Verdict:
        return Verdict(0.0, None, "nothing to read")


# --- the best of n


@pytest.mark.parametrize("scorer", ["logp", "mean_logp", "self_certainty", "verifier", "reward"])
def test_the_best_has_the_best_score(scorer: str) -> None:
    reward = lambda examples, texts: np.array([len(text) for text in texts])  # noqa: E731
    found = answered("best_of_n", N, spec=VOTED, scorer=scorer, reward=reward)
    scores = found.scores.reshape(-1, N)
    assert (found.chosen == scores.argmax(1) + N * np.arange(len(EXAMPLES))).all() and np.ptp(scores) > 0
    assert found.calls == (N * len(EXAMPLES) if scorer in ("verifier", "reward") else 0)
    drawn = plain(N).candidates
    assert found.candidates.texts == drawn.texts
    wanted = {"logp": drawn.logps, "mean_logp": drawn.logps / drawn.own}.get(scorer)
    assert wanted is None or np.allclose(found.scores, wanted)


def test_scores_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        answered("best_of_n", 2, scorer="reward", reward=lambda examples, texts: np.full(len(texts), np.nan))
    with pytest.raises(ValueError, match=r"shape \(3,\) for 10 candidates"):
        answered("best_of_n", 2, scorer="reward", reward=lambda examples, texts: np.ones(3))
    with pytest.raises(ValueError, match="give --reward_model"):
        build_strategy("best_of_n", SPEC, SamplingParams(T), scorer="reward")


# --- control


def test_rejection_draws_until_an_answer_is_short() -> None:
    found = answered("rejection", longest=2, attempts=6)
    kept = found.candidates.rows(found.chosen)
    short = kept.finished & (kept.own <= 2)
    assert short.any() and set(np.flatnonzero(~short)) == set(found.notes)
    counts = np.bincount(found.candidates.example_of)
    assert (counts[~short] == 6).all() and counts[short].min() < 6


def test_the_prompt_says_how_long_to_think(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("infer.asking.generate", lambda *args, **kwargs: asked.append(args[2]) or stop())
    for name, options, front in (
        ("token_conditional", {"bound": 64, "instruction": "{bound}="}, "64="),
        ("step_conditional", {"bound": 250, "instruction": "{steps}="}, "3="),
        ("class_conditional", {"length": "long", "long": "9="}, "9="),
    ):
        with pytest.raises(StopIteration):
            answered(name, **options)
        assert [TOKENIZER.decode(p) for p in asked.pop()] == [front + TASK.prompt(e["example"]) for e in EXAMPLES]
    with pytest.raises(ValueError, match="names no bound"):
        answered("token_conditional", instruction="12=")
    with pytest.raises(ValueError, match="may hold"):
        answered("token_conditional", instruction="{tokens}=")


def stop() -> None:
    raise StopIteration


# --- programs


def test_the_largest_cluster_of_programs_answers() -> None:
    drawn = plain(N).candidates
    found = answered("clusters", N, spec=PROGRAMS, public=0.0, inputs=8)
    assert found.candidates.texts == drawn.texts and found.calls == len(drawn.texts)
    sized = [Counter(text[:2] for text in rows).most_common(1)[0][1] for rows in by_example(drawn)]
    assert max(sized) > 1, "two samples of an example must agree for this test"
    for example, rows in enumerate(by_example(drawn)):
        mine = Counter(text[:2] for text in rows if len(text) > 1)
        if mine:
            assert mine[found.texts[example][:2]] == mine.most_common(1)[0][1]
            assert found.support[example] == mine.most_common(1)[0][1] / N


def test_programs_that_fail_what_is_shown_come_last() -> None:
    found = answered("clusters", N, spec=PROGRAMS, inputs=8)
    for example, rows in enumerate(by_example(found.candidates)):
        assert ("=" in found.texts[example]) == any("=" in text for text in rows)
    assert sum("=" in text for text in found.texts) > 0, "some sample must pass for this test"


def test_programs_without_inputs_are_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsPrograms, "inputs", lambda *_: [])
    found = answered("clusters", N, spec=PROGRAMS, public=0.0, scorer="logp")
    best = [max(range(E * N, E * N + N), key=lambda n: found.scores[n]) for E in range(len(EXAMPLES))]
    assert found.chosen.tolist() == best and (found.support == 1).all() and len(found.notes) == len(EXAMPLES)
    with pytest.raises(ValueError, match=r"answers that are programs .*, Addition's are not"):
        answered("clusters", N)


def by_example(candidates: Any) -> list[list[str]]:
    return [list(candidates.texts[e * N : e * N + N]) for e in range(len(EXAMPLES))]


# --- a verifier in the loop


def test_the_verifiers_words_stand_in_the_next_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    import infer.asking

    asked: list[list[str]] = []
    real = infer.asking.generate

    def listening(model: Any, params: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append([TOKENIZER.decode(prompt) for prompt in prompts])
        return real(model, params, prompts, *args, **kwargs)

    monkeypatch.setattr("infer.asking.generate", listening)
    spec = dataclasses.replace(SPEC, task=Told(digits=1))
    found = answered("repair", spec=spec, attempts=3, feedback="{prompt}{answer}={reason}{prompt}")
    assert found.calls == sum(map(len, asked)) and len(asked) == 3 and len(asked[0]) == len(EXAMPLES)
    first = plain().texts
    wrong = [e for e in range(len(EXAMPLES)) if not first[e].startswith("7")]
    questions = [TASK.prompt(EXAMPLES[e]["example"]) for e in wrong]
    assert asked[1] == [f"{q}{first[e]}=12{q}" for q, e in zip(questions, wrong, strict=True)]
    with pytest.raises(ValueError, match="cannot be told in the next prompt"):
        answered("repair", spec=dataclasses.replace(SPEC, task=Told(digits=1)), attempts=2)


@dataclasses.dataclass(frozen=True)
class Told(Addition):
    """Right answers begin with 7; the reason is a number, which this alphabet has."""

    def verify(self, example: Any, text: str) -> Verdict:
        return Verdict(float(text.startswith("7")), text, "12")


# --- search


def test_a_wider_beam_finds_likelier_answers_in_few_programs() -> None:
    options = {"separator": "=", "step_tokens": 2, "scorer": "logp"}
    greedy = answered("beam", width=1, expand=1, **options)
    before = compilations()
    found = answered("beam", width=4, expand=2, **options)
    # Prefills and decoders by the width of the longest prefix and by how many there are, a power of two.
    assert compilations() - before <= 14
    again = compilations()
    assert answered("beam", width=4, expand=2, key=9, **options).nodes > 0 and compilations() - again <= 4
    assert found.support.mean() > greedy.support.mean() and found.nodes > 4 * len(EXAMPLES)
    assert (found.written > np.bincount(found.candidates.example_of, found.candidates.own)).all()
    for e in range(len(EXAMPLES)):
        texts = [t for t, of in zip(found.candidates.texts, found.candidates.example_of, strict=True) if of == e]
        assert len(texts) == len(set(texts)) == 4


def test_fewer_slots_for_a_search_that_nears_its_end_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer.strategies.search.LONG", 1)

    def found(shrink: int, stops: int = 64) -> Answers:
        monkeypatch.setattr("infer.strategies.search.MOST_STOP_IDS", stops)
        sampling = SamplingParams(12, stop=STOPS, execution=Execution(chunk=2, shrink=shrink))
        strategy = build_strategy("beam", SPEC, sampling, width=4, expand=2, separator="=", step_tokens=2)
        return answer(strategy, tiny(), tiny_params(), ragged, jax.random.key(4))

    ragged = fixed_examples(Addition(digits=1, max_digits=3, direct_share=1.0), TOKENIZER, "test", 5)
    assert len({len(example["tokens"]) for example in ragged}) > 1
    # Where ends of steps are looked for in the text, every step is a whole continuation, read anew.
    anew, whole, before = found(0, stops=0), found(0), compilations()
    few = found(4)
    assert compilations() > before, "some step must take fewer slots for this test"
    for other in (whole, few):
        assert other.candidates.texts == anew.candidates.texts and other.texts == anew.texts
        np.testing.assert_allclose(other.scores, anew.scores, atol=1e-5)


STOPS = tuple(TOKENIZER.encode("12345"))

KINDS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mingru": {"mixer": "mingru"},
    "gated_delta": {"mixer": "gated_delta"},
    "recurrent": {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 2}},
}


@pytest.mark.more_but("gqa")
@pytest.mark.parametrize("kind", KINDS)
def test_branches_are_what_a_whole_pass_says(kind: str) -> None:
    """Also where the ring of columns is full and prefixes are read again: steps of one token, but for ends of steps."""
    model = build(TINY | KINDS[kind])
    params = tiny_params() if kind == "gqa" else jax.jit(model.init)(jax.random.key(1))
    sampling = SamplingParams(10)
    for step in (1, 4):
        strategy = build_strategy("beam", SPEC, sampling, width=3, expand=2, separator="7", step_tokens=step)
        found = answer(strategy, model, params, EXAMPLES, jax.random.key(2)).candidates
        given = [
            TOKENIZER.encode(text) + [TOKENIZER.eos_id] * int(done)
            for text, done in zip(found.texts, found.finished, strict=True)
        ]
        prompts = [EXAMPLES[e]["tokens"] for e in found.example_of]
        kept = [n for n, tokens in enumerate(given) if len(tokens) == found.written[n]]
        assert len(kept) > 5
        scores = score(model, params, [prompts[n] for n in kept], [given[n] for n in kept])
        np.testing.assert_allclose(found.logps[kept], scores.logps.sum(1), rtol=0, atol=1e-4)


@pytest.mark.more_but("0")
@pytest.mark.parametrize("lookahead", [0, 2])
def test_a_beam_by_any_scorer(lookahead: int) -> None:
    seen: list[str] = []

    def sevens(examples: Any, texts: Any) -> np.ndarray:
        seen.extend(texts)
        return np.array([text.count("7") for text in texts], float)

    options = {"separator": "+", "step_tokens": 2, "width": 3, "expand": 3, "lookahead": lookahead}
    found = answered("beam", scorer="reward", reward=sevens, **options)
    assert sum(text.count("7") for text in found.texts) > sum(text.count("7") for text in plain().texts)
    assert found.calls == len(seen) == found.nodes and max(len(TOKENIZER.encode(text)) for text in seen) <= T
    if lookahead:
        return
    with pytest.raises(ValueError, match="NaN for the partial answer"):
        answered("beam", scorer="reward", reward=lambda e, t: np.full(len(t), np.nan), **options)
    with pytest.raises(ValueError, match="no step would end"):
        answered("beam", separator="@")


# --- what is reported


def test_evaluation_reports_the_chosen_and_what_they_cost() -> None:
    sampling = SamplingParams(T, n=N, execution=Execution(chunk=2))
    strategy = build_strategy("best_of_n", VOTED, sampling, scorer="verifier")
    found = evaluate_strategy(strategy, tiny(), tiny_params(), EXAMPLES, jax.random.key(3))
    usual = evaluate(tiny(), tiny_params(), VOTED, EXAMPLES, jax.random.key(3), sampling)
    assert found.metrics["accuracy"] == pytest.approx(usual.metrics[f"pass@{N}"]) and len(found.samples) == len(
        EXAMPLES
    )
    assert found.metrics["tokens_per_question"] == pytest.approx(N * usual.metrics["mean_tokens"])
    assert found.metrics["verifier_calls"] == N * len(EXAMPLES) and found.metrics["candidates_per_question"] == N


def test_what_a_strategy_does_not_have_is_refused() -> None:
    sampling = SamplingParams(T)
    for name, options, words in (
        ("majorty", {}, "Did you mean 'majority'"),
        ("majority", {"at_one": 2}, "Did you mean 'at_once'"),
        ("majority", {"at_once": -1}, "at_once must be at least 0"),
        ("majority", {"at_once": 2, "weights": "logp"}, "equal weight"),
        ("budget", {}, "forces nothing"),
        ("beam", {"scorer": "logps"}, "Did you mean 'logp'"),
        ("budget", {"max_thinking": 4, "delimiters": "task"}, "no delimiters of its own"),
    ):
        with pytest.raises(ValueError, match=words):
            build_strategy(name, SPEC, sampling, **options)
    with pytest.raises(ValueError, match="no examples"):
        answer(build_strategy("sample", SPEC, sampling), tiny(), tiny_params(), [], jax.random.key(0))
    assert option_fields()["scorer"][1] == ["best_of_n", "clusters", "beam"]
