"""From a task's prompt to the text the model sees, by plain templates or the tokenizer's chat template."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from data.names import unknown_name
from data.tokenizer import Tokenizer

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
Message = Mapping[str, Any]

# DeepSeek-R1-Zero, table 1 (arXiv 2501.12948), shortened to the tags our tasks read.
R1_SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with "
    f"the answer. The reasoning process is enclosed within {THINK_OPEN} {THINK_CLOSE} tags, i.e., "
    f"{THINK_OPEN} reasoning process here {THINK_CLOSE} answer here."
)


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
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
) -> str:
    """Returns a conversation as the tokenizer's chat template writes it.

    `messages`: mappings with `role` and `content`; `variables`: further names for the template (`tools`,
    `enable_thinking`). Raises ValueError when there is no template or the template refuses, ImportError
    naming jinja2 when it is missing.
    """
    if not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template; use a plain template such as 'none' or 'question'")
    names = {**tokenizer.special_tokens, **variables, "add_generation_prompt": add_generation_prompt}
    return _compile(tokenizer.chat_template).render(messages=list(messages), **names)


def prompt_tokens(tokenizer: Tokenizer, prompt: str, template: str = "none", system: str | None = None) -> list[int]:
    """Returns the ids of a rendered prompt, with bos in front (once) where the tokenizer has one."""
    ids = tokenizer.encode(render_prompt(tokenizer, prompt, template, system))
    if tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id]:
        return ids
    return [tokenizer.bos_id, *ids]


def after_thinking(text: str) -> str:
    """Returns what follows the last `</think>`, or the whole text where there is none."""
    return text.rpartition(THINK_CLOSE)[2]


@lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ImportError(
            "chat templates are rendered by jinja2: pip install jinja2, or use template='none'"
        ) from error
    # Templates on the Hub are written for these two block options.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    return environment.from_string(template)


def _to_json(value: Any, indent: int | None = None) -> str:
    # jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"the chat template refused the conversation: {message}")
