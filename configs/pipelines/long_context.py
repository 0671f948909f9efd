"""Context extension in stages, by YaRN on latent attention (DeepSeek-V3, 2412.19437, section 4.3).

The miniature goes 64 -> 256 -> 1,024 as DeepSeek-V3 went 4K -> 32K -> 128K: plain rope first, then twice the same YaRN
settings, those of the final length (factor 16 here, 40 there; alpha 1, beta 32, temperature 0.1 ln(factor) + 1), on the
decoupled rotary key alone. It learns to repeat a text (data/tasks/recall.py), where every answer symbol is found as far
back as the text is long: from position 256 on, at least 128 tokens.

Command:   python -m train --config=configs/pipelines/long_context.py --workdir=runs/long_context
Hardware:  two CPU cores
Time:      150 s (34 + 35 + 79)
Expect:    answer loss from position 64 on 11.8 -> 1.8 nats in the second stage, where YaRN is switched on; from 256 on
           6.8 -> 4.6 in the third, still falling (chance: 6.2). One seed; by position in docs/results.md.
Compare:   `:yarn=false` extends with plain rope. Losses by position at step 0 and at the end of each stage are
           `eval/answer_loss_from_<position>` in its metrics.jsonl.
Full size: `:full` holds DeepSeek-V3's own two phases, from a model trained at 4K that `--config.init_from` names; there
           give `--config.data` your own long documents.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`full`: 4K -> 32K -> 128K, from `init_from`; `yarn`: whether rope is interpolated in the later stages."""
    asked = common.parse_arg(arg, full=False, yarn=True)
    config = common.base()
    config.name = "long_context"
    config.algorithm = "sft"
    config.data.update(task="recall", pack=True)
    config.eval.update(examples=0, loss_batches=16, at_start=True, max_new_tokens=1)
    yarn = dict(kind="yarn", mscale=1.0, mscale_all_dim=1.0, beta_slow=1.0, beta_fast=32.0)
    if asked.full:
        return _full(config, yarn | dict(factor=40.0, original_length=4096) if asked.yarn else {})
    return _miniature(config, yarn | dict(factor=16.0, original_length=64) if asked.yarn else {})


def _miniature(config: ConfigDict, rope: dict[str, Any]) -> ConfigDict:
    config.model.update(d_model=64, n_layers=2, n_heads=2, d_ff=128, init_std=0.1, mixer="mla")
    config.model.mla.update(kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32)
    # A base as small as the context: of 1e4 nearly all pairs would stand still within 64 tokens.
    config.model.rope.update(theta=100.0, interleaved=True)
    config.optimizer.update(schedule="cosine", warmup_steps=20, final_fraction=0.1)
    config.eval.positions = (64, 256)
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    config.log.every = 10
    config.stages = ("at_64", "at_256", "at_1024")
    config.stage.at_64 = _stage(64, 16, 1500, 5e-3, {})
    config.stage.at_256 = _stage(256, 4, 1500, 2e-3, rope)
    config.stage.at_1024 = _stage(1024, 2, 800, 2e-3, rope)
    return config


def _full(config: ConfigDict, rope: dict[str, Any]) -> ConfigDict:
    config.model.remat = "full"
    config.micro_batch = 480
    config.optimizer.update(weight_decay=0.1)
    config.data.too_long = "truncate"
    config.eval.positions = (4096, 32_768)
    config.checkpoint.every = 200
    config.stages = ("at_32768", "at_131072")
    config.stage.at_32768 = _stage(32_768, 1920, 1000, 7.3e-6, rope)
    config.stage.at_131072 = _stage(131_072, 480, 1000, 7.3e-6, rope)
    return config


def _stage(length: int, rows: int, steps: int, lr: float, rope: dict[str, Any]) -> ConfigDict:
    """Rows of `length` tokens, filled with prompts and answers of equal length."""
    return ConfigDict(
        dict(
            steps=steps,
            model=dict(max_length=length, rope=rope),
            data=dict(length=length, batch_size=rows, options=dict(longest=length // 2 - 2)),
            optimizer=dict(lr=lr),
        )
    )
