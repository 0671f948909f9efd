"""Reward models at work: the Hub's, which token is scored, as reward and as scorer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tasks import build_task
from data.verify.verdict import Verdict
from infer.asking import TaskSpec
from infer.reward_model import RewardModel, open_reward_model, strategy_reward
from infer.sampling import SamplingParams
from infer.strategies import answer, build_strategy
from model import build, hf
from rl.reward_functions import Sample
from rl.rewards import build_reward
from tests.trunk import TINY, TOKENIZER, tiny, tiny_params
from train.objectives.reward_losses import bradley_terry

FOLDERS = ("reward_qwen2", "reward_llama_pad_is_eos")


class Ids:
    """A tokenizer whose text is ids in decimal."""

    bos_id, eos_id, vocab_size = None, 2, 384

    def encode(self, text: str) -> list[int]:
        """Ids between spaces."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        """Ids between spaces."""
        return " ".join(map(str, ids)) + " "


@pytest.mark.parametrize("name", FOLDERS)
def test_the_hubs_scores(shared: Path, name: str) -> None:
    """Of rows as transformers scores them: at the last id that is no pad, wherever that stands."""
    model, params = hf.load(shared / "tiny_hf" / name)
    with np.load(shared / "tiny_hf" / name / "golden.npz") as found:
        arrays = dict(found)
    reward = RewardModel(model, Ids(), lambda: params)  # type: ignore[arg-type]
    rows = [ids[mask > 0].tolist() for ids, mask in zip(arrays["right_ids"], arrays["right_mask"], strict=True)]
    places = [[index] for index in arrays["right_scored_index"]]
    scores = np.array([each[0, 0] for each in reward.at_places(rows, places)])
    np.testing.assert_allclose(scores, arrays["right_scores"], atol=2e-5)
    np.testing.assert_allclose(scores, arrays["single_scores"], atol=2e-5)


def test_an_end_that_is_padding_is_passed_over(shared: Path) -> None:
    """Where pad is eos, the end token that closes every text is not what is scored."""
    scores = {}
    for name in FOLDERS:
        model, params = hf.load(shared / "tiny_hf" / name)
        reward = RewardModel(model, Ids(), lambda params=params: params)  # type: ignore[arg-type]
        (given,) = reward(["5 6 7"], ["8 9"])
        ends = reward.at_places([[5, 6, 7, 8, 9, 2]], [[4, 5]])[0][:, 0]
        scores[name] = given, ends
    given, ends = scores["reward_qwen2"]
    assert given == pytest.approx(ends[1]) and abs(ends[0] - ends[1]) > 1e-3
    given, ends = scores["reward_llama_pad_is_eos"]
    assert given == pytest.approx(ends[0]) and abs(ends[0] - ends[1]) > 1e-3


@pytest.mark.parametrize("name", FOLDERS)
def test_the_hubs_loss_and_gradients(shared: Path, name: str) -> None:
    model, params = hf.load(shared / "tiny_hf" / name)
    with np.load(shared / "tiny_hf" / name / "golden.npz") as found:
        arrays = dict(found)
    ids, mask = (jnp.asarray(arrays[f"right_{key}"], jnp.int32) for key in ("ids", "mask"))

    def loss(params: Any) -> jax.Array:
        scores = model.scores(params, model.apply(params, ids, segments=mask).hidden)[..., 0]
        at = jnp.take_along_axis(scores, jnp.asarray(arrays["right_scored_index"])[:, None], 1)[:, 0]
        pairs = at[jnp.asarray(arrays["bt_pairs"])]
        total, count, _ = bradley_terry(pairs[:, 0], pairs[:, 1])
        return total / count

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, arrays["bt_loss"], rtol=1e-5)
    mine = {
        "score.weight": grads["score"],
        "model.norm.weight": grads["final_norm"]["scale"],
        "model.embed_tokens.weight": grads["embed"],
    }
    for key, grad in mine.items():
        wanted = arrays[f"grad:{key}"]
        assert np.abs(np.asarray(grad) - wanted).max() < 1e-4 * np.abs(wanted).max(), key


def test_one_constant_flipped_is_another_model(shared: Path) -> None:
    model, params = hf.load(shared / "tiny_hf" / "reward_qwen2")
    with np.load(shared / "tiny_hf" / "reward_qwen2" / "golden.npz") as found:
        wanted = found["right_scores"]
        rows = [ids[mask > 0].tolist() for ids, mask in zip(found["right_ids"], found["right_mask"], strict=True)]
        places = [[index] for index in found["right_scored_index"]]
    other = build(model.config.replace(norm_eps=1e-2))
    scores = RewardModel(other, Ids(), lambda: params).at_places(rows, places)  # type: ignore[arg-type]
    assert np.abs(np.array([each[0, 0] for each in scores]) - wanted).max() > 1e-2


def scorer() -> RewardModel:
    """A model of scores over digits."""
    model = build({**TINY, "score": {"size": 1}})
    params = {name: value for name, value in tiny_params().items() if name != "head"}
    params["score"] = jnp.asarray(np.random.default_rng(3).standard_normal((1, 32)), jnp.float32)
    return RewardModel(model, TOKENIZER, lambda: params, batch=3)


def test_batches_and_widths_do_not_matter() -> None:
    reward, texts = scorer(), ["1", "22", "333+4", "5" * 20, "6"]
    together = reward(["1+2="] * 5, texts)
    alone = np.array([scorer()(["1+2="], [text])[0] for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    with pytest.raises(ValueError, match="does not fit the reward model's context of 64"):
        reward(["1"], ["1" * 80])


def test_a_strategy_chooses_by_it(tmp_path: Path) -> None:
    task = build_task("addition", digits=1, direct_share=1.0, train_size=8, test_size=4)
    spec = TaskSpec(task, TOKENIZER)
    reward = scorer()
    strategy = build_strategy(
        "best_of_n", spec, SamplingParams(4, n=4), reward=strategy_reward(reward, spec), scorer="reward"
    )
    examples = [{"example": e, "tokens": TOKENIZER.encode(task.prompt(e))} for e in task.examples("test")]
    found = answer(strategy, tiny(), tiny_params(), examples, jax.random.key(0))
    for n, place in enumerate(found.chosen):
        rows = np.flatnonzero(found.candidates.example_of == n)
        scores = reward([task.prompt(examples[n]["example"])] * len(rows), [found.candidates.texts[r] for r in rows])
        assert place == rows[scores.argmax()]


def sample(text: str) -> Sample:
    return Sample({}, "1+2=", text, Verdict(0.0, None, ""), 3, True, 8)


def test_it_is_a_reward() -> None:
    samples, groups = [sample(text) for text in ("1", "22", "3")], np.zeros(3, int)
    model = scorer()
    plain = model(["1+2="] * 3, ["1", "22", "3"])
    options: dict[str, Any] = {"path": "x"}
    opened = lambda path, batch: dataclasses.replace(model, batch=batch)  # noqa: E731
    found = build_reward("model", opened, **options, shift=1.0, scale=2.0)(samples, groups)
    np.testing.assert_allclose(found, (plain - 1) * 2, rtol=1e-5)
    normal = build_reward("model", opened, **options, normalise="batch")(samples, groups)
    assert abs(normal.mean()) < 1e-6 and normal.std() == pytest.approx(1, abs=1e-3)
    for more, words in (({"normalise": "x"}, "known: batch, none"), ({"steps": "min"}, "process reward model")):
        with pytest.raises(ValueError, match=words):
            build_reward("model", opened, **options, **more)
    with pytest.raises(ValueError, match="needs path"):
        build_reward("model", opened)


def test_a_language_model_gives_no_scores(tmp_path: Path) -> None:
    hf.save(tmp_path / "lm", tiny(), tiny_params())
    TOKENIZER.save(tmp_path / "lm")
    with pytest.raises(ValueError, match="a language model, which gives no scores"):
        open_reward_model(tmp_path / "lm")
    with pytest.raises(ValueError, match="predicts no tokens"):
        scorer().model.head({})
    with pytest.raises(ValueError, match="has no scores"):
        tiny().scores(tiny_params(), jnp.zeros((1, 32)))
