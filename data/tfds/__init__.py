"""TensorFlow Datasets builders of ours; they write array_record files and never import TensorFlow."""

from pathlib import Path

from data.sources.examples import import_tfds


def prepare_gsm8k(data_dir: str | Path, manual_dir: str | Path | None = None) -> Path:
    """Prepares GSM8K below `data_dir`, once, and returns the folder of the prepared version.

    The two files are downloaded unless `manual_dir` holds `train.jsonl` and `test.jsonl`; either way sizes
    and checksums must match. Raises FileNotFoundError for a `manual_dir` without them, ImportError when
    tensorflow-datasets is missing.
    """
    if manual_dir is not None:
        _check_manual(Path(manual_dir))
    tfds = import_tfds()
    from data.tfds.gsm8k.gsm8k_dataset_builder import Builder

    builder = Builder(data_dir=str(data_dir), file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir if manual_dir is None else str(manual_dir))
    builder.download_and_prepare(download_config=config, download_dir=str(Path(data_dir) / "downloads"))
    return Path(builder.data_dir)


def _check_manual(folder: Path) -> None:
    missing = [name for name in ("train.jsonl", "test.jsonl") if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; copy grade_school_math/data/*.jsonl of "
            "github.com/openai/grade-school-math there, or leave manual_dir out to download them"
        )
