"""Budget forcing: the published cases with a scripted model; tokens taken back leave no trace in a real one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tokenizers.characters import CharTokenizer
from infer.budget import Budget, Delimiters, delimiters_of, forcing_of, vocabulary
from infer.evaluate import completion_texts
from infer.sampler import Rollout, compilations, generate
from infer.sampling import Execution, SamplingParams
from model.cache import advance
from model.config import ModelConfig
from model.lm import Model, Output
from model.reports import Reports
from tests.trunk import TINY, forward, prompts_of

T = 24
# The delimiters of s1, whose stop token begins the delimiter, with letters that this alphabet has.
S1 = Delimiters("<im>t", "<im>", "<im>a", "\nF:", newline=True)
TOKENS = CharTokenizer("abcdefgtFW:.\n", ("<im>",))
EOS = TOKENS.eos_id


@dataclasses.dataclass(frozen=True)
class Scripted(Model):
    """Follows every token of the vocabulary with the one that `params["next"]` [V] names."""

    def apply(
        self, params: Any, tokens: Any, positions: Any = None, segments: Any = None, cache: Any = None, **_: Any
    ) -> Output:  # type: ignore[override]
        hidden = jax.nn.one_hot(params["next"][tokens], self.config.d_model)
        cache = advance(cache, positions, segments)
        return Output(hidden, dataclasses.replace(cache, index=cache.index + tokens.shape[1]), Reports())

    def logits(self, params: Any, hidden: Any) -> Any:
        return 50.0 * hidden[..., : self.config.vocab_size]


SIZE = TOKENS.vocab_size
MODEL = Scripted(ModelConfig.from_dict(TINY | {"vocab_size": SIZE, "d_model": 32, "max_length": 64}))


def follow(text: str, **also: str) -> Any:
    """After each token of a text comes the next, after the last the end; `also`: a character and what follows it."""
    ids = [*TOKENS.encode(text), EOS]
    table = np.full(SIZE, EOS)
    table[ids[:-1]] = ids[1:]
    for token, then in also.items():
        table[TOKENS.encode(token)] = TOKENS.encode(then)[0] if then else EOS
    return {"next": jnp.asarray(table)}


def forced(script: Any, prompt: str = "b", length: int = T, **budget: Any) -> tuple[str, Rollout]:
    """The greedy completion of a scripted model, and its rollout."""
    sampling = SamplingParams(length, 0.0, stop=(EOS,), budget=Budget(**{"delimiters": S1, "wait": "W"} | budget))
    rollout = generate(MODEL, script, [TOKENS.encode(prompt)], jax.random.key(0), sampling, tokenizer=TOKENS)
    return completion_texts(rollout, TOKENS)[0], rollout


def own_text(rollout: Rollout) -> str:
    kept = [int(t) for t, own in zip(rollout.tokens[0], rollout.mask[0], strict=True) if own]
    return TOKENS.decode(kept)


def test_a_thought_that_ends_by_itself() -> None:
    """Only what the delimiter holds beyond the stop token is forced, and no "Final Answer:"."""
    text, rollout = forced(follow("tcd<im>", a="f", f=""), max_thinking=8)
    assert text == "cd<im>af" and own_text(rollout) == "cd<im>f"
    assert (rollout.thought, rollout.waits, rollout.answer) == ([2], [0], [4]) and rollout.finished.all()
    assert rollout.prompts[0][rollout.prompt_mask[0]].tolist() == TOKENS.encode("b<im>t")


def test_a_thought_that_comes_to_its_maximum() -> None:
    text, rollout = forced(follow("tcd", d="c", **{":": "g", "g": ""}), max_thinking=5)
    assert text == "cdcdc\n<im>a\nF:g" and own_text(rollout) == "cdcdcg"
    assert rollout.thought == [5] and rollout.answer == [11] and (rollout.logps[rollout.mask == 0] == 0).all()


def test_a_thought_cut_at_the_end_of_a_line_gets_no_other_line() -> None:
    text, rollout = forced(follow("tcd\n", **{"\n": "c", ":": ""}), max_thinking=3)
    assert text == "cd\n<im>a\nF:" and rollout.thought == [3]


def test_a_wait_then_a_natural_end() -> None:
    """The stop token is taken out; it is fed to no one."""
    text, rollout = forced(follow("tcd<im>", W="e", e="<im>", a=""), max_thinking=8, waits=1)
    assert text == "cdWe<im>a" and own_text(rollout) == "cde<im>"
    assert rollout.thought == [3] and rollout.waits == [1]


def test_a_wait_then_the_maximum_uses_what_was_left() -> None:
    """Not the whole budget once more."""
    text, rollout = forced(follow("tcd<im>", W="e", e="f", f="e", **{":": ""}), max_thinking=5, waits=3)
    assert text == "cdWefe\n<im>a\nF:" and rollout.thought == [5] and rollout.waits == [1]


def test_the_end_of_text_inside_a_thought_is_taken_for_its_end() -> None:
    text, rollout = forced(follow("tcd", a="g", g=""), max_thinking=8)
    assert text == "cd<im>ag" and own_text(rollout) == "cdg" and rollout.finished.all()
    waited, rollout = forced(follow("tcd", W="e", e="", a=""), max_thinking=8, waits=2)
    assert waited == "cdWeWe<im>a" and rollout.waits == [2] and rollout.thought == [4]


def test_a_thought_that_never_ends_within_the_sample_has_no_answer() -> None:
    _, rollout = forced(follow("tcd", d="c"), length=6)
    assert rollout.answer == [-1] and rollout.thought == [6] and not rollout.finished.any()


def test_a_delimiter_of_several_tokens_is_taken_back_whole() -> None:
    marks = Delimiters("t", "cde", "cde", "")
    text, rollout = forced(follow("tfcde", W="g", g="c", e=""), delimiters=marks, waits=1)
    assert text == "fWgcde" and own_text(rollout) == "fgcde"
    assert rollout.thought == [2] and rollout.answer == [6]


def test_stop_strings_end_answers_alone() -> None:
    sampling = SamplingParams(T, 0.0, stop=(EOS, "d"), budget=Budget(8, delimiters=S1), execution=Execution(chunk=2))
    script = follow("tcd<im>", a="f", f="d", g="")
    rollout = generate(MODEL, script, [TOKENS.encode("b")], jax.random.key(0), sampling, tokenizer=TOKENS)
    assert completion_texts(rollout, TOKENS, ("d",)) == ["cd<im>af"] and rollout.finished.all()


REAL = Model(ModelConfig.from_dict(TINY | {"vocab_size": SIZE}))
RECURRENT: dict[str, Any] = {"depth": "recurrent", "n_layers": 3, "recurrent": {"mean": 2}}


def real_params(model: Model) -> Any:
    return jax.jit(model.init)(jax.random.key(3))


def sampled(model: Model, sampling: SamplingParams, **options: Any) -> Rollout:
    prompts = [[t % SIZE or 2 for t in prompt] for prompt in prompts_of(3, 5, 2)]
    return generate(model, real_params(model), prompts, jax.random.key(5), sampling, tokenizer=TOKENS, **options)


def test_what_was_taken_back_leaves_no_trace() -> None:
    """The log-probs of the policy's own tokens are those of a full pass over what is left."""
    marks = Delimiters("t", "cd", "cd", ".")
    budget = Budget(20, waits=2, delimiters=marks, wait="W")
    rollout = sampled(REAL, SamplingParams(48, n=16, stop=(EOS,), budget=budget, execution=Execution(slots=12)))
    assert (rollout.waits > 0).sum() > 3 and len(set(rollout.thought.tolist())) > 3  # type: ignore[union-attr, arg-type]
    rows = np.concatenate([rollout.prompts[rollout.group_of], rollout.tokens], 1)
    mask = np.concatenate([rollout.prompt_mask[rollout.group_of], np.arange(48) < rollout.lengths[:, None]], 1)
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    logits = forward(REAL, real_params(REAL), rows, positions, mask.astype(np.int32))
    logps = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], rows[:, 1:, None], 2)[..., 0]
    wanted = np.where(rollout.mask > 0, np.asarray(logps)[:, rollout.prompts.shape[1] - 1 :], 0)
    np.testing.assert_allclose(rollout.logps, wanted, rtol=0, atol=2e-5)


