"""What the pipelines share: a small model on sums of two alphabets, and the settings of a published model's size."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import common

# Columns of a sum are written in digits or letters, and half of the thoughts have no delimiters: a base model that
# knows how to add, and neither which alphabet nor which form is wanted.
MESSY = dict(digits=2, direct_share=0.5, foreign_share=0.5, untagged_share=0.5)
CLEAN = dict(digits=2, direct_share=0.0)
IN_DIGITS = dict(target="0123456789", foreign="abcdefghij")
FORM = dict(weight=0.25, answer_open="", answer_close="")
ANSWER_TOKENS = 40


def small(name: str) -> ConfigDict:
    """Three layers of width 64 on sums of two numbers of two digits."""
    config = common.base()
    config.name = name
    config.model.update(d_model=64, n_layers=3, n_heads=4, d_ff=192, max_length=96, init_std=0.1)
    config.data.update(task="traced_addition", length=64, batch_size=64, options=ConfigDict(MESSY))
    config.optimizer.update(lr=3e-3, warmup_steps=10, schedule="cosine", final_fraction=0.1)
    config.eval.update(examples=256, max_new_tokens=ANSWER_TOKENS)
    config.sample.update(n=4, max_new_tokens=ANSWER_TOKENS, examples=512)
    config.checkpoint.update(every=20, keep_last=1, keep_best=0)
    return config


def hub(name: str, tokens: int = 32768) -> ConfigDict:
    """A published model (`--config.init_from=<folder>`) on mathematics (`--config.data.path=<folder>`)."""
    config = common.base()
    config.name = name
    config.model.update(remat="full", max_length=tokens)
    config.data.update(task="math", template="chat", length=tokens, batch_size=32, too_long="drop", pack=True)
    config.optimizer.update(lr=1e-5, warmup_steps=30, schedule="cosine", b2=0.95)
    config.micro_batch = 8
    config.eval.update(examples=500, max_new_tokens=tokens // 2, slots=128, temperature=0.6)
    config.sample.update(n=4, max_new_tokens=tokens // 2, slots=256, chunk=512)
    config.checkpoint.update(every=50, keep_last=2, keep_best=1)
    return config


def stage(**settings: Any) -> ConfigDict:
    """What a stage changes; `start` is its `from`."""
    if "start" in settings:
        settings["init_from"] = settings.pop("start")
    return ConfigDict(settings)


def pretrained(steps: int = 500) -> ConfigDict:
    """The miniature's base: a model of messy demonstrations."""
    return stage(algorithm="sft", steps=steps)


def rollouts(steps: int, rewards: dict[str, Any], **more: Any) -> ConfigDict:
    """A stage of GRPO with these rewards, on the miniature's sums."""
    rl = dict(prompts=16, samples=8, max_new_tokens=ANSWER_TOKENS, rewards=rewards)
    optimizer = dict(lr=2e-4, warmup_steps=3, schedule="linear")
    return stage(algorithm="grpo", steps=steps, optimizer=optimizer, rl=rl, **more)


def r1_rollouts(steps: int, rewards: dict[str, Any], temperature: float = 1.0, **more: Any) -> ConfigDict:
    """R1's hyper-parameters (2501.12948, supplementary B.3): 32 questions x 16 samples an update, 16 updates a rollout,
    rates of 3e-6, clip at 10, a KL of .001 to a reference that follows every 400 updates.
    """
    rl = dict(
        prompts=512,
        samples=16,
        minibatches=16,
        temperature=temperature,
        max_new_tokens=16384,
        slots=512,
        clip_low=0.99,
        clip_high=9.0,
        beta=0.001,
        sync_every=400,
        rewards=rewards,
    )
    return stage(algorithm="grpo", steps=steps, optimizer=dict(lr=3e-6, schedule="constant"), rl=rl, **more)
