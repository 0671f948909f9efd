"""Prompts: plain templates, the sandboxed chat template, and bos in front."""

import json
from types import SimpleNamespace

import pytest

from data.chat import after_thinking, prompt_tokens, render_messages, render_prompt
from data.tokenizers.characters import ByteTokenizer

CHATML = (
    "{%- for message in messages %}\n"
    "<|{{ message['role'] }}|>{{ message.content }}{{ eos_token }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_template(template: str | None, bos_id: int | None = None) -> SimpleNamespace:
    plain = ByteTokenizer()
    return SimpleNamespace(
        chat_template=template, special_tokens={"eos_token": "<eos>"}, bos_id=bos_id, encode=plain.encode
    )


def test_plain_templates() -> None:
    assert render_prompt(ByteTokenizer(), "1+1=") == "1+1="
    assert render_prompt(ByteTokenizer(), "Why?\n", "question") == "Question: Why?\nAnswer: "
    assert render_prompt(ByteTokenizer(), "1+1=", system="Add.") == "Add.\n1+1="
    assert render_prompt(ByteTokenizer(), "Why?", "r1").endswith("User: Why?\nAssistant: <think>")


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'chat'"):
        render_prompt(ByteTokenizer(), "x", "chatt")


def test_a_tokenizer_without_a_chat_template_says_so() -> None:
    with pytest.raises(ValueError, match="no chat template"):
        render_prompt(ByteTokenizer(), "x", "chat")


def test_chat_template_with_system() -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    text = render_prompt(with_template(CHATML), " hi \n", "chat", system="Be brief.")
    assert text == "<|system|>Be brief.<eos><|user|>hi<eos><|assistant|>"


def test_conversations_and_extra_variables() -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    text = render_messages(with_template(CHATML), messages, add_generation_prompt=False)
    assert text == "<|user|>hi<eos><|assistant|>ho<eos>"
    template = "{{ tools | tojson }}{% if enable_thinking is false %}no{% endif %}"
    tools = [{"a": "<é>"}]
    assert render_messages(with_template(template), [], tools=tools, enable_thinking=False) == (
        json.dumps(tools, ensure_ascii=False) + "no"
    )


def test_a_template_can_refuse() -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    with pytest.raises(ValueError, match="refused the conversation: roles must alternate"):
        render_prompt(with_template("{{ raise_exception('roles must alternate') }}"), "x", "chat")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_templates_are_sandboxed(template: str) -> None:
    security = pytest.importorskip("jinja2", reason="jinja2 is not installed").exceptions
    with pytest.raises((security.SecurityError, security.UndefinedError)):
        render_prompt(with_template(template), "x", "chat")


def test_bos_stands_in_front_once() -> None:
    assert prompt_tokens(with_template(None, bos_id=7), "a") == [7, 97]
    assert prompt_tokens(with_template(None, bos_id=97), "a") == [97]
    assert prompt_tokens(with_template(None), "a") == [97]


def test_after_thinking_takes_the_last_close() -> None:
    assert after_thinking("<think>1</think>2</think>3") == "3"
    assert after_thinking("4") == "4"
