"""Chat templates: rendered as transformers renders them, kept within limits, cut exactly, and learned where the model generates."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from small_templates import SOURCES, marked, plain
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith.errors import ModelError
from tunesmith.text.example import Example, Message
from tunesmith.text.policies import wanted
from tunesmith.text.sandbox import compiled
from tunesmith.text.templates import ChatTemplate, TemplateError, template_input
from tunesmith.text.traced import Traced, joined, to_json, written

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
GOLDENS = json.loads((ROOT / "tests" / "golden" / "masks.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def oracles() -> Any:
    """The benchmark's oracles and chats."""
    import templates

    return templates


def template(source: str, **more: Any) -> ChatTemplate:
    return ChatTemplate("t", source, "<s>", "</s>", **more)


def learned(template: ChatTemplate, messages: list[Message], learn: Any = "all", tools: Any = ()) -> list[str]:
    """The learned texts, one for each turn."""
    out: dict[int | None, str] = {}
    for segment in template.segments(messages, learn, tools):
        if segment.learned:
            out[segment.answer] = out.get(segment.answer, "") + segment.text
    return list(out.values())


# ---------------------------------------------------------------------------------------------------------- three oracles


@pytest.mark.parametrize("name", SOURCES)
def test_small_templates_pass_every_oracle_on_every_chat(name: str, oracles: Any) -> None:
    verdict = oracles.judge(plain(name), name, marked(name))
    assert not verdict.failures
    assert verdict.rendered >= (8 if name in ("gemma", "llama2") else 12)
    assert min(verdict.tried[oracle] for oracle in ("rendering", "joined", "ids", "prompt", "sibling")) >= 7
    assert "control tokens" in verdict.exempt


def test_the_oracles_see_a_wrong_mask(oracles: Any) -> None:
    verdict = oracles.judge(plain("llama3"), "llama3", marked("llama3").replace("{% generation %}", "", 1).replace(
        "{% if m.role == 'assistant' %}", "{% generation %}{% if m.role == 'assistant' %}"))  # fmt: skip
    assert verdict.failures or not verdict.tried["sibling"]
    assert oracles.difference("ab", {0}, {0, 1}, set()) == "only the marks learn 'b'"
    assert oracles.difference("ab", {0, 1}, {0}, set()) == "only we learn 'b'"
    assert oracles.difference("a ", {0}, {0, 1}, set()) is None


@pytest.mark.parametrize("case", GOLDENS["small"], ids=lambda case: f"{case['template']}-{case['chat']}")
def test_small_goldens(case: dict[str, Any]) -> None:
    """«learned» in the whole text, written by hand."""
    messages, tools = chat_of(case["chat"])
    segments = template(plain(case["template"])).segments(messages, case.get("learn", "all"), tools)
    told, inside = "", False
    for segment in segments:
        if segment.learned != inside:
            told, inside = told + ("»" if inside else "«"), segment.learned
        told += segment.text
    assert told + ("»" if inside else "") == case["text"]


@pytest.mark.parametrize("case", GOLDENS["families"], ids=lambda case: f"{case['template']}-{case['chat']}")
def test_goldens_of_eight_families(case: dict[str, Any], test_data: Path) -> None:
    path = test_data / "data" / "chat_templates" / f"{case['template']}.jinja"
    messages, tools = chat_of(case["chat"])
    assert (
        learned(template(path.read_text(encoding="utf-8")), messages, case.get("learn", "all"), tools)
        == case["learned"]
    )


def chat_of(name: str) -> tuple[list[Message], list[dict[str, Any]]]:
    chat = GOLDENS["chats"][name]
    return [Message.from_json(turn) for turn in chat["messages"]], chat.get("tools", [])


def test_the_goldens_cover_eight_families() -> None:
    families = {case["family"] for case in GOLDENS["families"]}
    assert len(families) >= 8
    for chat in ("tools", "system", "thinking"):
        assert sum(case["chat"] == chat for case in GOLDENS["families"]) >= 3


def test_real_templates_are_cut_exactly(test_data: Path, oracles: Any) -> None:
    """Each fourth template, on a part of the chats; benchmarks/templates.py judges all of them on all."""
    chats = {"system and turns", "control tokens", "tool call", "thinking"}
    told = oracles.summary(oracles.table(test_data / "data" / "chat_templates", chats, every=4))
    assert told["templates"] == told["render"] == 26
    # Its marks leave the token out that hands over to the tool, without which nothing stops the model.
    assert set(told["exceptions"]) == {"trl/diffusion_gemma"}
    assert told["with_sibling"] >= 12


# -------------------------------------------------------------------------------------------------------------- rendering


