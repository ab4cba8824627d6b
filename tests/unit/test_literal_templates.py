"""What a template looks at in contents is seen, or it is not taken for literal."""

from __future__ import annotations

import pytest

from tunesmith.text.example import Message
from tunesmith.text.literal import Look, NotLiteral, looks_of
from tunesmith.text.templates import ChatTemplate

CHAT = [Message("user", " Hi there"), Message("assistant", "Yes")]


def looks(body: str) -> dict[Look, bool]:
    source = "{% for message in messages %}{% set content = message.content %}" + body + "{% endfor %}"
    return looks_of(ChatTemplate("test", source, "<s>", "</s>"), CHAT)


@pytest.mark.parametrize(
    "body",
    [
        "{{ content }}",
        "{{ '<|' + message.role + '|>' + content ~ eos_token }}",
        "{% if content is string and content is not none and content is defined %}{{ content }}{% endif %}",
        "{% macro show(text) %}{{ text }}{% endmacro %}{{ show(content) }}",
        "{% set block %}<b>{{ content }}</b>{% endset %}{{ block }}",
        "{{ [content] | join('\n\n') }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ (['x', content] | join(',')) if message.role in ['user', 'assistant'] else '' }}",
        "{% if ('<b>' + content).startswith('<b>') and 'x' ~ content %}{{ content }}{% endif %}",
    ],
)
def test_printing_and_joining_asks_nothing(body: str) -> None:
    assert looks(body) == {}


@pytest.mark.parametrize(
    ("body", "look", "answers"),
    [
        ("{{ content | trim }}", ((("strip", None),), "changes", ""), [True, False]),
        ("{{ content.lstrip('\n') }}", ((("lstrip", "\n"),), "changes", ""), [False, False]),
        ("{% if content %}{{ content }}{% endif %}", ((), "filled", ""), [True, True]),
        ("{% if content | length > 0 %}{{ content }}{% endif %}", ((), "filled", ""), [True, True]),
        ("{% if '</think>' in content %}{% endif %}", ((), "holds", "</think>"), [False, False]),
        ("{{ content.split('</think>')[-1] }}", ((), "holds", "</think>"), [False, False]),
        ("{{ content | replace('zzz', 'y') }}", ((), "holds", "zzz"), [False, False]),
        ("{% if content.startswith('Y') %}{% endif %}", ((), "begins", "Y"), [False, True]),
        ("{% if content.endswith('re') %}{% endif %}", ((), "ends", "re"), [True, False]),
        ("{% if content == 'Yes' %}{% endif %}", ((), "equals", "Yes"), [False, True]),
        ("{% if content in ['Yes'] %}{% endif %}", ((), "equals", "Yes"), [False, True]),
        ("{% if (content | trim).startswith('H') %}{% endif %}", ((("strip", None),), "begins", "H"), [True, False]),
    ],
)
def test_what_is_asked_is_told_with_its_answers(body: str, look: tuple, answers: list[bool]) -> None:
    found = looks(body)
    assert [found[Look(place, *look)] for place in (0, 1)] == answers


@pytest.mark.parametrize(
    "body",
    [
        "{{ content | upper }}",
        "{{ content.upper() }}",
        "{{ content | tojson }}",
        "{{ message | tojson }}",
        "{{ messages | map(attribute='content') | unique | list }}",
        "{{ '%s!' % content }}",
        "{{ '%s %s' % (content, 1) }}",
        "{{ '{}!'.format(content) }}",
        "{{ content.split(' ') | join }}",
        "{{ content[0] }}",
        "{{ content | first }}",
        "{% for letter in content %}{{ letter }}{% endfor %}",
        "{% if content | length > 5 %}{% endif %}",
        "{{ content | length }}",
        "{{ content * 2 }}",
        "{{ content | escape }}",
        "{{ content.replace(' ', '_') }}",
        "{{ content | replace(' ', '_') }}",
        "{% if content in 'Yes and no' %}{% endif %}",
        "{% if 'Yes and no'.startswith(content) %}{% endif %}",
        "{% if content < 'b' %}{% endif %}",
        "{% set names = {'Yes': 1} %}{{ names[content] }}",
        "{% if '</think>' in ('<b>' ~ content) %}{% endif %}",
        "{% set block %}x{{ content }}{% endset %}{% if 'Yes' in block %}{% endif %}",
        "{{ ('' ~ content ~ content) | trim | upper }}",
        "{% if messages[0].content == messages[1].content %}{% endif %}",
        "{{ content | indent(2) }}",
        "{{ content | string | capitalize }}",
    ],
)
def test_what_cannot_be_told_from_outside_is_not_literal(body: str) -> None:
    with pytest.raises(NotLiteral, match=r"content|text"):
        looks(body)