def test_budgets_by_sample_and_slots_change_nothing_and_compile_nothing() -> None:
    marks = Delimiters("t", "<im>", "<im>", ".")
    by_sample = Budget(tuple(range(1, 7)) * 2, waits=(0, 1, 2) * 4, delimiters=marks, wait="W")
    asked = SamplingParams(24, n=4, stop=(EOS,), budget=by_sample)
    together = sampled(REAL, asked)
    before = compilations()
    again = sampled(REAL, dataclasses.replace(asked, budget=dataclasses.replace(by_sample, waits=2, max_thinking=9)))
    assert compilations() == before and (again.waits != together.waits).any()  # type: ignore[operator]
    few = sampled(REAL, dataclasses.replace(asked, execution=Execution(slots=5)))
    for name in ("tokens", "lengths", "thought", "waits", "answer", "mask"):
        np.testing.assert_array_equal(getattr(few, name), getattr(together, name), err_msg=name)
    assert (together.thought <= by_sample.by_sample("max_thinking", 12)).all()


def test_no_limit_and_no_wait_is_plain_sampling() -> None:
    """Where nothing is to be forced: the very tokens, log-probs and lengths."""
    marks = Delimiters("", "<im>", "<im>")
    plain = SamplingParams(16, n=4)
    one, other = sampled(REAL, plain), sampled(REAL, dataclasses.replace(plain, budget=Budget(delimiters=marks)))
    for name in ("tokens", "logps", "lengths", "finished", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.more
def test_a_draft_changes_no_budget() -> None:
    model = Model(ModelConfig.from_dict(TINY | {"vocab_size": SIZE, "mtp": {"depth": 1}}))
    from infer.draft import Draft

    budget = Budget(6, waits=1, delimiters=Delimiters("t", "<im>", "<im>a", "."), wait="W")
    asked = SamplingParams(24, n=4, stop=(EOS,), budget=budget)
    plain, drafted = sampled(model, asked), sampled(model, asked, draft=Draft())
    for name in ("tokens", "lengths", "thought", "waits", "answer", "mask"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(drafted, name), err_msg=name)


@pytest.mark.more
def test_a_budget_of_iterations_counts_depth() -> None:
    model = Model(ModelConfig.from_dict(TINY | {"vocab_size": SIZE} | RECURRENT))
    from infer.recurrence import Recurrence

    marks = Delimiters("t", "<im>", "<im>", ".")
    asked = SamplingParams(24, n=4, budget=Budget(7, delimiters=marks, unit="iterations"))
    rollout = sampled(model, asked, recurrence=Recurrence(2))
    cut = rollout.thought == 4
    assert cut.any() and (rollout.thought <= 4).all()  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match="recurrent models"):
        sampled(REAL, asked)