def test_what_transformers_offers_is_offered() -> None:
    source = (
        "{{ bos_token }}{{ pad_token }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}"
        "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ dict(a=1)['a'] }}{% break %}{% endfor %}"
        "{{ tools | tojson(indent=2, sort_keys=true) }}{{ tools | tojson(separators=(',', ':'), ensure_ascii=true) }}"
        "{{ strftime_now('%Y') | length }}{% generation %}x{% endgeneration %}"
    )
    tools = [
        {
            "type": "function",
            "function": {"name": "fä", "description": 'a "b" <c>\n', "parameters": {"z": 1, "a": [1.5, None]}},
        }
    ]
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    ours = template(source, special=(("pad_token", "<pad>"),))
    ((theirs,), _) = render_jinja_template(
        [template_input(ours, messages, tools)],
        tools=tools,
        chat_template=source,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    assert ours.render(messages, tools=tools) == theirs
    assert str.__str__(ours.traced(messages, False, tools)) == theirs


def test_a_template_says_why_it_refuses() -> None:
    with pytest.raises(TemplateError, match="only user and assistant"):
        template(plain("llama2")).render([Message("tool", "x")])


def test_a_model_with_two_templates_uses_the_one_for_tools() -> None:
    both = ChatTemplate.load(Nowhere, "auto", {"default": "plain{{ messages | length }}", "tool_use": "tools"})
    assert both.render([Message("user", "a")]) == "plain1"
    assert both.render([Message("user", "a")], tools=[{"type": "function"}]) == "tools"
    with pytest.raises(ModelError, match="TXT-020"):
        ChatTemplate.load(Nowhere, "auto", {"tool_use": "x"})


class Nowhere:
    source = "nowhere"


@pytest.mark.parametrize(
    ("source", "wants"),
    [
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", [{"type": "text", "text": "a"}]),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "a"),
    ],
)
def test_contents_are_given_as_a_template_reads_them(source: str, wants: Any) -> None:
    ours = template(source)
    assert template_input(ours, [Message("user", "a")])[0]["content"] == wants
    assert ours.render([Message("user", "a")]) == "a"


def test_arguments_are_objects_or_text_as_a_template_takes_them() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "ü"}}}
    messages = [Message("user", "q"), Message("assistant", "", tool_calls=(call,))]
    for given in (call, {**call, "function": {"name": "f", "arguments": '{"a": "ü"}'}}):
        messages[1] = Message("assistant", "", tool_calls=(given,))
        assert '"arguments": {"a": "ü"}' in template(plain("chatml")).render(messages)
        assert 'f\n{"a": "ü"}' in template(plain("deepseek")).render(messages)
    assert "[TOOL_CALLS]f[ARGS]" in template(plain("mistral")).render(messages), "a call without an id gets one"


def test_a_list_of_calls_is_no_sign_of_python() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{% if not c.id %}{{ raise_exception('no id') }}"
        '{% endif %}[{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}]{% endfor %}</s>{% endfor %}'
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        Message("user", "q"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "r"),
        Message("assistant", "b"),
    ]
    assert '[{"name": "f", "arguments": {"a": 1}}]' in template(source).render(messages)


def test_a_call_that_a_template_drops_refuses_the_row() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    for content in ("", "I call f."):
        with pytest.raises(TemplateError, match="leaves the tool call of messages"):
            template(plain("phi")).segments([Message("user", "q"), Message("assistant", content, tool_calls=(call,))])
    with pytest.raises(TemplateError, match="leaves the text of messages"):
        template("{% for m in messages %}{{ m.role }}{% endfor %}").segments(
            [Message("user", "q"), Message("assistant", "a")]
        )


# ----------------------------------------------------------------------------------------------------------- the sandbox

