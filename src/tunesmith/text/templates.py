"""Chat templates: the model's own is the source of truth; masks come from the rendered text's own segment boundaries.

A chat is rendered with strings that know who wrote them (`traced`), so the text falls into scaffold and contents whatever
the template does to them, and must be the plain rendering byte for byte. What the model has to generate follows from
rendering the chat's beginnings (`segments`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from tunesmith.errors import ModelError
from tunesmith.hub import ModelFiles
from tunesmith.text.example import Message
from tunesmith.text.policies import Learn, wanted
from tunesmith.text.sandbox import MAX_SOURCE, Overrun, compiled
from tunesmith.text.segments import MARKER, Segment, TemplateError, answer_spans, cut
from tunesmith.text.traced import Traced, written

__all__ = ["CHATML", "INSTRUCTION", "NAMED", "PLAIN", "ChatTemplate", "Segment", "TemplateError"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCTION = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}### Response:\n{{ message.content }}{{ eos_token }}{% if not loop.last %}\n\n{% endif %}"
    "{% else %}### Input:\n{{ message.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
PLAIN = "{% for message in messages %}{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
NAMED = {"chatml": CHATML, "instruction": INSTRUCTION, "plain": PLAIN}
TOOLS = -1  # the author of tool descriptions
REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template with the special tokens it may name.

    special: further special tokens by name. tool_use: the template for chats with tools, where the model has one of its own.
    """

    name: str
    source: str
    bos_token: str
    eos_token: str
    special: tuple[tuple[str, str], ...] = ()
    tool_use: str | None = None

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        name: str,
        own: str | Mapping[str, str] | None,
        bos_token: str = "",
        eos_token: str = "",
        special: Mapping[str, Any] | None = None,
        adds_bos: bool = False,
    ) -> ChatTemplate:
        """name: auto, chatml, instruction, plain or a .jinja file. own: what the tokenizer brought, one or several by name.

        adds_bos: the tokenizer starts plain text with its start token, so a named template does too.

        Raises ModelError TXT-020 when auto finds none, TXT-021 when a file cannot be read or is no Jinja.
        """
        named = {"default": own} if isinstance(own, str) else dict(own) if isinstance(own, Mapping) else {}
        default = named.get("default")
        if name == "auto" and default is None:
            raise ModelError(
                "TXT-020",
                f"{files.source} brings no chat template",
                where="model.template",
                expected=f"a named one: {', '.join(NAMED)}, or a .jinja file",
                fix="model.template: instruction",
            )
        try:
            source = default if name == "auto" else _named(name, adds_bos) or _read(Path(name))
            tool_use = named.get("tool_use") if name == "auto" else None
            plain = tuple((key, text) for key, text in (special or {}).items() if isinstance(text, str))
            template = cls(name, str(source), bos_token, eos_token, plain, tool_use)
            for text in template.sources:
                compiled(text)
        except (OSError, UnicodeDecodeError, jinja2.TemplateSyntaxError) as error:
            raise ModelError(
                "TXT-021",
                f"the chat template {name} cannot be used: {error}",
                where="model.template",
                expected="a Jinja template",
                fix=f"one of auto, {', '.join(NAMED)}, or mend the file",
            ) from error
        return template

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if self.tool_use is None else (self.source, self.tool_use)

    def _source_for(self, tools: Sequence[Any]) -> str:
        return self.tool_use if tools and self.tool_use is not None else self.source

    # ----------------------------------------------------------------------------------------------------- rendering

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] = (),
    ) -> str:
        """The whole chat as text. Raises TemplateError with the template's own words, ModelError TXT-023 beyond a limit."""
        return self._render(messages, add_generation_prompt, tools, traced=False)

    def traced(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[dict[str, Any]] = ()
    ) -> Traced:
        """As `render`; each character knows the place of the message that it came from. Raises the same."""
        text = self._render(messages, add_generation_prompt, tools, traced=True)
        return text if isinstance(text, Traced) else Traced(text, ())

    def marked_spans(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where its `{% generation %}` blocks stand in it: what trainers that read the marks learn."""
        spans: list[tuple[int, int]] = []
        return self._render(messages, False, tools, traced=False, spans=spans), spans

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        tools: Sequence[dict[str, Any]],
        traced: bool,
        spans: list[tuple[int, int]] | None = None,
    ) -> str:
        source = self._source_for(tools)
        forms = _forms(source, self.special_tokens)
        turns = as_template_input(messages, forms)
        offered = [dict(tool) for tool in tools] or None
        characters = sum(len(message.content) + len(message.reasoning or "") for message in messages)
        characters += sum(
            len(json.dumps(extra)) for extra in (*tools, *(m.tool_calls for m in messages if m.tool_calls))
        )
        if traced:
            turns = [
                {name: value if name == "role" else written(value, place) for name, value in turn.items()}
                for place, turn in enumerate(turns)
            ]
            offered = written(offered, TOOLS)
        return _run(source, characters, turns, offered, add_generation_prompt, self.special_tokens, spans, traced)

    @property
    def special_tokens(self) -> tuple[tuple[str, str], ...]:
        return (("bos_token", self.bos_token), ("eos_token", self.eos_token), *self.special)

    # ------------------------------------------------------------------------------------------------------ segments

    def segments(
        self, messages: Sequence[Message], learn: Learn = "all", tools: Sequence[dict[str, Any]] = ()
    ) -> list[Segment]:
        """Scaffold and contents of a whole chat; joined they are the rendered text, byte for byte.

        Learned is what the model generates in the turns that `learn` or the turn itself names: everything behind the
        generation prompt, with thinking and tool calls as the template renders them, and the end-of-turn text. Where a turn
        is closed by the next one's opening alone (GLM), a last answer is followed by that opening, so that the model
        learns to stop; only then the segments are longer than the text.
        """
        weights = wanted(messages, learn)
        whole = self._proven(messages, False, tools)
        ends_turns = _ends_turns(self._source_for(tools), self.special_tokens)
        spans = answer_spans(whole, messages, self._beginnings(tools), frozenset(weights), ends_turns)
        out = cut(whole, spans, weights)
        if not ends_turns and spans and spans[-1].place == len(messages) - 1:
            opening = self._opening_behind(messages, whole, tools)
            learned = spans[-1].place in weights
            weight = weights.get(spans[-1].place, 1.0)
            out += [Segment(opening, learned, False, weight, spans[-1].place)] if opening else []
        return out

    def prompt_segments(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[Segment]:
        """As `segments`, of a prompt that waits for the assistant; nothing is learned."""
        whole = self._proven(messages, True, tools)
        ends_turns = _ends_turns(self._source_for(tools), self.special_tokens)
        spans = answer_spans(whole, messages, self._beginnings(tools), frozenset(), ends_turns)
        return cut(whole, spans, {})

    def _proven(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[dict[str, Any]]
    ) -> Traced:
        """The traced rendering, which must be the plain one byte for byte."""
        whole = self.traced(messages, add_generation_prompt, tools)
        if str.__str__(whole) != self.render(messages, add_generation_prompt=add_generation_prompt, tools=tools):
            raise TemplateError("the chat template does other things to this chat when its text is followed")
        return whole

    def _beginnings(self, tools: Sequence[dict[str, Any]]) -> Any:
        def render(messages: Sequence[Message], add_generation_prompt: bool) -> Traced | None:
            try:
                return self.traced(messages, add_generation_prompt, tools)
            except TemplateError:
                return None

        return render

    def _opening_behind(self, messages: Sequence[Message], whole: Traced, tools: Sequence[dict[str, Any]]) -> str:
        """The marker that opens a user's turn behind this chat; "" where there is none."""
        try:
            more = self.traced([*messages, Message("user", "a")], False, tools)
        except TemplateError:
            return ""
        end = max((end for _, end, by in more.runs if by == len(messages) - 1), default=len(more))
        tail = whole[max((end for _, end, by in whole.runs if by == len(messages) - 1), default=len(whole)) :]
        opening = MARKER.match(str.__str__(more), end + len(tail)) if more[end:].startswith(tail) else None
        return opening.group() if opening else ""


def _read(path: Path) -> str:
    """Raises OSError for what is no file of a template's size."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file")
    if path.stat().st_size > 4 * MAX_SOURCE:
        raise OSError(f"{path} is larger than a template")
    return path.read_text(encoding="utf-8")


def _named(name: str, adds_bos: bool) -> str | None:
    return "{{ bos_token }}" + NAMED[name] if adds_bos and name in NAMED else NAMED.get(name)


def _run(
    source: str,
    characters: int,
    turns: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None,
    add_generation_prompt: bool,
    special: tuple[tuple[str, str], ...],
    spans: list[tuple[int, int]] | None = None,
    traced: bool = False,
) -> str:
    try:
        return compiled(source).render(
            characters,
            spans,
            traced=traced,
            messages=turns,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **dict(special),
        )
    except Overrun as error:
        raise ModelError(
            "TXT-023",
            f"the chat template was stopped: it wanted {error}",
            where="model.template",
            expected="a template that ends, in a few milliseconds",
            fix="read it before you trust it; model.template: a .jinja file of your own, or chatml",
        ) from error
    except REFUSALS as error:
        raise TemplateError(f"the chat template refuses this chat: {error}") from error


# ------------------------------------------------------------------------------------ what a template wants to be given


@dataclass(frozen=True)
class Forms:
    """How a template takes what a message holds: found by trying, once for each template.

    parts: contents as [{"type": "text", "text": ...}]. json_arguments: arguments of a tool call as JSON text.
    ids: tool calls without an id get one.
    """

    parts: bool = False
    json_arguments: bool = False
    ids: bool = False


def as_template_input(messages: Sequence[Message], forms: Forms) -> list[dict[str, Any]]:
    """Messages as chat templates read them, in the names of transformers."""
    turns, open_ids = [], []
    for place, message in enumerate(messages):
        content: Any = message.content
        if forms.parts:
            content = [{"type": "text", "text": message.content}]
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if message.reasoning is not None:
            turn |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
        if message.tool_calls:
            turn["tool_calls"] = [_call(call, forms, place, number) for number, call in enumerate(message.tool_calls)]
            open_ids = [call.get("id") for call in turn["tool_calls"]]
        if message.name is not None:
            turn["name"] = message.name
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        elif forms.ids and message.role == "tool" and open_ids:
            turn["tool_call_id"] = open_ids.pop(0)
        turns.append(turn)
    return turns


def template_input(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """The messages of a chat in the forms that this template reads."""
    return as_template_input(messages, _forms(template._source_for(tools), template.special_tokens))


def _call(call: dict[str, Any], forms: Forms, place: int, number: int) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and not forms.json_arguments:
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = arguments
        arguments = parsed if isinstance(parsed, dict) else arguments
    elif not isinstance(arguments, str) and forms.json_arguments:
        arguments = json.dumps(arguments, ensure_ascii=False)
    out = {"type": "function", "function": {"name": function.get("name"), "arguments": arguments}}
    if call.get("id") is not None:
        return {"id": call["id"], **out}
    if forms.ids:  # nine letters and digits: the strictest templates take no other
        told = json.dumps([place, number, function.get("name"), arguments], ensure_ascii=False)
        return {"id": hashlib.blake2b(told.encode("utf-8", "surrogatepass")).hexdigest()[:9], **out}
    return out


@lru_cache(maxsize=64)
def _forms(source: str, special: tuple[tuple[str, str], ...]) -> Forms:
    def shows(messages: Sequence[Message], forms: Forms, words: Sequence[str], tools: Any = None) -> bool:
        try:
            text = _run(source, 1000, as_template_input(messages, forms), tools, False, special)
        except TemplateError:
            return False
        return all(word in text for word in words) and "{'" not in text  # Python, not JSON

    plain = (Message("user", "qzq"), Message("assistant", "azq"))
    parts = not shows(plain, Forms(), ("qzq", "azq")) and shows(plain, Forms(parts=True), ("qzq", "azq"))
    for json_arguments in (False, True):
        for ids in (False, True):
            forms = Forms(parts, json_arguments, ids)
            call = {"function": {"name": "nzq", "arguments": {"kzq": "vzq"}}}
            called = (*plain, plain[0], Message("assistant", "", tool_calls=(call,)), Message("tool", "rzq"), plain[1])
            if shows(called, forms, ("nzq", "kzq", "vzq"), None):
                return forms
    return Forms(parts)


@lru_cache(maxsize=64)
def _ends_turns(source: str, special: tuple[tuple[str, str], ...]) -> bool:
    """Whether a marker closes an answer, or nothing does but the next turn's opening."""
    forms = _forms(source, special)
    asked, said = Message("user", "qzq"), Message("assistant", "azq")
    for first in ((), (Message("system", "szq"),)):
        try:
            turns = as_template_input([*first, asked, said, asked, said], forms)
            text = _run(source, 1000, turns, None, False, special)
        except TemplateError:
            continue
        behind_last, behind_first = text[text.rfind("azq") + 3 :], text[text.find("azq") + 3 :]
        return bool(MARKER.search(behind_last)) or not MARKER.match(behind_first)
    return True
