"""GSM8K end to end from a folder in the Hub's layout: a tokenizer trained beside the weights, SFT, then GRPO."""

import json
import shutil
from pathlib import Path

import pytest

from configs.grpo import gsm8k as grpo
from configs.sft import gsm8k as sft
from data.tasks import build_task
from data.tokenizers.tokenizer_json import train_bpe
from model import hf
from train.loop import run

ROWS = 24


@pytest.fixture(scope="module")
def hub_folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a tiny Qwen2 checkpoint with room for GSM8K's prompts and its own byte-level BPE."""
    folder = tmp_path_factory.mktemp("qwen2")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(shared / "tiny_hf" / "qwen2" / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    task = build_task("gsm8k", path=str(shared / "data" / "gsm8k"))
    train_bpe((task.prompt(e) + task.target(e) for e in task.examples("test")), folder, 384)
    return folder


@pytest.fixture(scope="module")
def few_rows(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the real files."""
    folder = tmp_path_factory.mktemp("gsm8k")
    for name in ("train.jsonl", "test.jsonl"):
        lines = (shared / "data" / "gsm8k" / name).read_text().splitlines()[:ROWS]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def small(config, data: Path, origin: Path):
    """The recipe at a size for a test: only amounts are changed."""
    config.data.path, config.init_from = str(data), str(origin)
    config.eval.update(examples=4, max_new_tokens=8, loss_batches=1)
    config.optimizer.warmup_steps = 1
    config.mesh.fsdp = 1  # one device: eight virtual ones on two cores would only wait for each other
    return config


@pytest.mark.more
def test_sft_then_grpo_from_a_hub_folder(hub_folder: Path, few_rows: Path, tmp_path: Path) -> None:
    first = small(sft.get_config(), few_rows, hub_folder)
    first.steps, first.data.batch_size, first.micro_batch = 3, 4, 2
    trained = run(first, tmp_path / "sft")
    before, after = [
        json.loads(line)["eval/answer_loss"]
        for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()
        if "eval/answer_loss" in line
    ]
    assert trained["status"] == "complete" and after < before

    second = small(grpo.get_config(), few_rows, tmp_path / "sft")
    second.steps, second.micro_batch = 1, 4
    second.rl.update(prompts=2, samples=4, max_new_tokens=8)
    assert run(second, tmp_path / "grpo")["status"] == "complete"
    row = json.loads((tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["ratio_deviation/max"] <= 8e-5  # this random checkpoint's logits have a standard deviation of 8
    assert row["kl"] == pytest.approx(0, abs=1e-6)


def test_a_trained_run_is_exported_to_the_hub_layout(hub_folder: Path, tmp_path: Path) -> None:
    model, params = hf.load(hub_folder)
    hf.save(tmp_path / "out", model, params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "qwen2"
