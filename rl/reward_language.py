"""Language consistency: the share of a thought's words that are of one language, by script and by word list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from data.chat import THINK_CLOSE, THINK_OPEN
from data.names import unknown_name
from rl.reward_functions import Reward, Sample, Tags, each, whole_text

# Letters of each script, as the inside of a regular expression's class.
SCRIPTS: dict[str, str] = {
    "latin": "A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ",
    "greek": "Ͱ-ͽͿΆΈ-Ͽἀ-῾",
    "cyrillic": "Ѐ-ҁҊ-ԯ",
    "hebrew": "א-ת",
    "arabic": "ؠ-ٟٮ-ۓۺ-ۿݐ-ݿ",
    "devanagari": "ऀ-ॣॱ-ॿ",
    "hangul": "가-힣ᄀ-ᇿㄱ-ㆎ",
    "han": "㐀-䶿一-鿿豈-﫿",
    "kana": "ぁ-ゖァ-ヺー",
}
UNSPACED = ("han", "kana")  # written without spaces: every character is a word
LANGUAGES: dict[str, tuple[str, ...]] = {
    "ar": ("arabic",),
    "de": ("latin",),
    "el": ("greek",),
    "en": ("latin",),
    "es": ("latin",),
    "fr": ("latin",),
    "he": ("hebrew",),
    "hi": ("devanagari",),
    "ja": ("han", "kana"),
    "ko": ("hangul",),
    "ru": ("cyrillic",),
    "zh": ("han",),
}
# Words that a sentence of the language can hardly do without, of two letters or more.
COMMON: dict[str, str] = {
    "en": (
        "the of and to in is that it for was on are as with his they be at one have this from or had by but not what"
        " all were we when your can said there use an each which she do how their if will up other about out many then"
        " them these so some her would make him has more than its my so let now need first since because"
    ),
    "de": (
        "der die das und ist nicht von zu den mit sich des auf für im dem ein eine einen einer als auch es an werden"
        " aus er hat dass daß sie nach wird bei um am sind noch wie einem über so zum war haben nur oder aber vor zur"
        " bis mehr durch man dann wenn wir ich jetzt also alle weil zuerst müssen"
    ),
    "fr": (
        "le la les de des du et est un une en que qui dans pour pas sur au aux ce cette ces il elle ils elles nous vous"
        " je ne se son sa ses par avec plus mais ou où donc comme tout sont être avoir été fait si leur on alors parce"
        " maintenant il faut d'abord"
    ),
    "es": (
        "el la los las de del que en un una es por con no para su al lo como más pero sus le ya este sí porque esta son"
        " entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni contra"
        " otros ese eso ante ellos esto ahora entonces primero necesitamos se si"
    ),
}
WORD_LISTS = {name: frozenset(text.split()) for name, text in COMMON.items()}
OTHER = r"[^\W\d_" + "".join(SCRIPTS.values()) + "]+"
RUNS = [f"[{inside}]" if name in UNSPACED else rf"[{inside}]+(?:['’][{inside}]+)*" for name, inside in SCRIPTS.items()]
WORD = re.compile("|".join([*RUNS, OTHER]))
VARIABLE = re.compile(f"[{SCRIPTS['latin']}]")
SENTENCE = re.compile(r"[.!?;:\n。！？；：…।]+")
# What is no prose: (opening, closing) pairs, longest first; then spans within a line and LaTeX commands.
ENCLOSED = (("```", "```"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"), (r"\begin{", r"\end{"))
END = re.compile(r"\\end\{[A-Za-z*]{1,40}\}")
INLINE = re.compile(r"`[^`\n]*`|\$(?=[^\s$])[^$\n]*(?<=\S)\$(?!\d)|\\[A-Za-z]+")


def language(
    *,
    target: str = "en",
    part: str = "thought",
    word_lists: bool = True,
    words: Sequence[str] = (),
    think_open: str = THINK_OPEN,
    think_close: str = THINK_CLOSE,
) -> Reward:
    """The share of the words of a thought that are of the target language, in [0, 1]; 0 where there is no word.

    A word of another script is foreign. Where the target has a word list (and `word_lists`), so is a word found only in
    other languages' lists, and so are the unlisted words of a sentence that has more words of another language's list
    than of the target's. `words`: further words of the target, such as terms of the task. Chinese and Japanese
    characters count as a word each. Not counted: closed code and mathematics, LaTeX commands, single Latin letters.
    `part`: "thought" (the whole text where no thought was opened) or "all". Raises ValueError for an unknown language
    or part. Source: DeepSeek-R1 (2501.12948), section 2.3.2, which gives the share only; the rest is ours.
    """
    if target not in LANGUAGES:
        raise unknown_name("language", target, LANGUAGES)
    if part not in ("thought", "all"):
        raise unknown_name("part of a text", part, ("thought", "all"))
    if words and target not in WORD_LISTS:
        raise ValueError(f"words extend a word list; there is none for {target!r}, only for {', '.join(WORD_LISTS)}")
    tags = Tags(think_open, think_close)
    script = re.compile(f"[{''.join(SCRIPTS[name] for name in LANGUAGES[target])}'’]+")
    lists = owners(target, words) if word_lists and target in WORD_LISTS else {}

    def score(sample: Sample) -> float:
        text = whole_text(sample, tags)
        sentences = sentences_of(prose(thought_of(text, tags) if part == "thought" else text, tags))
        total = sum(map(len, sentences))
        return sum(consistent(sentence, target, script, lists) for sentence in sentences) / total if total else 0.0

    return each(score)


def owners(target: str, words: Sequence[str]) -> dict[str, frozenset[str]]:
    """The languages whose list holds a word, for every listed word."""
    lists = WORD_LISTS | {target: WORD_LISTS[target].union(word.lower() for word in words)}
    known = frozenset[str]().union(*lists.values())
    return {word: frozenset(name for name, listed in lists.items() if word in listed) for word in known}


def consistent(
    sentence: Sequence[str], target: str, script: re.Pattern[str], lists: Mapping[str, frozenset[str]]
) -> int:
    """How many words of a sentence are of the target language."""
    written = [word for word in sentence if script.fullmatch(word)]
    found = [lists.get(word.lower(), frozenset()) for word in written]
    # A word that several languages share decides nothing.
    votes = Counter(name for names in found if len(names) == 1 for name in names)
    if votes[target] < max(votes.values(), default=0):
        return votes[target]
    return sum(not names or target in names for names in found)


def thought_of(text: str, tags: Tags) -> str:
    """What stands in the first thought, up to the end where it is not closed; all where none was opened."""
    if not tags.think_open:
        return text
    _, opened, rest = text.partition(tags.think_open)
    return rest.partition(tags.think_close)[0] if opened else text


def prose(text: str, tags: Tags) -> str:
    """A text without tags, code and mathematics; what was opened and not closed is prose."""
    for tag in tags.used():
        text = text.replace(tag, "\n")
    text = END.sub(r"\\end{", text)
    for opening, closing in ENCLOSED:
        text = without(text, opening, closing)
    return INLINE.sub(" ", text)


def without(text: str, opening: str, closing: str) -> str:
    """A text without the spans from `opening` to the next `closing`; each search goes on where the last one ended."""
    kept, start = [], 0
    while (begin := text.find(opening, start)) >= 0:
        end = text.find(closing, begin + len(opening))
        if end < 0:
            break
        kept.append(text[start:begin])
        start = end + len(closing)
    return " ".join([*kept, text[start:]])


def sentences_of(text: str) -> list[list[str]]:
    """The words of every sentence; single Latin letters are variables, not words."""
    return [[word for word in WORD.findall(span) if not VARIABLE.fullmatch(word)] for span in SENTENCE.split(text)]
