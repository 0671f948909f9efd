"""Answers to multiple-choice questions: one letter, where an answer stands, and nothing that names another."""

import re
from collections.abc import Sequence

from data.verify.extract import answer_place
from data.verify.verdict import Verdict

MAX_TAIL = 2_000
MAX_CHARS = 300
LETTERS = "ABCD"
_DRESS = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_SAYS = re.compile(r"(?i:answer)(?i:\s+is|\s*:)[ \t:*]*")


def judge_choice(gold: str, text: str, letters: Sequence[str] = LETTERS) -> Verdict:
    """Scores 1 when the text gives the letter `gold`, and no other, as its answer.

    The answer stands in the last `\\boxed{}`, else behind the last `####`, else behind the last "answer is" or
    "answer:", else it is the whole text. It is a letter, with brackets or not, which may be followed by the option's
    words: `C`, `(C)`, `C. Paris`. A letter of another option beside it makes it none. ValueError when `gold` is not
    among `letters`.
    """
    if gold not in letters:
        raise ValueError(f"the right choice {gold!r} is not among {', '.join(letters)}")
    found = read_choice(text, letters)
    if found is None:
        return Verdict(0.0, None, f"no single choice among {', '.join(letters)}")
    return Verdict(float(found == gold), found, "correct" if found == gold else "another choice")


def read_choice(text: str, letters: Sequence[str] = LETTERS) -> str | None:
    """Returns the letter that a text gives as its answer, or None; linear time."""
    tail = text[-MAX_TAIL:]
    place = answer_place(tail)
    if place == tail.strip():
        *_, place = _SAYS.split(place)
        place = place.strip().partition("\n")[0]
    place = _DRESS.sub(r"\1", place).strip(" \t*$.")
    if len(place) > MAX_CHARS:
        return None
    match = re.fullmatch(r"\(?([A-Za-z])\)?(?:[.):](?P<words>.*))?", place, re.DOTALL)
    if match is None or match[1].upper() not in letters:
        return None
    others = {word for word in re.findall(r"\b[A-Z]\b", match["words"] or "") if word in letters}
    return match[1].upper() if others <= {match[1].upper()} else None
