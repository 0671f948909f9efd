"""Sky-T1 (NovaSky, 2025): SFT on samples of a reasoning model that reach the right answer, then, as in Sky-T1-Flash, a
preference for the shorter of two right thoughts.

    teacher -> traces -> sft -> samples -> pairs (shortest against longest right one) -> flash

In the miniature the teacher checks every second sum again, which costs tokens and changes nothing.

Command:   python -m train --config=configs/pipelines/sky_t1.py --workdir=runs/sky_t1
           python -m train --config=configs/pipelines/sky_t1.py:hub --workdir=runs/sky_t1_hub \
               --config.init_from=/models/Qwen2.5-32B-Instruct --config.data.path=/data/math   (not measured)
Hardware:  two CPU cores; of published models a slice (docs/pods.md)
Time:      three minutes
Expect:    docs/results.md, "Recipes": fewer tokens after `flash` at the same accuracy
Paper:     17 k traces of QwQ, three epochs at 1e-5 in batches of 96: MATH500 86.4, AIME 2024 43.3; Flash takes 8
           samples at T = 1 and pairs the shortest with the longest right one
"""

from ml_collections import ConfigDict

from configs import common
from configs.pipelines.shared import hub, small, stage

SAMPLES = dict(algorithm="sample", sample=dict(n=8, least={"accuracy": 1.0}))
SIMPO = dict(reference=False, average=True, beta=2.0, margin=0.5)
PAIRS = dict(algorithm="pairs", data=dict(split="samples/kept.jsonl"), pairs=dict(by="length"))


def get_config(arg: str | None = None) -> ConfigDict:
    """The miniature, or with `hub` the published hyper-parameters on a model in the Hub's layout."""
    if common.parse_arg(arg, hub=False).hub:
        config = hub("sky_t1", 16384)
        config.stages = ("traces", "sft", "samples", "pairs", "flash")
        config.stage.traces = stage(start="QwQ-32B-Preview", algorithm="sample", sample=dict(n=1, examples=17_000))
        learnt = dict(split="traces/kept.jsonl", batch_size=96)
        config.stage.sft = stage(start="base", algorithm="sft", steps=530, data=learnt, optimizer=dict(lr=1e-5))
        config.stage.samples, config.stage.pairs = ConfigDict(SAMPLES), ConfigDict(PAIRS)
        flash = dict(split="pairs/pairs.jsonl", batch_size=96)
        config.stage.flash = stage(
            algorithm="preference", steps=100, data=flash, optimizer=dict(lr=5e-7), preference=SIMPO
        )
        return config
    config = small("sky_t1")
    config.stages = ("teacher", "traces", "sft", "samples", "pairs", "flash")
    config.data.options = ConfigDict(dict(digits=2, direct_share=0.0, long_share=0.5))
    config.data.length = config.model.max_length = 96
    config.eval.max_new_tokens = config.sample.max_new_tokens = 72
    config.stage.teacher = stage(algorithm="sft", steps=500)
    config.stage.traces = stage(algorithm="sample", sample=dict(most=1, keep="random", examples=1024))
    learnt = dict(algorithm="sft", steps=500, data=dict(split="traces/kept.jsonl"))
    config.stage.sft = stage(start="", **learnt)
    config.stage.samples, config.stage.pairs = ConfigDict(SAMPLES), ConfigDict(PAIRS)
    config.stage.flash = stage(
        start="sft",
        algorithm="preference",
        steps=40,
        data=dict(split="pairs/pairs.jsonl", batch_size=32),
        preference=dict(prompt_length=16, **SIMPO),
        optimizer=dict(lr=2e-5),
    )
    return config
