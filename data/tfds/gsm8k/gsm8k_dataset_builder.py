"""GSM8K as a TFDS builder; its name is this folder's, its checksums are those of `checksums.tsv`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data.sources.examples import read_jsonl

_BASE = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
URLS = {"train": f"{_BASE}/train.jsonl", "test": f"{_BASE}/test.jsonl"}
_CITATION = """@article{cobbe2021gsm8k,
  title={Training Verifiers to Solve Math Word Problems},
  author={Cobbe, Karl and others},
  journal={arXiv preprint arXiv:2110.14168},
  year={2021}
}"""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Grade-school word problems, 7,473 for training and 1,319 for testing: `question`, `answer`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Grade-school word problems with worked answers that end in '#### number'.",
            features=tfds.features.FeaturesDict({"question": tfds.features.Text(), "answer": tfds.features.Text()}),
            homepage="https://github.com/openai/grade-school-math",
            license="MIT",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = dl_manager.download(URLS)
        return {split: self._generate_examples(Path(file)) for split, file in files.items()}

    def _generate_examples(self, file: Path) -> Iterator[tuple[int, dict[str, str]]]:
        for index, row in enumerate(read_jsonl(file, ("question", "answer"))):
            yield index, {"question": row["question"], "answer": row["answer"]}
