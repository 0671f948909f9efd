r"""Sums of decimals with a boxed answer, for the task `math`: a small model that is judged in other processes.

The sums and demonstrations of configs/sft/dynamic_sampling.py, in tenths: `12.3+45.6=` and, in three of ten, their
columns before `\boxed{57.9}`. `data.path` is a folder that this writes:

    python - runs/rollout_overlap/sums <<'END'
    import json, pathlib, sys
    from data.tasks.addition import Addition
    task, folder = Addition(digits=1, max_digits=4, direct_share=0.7), pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True)
    for split, size in (("train", 20000), ("test", 500)):
        with open(folder / f"{split}.jsonl", "w") as file:
            for row in (task.examples(split)[n] for n in range(size)):
                a, b, thought = row["a"], row["b"], task.target(row).rpartition("</think>")[0]
                shown = f"{thought}</think>" if row["think"] else ""
                answer = f"{(a + b) / 10:.1f}"
                row = {"problem": f"{a / 10}+{b / 10}=", "answer": answer, "solution": f"{shown}\\boxed{{{answer}}}"}
                print(json.dumps(row), file=file)
    END

Command:   python -m train --config=configs/sft/boxed_sums.py --workdir=runs/rollout_overlap/boxed
Hardware:  one CPU core
"""

from ml_collections import ConfigDict

from configs.sft import dynamic_sampling

FOLDER = "runs/rollout_overlap/sums"


def get_config() -> ConfigDict:
    """The same model and steps as for whole numbers."""
    config = dynamic_sampling.get_config()
    config.name = "boxed_sums"
    config.tokenizer.kind = "byte"  # the task has no alphabet of its own
    config.data.update(task="math", path=FOLDER)
    config.data.options = ConfigDict(dict(suffix=""))
    config.eval.by = ""
    return config
