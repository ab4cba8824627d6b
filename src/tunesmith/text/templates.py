"""Chat templates: the model's own is the source of truth; masks come from the rendered text's own segment boundaries.

A chat is rendered once with a unique mark in place of each content. The rendered text then falls into scaffold and
contents by the marks' positions, and putting the contents back must give the plain rendering byte for byte. A template
that changes or repeats contents fails that proof; its rows are then cut by rendering prefixes of the chat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.errors import ModelError
from tunesmith.hub import ModelFiles
from tunesmith.text.example import Message

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
MARK = "\u27e6tunesmith-{}\u27e7"
MARKS = re.compile("\u27e6tunesmith-(\\d+)\u27e7")


class TemplateError(Exception):
    """This chat cannot be rendered by this template; the text says why."""


@dataclass(frozen=True)
class Segment:
    """A piece of rendered text. is_content: written by somebody, so control tokens inside it stay text."""

    text: str
    learned: bool
    is_content: bool


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template with the special tokens it may name."""

    name: str
    source: str
    bos_token: str
    eos_token: str

    @classmethod
    def load(
        cls, files: ModelFiles, name: str, own: str | None, bos_token: str = "", eos_token: str = ""
    ) -> ChatTemplate:
        """name: auto, chatml, instruction, plain or a .jinja file. own: the template the tokenizer brought.

        Raises ModelError TXT-020 when auto finds none, TXT-021 when a file cannot be read or is no Jinja.
        """
        if name == "auto" and own is None:
            raise ModelError(
                "TXT-020",
                f"{files.source} brings no chat template",
                where="model.template",
                expected=f"a named one: {', '.join(NAMED)}, or a .jinja file",
                fix="model.template: instruction",
            )
        try:
            source = own if name == "auto" else NAMED.get(name) or Path(name).read_text()
            template = cls(name, str(source), bos_token, eos_token)
            _compiled(template.source)
        except (OSError, jinja2.TemplateSyntaxError) as error:
            raise ModelError(
                "TXT-021",
                f"the chat template {name} cannot be used: {error}",
                where="model.template",
                expected="a Jinja template",
                fix=f"one of auto, {', '.join(NAMED)}, or mend the file",
            ) from error
        return template

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The whole chat as text. Raises TemplateError with the template's own words."""
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return _compiled(self.source).render(
                messages=plain,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                tools=None,
                documents=None,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateError(f"the chat template refuses this chat: {error}") from error

    def segments(self, messages: Sequence[Message], learn: str = "all") -> list[Segment]:
        """Scaffold and contents of a whole chat; joined they are the rendered text, byte for byte.

        Learned are the assistant contents that `learn` (all, last) or the turn itself names, and the end-of-turn text
        behind each, so that the model learns to stop.
        """
        text = self.render(messages)
        pieces = self._cut_by_marks(messages, text) or self._cut_by_prefixes(messages, text)
        return _learned(pieces, messages, learn)

    def prompt_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """As `segments`, of a prompt that waits for the assistant; nothing is learned."""
        text = self.render(messages, add_generation_prompt=True)
        pieces = self._cut_by_marks(messages, text, add_generation_prompt=True)
        if pieces is None:
            return [Segment(text, False, False)]
        return [Segment(piece, False, place is not None) for piece, place in pieces if piece]

    def _cut_by_marks(
        self, messages: Sequence[Message], text: str, add_generation_prompt: bool = False
    ) -> list[tuple[str, int | None]] | None:
        """(text, index of the message whose content it is | None) pieces, or None where the proof fails."""
        marked = [Message(message.role, MARK.format(place)) for place, message in enumerate(messages)]
        try:
            skeleton = self.render(marked, add_generation_prompt=add_generation_prompt)
        except TemplateError:
            return None
        parts = MARKS.split(skeleton)
        for strip in (False, True):  # many templates trim contents
            pieces: list[tuple[str, int | None]] = []
            for number, part in enumerate(parts):
                if number % 2 == 0:
                    pieces.append((part, None))
                else:
                    content = messages[int(part)].content
                    pieces.append((content.strip() if strip else content, int(part)))
            if "".join(piece for piece, _ in pieces) == text:
                return pieces
        return None

    def _cut_by_prefixes(self, messages: Sequence[Message], text: str) -> list[tuple[str, int | None]]:
        """Render the chat up to each assistant turn; what the turn adds behind its generation prompt is its content."""
        pieces: list[tuple[str, int | None]] = []
        done = 0
        for place, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self.render(messages[:place], add_generation_prompt=True)
            content = message.content if message.content in text[done:] else message.content.strip()
            start = len(before) if text.startswith(before) else text.find(content, done)
            start = text.find(content, max(start, done)) if content else -1
            if start < 0:
                raise TemplateError(f"the answer in messages[{place}] does not stand in the rendered text as it is")
            pieces += [(text[done:start], None), (text[start : start + len(content)], place)]
            done = start + len(content)
        return [*pieces, (text[done:], None)]


def _learned(pieces: list[tuple[str, int | None]], messages: Sequence[Message], learn: str) -> list[Segment]:
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    wanted = set()
    for place in answers:
        chosen = messages[place].learn
        if chosen if chosen is not None else (learn == "all" or place == answers[-1]):
            wanted.add(place)
    out = []
    for number, (text, place) in enumerate(pieces):
        behind_learned = number > 0 and place is None and pieces[number - 1][1] in wanted
        if behind_learned:
            ending = _ending(text)
            out += [Segment(text[:ending], True, False), Segment(text[ending:], False, False)]
        else:
            out.append(Segment(text, place in wanted, place is not None))
    return [segment for segment in out if segment.text]


def _ending(scaffold: str) -> int:
    """Length of the end-of-turn text at the start of what follows an answer: up to the first control-like token's end."""
    match = re.match(r"\s*(<\|[^|>]*\|>|<[^<>\s]{1,40}>|\[[^\]\s]{1,40}\])", scaffold)
    return match.end() if match else 0


# --------------------------------------------------------------------------------------------------------- the sandbox


class _GenerationMarks(Extension):
    """`{% generation %}` blocks render as what they hold: marks for trainers that read them."""

    tags = {"generation"}  # noqa: RUF012 (jinja's interface)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarks, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
