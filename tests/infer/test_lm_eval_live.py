"""Runs of lm-evaluation-harness by our model and by its own transformers backend, on rows of GSM8K: the same results.

Other rows are drawn every time.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from infer import lm_eval
from infer.harness import Options
from tests.data.toy_tokenizers import write_json

for package in ("torch", "transformers", "accelerate", "lm_eval"):
    pytest.importorskip(
        package, reason=f"{package} is not installed: pip install -c constraints.txt -e '.[eval,parity]'"
    )

pytestmark = pytest.mark.more

FAMILIES = ("qwen2", "llama3", "gpt2")
SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
TEMPLATE = """{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
SHARED = """
test_split: test
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
"""
TASKS = {
    "choice": """
task: rows_choice
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "generate": """
task: rows_generate
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: answer
generation_kwargs: {until: ["e", "Question:"], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "rolling": """
task: rows_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
""",
}


class Local(NamedTuple):
    """A checkpoint with a tokenizer, and a folder of tasks."""

    model: Path
    tasks: Path


def local(shared: Path, folder: Path, family: str, seed: int, count: int = 24) -> Local:
    """A small checkpoint of a family, with a tokenizer of its size, and tasks of rows of GSM8K drawn by a seed."""
    lines = (shared / "data" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    model, tasks = folder / "model", folder / "tasks"
    model.mkdir(), tasks.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to((shared / "tiny_hf" / family / name).resolve())
    library = tokenizer_of([row["question"] for row in rows], bos=family == "llama3")
    library.save(str(model / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **SPECIALS}
    write_json(model, "tokenizer_config.json", settings)
    draw = random.Random(seed)
    short = [row for row in rows if len(row["question"]) < 140]
    path = tasks / "rows.jsonl"
    chosen = [example(row, rows, draw) for row in draw.sample(short, count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    for name, text in TASKS.items():
        shared_part = SHARED.format(rows=path, cache=folder / "cache")
        (tasks / f"{name}.yaml").write_text(text + shared_part, encoding="utf-8")
    return Local(model, tasks)


def tokenizer_of(texts: list[str], bos: bool) -> tokenizers.Tokenizer:
    """A byte-level BPE of 384 ids; `bos` in front of every text."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=list(SPECIALS.values()), initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    if bos:
        library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return library


def example(row: dict[str, Any], rows: list[dict[str, Any]], draw: random.Random) -> dict[str, Any]:
    """A row with its answer among three of others, and the whole text, several rows long."""
    final = lambda row: row["answer"].rpartition("#### ")[2]  # noqa: E731
    others = sorted({final(other) for other in draw.sample(rows, 12)} - {final(row)})[:3]
    choices = draw.sample([final(row), *others], 4)
    texts = [f"{part['question']}\n{part['answer']}" for part in (row, *draw.sample(rows, 3))]
    return {
        "question": row["question"],
        "choices": choices,
        "gold": choices.index(final(row)),
        "answer": final(row),
        "text": "\n\n".join(texts),
    }


def both(place: Local, **asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What our model and the harness's transformers backend make of all tasks."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    tasks, include = [f"rows_{name}" for name in TASKS], str(place.tasks)
    asked = {"bootstrap_iters": 0, **asked}
    ours = lm_eval.measured(Options(str(place.model), truncate=True), tasks, include, **asked)
    # Asked by the folder, transformers would put the pre-tokenizer of the family's published models in place of ours.
    file = str(place.model / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, chat_template=TEMPLATE, **SPECIALS)
    model = str(place.model)
    reference = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=8)
    manager = TaskManager(include_path=include)
    theirs = simple_evaluate(model=reference, tasks=tasks, task_manager=manager, **asked)
    return ours, theirs


def answered(results: dict[str, Any], task: str) -> list[Any]:
    """All responses of a task, in the order of its examples."""
    return [response for sample in results["samples"][task] for [response] in sample["resps"]]


@pytest.mark.filterwarnings("ignore:.*their contexts lose")
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_those_of_the_transformers_backend(
    family: str, shared: Path, tmp_path: Path, parity_seed: int
) -> None:
    ours, theirs = both(local(shared, tmp_path, family, parity_seed))
    for task, metrics in theirs["results"].items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        for name, value in numbers.items():
            assert ours["results"][task][name] == pytest.approx(value, rel=1e-5), f"{task} {name}"
    found, wanted = (np.array(answered(results, "rows_choice")) for results in (ours, theirs))
    # These random models spread their logits over tens of nats: a few units in the last place of a log-likelihood.
    np.testing.assert_allclose(found[:, 0], wanted[:, 0], rtol=1e-6, atol=5e-5)
    np.testing.assert_array_equal(found[:, 1], wanted[:, 1])
    assert np.abs(found[:, 0] - np.roll(wanted[:, 0], 1)).max() > 1e-2, "requests differ by more than the tolerance"
    found, wanted = (np.array(answered(results, "rows_rolling")) for results in (ours, theirs))
    np.testing.assert_allclose(found, wanted, rtol=3e-7)  # the harness adds a window's tokens in single precision
    said = list(zip(answered(ours, "rows_generate"), answered(theirs, "rows_generate"), strict=True))
    # A tie of two tokens to six digits may be decided either way.
    assert sum(a != b for a, b in said) <= 1, said
    assert len({a for a, _ in said}) > 1 and any("e" not in a for a, _ in said)


def test_conversations_are_those_of_the_transformers_backend(shared: Path, tmp_path: Path, parity_seed: int) -> None:
    place = local(shared, tmp_path, "qwen2", parity_seed, count=4)
    ours, theirs = both(place, apply_chat_template=True, system_instruction="Be brief.", gen_kwargs={"max_gen_toks": 8})
    for task in ("rows_choice", "rows_generate"):
        asked = [[sample["arguments"] for sample in results["samples"][task]] for results in (ours, theirs)]
        assert asked[0] == asked[1] and asked[0][0][0][0].startswith("<system>Be brief.\n<user>Question: ")
    found, wanted = (np.array(answered(results, "rows_choice"))[:, 0] for results in (ours, theirs))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=5e-5)


def test_the_command_and_the_harness_own_command(
    shared: Path, tmp_path: Path, parity_seed: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, output = local(shared, tmp_path, "llama3", parity_seed, count=4), tmp_path / "results.json"
    common = ["--tasks=rows_choice", f"--include_path={place.tasks}"]
    assert lm_eval.main([f"--run={place.model}", *common, f"--output={output}", "--log_samples"]) == 0
    assert "rows_choice" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert found["config"]["run"] == str(place.model) and len(found["samples"]["rows_choice"]) == 4
    monkeypatch.setattr("sys.argv", ["lm_eval"])
    words = ["run", "--model=sagax", f"--model_args=run={place.model}", "--batch_size=2", *common]
    assert lm_eval.main(["--harness", *words]) == 0
    accuracy = f"{found['results']['rows_choice']['acc,none']:.4f}".rstrip("0")
    assert accuracy in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    (["--run=runs/none", "--tasks=rows_choice"], "there is no folder"),
    (["--run={model}", "--tasks=rows_choise"], "unknown task 'rows_choise'. Did you mean 'rows_choice'"),
    (["--run={model}", "--tasks=rows_generate", "--max_length=40"], "requests do not fit the context of 40 tokens"),
    (["--run={model}", "--tasks=rows_generate", "--gen_kwargs=num_beams=2"], "unknown generation argument 'num_beams'"),
])  # fmt: skip
def test_wrong_use_is_told(
    words: list[str], message: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = local(shared, tmp_path, "qwen2", 0, count=2)
    words = [word.format(model=place.model) for word in words]
    assert lm_eval.main([*words, f"--include_path={place.tasks}"]) == 2
    assert message in capsys.readouterr().err
