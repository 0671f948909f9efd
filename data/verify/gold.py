"""Which reference answers cannot be read: tried once, in workers, each within a wall clock, and remembered on disk."""

import contextlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data.sources.examples import Example
from data.verify.math import plain, readable, warm_up
from data.verify.pool import Pool
from data.verify.verdict import Verdict

SECONDS = 10.0
# The modules that decide what can be read.
RULES = ("extract.py", "math.py", "nearness.py", "notation.py", "numbers.py")
# Fewer answers than this are judged by one worker: a second takes longer to start than it saves.
FEW = 40


@dataclass(frozen=True)
class Golds:
    """The task of reading reference answers: the text is the answer, a score of 1 means it can be read."""

    isolated = True

    def warm_up(self) -> None:
        """Imports math-verify."""
        warm_up()

    def verify(self, example: Example, text: str) -> Verdict:
        """Returns whether the text can be read."""
        return readable(text)


def unreadable(answers: Sequence[str], seconds: float = SECONDS) -> dict[str, str]:
    """Returns the answers that math-verify cannot read within `seconds` each, with the reason.

    Plain numbers are not tried. What was found is kept in `$XDG_CACHE_HOME/sagax` (`~/.cache/sagax`) for these
    answers, this version of math-verify and of the rules here; answers that took too long are tried again next time.
    """
    asked = sorted({answer for answer in answers if not plain(answer)})
    if not asked:
        return {}
    file = _cache_file(asked)
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(file.read_text()))
    found = _try(asked, seconds)
    if "timeout" not in found.values():
        _remember(file, found)
    return found


def left_out(where: str, lost: Sequence[tuple[str, str]], total: int) -> None:
    """Warns how many of `total` rows are left out, why, and of the first three; `lost`: reason and answer of each."""
    first = ", ".join(repr(answer[:80]) for _, answer in lost[:3])
    warnings.warn(
        f"{where}: {len(lost)} of {total} rows are left out ({counted(lost)}), the first answers of them: {first}",
        stacklevel=2,
    )


def counted(lost: Sequence[tuple[str, str]]) -> str:
    """Returns how many rows are lost for each reason, in words."""
    reasons = Counter(reason for reason, _ in lost)
    return ", ".join(f"{count} {'has' if count == 1 else 'have'} {reason}" for reason, count in reasons.items())


def _try(answers: Sequence[str], seconds: float) -> dict[str, str]:
    with Pool(Golds(), workers=1 if len(answers) < FEW else min(4, os.cpu_count() or 1), seconds=seconds) as pool:
        verdicts = pool([{}] * len(answers), answers)
    return {answer: verdict.reason for answer, verdict in zip(answers, verdicts, strict=True) if verdict.score < 1.0}


def _cache_file(answers: Sequence[str]) -> Path:
    with contextlib.suppress(PackageNotFoundError):
        rules = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in RULES]
        key = blake2b(json.dumps([version("math-verify"), *rules, *answers]).encode(), digest_size=12).hexdigest()
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(folder) / "sagax" / f"golds-{key}.json"
    raise ImportError("mathematical answers are compared by math-verify: pip install math-verify")


def _remember(file: Path, found: dict[str, str]) -> None:
    # A cache that cannot be written only costs the time of trying again.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found))
        part.replace(file)