def test_a_delimiter_is_found_in_text_not_in_tokens() -> None:
    """Tokens that hold more than the delimiter, or a part of it, or begin it anew."""

    class Pieces:
        vocab_size, texts = 6, ("", "a", "ab", "aab", "b\n", "xa")

        def decode(self, ids: Any) -> str:
            return "".join(self.texts[i] for i in ids)

    tables = vocabulary(Pieces(), "aab", 7)  # type: ignore[arg-type]
    assert tables["progress"].tolist() == [
        [0, 1, 0, 3, 0, 1, 0],  # "aab" is complete, and none of it lies before
        [1, 2, 4, 3 + 0, 0, 1, 1],
        [2, 2, 3 + 1, 3, 3 + 2, 1, 2],
    ]
    assert tables["newline"].tolist() == [False, False, False, False, True, False, False]


def problems() -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "no room": (dict(max_thinking=20), "leave no room for an answer"),
        "by sample": (dict(max_thinking=(3, 4)), "2 entries for 1 samples"),
        "letters": (dict(max_thinking=4, delimiters=Delimiters("z")), "cannot produce start='z'"),
        "stop": (dict(max_thinking=4, delimiters=Delimiters("", "<q>", "<q>")), "cannot produce"),
    }


@pytest.mark.parametrize("name", problems())
def test_what_cannot_be_forced_is_refused(name: str) -> None:
    budget, words = problems()[name]
    with pytest.raises(ValueError, match=words):
        forced(follow("t"), **budget)


def test_what_is_no_budget_is_refused() -> None:
    for wrong, words in (
        ({"max_thinking": -1}, "max_thinking"),
        ({"waits": 1.5}, "waits"),
        ({"unit": "token"}, "Did you mean 'tokens'"),
    ):
        with pytest.raises(ValueError, match=words):
            Budget(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must begin with"):
        Delimiters(stop="a", end="b")
    with pytest.raises(ValueError, match="Did you mean 'think'"):
        delimiters_of("thinks")
    with pytest.raises(ValueError, match="tokenizer"):
        forcing_of(SamplingParams(8, budget=Budget(1)), None, 1, REAL.config, drafts=False)
