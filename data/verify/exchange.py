"""The two ends of a test of functions, each in a sandbox of its own. A script: `exchange.py solution|tests`.

The end `solution` holds the code that nobody trusts: it gets calls (a name and arguments) and gives back plain values.
The end `tests` holds the tests: whatever name of the solution they call goes over to the other end, and all comparing
happens here. The expected values never reach the solution's interpreter, so nothing it does there can meet them.
It must stand alone: it runs without the package and without site-packages.
"""

import ast
import builtins
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

LENGTH = 4
MOST = 16 << 20
MOST_ITEMS = 1_000_000
MOST_DEPTH = 100
MOST_TEXT = 300  # characters of an error's text
# Errors that tests may expect. Not those that end a loop or a process without a sound, nor those that hold others.
ERRORS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, (StopIteration, StopAsyncIteration, BaseExceptionGroup))
}
PLAIN = (bool, int, float, str, type(None))
TYPES: dict[str, type] = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}


class Refused(Exception):
    """A value that does not travel."""


class Handle:
    """An object that stays with the solution: the tests can hand it back and do nothing else with it."""

    def __init__(self, number: int) -> None:
        """Notes which object."""
        self.number = number

    def _refuse(self, *_: Any) -> Any:
        raise Refused("the solution returned an object that is not plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = _refuse  # type: ignore
    __call__ = __contains__ = __getitem__ = __repr__ = __str__ = __hash__ = __add__ = __radd__ = _refuse  # type: ignore


class Link:
    """A channel over standard input and output, which the code that runs here no longer has as such."""

    def __init__(self) -> None:
        """Takes both over and puts nothing in their place."""
        self._input, self._output = os.dup(0), os.dup(1)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)

    def send(self, kind: str, message: object) -> None:
        """Sends one message: its kind, a letter, and JSON; Refused when it is too long."""
        payload = kind.encode() + json.dumps(message, separators=(",", ":")).encode()
        if len(payload) > MOST:
            raise Refused("a value is too large")
        rest = memoryview(len(payload).to_bytes(LENGTH, "big") + payload)
        while rest:
            rest = rest[os.write(self._output, rest) :]

    def receive(self) -> tuple[str, Any]:
        """Returns the kind and the message; EOFError at the end."""
        payload = self._exactly(int.from_bytes(self._exactly(LENGTH), "big"))
        return chr(payload[0]), json.loads(payload[1:])

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = os.read(self._input, size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


def pack(value: Any, keep: Callable[[Any], int] | None = None, depth: int = 0) -> Any:
    """Returns a value as JSON: plain ones as they are, others as `{kind: content}`; `keep` numbers the rest."""
    if type(value) in PLAIN:
        return value
    if depth > MOST_DEPTH:
        raise Refused(f"a value is nested deeper than {MOST_DEPTH}")
    for kind in (int, float, str):  # what is derived from them
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Handle):
        return {"object": value.number}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": list(bytes(value))}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, dict):
        return {"dict": [[pack(item, keep, depth + 1) for item in _some(part)] for part in (value, value.values())]}
    for name, kinds in (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kinds):
            return {name: [pack(item, keep, depth + 1) for item in _some(value)]}
    if isinstance(value, (range, Iterator)) or type(value).__name__ in ("dict_keys", "dict_values", "dict_items"):
        return {"iterator": [pack(item, keep, depth + 1) for item in _some(value)]}
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    if keep is None:
        raise Refused(f"a value of type {type(value).__name__} is not plain data")
    return {"object": keep(value)}


def unpack(packed: Any, kept: list[Any] | None = None) -> Any:
    """Returns the value; `kept`: the objects that numbers stand for, else they become handles."""
    if not isinstance(packed, dict):
        if isinstance(packed, list):
            raise Refused("a list without its kind")
        return packed
    ((kind, content),) = packed.items()
    if kind == "object":
        return Handle(int(content)) if kept is None else kept[content]
    if kind == "type":
        return TYPES[content]
    if kind == "bytes":
        return bytes(content)
    if kind == "complex":
        return complex(*content)
    if kind == "dict":
        keys, values = ([unpack(item, kept) for item in part] for part in content)
        return dict(zip(keys, values, strict=True))
    make = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}[kind]
    return make([unpack(item, kept) for item in content])  # type: ignore[operator]


def serve(link: Link) -> None:
    """Loads the solution, then answers calls to it until the stream ends."""
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    code = link.receive()[1]
    space: dict[str, Any] = {"__name__": "solution", "__builtins__": builtins}
    reply(link, lambda: exec(compile(code, "solution", "exec"), space), lambda _: None)
    while True:
        name, arguments, named = (unpack(part, kept) for part in link.receive()[1])
        reply(link, lambda: space[name](*arguments, **named), lambda value: pack(value, keep))  # noqa: B023


def reply(link: Link, action: Callable[[], Any], packed: Callable[[Any], Any]) -> None:
    """Sends what the action returns, or the error that it raises."""
    try:
        link.send("r", ["value", packed(action())])
    except BaseException as error:
        link.send("r", ["error", [kind.__name__ for kind in type(error).__mro__], arguments_of(error)])


def arguments_of(error: BaseException) -> Any:
    """Returns what an error was made with, packed, or its text where that is no plain data or long."""
    try:
        arguments = pack(error.args)
        if len(json.dumps(arguments)) <= MOST_TEXT:
            return arguments
    except Exception:
        pass  # objects, or a class that answers otherwise than it should
    try:
        return pack((str(error)[:MOST_TEXT],))
    except Exception:
        return pack(())


def test(link: Link) -> None:
    """Runs the tests against the solution at the other end and says whether all of them were passed."""
    setup = link.receive()[1]
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        answered(link)
        for name in setup["names"]:
            space[name] = proxy(link, name)
        provide_modules(setup["tests"], space)
        exec(compile(setup["tests"], "tests", "exec"), space)
    except BaseException as error:
        return link.send("f", f"{type(error).__name__}: {_said(error)}"[:300])
    link.send("d", None)


def proxy(link: Link, name: str) -> Callable[..., Any]:
    """Returns a function that calls the solution's function of that name."""

    def call(*arguments: Any, **named: Any) -> Any:
        link.send("c", [pack(name), pack(arguments), pack(named)])
        return answered(link)

    return call


def answered(link: Link) -> Any:
    """Returns the value that the other end sends, or raises the error it sends."""
    kind, *rest = link.receive()[1]
    if kind == "value":
        return unpack(rest[0])
    raise error_like(*rest)


def error_like(names: list[str], packed: Any) -> Exception:
    """Returns the error that the solution raised, as the nearest of its classes that tests know: whoever expects that
    one or a class above it catches it.
    """
    known = next((ERRORS[name] for name in names if name in ERRORS), RuntimeError)
    arguments = unpack(packed)
    try:
        return known(*arguments)
    except Exception:  # a class of the solution may have been made with anything
        pass
    try:
        return known(*map(str, arguments))
    except Exception:
        return RuntimeError(*map(str, arguments))


def provide_modules(tests: str, space: dict[str, Any]) -> None:
    """Imports the modules of the standard library that tests name without importing them, as some sets do."""
    names = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    for name in names & set(sys.stdlib_module_names) - set(space):
        space[name] = __import__(name)


def _some(values: Any) -> Iterator[Any]:
    for number, value in enumerate(values):
        if number >= MOST_ITEMS:
            raise Refused(f"a value has more than {MOST_ITEMS} items")
        yield value


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, Exception) else ""


if __name__ == "__main__":
    {"solution": serve, "tests": test}[sys.argv[1]](Link())
