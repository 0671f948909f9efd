"""Answers to multiple-choice questions: one letter, where an answer stands, and nothing that names another."""

import re
from collections.abc import Sequence

from data.verify.extract import answer_places, tidy
from data.verify.verdict import Verdict

MAX_TAIL = 2_000
MAX_CHARS = 300
LETTERS = "ABCD"
_DRESS = re.compile(r"\\(?:text|math|mbox)[a-z]*\s*\{([^{}]*)\}")
_SAYS = re.compile(r"(?i:answer|option|choice)(?:(?i:\s+is)|\s*:)[ \t:*]*")
_CHOICE = re.compile(
    r"(?:(?i:the\s+)?(?i:option|choice|answer)[ \t:]+)?\(?([A-Za-z])\)?"
    r"(?:(?:[.):]|\s+-\s|\s*[\u2013\u2014])(?P<words>.*))?",
    re.DOTALL,
)
# "A longer sentence": an article begins a sentence, and a word follows that does not join it to another option.
_ARTICLE = re.compile(r"(^|[.!?:]\s)\s*(?:A|I)\s+(?!(?:and|or|nor|is|are|not|but|if|vs)\b)(?=[a-z0-9$\\])")


def judge_choice(gold: str, text: str, letters: Sequence[str] = LETTERS) -> Verdict:
    """Scores 1 when the text gives the letter `gold`, and no other, as its answer.

    The answer stands in the last `\\boxed{}`, else behind the last `####`, else behind the last "answer is" or
    "answer:" ("option", "choice"), else it is the whole text. It is a letter, with brackets or not, which the option's
    words may follow: `C`, `(C)`, `option C`, `C. Paris`, `C - Paris`. A letter of another option beside it makes it
    none, but for the article in `C: A city`; so does a box beside it with another letter. ValueError when `gold` is not
    among `letters`.
    """
    if gold not in letters:
        raise ValueError(f"the right choice {gold!r} is not among {', '.join(letters)}")
    chosen = read_choice(text, letters)
    if chosen is None:
        return Verdict(0.0, None, f"no single choice among {', '.join(letters)}")
    return Verdict(float(chosen == gold), chosen, "correct" if chosen == gold else "another choice")


def read_choice(text: str, letters: Sequence[str] = LETTERS) -> str | None:
    """Returns the letter that a text gives as its answer, or None; linear time."""
    tail = text[-MAX_TAIL:]
    places = answer_places(tail)
    if places == [tidy(tail)]:
        *_, place = _SAYS.split(places[0])
        places = [place.strip().partition("\n")[0]]
    letters_read = {_letter(place, letters) for place in places}
    return letters_read.pop() if len(letters_read) == 1 else None


def _letter(place: str, letters: Sequence[str]) -> str | None:
    """The letter that stands alone in an answer's place, or before an option's words that name no other option."""
    place = tidy(_DRESS.sub(r"\1", place).strip(" \t*$"))
    match = _CHOICE.fullmatch(place) if len(place) <= MAX_CHARS else None
    if match is None or match[1].upper() not in letters:
        return None
    words = _ARTICLE.sub(r"\1", match["words"] or "")
    others = set(re.findall(r"\b[A-Z]\b", words))
    if match[1].islower():
        # Who writes the choice small writes others small too; the article is "a" before a word.
        others |= {other.upper() for other in re.findall(r"\b(?!a\s+[a-z]{3})[a-z]\b", words)}
    return match[1].upper() if others & set(letters) <= {match[1].upper()} else None
