"""Chat templates in jinja, with the names that transformers gives them, rendered in a worker that can be killed.

A template is a program, and the Hub's are not ours: three nested loops, or one letter times a billion, would hang or
fill the process that renders them. So each is rendered in a process with a wall clock and a limit on memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple

from data.verify.pool import Pool
from data.verify.verdict import TIMEOUT, Verdict

SECONDS = 10.0
MEMORY = 1 << 30
MOST_TEXT = 1 << 24  # characters of a rendered conversation
PIECE = 80_000  # characters of an answer: a worker's may have 1 MiB, and JSON takes up to 12 bytes for one
REFUSED = "the chat template refused the conversation"
TOO_MUCH = f"it may take {SECONDS:g} s and {MEMORY >> 20} MiB, and write {MOST_TEXT} characters"


class Rendered(NamedTuple):
    """A conversation as text, and the characters [start, end) that `{% generation %}` blocks wrote."""

    text: str
    spans: list[tuple[int, int]]


def render(template: str, names: Mapping[str, Any]) -> Rendered:
    """Returns what a template makes of plain data, within SECONDS, MEMORY and MOST_TEXT.

    Raises ValueError where the template refuses, fails or takes more: also jinja2's SecurityError, UndefinedError or
    TemplateError, whichever it was. ImportError naming jinja2 when it is missing.
    """
    import_jinja()
    request = {"template": template, "names": dict(names), "now": datetime.now()}
    written, size = "", 1
    while len(written) < size:
        [verdict] = _pool()([request], [str(len(written))])
        if verdict.parsed is None:
            raise _failure(verdict.reason)
        written, size = written + verdict.parsed, int(verdict.reason)
    text, spans = json.loads(written)
    return Rendered(text, [(start, end) for start, end in spans])


class Rendering:
    """What the worker runs: the task of a pool, whose `verify` renders a request and gives it piece by piece."""

    def __init__(self) -> None:
        """Has rendered nothing yet."""
        self._last: tuple[Mapping[str, Any], str] | None = None

    def warm_up(self) -> None:
        """Imports jinja2, so that the first conversation does not wait for it."""
        import_jinja()

    def verify(self, example: Mapping[str, Any], text: str) -> Verdict:
        """Returns the characters of the JSON of `Rendered` from number `text` on, with their number as the reason.

        Score 0, and the error, for a template that fails.
        """
        try:
            if self._last is None or self._last[0] != example:
                self._last = example, json.dumps(_rendered(**example), ensure_ascii=False)
        except MemoryError:
            raise
        except Exception as error:
            return Verdict(0.0, None, f"{type(error).__name__}: {error}")
        written, start = self._last[1], int(text)
        return Verdict(1.0, written[start : start + PIECE], str(len(written)))


class Refusal(ValueError):
    """What a template raises by itself."""


@dataclass
class Progress:
    """Where a rendering is: `length` characters are written; `marks` are where blocks begin (True) and end."""

    now: datetime
    length: int
    marks: list[tuple[bool, int]]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The blocks that have ended, by their beginnings."""
        found, open_ = [], list[int]()
        for begins, at in self.marks:
            if begins:
                open_.append(at)
            elif open_:
                found.append((open_.pop(), at))
        return sorted(found)


def import_jinja() -> Any:
    """Returns the module jinja2, or raises an ImportError that says what to install."""
    try:
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise ImportError(
            "chat templates are rendered by jinja2: pip install jinja2, or use template='none'"
        ) from error
    return jinja2


@cache
def _pool() -> Pool:
    return Pool(Rendering(), workers=1, seconds=SECONDS, memory=MEMORY)


def _failure(reason: str) -> ValueError:
    """The error for a reason that the worker, or its pool, gave."""
    if reason == TIMEOUT or reason.startswith("the verifier"):
        return ValueError(f"the chat template was stopped ({reason}): {TOO_MUCH}")
    kind, _, message = reason.partition(": ")
    words = f"{REFUSED}: {message}" if kind == "Refusal" else f"the chat template fails ({kind}): {message}"
    errors = import_jinja().exceptions
    base = getattr(errors, kind) if kind in ("SecurityError", "UndefinedError") else errors.TemplateError
    failed: ValueError = type(base.__name__, (ValueError, base), {})(words)
    return failed


def _rendered(template: str, names: Mapping[str, Any], now: datetime) -> Rendered:
    compiled = _compiled(template)
    progress, parts = Progress(now, 0, []), list[str]()
    compiled.environment.progress = progress
    for part in compiled.generate(**names):
        progress.length += len(part)
        if progress.length > MOST_TEXT:
            raise ValueError(f"more than {MOST_TEXT} characters")
        parts.append(part)
    return Rendered("".join(parts), progress.spans)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    jinja = import_jinja()
    # Templates on the Hub are written for these two block options.
    environment = jinja.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_refuse,
        strftime_now=lambda pattern: environment.progress.now.strftime(pattern),
        dict=_Mappings(),
        namespace=_namespace(),
    )
    return environment.from_string(template)


def _generation() -> Any:
    """The block `{% generation %}`: its text as if it were not there, and where that begins and ends."""
    jinja = import_jinja()

    class Generation(jinja.ext.Extension):  # type: ignore[misc, name-defined]
        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> list[Any]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return [self._output(True, line), *body, self._output(False, line)]

        def _output(self, begins: bool, line: int) -> Any:
            call = self.call_method("_mark", [jinja.nodes.Const(begins, lineno=line)], lineno=line)
            return jinja.nodes.Output([call], lineno=line)

        def _mark(self, begins: bool) -> str:
            progress = self.environment.progress
            progress.marks.append((begins, progress.length))
            return ""

    return Generation


class _Mappings:
    """`dict` in a template, without what else a class gives away."""

    def __call__(self, *pairs: Any, **items: Any) -> dict[Any, Any]:
        return dict(*pairs, **items)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


def _namespace() -> Any:
    """`namespace` in a template; no name in one begins with an underscore."""
    jinja = import_jinja()

    class Namespace(jinja.utils.Namespace):  # type: ignore[misc, name-defined]
        def __init__(self, /, *pairs: Any, **items: Any) -> None:
            attributes = dict(*pairs, **items)
            for name in attributes:
                _check_name(name)
            jinja.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            jinja.utils.Namespace.__setitem__(self, name, value)

    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja.exceptions.SecurityError(f"a namespace takes no name that begins with _, found {name!r}")

    return Namespace


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise Refusal(message)
