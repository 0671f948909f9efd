"""What the recipes of pods share."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.models import get_preset

MIXTURE = {"web": 0.7, "code": 0.2, "mathematics": 0.1}  # shares of the tokens


def source(preset: str, kind: str, weight: float) -> dict[str, Any]:
    """Documents of a kind, as `python -m data.prepare /data/<kind> --tokenizer=/models/<preset>` leaves them."""
    return {"path": f"/data/{preset}/{kind}", "weight": weight}


def recipe(name: str, preset: str, rows: int, length: int, mesh: dict[str, int], **model: Any) -> ConfigDict:
    """A preset trained on `rows` packed rows of `length` tokens a step, its like layers one loop, recomputed."""
    config = common.base()
    config.name = name
    config.algorithm = "pretrain"
    config.steps = 10_000
    config.model.update(get_preset(preset))
    config.model.update(dict(layers="scanned", remat="full") | model)
    config.tokenizer.update(kind="hf", path=f"/models/{preset}")
    config.data.update(batch_size=rows, length=length)
    config.corpus.sources = ConfigDict({kind: source(preset, kind, weight) for kind, weight in MIXTURE.items()})
    config.optimizer.update(lr=3e-4, schedule="cosine", warmup_steps=500, final_fraction=0.1, weight_decay=0.1)
    config.mesh.update(dict(data=1, fsdp=1, expert=1, tensor=1, context=1) | mesh)
    # Besides the loss of every source: sums, for which no data are needed.
    config.eval.update(examples=rows, slots=rows, max_new_tokens=1024, loss_batches=1)
    config.checkpoint.every = 500
    return config
