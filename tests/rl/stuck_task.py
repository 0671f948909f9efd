"""A task whose verifier hangs on some answers; workers import this file by its plain name."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from data.sources.examples import Example, Generated
from data.verify.verdict import Verdict


@dataclass(frozen=True)
class Stuck:
    """Answers that begin with a digit are never judged; the others are right when they have an even length."""

    alphabet = "0123456789+="
    splits = ("train",)
    isolated = True

    def examples(self, split: str) -> Sequence[Example]:
        """Four prompts."""
        return Generated(4, lambda i: {"prompt": f"{i}+{i}="})

    def prompt(self, example: Example) -> str:
        """Such as 1+1=."""
        return str(example["prompt"])

    def target(self, example: Example) -> str:
        """Nothing."""
        return ""

    def verify(self, example: Example, text: str) -> Verdict:
        """Sleeps, or counts."""
        if text[:1].isdigit():
            time.sleep(3600)
        return Verdict(float(len(text) % 2 == 0), text, "counted")
