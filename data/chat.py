"""From a task's prompt to the text the model sees, by plain templates or the tokenizer's chat template."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from data.names import unknown_name
from data.templates import Rendered, render
from data.tokenizers.base import Tokenizer

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
Message = Mapping[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")  # names that templates know a message's thought by
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

# DeepSeek-R1-Zero, table 1 (arXiv 2501.12948), shortened to the tags our tasks read.
R1_SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with "
    f"the answer. The reasoning process is enclosed within {THINK_OPEN} {THINK_CLOSE} tags, i.e., "
    f"{THINK_OPEN} reasoning process here {THINK_CLOSE} answer here."
)


@runtime_checkable
class Located(Protocol):
    """A tokenizer that tells where its tokens stand."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the characters [start, end) that each id of `encode(text)` stands for."""
        ...


def _none(prompt: str, system: str | None) -> str:
    return prompt if system is None else f"{system}\n{prompt}"


def _question(prompt: str, system: str | None) -> str:
    return _none(f"Question: {prompt.strip()}\nAnswer: ", system)


def _r1(prompt: str, system: str | None) -> str:
    return f"{system or R1_SYSTEM}\nUser: {prompt.strip()}\nAssistant: {THINK_OPEN}"


PLAIN_TEMPLATES: dict[str, Callable[[str, str | None], str]] = {
    "none": _none,
    "question": _question,
    "r1": _r1,
}


def render_prompt(tokenizer: Tokenizer, prompt: str, template: str = "none", system: str | None = None) -> str:
    """Returns the text that the model continues.

    `none`: the prompt as it is; `question`: Question/Answer lines; `r1`: the prompt of DeepSeek-R1-Zero,
    which ends in an opened thought; `chat`: the tokenizer's own chat template, with the prompt (stripped) as
    the user's message. Raises ValueError for an unknown template or a tokenizer without a chat template.
    """
    if template == "chat":
        messages = [{"role": "system", "content": system}] if system is not None else []
        return render_messages(tokenizer, [*messages, {"role": "user", "content": prompt.strip()}])
    if template not in PLAIN_TEMPLATES:
        raise unknown_name("prompt template", template, [*PLAIN_TEMPLATES, "chat"])
    return PLAIN_TEMPLATES[template](prompt, system)


def render_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    **variables: Any,
) -> str:
    """Returns a conversation as the tokenizer's chat template writes it.

    `messages`: mappings with `role` and `content`; `tools`: JSON schemas; `chat_template`: another of the tokenizer's
    templates by name, or a template; `variables`: further names for the template (`enable_thinking`). All of them are
    plain data: texts, numbers, lists and mappings. Raises ValueError when there is no template, or the template
    refuses, fails or takes too much time, memory or text (data/templates.py); ImportError when jinja2 is missing.
    """
    given = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt, **variables}
    return _rendered(tokenizer, messages, chat_template, given).text


def assistant_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], *, chat_template: str | None = None, **variables: Any
) -> tuple[list[int], list[int]]:
    """Returns the ids of a conversation, and a mask that is 1 on those the assistant wrote.

    That is what the template writes in `{% generation %}` blocks; a token that reaches into one counts. `variables` as
    in `render_messages`. Raises ValueError for a template without such blocks, and for a tokenizer that cannot tell
    where its tokens stand (only `tokenizer.json` can).
    """
    if not isinstance(tokenizer, Located):
        raise ValueError("this tokenizer does not tell where its tokens stand in a text; use one of kind hf")
    given = {"tools": None, "documents": None, "add_generation_prompt": False, **variables}
    if not GENERATION.search(template_of(tokenizer, given["tools"], chat_template)):
        raise ValueError("the chat template has no {% generation %} block that tells what the assistant wrote")
    text, spans = _rendered(tokenizer, messages, chat_template, given)
    ids, places = tokenizer.encode(text), tokenizer.spans(text)
    mask = [int(any(start < last and first < end for first, last in spans)) for start, end in places]
    whole = _begun(tokenizer, ids)
    return whole, [0] * (len(whole) - len(ids)) + mask


def template_of(tokenizer: Tokenizer, tools: Any = None, chat_template: str | None = None) -> str:
    """Returns the chat template that is used: the one asked for, `tool_use` where there are tools, or the default.

    ValueError where there is none.
    """
    single = {"default": tokenizer.chat_template} if tokenizer.chat_template else {}
    templates: Mapping[str, str] = getattr(tokenizer, "chat_templates", single)
    if chat_template is not None:
        if chat_template not in templates and "{" not in chat_template:
            raise unknown_name("chat template", chat_template, templates)
        return templates.get(chat_template, chat_template)
    name = "tool_use" if tools is not None and "tool_use" in templates else "default"
    if name in templates:
        return templates[name]
    if templates:
        raise ValueError(f"none of the chat templates {', '.join(templates)} is the default: name one (chat_template)")
    raise ValueError("this tokenizer has no chat template; use a plain template such as 'none' or 'question'")


def prompt_tokens(tokenizer: Tokenizer, prompt: str, template: str = "none", system: str | None = None) -> list[int]:
    """Returns the ids of a rendered prompt, with bos in front (once) where the tokenizer has one."""
    ids = tokenizer.encode(render_prompt(tokenizer, prompt, template, system))
    return _begun(tokenizer, ids)


def after_thinking(text: str) -> str:
    """Returns what follows the last `</think>`, or the whole text where there is none."""
    return text.rpartition(THINK_CLOSE)[2]


def _begun(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The ids with bos in front, once, where the tokenizer has one."""
    bos = tokenizer.bos_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _rendered(
    tokenizer: Tokenizer, messages: Sequence[Message], chat_template: str | None, given: Mapping[str, Any]
) -> Rendered:
    template = template_of(tokenizer, given["tools"], chat_template)
    names = {**tokenizer.special_tokens, **plain(given, "a chat template's variables")}
    return render(template, {**names, "messages": [_message(message) for message in messages]})


def _message(message: Message) -> dict[str, Any]:
    """A message as templates expect it: without keys that hold None, its reasoning under all names for it."""
    if not isinstance(message, Mapping):
        raise ValueError(f"a message is a mapping with role and content, found {type(message).__name__}")
    found = {key: value for key, value in plain(message, "a message").items() if value is not None}
    thought = next((found[name] for name in REASONING if name in found), None)
    return found if thought is None else {"thinking": thought, **found, "reasoning_content": thought}


def plain(value: Any, where: str) -> Any:
    """Returns the same data in Python's own types; ValueError for what is neither text, number, list nor mapping."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key, where): plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where) for item in value]
    if getattr(value, "shape", None) == ():  # a numpy scalar
        return plain(value.item(), where)
    raise ValueError(
        f"{where} holds a {type(value).__name__}; chat templates take texts, numbers, lists and mappings, such as a"
        " tool's JSON schema"
    )
