"""DeepSeek-V3's procedure in miniature (2412.19437): pretraining with filled-in middles, two extensions of the context
by YaRN, SFT, GRPO.

Latent attention, a mixture of experts balanced by bias, one module of multi-token prediction. The documents are
generated: sums with their columns (what SFT and GRPO are about) and texts that are repeated (what a longer context is
good for).

Command:   python -m train --config=configs/pipelines/deepseek_v3.py --workdir=runs/deepseek_v3_miniature
Hardware:  two CPU cores
Time:      10 minutes on one core beside other work
Expect:    loss of sums .74, .62, .57 nats in the three contexts; accuracy 58 % after SFT, 87 % after GRPO (one seed;
           repeated texts are not learnt in so few steps: docs/results.md)
Paper:     2412.19437, sections 4 and 5: FIM at .1, 4K -> 32K -> 128K, SFT on 1.5M instances, GRPO
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Five stages: contexts of 64, 256 and 1,024 tokens, then sums by SFT and GRPO."""
    config = common.base()
    config.name = "deepseek_v3_miniature"
    config.model.update(d_model=64, n_layers=3, n_heads=2, d_ff=128, init_std=0.1, mixer="mla")
    config.model.ffn = "moe"
    config.model.moe.update(n_experts=8, n_shared=1, top_k=2, d_expert=64, score="sigmoid", bias_rate=0.01)
    config.model.mla.update(kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32)
    config.model.rope.update(theta=100.0, interleaved=True)
    config.model.mtp.depth = 1
    config.optimizer.update(schedule="cosine", warmup_steps=20, final_fraction=0.1)
    config.corpus.fim = 0.1
    config.data.update(task="addition", options=ConfigDict(dict(digits=2, direct_share=0.5)))
    config.eval.max_new_tokens = 24
    config.checkpoint.update(every=0, keep_last=1, keep_best=0)
    yarn = dict(kind="yarn", mscale=1.0, mscale_all_dim=1.0, beta_slow=1.0, beta_fast=32.0, factor=16.0)
    yarn |= dict(original_length=64)
    config.stages = ("at_64", "at_256", "at_1024", "sft", "grpo")
    config.stage.at_64 = _pretraining(64, 32, 600, 5e-3, {})
    config.stage.at_256 = _pretraining(256, 8, 300, 2e-3, yarn)
    config.stage.at_1024 = _pretraining(1024, 2, 150, 2e-3, yarn)
    answers = dict(max_length=1024, rope=yarn)
    config.stage.sft = ConfigDict(
        dict(
            algorithm="sft",
            steps=150,
            model=answers,
            data=dict(length=64, batch_size=32, pack=True),
            optimizer=dict(lr=2e-3),
            eval=dict(examples=256),
        )
    )
    config.stage.grpo = ConfigDict(
        dict(
            algorithm="grpo",
            steps=40,
            model=answers,
            optimizer=dict(lr=3e-4, warmup_steps=3, schedule="linear"),
            rl=dict(prompts=16, samples=8, max_new_tokens=24),
            eval=dict(examples=256),
        )
    )
    return config


def _pretraining(length: int, rows: int, steps: int, lr: float, rope: dict[str, Any]) -> ConfigDict:
    """A stage of documents up to `length` tokens."""
    sources = dict(
        sums=dict(task="addition", options=dict(digits=2, direct_share=0.5), weight=0.5),
        repeated=dict(task="recall", options=dict(longest=length // 2 - 2), weight=0.5),
    )
    return ConfigDict(
        dict(
            algorithm="pretrain",
            steps=steps,
            model=dict(max_length=length, rope=rope),
            corpus=dict(sources=sources),
            data=dict(length=length, batch_size=rows),
            optimizer=dict(lr=lr),
            eval=dict(examples=0, loss_batches=8),
        )
    )