BOMBS = {
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "repetition": "{{ 'x' * 10**10 }}",
    "power": "{% set n = namespace(v=10) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}{{ n.v }}",
    "doubling": "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}",
    "nesting": "{% set n = namespace(v=[1]) %}{% for i in range(60) %}{% set n.v = [n.v, n.v] %}{% endfor %}{{ n.v | tojson }}",
    "width": "{{ 'x'.ljust(10000000000) }}",
    "format": "{{ '%1000000000d' % 3 }}",
    "brackets": "{{ '{:1000000000}'.format(3) }}",
    "replacing": "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "joining": "{{ range(100000) | map('string') | join('x' * 1000000) }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "indent": "{{ range(1000) | list | tojson(indent=10000000) }}",
    "dummy text": "{{ lipsum(n=100000, max=100000) }}",
    "slow steps": "{% set a = 'x' * 1000000 %}{% for i in range(100000) %}{% set b = a.count('xy') %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_stopped_in_any_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.text.sandbox.SECONDS", 0.3)
    caught: list[BaseException] = []

    def run() -> None:
        try:
            template(BOMBS[name]).segments([Message("user", "a"), Message("assistant", "b")])
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert [type(error) for error in caught] == [ModelError]
    assert getattr(caught[0], "code", "") == "TXT-023"


def test_a_long_chat_is_no_bomb() -> None:
    messages = [Message(role, "x" * 20_000) for _ in range(60) for role in ("user", "assistant")]
    assert len(template(plain("chatml")).render(messages)) > 2_400_000


@pytest.mark.parametrize(
    "source",
    ["{{ messages.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% include '/etc/passwd' %}",
     "{{ namespace(__class__=1) }}", "{{ ''.join.__self__.__class__.__mro__ }}", "{{ self.__init__.__globals__.x }}"],
)  # fmt: skip
def test_a_template_reaches_nothing_outside(source: str) -> None:
    with pytest.raises((TemplateError, ModelError)):
        template(source).render([Message("user", "a")])


def test_what_is_no_template_has_a_code(tmp_path: Path) -> None:
    for text in ("{% if %}", "{{ " + "(" * 600 + "1" + ")" * 600 + " }}", "x" * (2**20 + 1)):
        path = tmp_path / "t.jinja"
        path.write_text(text)
        with pytest.raises(ModelError, match="TXT-021"):
            ChatTemplate.load(Nowhere, str(path), None)


# -------------------------------------------------------------------------------------------------- strings with authors


def test_authors_follow_their_letters() -> None:
    one, two = Traced.by("  ab,c ", 1), Traced.by("<d>", 2)
    text = joined(["[", one.strip(), "|", two, "]"])
    assert (text, text.runs) == ("[ab,c|<d>]", ((1, 5, 1), (6, 9, 2)))
    assert [(part, part.runs) for part in text.split("|")] == [("[ab,c", ((1, 5, 1),)), ("<d>]", ((0, 3, 2),))]
    assert text.replace("<d>", "x").runs == ((1, 5, 1),)
    assert text[1:3].runs == ((0, 2, 1),)
    assert ("x" + one).runs == ((1, 8, 1),)
    assert Traced("-", ()).join(["", two, ""]).runs == ((1, 4, 2),)
    assert two.center(5).runs == ((0, 5, -2),), "what is not followed is somebody's as a whole"
    assert text.splitlines()[0].runs == text.runs
    assert one.upper().runs == one.runs
    assert one == "  ab,c "
    assert {one: 1}["  ab,c "] == 1


def test_json_keeps_authors() -> None:
    value = written({"b": ["ü<|end|>", {"n": 1}], "a": 'q"'}, 3)
    for options in ({}, {"indent": 2}, {"sort_keys": True}, {"ensure_ascii": False}):
        text = to_json(value, **options)
        assert text == json.dumps({"b": ["ü<|end|>", {"n": 1}], "a": 'q"'}, **options)
        assert all(by == 3 for _, _, by in text.runs)
        assert any("<|end|>" in text[start:end] for start, end, _ in text.runs)


def test_filters_and_macros_keep_authors() -> None:
    source = (
        "{% macro show(x) %}<{{ x | trim }}>{% endmacro %}{% for m in messages %}{{ show(m.content) }}"
        "{{ [m.content, 'k'] | join(', ') }}{{ ', '.join([m.content]) }}{{ m.content | replace('a', 'b') }}"
        "{{ 'q' | replace('q', m.content) }}{{ m.content | upper }}{% set x %}{{ m.content }}!{% endset %}{{ x }}"
        "{{ (m.content | tojson | safe) + '<' }}{{ '%s' | format(m.content) }}{% endfor %}"
    )
    text = template(source).traced([Message("user", "\x01\x01")], False)
    alien = "".join(text[n] for n in range(len(text)) if not any(start <= n < end for start, end, _ in text.runs))
    assert "\x01" not in alien, "a letter of the message counts as the template's"
    assert "\\u0001" not in alien
    assert "&lt;" in text, "safe and + escape as Jinja does"


# ---------------------------------------------------------------------------------------------------- what is learned

CHAT = [
    Message("system", "s"),
    Message("user", "a"),
    Message("assistant", "b"),
    Message("user", "c"),
    Message("assistant", "d"),
]


def test_learn_policies() -> None:
    chatml = template(plain("chatml"))
    assert learned(chatml, CHAT) == ["b<|im_end|>", "d<|im_end|>"]
    assert learned(chatml, CHAT, "last") == ["d<|im_end|>"]
    assert learned(chatml, CHAT, ("user",)) == ["a<|im_end|>", "c<|im_end|>"]
    assert len(learned(chatml, CHAT, ["system", "user", "assistant"])) == 5
    own = [CHAT[1], Message("assistant", "b", learn=False), CHAT[3], Message("assistant", "d", weight=0.5)]
    segments = chatml.segments(own)
    assert {segment.weight for segment in segments if segment.learned} == {0.5}
    assert wanted(own, "all") == {3: 0.5}
    assert wanted([Message("user", "a", learn=True), Message("assistant", "b", weight=0)], "all") == {0: 1.0}


def test_an_example_passes_its_tools_on() -> None:
    tools = ({"type": "function", "function": {"name": "fn", "parameters": {}}},)
    example = Example((Message("user", "a"), Message("assistant", "b")), tools=tools)
    assert "fn" in "".join(s.text for s in template(plain("chatml")).segments(example.messages, "all", example.tools))


def test_thinking_that_is_given_is_not_learned() -> None:
    source = plain("chatml").replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    messages = [Message("user", "a"), Message("assistant", "b", reasoning="r")]
    assert learned(template(source), messages) == ["r\n</think>\n\nb<|im_end|>"]
    assert learned(template(plain("chatml")), messages) == ["<think>\nr\n</think>\n\nb<|im_end|>"]


def test_a_template_is_compiled_once() -> None:
    assert compiled(plain("phi")) is compiled(plain("phi"))
