"""Verifier-free against verifier-based, the trained arms: SFT on correct traces, and GRPO, from the same base models.

Each run has n = 8 x horizon traces of its own: "sft" imitates n correct ones of the scripted mixture, "grpo" is paid
for n rollouts of the model itself. Best-of-n under a verifier fitted to n rewarded rollouts needs no training:
analysis/studies/verifier_free.py samples it from the base models and puts all three beside what is exact.

Command:   (the base models: configs/sft/planted.py)
           python -m launch.sweep --config=configs/ablations/verifier_free.py --workdir=runs/verifier_free/arms
           python -m analysis.studies.verifier_free "runs/verifier_free/arms/*"
Hardware:  one CPU core, twelve seconds a run and 66 runs
Expect:    return of VB less that of VF at 8, 16, 32, 64 tokens: high -.1, 2.9, 8.4, 19.5; skewed 0 (docs/results.md)
Paper:     2502.12118: the gap between verifier-based and verifier-free grows with the horizon and the heterogeneity of
           the base, about as the square root of the horizon when n grows with it
Differs:   one task, four scripted mixtures; the verifier is linear, the ball around the base is best of 8
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import over_seeds

FOLDER = "runs/verifier_free"
HORIZONS = (8, 16, 32, 64)
BASES = ("point", "low", "high", "skewed")
EPOCHS, BATCH = 8, 32
SAMPLES = 8  # rollouts of a prompt under GRPO


def get_config() -> ConfigDict:
    """SFT on correct traces of the base "high"; the sweep sets bases, horizons and algorithms."""
    config = common.base()
    config.name = "verifier_free"
    config.init_from = f"{FOLDER}/high"
    config.data.update(task="planted", length=70, batch_size=BATCH)
    config.data.options = ConfigDict(dict(base="high", horizon=64, correct=True, train_size=512, seed=0))
    config.optimizer.update(lr=1e-3, warmup_steps=2)
    config.rl.update(prompts=8, samples=SAMPLES, max_new_tokens=64)
    config.eval.update(examples=1000, max_new_tokens=64, temperature=1.0)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    return config


def arm(base: str, horizon: int, algorithm: str, traces: int) -> dict[str, Any]:
    """One run: so many traces, read EPOCHS times by SFT, or each sampled once by GRPO."""
    sft = algorithm == "sft"
    return {
        "name": f"{base}-{horizon}-{traces}-{algorithm}",
        "algorithm": algorithm,
        "steps": EPOCHS * traces // BATCH if sft else traces // (8 * SAMPLES),
        "init_from": f"{FOLDER}/{base}",
        "optimizer.schedule": "cosine" if sft else "constant",
        "optimizer.warmup_steps": 2 if sft else 0,  # GRPO has one update at the shortest horizon
        "data.options.base": base,
        "data.options.horizon": horizon,
        "data.options.train_size": traces if sft else traces // SAMPLES,
        "data.length": horizon + 6,
        "rl.max_new_tokens": horizon,
        "eval.max_new_tokens": horizon,
    }


def settings() -> Iterator[dict[str, Any]]:
    """SFT for every base and horizon; GRPO for the base "high", and there at 32 tokens fewer and more traces."""
    for base in BASES:
        for horizon in HORIZONS:
            yield arm(base, horizon, "sft", 8 * horizon)
    for horizon in HORIZONS:
        yield arm("high", horizon, "grpo", 8 * horizon)
    for traces in (64, 1024):
        yield arm("high", 32, "sft", traces)


def sweep() -> Iterator[dict[str, Any]]:
    """All arms with three seeds, of the traces as of the training."""
    for settings_of_run in over_seeds(settings()):
        yield settings_of_run | {"data.options.seed": settings_of_run["seed"]}
