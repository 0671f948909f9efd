"""A recurrent model learns to add in its head: SFT on bare answers, then GRPO at depths drawn sample by sample.

No demonstration shows a step: what is carried from column to column must be worked out in the core's iterations, so
accuracy grows with the iterations that the model is given when it answers.

Command:   python -m train --config=configs/pipelines/depth.py --workdir=runs/depth
Hardware:  two CPU cores, about 1 GB of memory
Time:      about 4 minutes on two idle cores
Expect:    accuracy after SFT .07 / .35 / .56 / .55 / .56 at 1 / 2 / 4 / 8 / 16 iterations (seed 0); GRPO doubles the
           sampled reward (.20 -> .41) and leaves the greedy accuracy where it was: docs/results.md. With
           `--config.stage.sft.steps=400` SFT alone reaches .95.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """One layer before, two again and again, one after; 1 + Poisson(7) iterations in training, 8 when asked."""
    config = common.base()
    config.name = "depth"
    config.model.update(d_model=96, n_layers=4, n_heads=4, d_ff=256, max_length=64, init_std=0.1, norm="sandwich")
    config.model.depth = "recurrent"
    config.model.recurrent.update(prelude=1, core=2, coda=1, mean=8, draw="poisson", grad_steps=4)
    config.data.update(task="addition", length=48, batch_size=64, pack=True)
    config.data.options = ConfigDict(dict(digits=3, direct_share=1.0))
    config.optimizer.update(lr=2e-3, warmup_steps=40, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=512, max_new_tokens=8, depths=(1, 2, 4, 8, 16))
    config.checkpoint.every = 1000
    config.stages = ("sft", "grpo")
    config.stage.sft = ConfigDict(dict(algorithm="sft", steps=320))
    config.stage.grpo = ConfigDict(
        dict(
            algorithm="grpo",
            steps=60,
            optimizer=dict(lr=2e-4, warmup_steps=3, schedule="linear", final_fraction=0.1),
            rl=dict(prompts=32, samples=8, max_new_tokens=8, depth="drawn", track_kl=True),
        )
    )
    return config
