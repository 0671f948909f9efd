"""Wrong use of the command lines: exit code 2 and one paragraph; a fault is exit code 1; nothing on disk is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import infer.__main__
import train.__main__
from data.tokenizers.characters import ByteTokenizer
from infer.load import checkpoint_steps
from tests.tiny_config import get_config
from train.cli import parse
from train.loop import run

TINY = "--config=tests/tiny_config.py:sft"
STAGES = "--config=tests/tiny_config.py:stages"
GSM8K = ["--config=configs/sft/gsm8k.py:scratch", "--config.tokenizer.vocab_size=0", "--config.tokenizer.kind=byte"]
ROW = json.dumps({"question": "1+1?", "answer": "#### 2"})


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the eight devices, and the repository as the current folder."""
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.delenv("SAGAX_TRACEBACK", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda *_: 1)
        run(get_config("sft"), folder)
    return folder


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def paragraph(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says, which must be one paragraph."""
    text = capsys.readouterr().err
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


def refused(main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The paragraph of a command that must end with exit code 2."""
    assert main(arguments) == 2
    return paragraph(capsys)


def training(workdir: Path, *flags: str) -> list[str]:
    """The arguments of `python -m train`."""
    return ["train", *flags, f"--workdir={workdir}"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([TINY, "--config.optimizer.lrr=1"], "Did you mean 'optimizer.lr'"),
        ([TINY, "--config.steps=many"], "steps"),
        ([TINY, "--config.optimizer.lr=fast"], "lr"),
        ([TINY, "--config.model.qk_norm=perhaps"], "qk_norm"),
        ([TINY, "--stepz=3"], "stepz"),
        ([TINY, "steps=3"], "unexpected argument 'steps=3'"),
        (["--config=configs/quickstrat.py"], "no config file at configs/quickstrat.py"),
        (["--config=tests/tiny_config.py:dpo"], "dpo"),
        ([], "--config and --workdir are needed"),
        ([TINY, "--config.algorithm=grop"], "Did you mean 'grpo'"),
        ([TINY, "--config.data.task=additoin"], "Did you mean 'addition'"),
        ([TINY, "--config.data.options.digits=99"], "1..40"),
        ([TINY, "--config.data.split=trian"], "trian"),
        ([TINY, "--config.optimizer.name=adam"], "Did you mean 'adamw'"),
        (
            [TINY, "--config.optimizer.warmup_steps=50"],
            "a shorter run needs a shorter warm-up: --config.optimizer.warmup_steps=0",
        ),
        ([TINY, "--config.model.n_heads=5"], "d_model=32"),
        ([TINY, "--config.model.mixer=gqq"], "Did you mean 'gqa'"),
        ([TINY, "--config.tokenizer.kind=wordpiece"], "wordpiece"),
        ([TINY, "--config.tokenizer.kind=byte", "--config.model.vocab_size=20"], "the model's vocabulary holds 20"),
        ([TINY, "--config.data.length=4"], "the rows hold 4"),
        ([TINY, "--config.micro_batch=3"], "divisor of 8"),
        ([TINY, "--config.init_from=/nowhere"], "/nowhere"),
        ([TINY, "--config.eval.examples=0"], "eval.examples"),
        ([TINY, "--config.eval.max_new_tokens=64"], "context of 64"),
        (["--config=tests/tiny_config.py:grpo", "--config.rl.temperature=0.0"], "must be positive"),
        (["--config=tests/tiny_config.py:grpo", "--config.rl.max_prompt_length=2"], "max_prompt_length is 2"),
        (["--config=tests/tiny_config.py:grpo", "--config.rl.baseline=grup"], "Did you mean 'group'"),
        ([STAGES, "--config.stages=('sft', 'gpro')"], "Did you mean 'grpo'"),
        ([STAGES, "--config.stage.sft.stepz=3"], "Did you mean 'steps'"),
        ([STAGES, "--config.stage.rl.steps=3"], "unknown stage 'rl'"),
        ([STAGES, "--config.rl.aggregate=mean"], "unknown rl.aggregate 'mean'"),
        ([STAGES, "--config.stage.grpo.eval.max_new_tokens=64"], "context of 64"),
        ([STAGES, "--config.stage.grpo.micro_batch=7"], "a divisor of 8"),
        ([STAGES, "--config.rl.rewards.overlong=0.2"], "set rl.rewards.overlong.buffer"),
        ([STAGES, "--config.rl.rewards.overlon=0.2"], "Did you mean 'overlong'"),
        ([STAGES, "--config.algorithm=sft"], "stage.grpo.algorithm=grpo"),
        ([TINY, "--config.steps=0"], "steps must be at least 1, found 0"),
        ([TINY, "--config.data.batch_size=0"], "data.batch_size must be at least 1"),
        ([TINY, "--config.log.every=0"], "log.every must be at least 1"),
        ([TINY, "--config.mesh.tensor=3"], "does not multiply to the 1 devices"),
        ([TINY, "--config.mesh.fsdp=2"], "does not multiply to the 1 devices"),
        ([TINY, "--config.launch.gpus=1"], "asks for an accelerator (launch.gpus=1)"),
        ([TINY, "--config.launch.tpu=v5e:4x4"], "asks for an accelerator (launch.tpu='v5e:4x4')"),
        ([TINY, "--config.data.options.allow_code=True"], "unknown option of task 'addition'"),
        ([TINY, "--config.model=3"], "is a group of settings"),
        ([TINY, "--config.lr=3"], "Did you mean 'optimizer.lr'"),
    ],
    ids=lambda value: value[-1].rsplit("--config.")[-1] if isinstance(value, list) and value else None,
)
def test_wrong_settings(flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(train.__main__.main, training(tmp_path / "run", *flags), capsys)
    assert not (tmp_path / "run").exists()


def test_a_mistake_does_not_take_the_workdir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(train.__main__.main, training(tmp_path / "run", TINY, "--config.algorithm=grop"), capsys)
    assert train.__main__.main(training(tmp_path / "run", TINY, "--config.steps=1")) == 0


def test_settings_without_a_default_can_be_given(tmp_path: Path) -> None:
    flags = ["--config.model.n_kv_heads=1", "--config.model.head_dim=8", "--config.rl.max_prompt_length=9"]
    config, workdir, *_ = parse(training(tmp_path / "run", TINY, *flags), "usage")
    assert (config.model.n_kv_heads, config.model.head_dim, config.rl.max_prompt_length) == (1, 8, 9)
    assert (config.model.to_dict()["n_kv_heads"], workdir) == (1, tmp_path / "run")


def test_no_workdir(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--workdir are needed" in refused(train.__main__.main, ["train", TINY], capsys)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "train.jsonl"),
        ("", "train.jsonl is empty"),
        (f"{ROW}\n{{'question'\n{ROW}\n", "train.jsonl, line 2: not JSON"),
        (f'{ROW}\n{{"question": "1+1?"}}\n', "train.jsonl, line 2: no text under answer"),
    ],
    ids=["missing", "empty", "malformed", "incomplete"],
)
def test_wrong_data(rows: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text(ROW)
    if rows is not None:
        (tmp_path / "data" / "train.jsonl").write_text(rows)
    before = snapshot(tmp_path)
    arguments = training(tmp_path / "run", *GSM8K, f"--config.data.path={tmp_path / 'data'}")
    assert words in refused(train.__main__.main, arguments, capsys)
    assert snapshot(tmp_path) == before


def test_no_data_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gsm8k needs path" in refused(train.__main__.main, training(tmp_path / "run", *GSM8K), capsys)
    assert not list(tmp_path.iterdir())


def test_a_workdir_with_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for arguments in (training(tmp_path, TINY), training(tmp_path / "thesis.tex", TINY)):
        assert "thesis.tex" in refused(train.__main__.main, arguments, capsys)
    assert snapshot(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_workdir_of_another_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(trained)
    assert "seed (there 0, here 3)" in refused(train.__main__.main, training(trained, TINY, "--config.seed=3"), capsys)
    assert snapshot(trained) == before


def test_a_tokenizer_that_does_not_fit_the_checkpoint(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [TINY, f"--config.init_from={trained}", "--config.tokenizer.kind=byte"]
    assert "the model's vocabulary holds 17" in refused(train.__main__.main, training(tmp_path / "a", *flags), capsys)
    shutil.copytree(trained, tmp_path / "b")
    ByteTokenizer().save(tmp_path / "b" / "tokenizer")
    arguments = [f"--run={tmp_path / 'b'}", "--prompt=1+1="]
    assert "the model's vocabulary holds 17" in refused(infer.__main__.main, arguments, capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt=1+1=", "--task=own"], "either --prompt or --task"),
        ([], "either --prompt or --task"),
        (["--prompt=1+1=", "--temprature=1"], "--temprature"),
        (["--prompt=1+1=", "--samples=many"], "many"),
        (["--prompt=1+1=", "--samples=0"], "--samples must be at least 1, found 0"),
        (["--prompt=1+1=", "--top_p=2"], "top_p"),
        (["--prompt=1+1=", "--max_new_tokens=100"], "context of 64"),
        (["--prompt=", "--max_new_tokens=4"], "at least one token"),
        (["--prompt=" + "1+" * 60], "context of 64"),
        (["--prompt=1+1=", "--dtype=bf16"], "Did you mean 'bfloat16'"),
        (["--prompt=what?"], "is not in the alphabet"),
        (["--prompt=1+1=", "--step=3"], "found steps [6]"),
        (["--task=gsm9k"], "Did you mean 'gsm8k'"),
        (["--task=gsm8k", "--path=/nowhere"], "/nowhere"),
        (["--task=own", "--split=tset"], "tset"),
        (["--task=own", "--examples=0"], "examples"),
        (["--task=own", "--temperature=1", "--top_p=2"], "top_p"),
    ],
    ids=lambda value: value[-1][:20] if isinstance(value, list) and value else None,
)
def test_wrong_questions(flags: list[str], words: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(infer.__main__.main, [f"--run={trained}", *flags], capsys)


@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_no_run_to_ask(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    if kind == "empty":
        folder.mkdir()
    if kind == "file":
        folder.write_text("")
    assert str(folder) in refused(infer.__main__.main, [f"--run={folder}", "--prompt=1+1="], capsys)


@pytest.mark.parametrize("content", ["[]", "{}", '{"algorithm": "sft"}', '{"algorithm": "sf', ""])
def test_a_config_that_is_none_is_named(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(content)
    said = refused(infer.__main__.main, [f"--run={tmp_path}", "--prompt=1+1="], capsys)
    assert str(tmp_path / "config.json") in said


def broken(trained: Path, at: Path) -> Path:
    """A copy of a run without its result, whose checkpoint has lost its arrays."""
    shutil.copytree(trained, at)
    (at / "result.json").unlink()
    [step] = checkpoint_steps(at)
    for path in (at / "checkpoints" / str(step) / "params").rglob("*"):
        if path.is_file() and path.name != "_METADATA":
            path.unlink()
    return at


def test_a_damaged_checkpoint_is_a_fault(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken(trained, tmp_path / "run")
    before = snapshot(folder / "checkpoints")
    assert train.__main__.main(training(folder, TINY)) == 1
    said = paragraph(capsys)
    assert "no checkpoint of" in said and "is missing. Nothing was changed" in said
    assert infer.__main__.main([f"--run={folder}", "--prompt=1+1="]) in (1, 2)
    assert "checkpoints/6" in paragraph(capsys)
    assert snapshot(folder / "checkpoints") == before


def test_a_fault_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory\nleft at all")

    monkeypatch.setattr("train.loop.run", fail)
    assert train.__main__.main(training(tmp_path / "run", TINY)) == 1
    assert paragraph(capsys) == "error: RuntimeError: no memory left at all\n"
