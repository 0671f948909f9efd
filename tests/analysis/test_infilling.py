"""The study of filling in the middle: what is cut, what is asked, what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.studies import infilling
from configs.ablations.fim import get_config, sweep
from data.sources.fim import OWN
from data.tokenizers.characters import CharTokenizer
from infer.load import Loaded
from tests.trunk import tiny
from train.loop import run

TOKENIZER = CharTokenizer("abcdefgh", specials=OWN)


def test_middles_are_short_and_have_a_suffix() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        prefix, middle, suffix = infilling.short_cut("abcdefgh" * 3, rng)
        assert prefix + middle + suffix == "abcdefgh" * 3 and 1 <= len(middle) <= infilling.LONGEST and suffix


def test_what_is_asked_in_each_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(infilling, "generate", lambda *args, **kwargs: asked.append(args[2]) or stop())
    loaded = Loaded(tiny(), None, TOKENIZER, {})
    parts = [("ab", "c", "d"), ("e", "f", "gh")]
    for order, wanted in (
        ("PSM", ["Pab|Sd|M", "Pe|Sgh|M"]),
        ("SPM", ["P|Sd|Mab", "P|Sgh|Me"]),
        ("PSM, another's suffix", ["Pab|Sgh|M", "Pe|Sd|M"]),
    ):
        with pytest.raises(StopIteration):
            infilling.filled_in(loaded, parts, order)
        texts = [TOKENIZER.decode(prompt) for prompt in asked.pop()]
        marked = [text.replace(OWN[0], "P").replace(OWN[1], "|S").replace(OWN[2], "|M") for text in texts]
        assert marked == wanted


def stop() -> None:
    raise StopIteration


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = get_config()
    config.update_from_flattened_dict(
        {"steps": 2, "optimizer.warmup_steps": 0, "model.n_layers": 1, "model.d_model": 16, "model.d_ff": 16}
    )
    config.data.batch_size, config.eval.loss_batches = 8, 1
    run(config, tmp_path / "a")
    assert infilling.main([str(tmp_path / "*"), "--examples=4"]) == 0
    assert "| 0.5 | 1 | " in capsys.readouterr().out and (tmp_path / "infilling.png").is_file()
    (row,) = json.loads((tmp_path / "infilling.json").read_text())
    assert row["rate"] == 0.5 and row["loss"] > 1 and row["PSM"] == row["SPM"] == 0
    assert len(list(sweep())) == 12
    assert infilling.main([str(tmp_path / "none")]) == 2
