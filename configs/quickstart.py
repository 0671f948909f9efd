"""A small model learns by itself that thinking pays: 3-digit addition, SFT then GRPO, on two CPU cores.

The demonstrations answer directly three times out of four and write the carries between thinking delimiters otherwise.
GRPO then rewards the exact answer alone: neither thinking nor length earns anything.

Command:   make quickstart    (python -m train --config=configs/quickstart.py --workdir=runs/quickstart)
Hardware:  two CPU cores, about 1 GB of memory
Time:      150 s after installation
Expect:    greedy accuracy about 3 % after SFT and 98 % after GRPO (94-100 over five seeds: docs/results.md),
           answers growing from 5 to 31 tokens
Sweep:     python -m launch.sweep --config=configs/quickstart.py --workdir=runs/quickstart_sweep
           rewards divided by their group's deviation (GRPO) or not (Dr. GRPO), three seeds: docs/quickstart_sweep/
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The recipe; `--config.stage.<name>.optimizer.lr` is the rate of a stage, `--config.optimizer.lr` that of both."""
    config = common.base()
    config.name = "quickstart"
    config.model.update(d_model=128, n_layers=4, n_heads=4, d_ff=384, max_length=128, init_std=0.088)
    config.data.update(task="addition", length=96, batch_size=32, pack=True)
    config.data.options = ConfigDict(dict(digits=3, direct_share=0.75))
    config.optimizer.update(lr=2e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    config.micro_batch = 32
    config.eval.update(examples=512, max_new_tokens=36)
    config.checkpoint.every = 20
    config.stages = ("sft", "grpo")
    config.stage.sft = ConfigDict(dict(algorithm="sft", steps=200))
    config.stage.grpo = ConfigDict(
        dict(
            algorithm="grpo",
            steps=75,
            optimizer=dict(lr=3e-4, warmup_steps=3, schedule="linear", final_fraction=0.1),
            rl=dict(prompts=32, samples=8, max_new_tokens=36, track_kl=True),
            eval=dict(every=15),
            checkpoint=dict(every=5),  # a step takes a second or two
        )
    )
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Two scales of the advantages, three seeds."""
    for scale in ("group", "none"):
        for seed in range(3):
            yield {"rl.scale": scale, "seed": seed}
