"""Process reward models: tokens and labels as TRL makes them, a run, the Hub's model and its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data.sources.steps import IGNORED, labelled_tokens
from infer.load import load_run
from infer.reward_model import AGGREGATES, open_reward_model
from model import hf
from store.records import read_metrics
from tests.golden_files import golden
from tests.tiny_config import get_config
from train.loop import run
from train.objectives.reward_losses import step_cross_entropy

ROWS = [key.split("/")[1] for key in golden("process_reward") if key.startswith("tokens/") and key.endswith("/row")]


@pytest.mark.parametrize("name", [name for name in ROWS if "cut" not in name])
def test_tokens_and_labels(name: str) -> None:
    """A token is a character; what TRL cuts off, labels and all, is refused here (`data.too_long`)."""
    row = json.loads(str(golden("process_reward")[f"tokens/{name}/row"]))
    bos = [] if row["bos_token_id"] is None else [row["bos_token_id"]]
    last = row["train_on_last_step_only"] and not row["is_eval"]
    ids, labels = labelled_tokens(
        [*bos, *map(ord, row["prompt"])],
        [[*map(ord, step)] for step in row["completions"]],
        row["labels"],
        [*map(ord, row["step_separator"])],
        last_step_only=last,
    )
    assert ids == golden("process_reward")[f"tokens/{name}/input_ids"].tolist()
    assert labels == golden("process_reward")[f"tokens/{name}/labels"].tolist()


def test_steps_without_labels() -> None:
    with pytest.raises(ValueError, match="2 steps and 1 labels"):
        labelled_tokens([1], [[2], [3]], [1], [4])


def config(folder: Path, **changes: Any) -> ConfigDict:
    """Solutions of two steps, of which one with a 9 in it is bad."""
    rng = np.random.default_rng(0)
    lines = []
    for n in range(64):
        steps = [f"{a}+{b}" for a, b in rng.integers(0, 10, (2, 2))]
        labels = ["9" not in step for step in steps]
        lines.append(json.dumps({"a": n % 10, "b": 1, "think": False, "steps": steps, "labels": labels}) + "\n")
    (folder / "steps.jsonl").write_text("".join(lines))
    found = get_config("sft")
    found.algorithm, found.steps = "process_reward", 60
    found.model.score.update(size=2, bias=True)
    found.data.split = found.eval.split = str(folder / "steps.jsonl")
    found.data.update(batch_size=16, length=24)
    found.reward.separator = ","
    found.optimizer.lr = 1e-2
    found.eval.update(examples=0, loss_batches=2)
    found.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return found


def test_a_run_learns_which_steps_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    run(config(tmp_path), tmp_path / "run")
    last = read_metrics(tmp_path / "run")[-1]
    assert last["eval/accuracy"] > 0.9 and last["eval/loss"] < 0.4
    reward = open_reward_model(tmp_path / "run")
    good, bad = reward.steps(["3+1=", "3+1="], ["1+2,3+4,", "1+2,9+9"], ",")
    assert len(good) == len(bad) == 2 and good.min() > 0.5 > bad[1]
    assert AGGREGATES["min"](bad) == bad[1] and AGGREGATES["product"](bad) == pytest.approx(bad[0] * bad[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__score__size": 1}, "model.score.size to their number, 2 or more"),
        ({"data__length": 8}, "tokens, and rows hold 8"),
        ({"data__split": "train"}, "a list of texts under `steps`"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(config(tmp_path, **changes), tmp_path / "run")


def test_the_hubs_process_reward_model(shared: Path) -> None:
    """Logits, loss, gradients and the probabilities of steps of transformers' Qwen2ForTokenClassification."""
    folder = shared / "tiny_hf" / "prm_qwen2"
    model, params = hf.load(folder)
    with np.load(folder / "golden.npz") as found:
        arrays = dict(found)
    ids, mask, labels = (jnp.asarray(arrays[key], jnp.int32) for key in ("ids", "mask", "labels"))

    def loss(params: Any) -> Any:
        logits = model.scores(params, model.apply(params, ids, segments=mask).hidden)
        total, count, _ = step_cross_entropy(logits, labels)
        return total / count, logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    real = arrays["mask"] > 0
    assert np.abs(np.asarray(logits) - arrays["logits"])[real].max() < 1e-4 * arrays["logits"][real].std()
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    for mine, theirs in ((grads["score"], "score.weight"), (grads["score_bias"], "score.bias")):
        wanted = arrays[f"grad:{theirs}"]
        assert np.abs(np.asarray(mine) - wanted).max() < 1e-4 * np.abs(wanted).max()
    chance = np.asarray(jax.nn.softmax(logits, -1))[..., 1]
    ends = np.asarray(labels) != IGNORED
    for name, wanted in (("min", "row_min"), ("product", "row_product"), ("last", "row_last"), ("mean", "row_mean")):
        rows = [AGGREGATES[name](row[end]) for row, end in zip(chance, ends, strict=True)]
        np.testing.assert_allclose(rows, arrays[wanted], rtol=1e-4)


def test_the_model_that_was_trained_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    run(config(tmp_path, steps=1), tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    hf.save(tmp_path / "hub", loaded.model, loaded.params)
    again, params = hf.load(tmp_path / "hub")
    assert again.config.score == loaded.model.config.score
    assert np.array_equal(params["score_bias"], loaded.params["score_bias"])
