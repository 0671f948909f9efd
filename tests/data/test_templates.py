"""Chat templates: what they are given, what the assistant wrote, and what they may take.

The expected texts and masks are those of transformers 5.24 for the same templates and messages.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data import templates
from data.chat import assistant_tokens, render_messages
from data.tokenizers.characters import ByteTokenizer
from data.tokenizers.tokenizer_json import HFTokenizer
from data.verify.pool import Pool
from tests.data.test_tokenizer_hub import folder

jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed")

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "sé\n<b>", "tool_calls": None},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho", "thinking": "hmm"},
]
TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|e|>\n{% endgeneration %}"
    "{% else %}[{{ m.content }}]\n{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: Any) -> HFTokenizer:
    path = tmp_path_factory.mktemp("templates")
    return HFTokenizer.from_folder(folder(path, {"image_token": "<img>", "pad_token": None}))


def with_template(template: str) -> Any:
    return SimpleNamespace(chat_template=template, special_tokens={}, bos_id=None)


def rendered(template: str, messages: Any = MESSAGES, **variables: Any) -> str:
    return render_messages(with_template(template), messages, **variables)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (TURNS, "[sé\n<b>]\n[hi]\nho<|e|>\n"),
        (
            "{%- for m in messages -%}\n  {%- generation -%}\n {{ m.role }} : {{ loop.index }}\n"
            "{%- endgeneration -%}\n{%- endfor -%}",
            "system : 1user : 2assistant : 3",
        ),
        ("{% generation %}{% set a = 1 %}{% endgeneration %}{{ a }}", "1"),
        ("{% for m in messages %}{% generation %}{% continue %}{% endgeneration %}x{% endfor %}", ""),
        (
            "{{ messages[0] | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
            '{"content":"s\\u00e9\\n<b>","role":"system"}',
        ),
        ("{{ {'b': [1.5], 'a': '<é>'} | tojson(indent=1) }}", '{\n "b": [\n  1.5\n ],\n "a": "<é>"\n}'),
        ("{{ 'é' | tojson }}{{ 'é' | tojson(True) }}", '"é""\\u00e9"'),
        ("{% if tools is not none %}T{% endif %}{% if tools is defined %}d{% endif %}", "d"),
        ("{{ documents is none }}{{ documents is defined }}{{ add_generation_prompt }}", "TrueTrueTrue"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
            "user",
        ),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
        ("{% if true %}\n  a\n{% endif %}\n   {% if true %}\nb\n   {% endif %}\nc\n", "  a\nb\nc"),
        ("{{ dict(a=1).items() | list }}{{ dict.fromkeys(['x'], 2) }}", "[('a', 1)]{'x': 2}"),
        (
            "{% for m in messages %}{{ m.keys() | list }}{% endfor %}".replace("messages", "messages[:1]"),
            "['role', 'content']",
        ),
        ("{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }};{% endfor %}", ";;hmmhmm;"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join }}", "hi"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_templates_are_given_what_transformers_gives_them(template: str, text: str) -> None:
    assert rendered(template) == text


def test_control_tokens_have_the_names_of_their_roles(tokenizer: HFTokenizer) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}|{{ image_token }}|{{ unk_token is none }}"
    assert render_messages(tokenizer, MESSAGES, chat_template=template) == "|</s>|False|<img>|False"


def test_tools_documents_and_variables_are_plain_data() -> None:
    import numpy as np

    template = "{{ tools | tojson }}{{ documents | tojson }}{{ enable_thinking }}{{ n }}"
    given = {"tools": [{"a": (1, "é")}], "documents": [{"text": "t"}], "enable_thinking": False, "n": np.float32(0.5)}
    assert rendered(template, **given) == '[{"a": [1, "é"]}][{"text": "t"}]False0.5'
    with pytest.raises(ValueError, match="holds a function; chat templates take texts"):
        rendered(template, tools=[lambda: 1])
    with pytest.raises(ValueError, match="a message is a mapping with role and content, found str"):
        rendered(template, ["hi"])


def test_templates_by_name() -> None:
    several = SimpleNamespace(
        chat_template="D", chat_templates={"default": "D", "tool_use": "T", "rag": "R"}, special_tokens={}, bos_id=None
    )
    assert render_messages(several, MESSAGES) == "D"
    assert render_messages(several, MESSAGES, tools=[]) == "T"
    assert render_messages(several, MESSAGES, tools=[], chat_template="rag") == "R"
    assert render_messages(several, MESSAGES, chat_template="{{ 1 }}") == "1"
    with pytest.raises(ValueError, match="Did you mean 'rag'"):
        render_messages(several, MESSAGES, chat_template="rags")
    several.chat_templates.pop("default")
    with pytest.raises(ValueError, match="none of the chat templates tool_use, rag is the default"):
        render_messages(several, MESSAGES)


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ raise_exception('no') }}", "TemplateError"),
        ("{% if %}", "TemplateError"),
        ("{{ 1 // 0 }}", "TemplateError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% set ns = namespace(_x=1) %}", "SecurityError"),
        ("{{ bos_token + 'a' }}", "UndefinedError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "TemplateError"),
    ],
)
def test_templates_that_fail_raise_what_they_are(template: str, kind: str) -> None:
    with pytest.raises(getattr(jinja2.exceptions, kind)) as caught:
        rendered(template)
    assert isinstance(caught.value, ValueError)
    assert rendered("still {{ 1 }}") == "still 1"


def test_the_assistants_tokens(tokenizer: HFTokenizer) -> None:
    texts = ["abc", "ab !", "c", "abc"]
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    ids, mask = assistant_tokens(tokenizer, turns, chat_template=TURNS)
    assert ids == tokenizer.encode(render_messages(tokenizer, turns, chat_template=TURNS))
    assert mask == [0] * 3 + [1] * 8 + [0] + [1] * 7
    assert sum(assistant_tokens(tokenizer, turns[:1], chat_template=TURNS)[1]) == 0
    with pytest.raises(ValueError, match=r"no \{% generation %\} block"):
        assistant_tokens(tokenizer, turns, chat_template="{{ messages }}")
    with pytest.raises(ValueError, match="does not tell where its tokens stand"):
        assistant_tokens(ByteTokenizer(), turns, chat_template=TURNS)


def test_a_beginning_of_the_text_is_not_the_assistants(tmp_path: Path) -> None:
    tokenizer = HFTokenizer.from_folder(folder(tmp_path, {"bos_token": "<s>", "add_bos_token": True}))
    template = "{% generation %}ab{% endgeneration %}c"
    assert assistant_tokens(tokenizer, [], chat_template=template) == ([14, 1, 2, 3], [0, 1, 1, 0])


def test_long_conversations_come_in_pieces() -> None:
    text = '\N{GRINNING FACE}漢\x00"' * 60_000
    assert rendered("{{ messages[0].content }}", [{"role": "user", "content": text}]) == text
    assert rendered("{# nothing #}") == ""


BOMBS = [
    "{{ 'a' * 10**12 }}",
    "{{ [1] * 10**11 }}",
    "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
    "{{ 'a' | center(10**11) }}",
    "{{ '%99999999999d' | format(1) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "{% for i in range(99999) %}{% set x = 9 ** 99999 %}{% endfor %}",
]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Any:
    with Pool(templates.Rendering(), workers=1, seconds=2.0, memory=300 << 20) as pool:
        monkeypatch.setattr(templates, "_pool", lambda: pool)
        yield


def test_templates_that_explode_are_stopped(hasty: None) -> None:
    for bomb in BOMBS:
        with pytest.raises(ValueError, match=r"chat template (was stopped|fails)"):
            rendered(bomb)
        assert rendered("still {{ 1 }}") == "still 1"


def test_what_a_template_is_given_is_data_when_it_arrives() -> None:
    request = {"template": "{{ n | tojson }}", "names": {"n": {"a": [1]}}, "now": None}
    verdict = templates.Rendering().verify(request, "0")
    assert json.loads(str(verdict.parsed)) == ['{"a": [1]}', []]
