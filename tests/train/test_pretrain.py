"""Pretraining on a mixture: it learns, reports each source, resumes bit for bit, and refuses what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from configs.pretrain import deepseek_v3, llama31_8b
from infer.load import load_run
from train.loop import by_hand, run
from train.pipeline import runs_of
from train.settings import override

pytestmark = pytest.mark.usefixtures("one_device")

STEPS = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, one of which is all alike."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = {"sums": [f"{n}+{n}={2 * n}" for n in range(60)], "same": ["abcabcabcabc"] * 30}
    for name, rows in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return folder


def config_of(corpus: Path, **changes: Any) -> ConfigDict:
    config = common.base()
    config.algorithm, config.steps = "pretrain", STEPS
    config.corpus.sources = ConfigDict({name: {"path": str(corpus / f"{name}.jsonl")} for name in ("sums", "same")})
    config.model.update(d_model=16, n_layers=1, n_heads=2, d_ff=32, max_length=32)
    config.data.update(length=32, batch_size=8, prefetch=0)
    config.optimizer.update(lr=1e-2)
    config.eval.update(examples=0, loss_batches=1)
    config.checkpoint.update(every=0, keep_best=0)
    config.update_from_flattened_dict(changes)
    return config


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_source_has_its_loss_and_its_bits(corpus: Path, tmp_path: Path) -> None:
    result = run(config_of(corpus, **{"eval.at_start": True, "corpus.fim": 0.2}), tmp_path / "a")
    before, after = (r for r in records(tmp_path / "a") if "eval/loss/sums" in r)
    assert result["status"] == "complete"
    for name in ("sums", "same"):
        assert after[f"eval/loss/{name}"] < before[f"eval/loss/{name}"]
    assert after["eval/loss/same"] < 0.9 * after["eval/loss/sums"], "each has its own"
    # One byte a character: bits per byte are those of a token, but for the end tokens, which have no bytes.
    loaded = load_run(tmp_path / "a")
    assert loaded.tokenizer.encode("<|fim_prefix|>") and loaded.tokenizer.vocab_size < 60
    ratio = after["eval/bits_per_byte/same"] / (after["eval/loss/same"] / np.log(2))
    assert 1.0 < ratio < 1.2
    last = [r for r in records(tmp_path / "a") if "tokens/sums" in r][-1]
    assert last["tokens/sums"] + last["tokens/same"] == STEPS * 8 * 32
    assert abs(last["tokens/sums"] - last["tokens/same"]) < 60


def test_a_run_goes_on_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    run(config_of(corpus), tmp_path / "whole")
    with by_hand(config_of(corpus), tmp_path / "cut") as trainer:
        for _ in range(3):
            trainer.step()
    run(config_of(corpus), tmp_path / "cut")
    first, second = (load_run(tmp_path / name).params for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_what_cannot_be_read_is_refused_before_a_step(corpus: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"corpus.sources": ConfigDict()}, "needs documents"),
        ({"corpus.sources.sums.path": str(corpus / "missing")}, "no corpus at"),
        ({"corpus.sources.sums.field": "body"}, "no text under 'body'"),
        ({"corpus.packing": "first_fit", "data.length": 8}, "the rows hold 8"),
        ({"corpus.split_fused": 0.1}, "no token of punctuation"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            run(config_of(corpus, **changes), tmp_path / "bad")
        assert not (tmp_path / "bad" / "config.json").exists()


def test_sources_are_set_by_name_also_in_a_stage() -> None:
    config = common.base()
    config.stages = ("one", "two")
    config.stage.one = ConfigDict({"algorithm": "pretrain"})
    config.stage.two = ConfigDict({"algorithm": "sft"})
    settings = {
        "stage.one.corpus.sources.sums.task": "addition",
        "stage.one.corpus.sources.sums.options.digits": "2",
        "stage.one.corpus.sources.books.path": "/data/books",
        "stage.one.corpus.sources.books.weight": "3",
    }
    changed, _ = override(config, settings)
    first, second = runs_of(changed)
    assert first.corpus.sources.to_dict() == {
        "sums": {"task": "addition", "options": {"digits": 2}},
        "books": {"path": "/data/books", "weight": 3.0},
    }
    assert not second.corpus.sources
    for name, words in (
        ("corpus.sources.sums.weigth", "Did you mean 'weight'"),
        ("corpus.sources.sums.path.more", "unknown setting of corpus.sources.sums"),
        ("corpus.sorces", "Did you mean 'corpus.sources'"),
    ):
        with pytest.raises(ValueError, match=words):
            override(config, {name: "1"})


def test_recipes_of_pods_read_a_mixture() -> None:
    for recipe in (deepseek_v3, llama31_8b):
        config = recipe.get_config()
        weights = [values.weight for values in config.corpus.sources.values()]
        assert config.algorithm == "pretrain" and sum(weights) == pytest.approx(1) and len(weights) == 3
    assert deepseek_v3.get_config().corpus.fim == 0.1
