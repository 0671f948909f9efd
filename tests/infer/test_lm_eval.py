"""What lm-evaluation-harness asks, answered without it: log-likelihoods, windows, texts, and errors in words."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tokenizers.characters import CharTokenizer
from infer import lm_eval
from infer.harness import Answers, Options, options_of
from infer.load import Loaded
from tests.data import toy_tokenizers
from tests.sampled import generate
from tests.trunk import TOKENIZER, forward, tiny, tiny_params

EOS = TOKENIZER.eos_id


def requests_of(*asked: tuple[Any, ...]) -> list[Any]:
    """Requests as the harness makes them, of which only `args` is read."""
    return [SimpleNamespace(args=args) for args in asked]


def answers(tokenizer: Any = TOKENIZER, **options: Any) -> Answers:
    """The tiny model, asked with these options."""
    return Answers(Loaded(tiny(), tiny_params(), tokenizer, {}), Options("runs/tiny", **options))


def log_probs(ids: list[int]) -> np.ndarray:
    """Log-probs [len(ids) - 1] of all ids but the first, from one pass over a row of a common width."""
    row = jnp.asarray([[*ids, *[0] * (64 - len(ids))]])
    logps = jax.nn.log_softmax(forward(tiny(), tiny_params(), row)[0])
    return np.asarray(logps)[np.arange(len(ids) - 1), ids[1:]]


def greedy(text: str, length: int) -> str:
    """The text that the model would add."""
    found = generate(
        tiny(), tiny_params(), [TOKENIZER.encode(text)], jax.random.key(0), max_new_tokens=length, temperature=0.0
    )
    return TOKENIZER.decode(found.tokens[0].tolist())


def test_log_likelihoods_of_continuations() -> None:
    """In the order of the requests, after an empty context behind eos, and true where greedy decoding says the same."""
    said = greedy("12+3", 3)
    asked = [("12+3", "45=67"), ("", "7=8"), ("12+3", said), ("1", "=")]
    found = answers(batch_size=3).loglikelihood(requests_of(*asked))
    for (context, continuation), (total, is_greedy) in zip(asked, found, strict=True):
        ids = TOKENIZER.encode(context) or [EOS]
        want = log_probs([*ids, *TOKENIZER.encode(continuation)])[len(ids) - 1 :].sum()
        assert total == pytest.approx(want, abs=1e-4)
        assert is_greedy == (continuation == said)
    assert answers().loglikelihood([]) == []


def test_texts_longer_than_the_context_are_cut_into_windows() -> None:
    ids = np.random.default_rng(0).integers(4, TOKENIZER.vocab_size, 40).tolist()
    text = TOKENIZER.decode(ids)
    [short, long] = answers(max_length=16).loglikelihood_rolling(requests_of((text[:9],), (text,)))
    whole = [EOS, *ids]
    assert short == pytest.approx(log_probs(whole[:10]).sum(), abs=1e-4)
    # Windows of 16 and 16, and one of 8 that is given the 8 tokens before it.
    want = log_probs(whole[:17]).sum() + log_probs(whole[16:33]).sum() + log_probs(whole[24:])[8:].sum()
    assert long == pytest.approx(want, abs=1e-4)


def test_texts_end_before_their_stop_strings() -> None:
    """Requests of different arguments come back in their own order."""
    whole = greedy("12+3", 12)
    stop = whole[4:6]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("12+3", {"until": [stop, "never"], "max_gen_toks": 12}),
        ("12+3", {"max_new_tokens": 12, "temperature": 0.0}),
        ("12+3", {"until": stop, "max_gen_toks": 12, "do_sample": False, "temperature": 0.7}),
    ]
    found = answers().generate_until(requests_of(*asked))
    assert found == [whole[: whole.find(stop)], whole, whole[: whole.find(stop)]]
    [thought] = answers(think_end=whole[1:3]).generate_until(requests_of(asked[1]))
    assert thought == whole[whole.rfind(whole[1:3]) + 2 :]


def test_how_texts_go_on_is_read_from_the_task() -> None:
    read = answers(slots=3, max_gen_toks=7).sampling
    assert read({}) == dataclasses.replace(read({"max_gen_toks": 7, "do_sample": False}))
    drawn = read({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "until": "#", "max_tokens": 3})
    assert (drawn.temperature, drawn.top_p, drawn.stop, drawn.max_new_tokens) == (0.5, 0.9, (EOS, "#"), 3)
    assert drawn.execution.slots == 3


def test_space_between_context_and_continuation_belongs_to_the_latter() -> None:
    spaced = CharTokenizer("0123456789+= ")
    encode = spaced.encode
    assert answers(spaced).pair("1 ", "2") == (encode("1"), encode(" 2"))
    assert answers(spaced).pair("  ", "2") == ([spaced.eos_id], encode("  2"))


def test_bos_is_put_in_front_once(tmp_path: Path) -> None:
    library = toy_tokenizers.byte_fallback()
    settings = toy_tokenizers.SETTINGS | {"add_bos_token": True}
    tokenizer = toy_tokenizers.load(library, tmp_path, settings)
    a, b, bos = (tokenizer.encode(text)[0] for text in ("a", "b", "<s>"))
    read = answers(tokenizer)
    assert read.prefix == bos
    assert read.pair("a", "b") == read.pair("<s>a", "b") == ([bos, a], [b])
    assert read.pair("", "b") == read.pair("", "<s>b") == ([bos], [b])


def test_what_is_too_long_loses_its_beginning_only_when_asked() -> None:
    text = "1234567890" * 2
    with pytest.raises(ValueError, match=r"1 of 2 requests do not fit the context of 16 tokens; .* 20 tokens and 2 to"):
        answers(max_length=16).loglikelihood(requests_of((text, "=1"), ("1", "2")))
    with pytest.raises(ValueError, match="20 tokens and 4 new ones"):
        answers(max_length=16).generate_until(requests_of((text, {"max_gen_toks": 4})))
    with pytest.warns(UserWarning, match="their contexts lose up to 5 tokens at the beginning"):
        [(total, _)] = answers(max_length=16, truncate=True).loglikelihood(requests_of((text, "=1")))
    ids = TOKENIZER.encode(text[5:] + "=1")
    assert len(ids) == 17 and total == pytest.approx(log_probs(ids)[-2:].sum(), abs=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        answers(max_length=16, truncate=True).loglikelihood(requests_of(("1", text)))


@pytest.mark.parametrize(("kind", "asked", "message"), [
    ("loglikelihood", ("12", ""), "the continuation '' adds no token to the context ...'12'"),
    ("loglikelihood", ("", ""), "adds no token"),
    ("loglikelihood_rolling", ("",), "an empty text has no log-likelihood"),
    ("generate_until", ("1", {"until": [""]}), "an empty stop string"),
    ("generate_until", ("1", {"until": [3]}), "until is a text or a list of texts, found 3"),
    ("generate_until", ("1", {"num_beams": 4}), "unknown generation argument 'num_beams'"),
    ("generate_until", ("1", {"top_q": 4}), "Did you mean 'top_p'"),
    ("generate_until", ("1", {"do_sample": True}), "do_sample=True needs a temperature above 0"),
    ("generate_until", ("1", {"do_sample": True, "temperature": 1, "top_p": 0}), "top_p must be in"),
    ("generate_until", ("1", {"max_gen_toks": 0}), "max_new_tokens must be >= 1"),
    ("generate_until", ("1", {"max_gen_toks": 64}), "do not fit the context of 64 tokens"),
])  # fmt: skip
def test_wrong_requests_are_told(kind: str, asked: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(answers(), kind)(requests_of(asked))


def test_the_arguments_of_a_model() -> None:
    given = {"run": 2024, "batch_size": "auto", "device": "cuda:0", "max_batch_size": None, "truncate": True}
    assert options_of(given) == Options("2024", truncate=True)
    assert options_of({"run": "a", "batch_size": "8"}) == Options("a", batch_size=8)


@pytest.mark.parametrize(("given", "message"), [
    ({}, "name what is measured: run="),
    ({"run": "a", "pretrained": "b"}, "unknown argument of the model 'sagax' 'pretrained'"),
    ({"run": "a", "batchsize": 3}, "Did you mean 'batch_size'"),
    ({"run": "a", "depth": "deep"}, "depth='deep': expected int"),
    ({"run": "a", "batch_size": "auto:4"}, "batch_size='auto:4': expected int"),
    ({"run": "a", "batch_size": 0}, "batch_size must be >= 1"),
])  # fmt: skip
def test_wrong_arguments_are_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_of(given)


def test_a_context_is_no_longer_than_the_models() -> None:
    with pytest.raises(ValueError, match="max_length=65 is more than the model's context of 64"):
        answers(max_length=65)


@pytest.mark.more
def test_a_conversation_is_written_by_the_chat_template(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    settings = toy_tokenizers.SETTINGS | {"chat_template": template}
    read = answers(toy_tokenizers.load(toy_tokenizers.byte_fallback(), tmp_path, settings))
    asked = [{"role": "user", "content": " 2+2? "}]
    assert read.apply_chat_template(asked) == "user: 2+2?\nassistant:"
    begun = [*asked, {"role": "assistant", "content": "It is "}]
    assert read.apply_chat_template(begun, add_generation_prompt=False) == "user: 2+2?\nassistant: It is"
    assert read.chat_template(True) == template and read.chat_template(False) is None
    with pytest.raises(ValueError, match="chat_template=tool_use"):
        read.chat_template("tool_use")
    with pytest.raises(ValueError, match="this tokenizer has no chat template"):
        answers().apply_chat_template(asked)


def test_unknown_tasks_are_told_with_those_that_are_near(tmp_path: Path) -> None:
    known = ["gsm8k", "gsm8k_cot", "mmlu_algebra", "minerva_math500"]
    (tmp_path / "own.yaml").touch()
    lm_eval.check_tasks(["gsm8k", "mmlu_*", str(tmp_path / "own.yaml")], known)
    with pytest.raises(
        ValueError, match=r"unknown task 'gsm8'. Did you mean 'gsm8k' or 'gsm8k_cot'\? The harness has 4"
    ):
        lm_eval.check_tasks(["gsm8k", "gsm8"], known)


@pytest.mark.parametrize(("words", "message"), [
    (["--run=runs/none", "--tasks=gsm8k"], "pip install -c constraints.txt -e '.[eval]'"),
    (["--run=runs/none", "--harness", "run", "--model", "sagax"], "pip install -c constraints.txt -e '.[eval]'"),
    (["--run=runs/none"], "--tasks names what is measured"),
    (["--tasks=gsm8k"], "name what is measured: run="),
    (["--tasks=gsm8k", "--runs=a", "--task=b"], "unrecognized arguments"),
])  # fmt: skip
def test_wrong_use_of_the_command(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert lm_eval.main(words) == 2
    assert message in capsys.readouterr().err
