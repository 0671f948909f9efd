"""The TFDS builder: array_record files from pinned JSON lines, read without TensorFlow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")

from data.sources.examples import read_tfds  # noqa: E402
from data.tasks import build_task  # noqa: E402
from data.tfds import prepare_gsm8k  # noqa: E402
from data.tfds.gsm8k.gsm8k_dataset_builder import URLS, Builder  # noqa: E402

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "gsm8k"
ROWS = [{"question": f"What is {i} + é?", "answer": f"It is {i}.\n#### {i}"} for i in range(7)]


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """A folder of tiny files, whose checksums the builder expects."""
    folder = tmp_path / "manual"
    folder.mkdir()
    for split in URLS:
        rows = ROWS if split == "train" else ROWS[:2]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compute = tfds.core.download.checksums.compute_url_info
    infos = {url: compute(folder / f"{split}.jsonl") for split, url in URLS.items()}
    monkeypatch.setattr(Builder, "url_infos", infos)
    return folder


def test_a_tiny_data_set_is_prepared_and_read(fake: Path, tmp_path) -> None:
    folder = prepare_gsm8k(tmp_path / "prepared", fake)
    assert folder == prepare_gsm8k(tmp_path / "prepared", fake), "the second call finds it"
    rows = read_tfds("gsm8k", "train", tmp_path / "prepared")
    assert sorted((row["question"], row["answer"]) for row in rows) == sorted(
        (r["question"], r["answer"]) for r in ROWS
    )
    assert rows[1:3] == [rows[1], rows[2]]
    task = build_task("gsm8k", path=str(tmp_path / "prepared"), source="tfds", valid_size=2)
    assert [len(task.examples(split)) for split in task.splits] == [5, 2, 2]
    row = task.examples("test")[0]
    assert task.verify(row, task.target(row)).score == 1.0


def test_changed_files_are_refused(fake: Path, tmp_path) -> None:
    with (fake / "train.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(tfds.core.download.download_manager.NonMatchingChecksumError, match="wrong checksum"):
        prepare_gsm8k(tmp_path / "prepared", fake)


def test_missing_places_are_named(fake: Path, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prepare it first"):
        read_tfds("gsm8k", "train", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"lacks train\.jsonl, test\.jsonl"):
        prepare_gsm8k(tmp_path / "prepared", tmp_path / "nowhere")
    prepare_gsm8k(tmp_path / "prepared", fake)
    with pytest.raises(ValueError, match="it has"):
        read_tfds("gsm8k", "valid", tmp_path / "prepared")


def test_the_checksums_cover_every_url() -> None:
    assert set(Builder.url_infos) == set(URLS.values())
    assert {info.filename for info in Builder.url_infos.values()} == {"train.jsonl", "test.jsonl"}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the GSM8K files are not in {SHARED}")
def test_the_real_data_set_without_tensorflow(tmp_path) -> None:
    script = f"""
import sys
from data.sources.examples import read_tfds
from data.tfds import prepare_gsm8k
prepare_gsm8k({str(tmp_path)!r}, {str(SHARED)!r})
print(len(read_tfds("gsm8k", "train", {str(tmp_path)!r})), len(read_tfds("gsm8k", "test", {str(tmp_path)!r})))
assert "tensorflow" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.split()[-2:] == ["7473", "1319"], result.stderr[-2000:]
