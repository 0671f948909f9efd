"""What the recipes of pods share."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.models import get_preset


def recipe(name: str, preset: str, rows: int, length: int, mesh: dict[str, int], **model: Any) -> ConfigDict:
    """A preset trained on `rows` packed rows of `length` tokens a step, its like layers one loop, recomputed."""
    config = common.base()
    config.name = name
    config.algorithm = "sft"
    config.steps = 10_000
    config.model.update(get_preset(preset))
    config.model.update(dict(layers="scanned", remat="full") | model)
    config.tokenizer.update(kind="hf", path=f"/models/{preset}")
    config.data.update(task="gsm8k", path="/data/gsm8k", template="question", too_long="truncate")
    config.data.update(batch_size=rows, length=length, pack=True, loss_on="all")
    config.data.options = ConfigDict(dict(source="jsonl", keep_calculator=False))
    config.optimizer.update(lr=3e-4, schedule="cosine", warmup_steps=500, final_fraction=0.1, weight_decay=0.1)
    config.mesh.update(dict(data=1, fsdp=1, expert=1, tensor=1, context=1) | mesh)
    config.eval.update(examples=rows, slots=rows, max_new_tokens=1024, loss_batches=1)
    config.checkpoint.every = 500
    return config
