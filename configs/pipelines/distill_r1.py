"""Distillation of R1 into small models (2501.12948, section 2.4): SFT on the traces of a teacher that learnt by RL,
beside reinforcement learning of the student itself, and beside on-policy distillation.

    teacher_start -> teacher -> traces
    student -> distilled (on the traces), own_rl, cold -> cold_rl, on_policy (the teacher as judge)

The student is four times narrower than the teacher. Its roads cost as many FLOPs, counted as 6 a parameter and token
learnt from and 2 a token sampled: 100 updates of own_rl, 15 of `cold` and 87 of cold_rl, 117 of `distilled` on rows of
64 tokens. `on_policy` learns from as many samples as `distilled`: that one from the teacher's, again and again, this
one from its own, each once.

Command:   python -m train --config=configs/pipelines/distill_r1.py --workdir=runs/distill_r1
           python -m launch.sweep --config=configs/pipelines/distill_r1.py --workdir=runs/distill_r1_seeds
           python -m analysis.studies.roads "runs/distill_r1_seeds/*"
           python -m train --config=configs/pipelines/distill_r1.py:hub --workdir=runs/distill_r1_hub \
               --config.init_from=/models/Qwen2.5-1.5B --config.data.path=/data/math   (not measured: docs/pods.md)
Hardware:  two CPU cores; of published models a slice (docs/pods.md)
Time:      five minutes
Expect:    docs/results.md, "Distillation"
Paper:     Qwen-32B on AIME 2024: 47.0 by RL alone, 72.6 by SFT on 800 k traces of R1; 1.5B 28.9, 7B 55.5, 14B 69.7
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.ablations.small import SEEDS
from configs.pipelines.shared import ANSWER_TOKENS, CLEAN, FORM, IN_DIGITS, hub, pretrained, rollouts, small, stage

KEPT = {"accuracy": 1.0, "script": {"least": 1.0, **IN_DIGITS}}
STUDENTS = ("student", "distilled", "own_rl", "cold", "cold_rl", "on_policy")
STUDENT = dict(d_model=32, n_layers=2, n_heads=2, d_ff=96)


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` a published model that learns from another (--config.stage.traces.from=...)."""
    return _hub() if common.parse_arg(arg, hub=False).hub else _small()


def _small() -> ConfigDict:
    config = small("distill_r1")
    rules = {"accuracy": 1.0, "format": FORM, "script": {"weight": 0.5, **IN_DIGITS}}
    config.model.update(d_model=128, n_layers=3, n_heads=4, d_ff=384, init_std=0.088)
    config.stages = ("teacher_start", "teacher", "traces", *STUDENTS)
    config.stage.teacher_start = pretrained(400)
    config.stage.teacher = rollouts(60, rules)
    config.stage.traces = stage(algorithm="sample", sample=dict(least=KEPT, keep="shortest", most=1, examples=1024))
    config.stage.student = stage(start="", algorithm="sft", steps=500, model=STUDENT, optimizer=dict(lr=5e-3))
    learnt = dict(data=dict(split="traces/kept.jsonl"), optimizer=dict(lr=2e-3), steps=117)
    config.stage.distilled = stage(start="student", algorithm="sft", model=STUDENT, **learnt)
    config.stage.own_rl = rollouts(100, rules, init_from="student", model=STUDENT)
    few = dict(options=dict(CLEAN, train_size=200))
    config.stage.cold = stage(
        start="student", algorithm="sft", steps=15, data=few, optimizer=dict(lr=2e-3), model=STUDENT
    )
    config.stage.cold_rl = rollouts(87, rules, init_from="cold", model=STUDENT)
    judged = dict(teacher="teacher", prompts=16, samples=8, max_new_tokens=ANSWER_TOKENS)
    judged |= dict(rewards={"accuracy": 0.0, "format": {**FORM, "weight": 0.0}})
    config.stage.on_policy = stage(
        start="student",
        algorithm="grpo",
        steps=58,
        model=STUDENT,
        optimizer=dict(lr=1e-3, warmup_steps=3, schedule="linear"),
        rl=judged,
    )
    return config


def _hub() -> ConfigDict:
    config = hub("distill_r1")
    config.stages = ("traces", "distilled")
    config.stage.traces = stage(start="DeepSeek-R1", algorithm="sample", sample=dict(least={"accuracy": 1.0}, most=4))
    # Two epochs of 800 k samples in batches of 64 (supplementary B.4.3).
    learnt = dict(data=dict(split="traces/kept.jsonl", batch_size=64), optimizer=dict(lr=1e-5, final_fraction=0.1))
    config.stage.distilled = stage(start="base", algorithm="sft", steps=25_000, **learnt)
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Three seeds."""
    for seed in SEEDS:
        yield {"seed": seed}
