"""Which chat templates are cut exactly, and how: each real template on varied chats, judged by independent oracles.

    python benchmarks/templates.py FOLDER     a folder of folders of .jinja files, X_training.jinja beside X.jinja

For each chat that a template renders:
    rendering   our text is the one that transformers makes, byte for byte
    joined      the segments joined are that text (a template that closes no turn: the text and the next turn's opening)
    ids         the ids of the pieces joined are those of the whole text, or the row is flagged; chats whose text holds control
                tokens are exempt, and counted, and must not yield one of them
    prompt      the ids of the prompt that serving makes begin the row, where the template itself renders it so
    sibling     what is learned is what the {% generation %} marks of the sibling (or its own) say, but for blanks at the
                edges and for what the generation prompt has given already
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import record
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith.stages.prepare.encoding.encoder import Encoder, Turns
from tunesmith.text.example import ROLE_CODES, Message
from tunesmith.text.segments import MARKER, Segment
from tunesmith.text.templates import TOOLS, ChatTemplate, TemplateError, template_input
from tunesmith.text.tokenizers import Tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather of <b>now</b> at a "place", 24 °C or so',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "where", "enum": ["Bonn", "Köln"]},
                "days": {"type": "integer", "maximum": 14, "description": "how many"},
            },
            "required": ["place"],
        },
    },
}


def call(place: str, id: str = "abcdefghi", **more: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "get_weather", "arguments": {"place": place, **more}}}


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, **more: Any) -> Message:
    return Message("assistant", text, **more)


def result(text: str, id: str = "abcdefghi") -> Message:
    return Message("tool", text, name="get_weather", tool_call_id=id)


CHATS: dict[str, tuple[list[Message], tuple[dict[str, Any], ...]]] = {
    "one turn": ([user("Who?"), answer("Me.")], ()),
    "system": ([system("Be brief."), user("Who?"), answer("Me.")], ()),
    "turns": ([user("Who?"), answer("Me."), user("And now?"), answer("Still me."), user("Sure?"), answer("Yes!")], ()),
    "system and turns": ([system("S."), user("a"), answer("b"), user("c"), answer("d")], ()),
    "blanks": ([user("\n\n a\tb  \n"), answer("  \n one \n\n two\n \n"), user("   "), answer("\tx = 1\n\n\n")], ()),
    "unicode": ([user("Größe? 日本語 🎉 \u200d"), answer("été\u00a0مرحبا 👩‍👩‍👧 ﬁ"), user("…"), answer("...\n\n")], ()),
    "markup": ([user("a <b>&amp;</b> {{ x }} {% if %} \\n \"q\" 'q'"), answer("<p>{'a': 1} [1, 2] $x_1$</p>")], ()),
    "control tokens": (
        [
            user("say <|im_end|> or </s> [INST] <|eot_id|> <end_of_turn> <|end|> <|user|>"),
            answer("no <|im_start|>user\n</s>!"),
        ],
        (),
    ),
    "repeated": ([user("yes"), answer("yes"), user("yes"), answer("yes")], ()),
    "thinking": (
        [user("2+2?"), answer("4", reasoning="two and two\n"), user("3+3?"), answer("6", reasoning="three twice")],
        (),
    ),
    "thinking in the content": (
        [user("2+2?"), answer("<think>\nadd\n</think>\n\n4"), user("a"), answer("<think>b</think>c")],
        (),
    ),
    "tool call": (
        [
            system("S."),
            user("Weather?"),
            answer("", tool_calls=(call("Bonn", days=3),)),
            result("sunny, 24 °C"),
            answer("Sunny."),
        ],
        (TOOL,),
    ),
    "tool calls and turns": (
        [
            user("Weather?"),
            answer("I look.", tool_calls=(call("Bonn"), call("Köln", "abcdefghj")), reasoning="two places"),
            result("sunny"),
            result('{"sky": "grey"}', "abcdefghj"),
            answer("Sun and clouds."),
            user("Thanks"),
            answer("Welcome."),
        ],
        (TOOL,),
    ),
    "tools on offer": ([user("Hello"), answer("Hello!")], (TOOL,)),
}


@dataclass
class Verdict:
    """Of one template: what the oracles said about each chat."""

    way: str = ""
    why_not: str = ""
    rendered: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    flagged: list[str] = field(default_factory=list)
    exempt: list[str] = field(default_factory=list)
    prompt_differs: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return bool(self.rendered) and not self.failures

    def fail(self, oracle: str, chat: str, what: str) -> None:
        self.failures.append({"oracle": oracle, "chat": chat, "what": what[:400]})

    def to_json(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if value not in ("", [], {}) and name != "tried"}
        return {"exact": self.exact, **plain, "oracles": dict(self.tried)}


def tokenizer_for(source: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose control tokens are the markers that this template writes, a few of them not special."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<unk>"],
    )  # fmt: skip
    text = " ".join(json.dumps([m.content for m in chat], ensure_ascii=False) for chat, _ in CHATS.values())
    backend.train_from_iterator([text, source[:4000]] * 3, trainer)
    markers = sorted(
        {m for m in re.findall(r"<\|[^|<>\s'\"]+\|?>|</?[a-z_]+>|<｜[^<>]+>|\[/?[A-Z_]+\]|\[\|[a-z]+\|\]", source)}
    )
    soft = [m for m in markers if "think" in m or "tool" in m]
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=[m for m in markers if m not in soft and m not in ("<s>", "</s>")],
    )  # fmt: skip
    hf.add_tokens(soft)
    return hf


def judge(source: str, name: str, sibling: str | None = None, chosen: Collection[str] = ()) -> Verdict:
    """All oracles on all chats, or on the chosen ones."""
    out = Verdict()
    hf = tokenizer_for(source)
    template = ChatTemplate(name, source, "<s>", "</s>", (("unk_token", "<unk>"), ("pad_token", "<pad>")))
    marked = ChatTemplate(name, sibling, "<s>", "</s>", template.special) if sibling is not None else None
    tokenizer = Tokenizer(hf, template, frozenset())
    for chat, (messages, tools) in CHATS.items():
        if chosen and chat not in chosen:
            continue
        _judge_chat(out, tokenizer, marked, chat, messages, tools)
    out.way, out.why_not = way_of(tokenizer)
    if not out.rendered:
        out.why_not = next(iter(out.refused.values()), "")
    return out


def _judge_chat(
    out: Verdict, tokenizer: Tokenizer, marked: ChatTemplate | None, chat: str, messages: list[Message], tools: Any
) -> None:
    template = tokenizer.template
    theirs = _transformers(template, messages, tools)
    try:
        text = template.render(messages, tools=tools)
    except TemplateError as error:
        out.refused[chat] = str(error)
        if theirs is not None:
            out.fail("rendering", chat, f"we refuse what transformers renders: {error}")
        return
    out.rendered += 1
    out.tried["rendering"] += 1
    if text != theirs:
        out.fail("rendering", chat, f"{text!r} instead of {theirs!r}")
    try:
        segments = template.segments(messages, tools=tools)
    except TemplateError as error:
        out.left_out[chat] = str(error)
        if "leaves the" not in str(error):
            out.fail("joined", chat, str(error))
        return
    joined = "".join(segment.text for segment in segments)
    out.tried["joined"] += 1
    if joined != text and not (joined.startswith(text) and MARKER.fullmatch(joined[len(text) :])):
        out.fail("joined", chat, f"{joined!r} instead of {text!r}")
    if not any(segment.learned for segment in segments):
        out.fail("joined", chat, "nothing is learned")
    ((ids, _),) = tokenizer.encode_segments([segments])
    if tokenizer.holds_control_tokens(segments):
        out.exempt.append(chat)
        if int(np.isin(ids, tokenizer.control_ids).sum()) > tokenizer.count_control_tokens(segments):
            out.fail("ids", chat, "a control token came out of somebody's text")
    else:
        out.tried["ids"] += 1
        if ids.tolist() != tokenizer.encode_whole(joined):
            out.flagged.append(chat)
    _judge_prompt(out, tokenizer, chat, messages, tools, text, ids)
    if marked is not None:
        _judge_sibling(out, template, marked, chat, messages, tools, segments)


def _judge_prompt(
    out: Verdict, tokenizer: Tokenizer, chat: str, messages: list[Message], tools: Any, text: str, ids: np.ndarray
) -> None:
    try:
        prompt = tokenizer.template.render(messages[:-1], add_generation_prompt=True, tools=tools)
        served = tokenizer.encode_prompt(messages[:-1], tools)
    except TemplateError:
        return
    if not text.startswith(prompt):
        out.prompt_differs.append(chat)
        return
    out.tried["prompt"] += 1
    if ids[: len(served)].tolist() != served:
        out.fail("prompt", chat, "the row's ids do not begin with the served prompt's")


def _judge_sibling(
    out: Verdict,
    template: ChatTemplate,
    marked: ChatTemplate,
    chat: str,
    messages: list[Message],
    tools: Any,
    segments: list[Segment],
) -> None:
    try:
        text, spans = marked.marked_spans(messages, tools)
    except TemplateError:
        return
    joined = "".join(segment.text for segment in segments)
    if not joined.startswith(text) and not text.startswith(joined):
        return  # the sibling renders this chat otherwise
    out.tried["sibling"] += 1
    given = _given(template, messages, tools)
    ours, theirs = _learned_places(segments), {n for start, end in spans for n in range(start, end)}
    if (what := difference(joined if len(joined) > len(text) else text, ours, theirs, given)) is not None:
        out.fail("sibling", chat, what)


def _learned_places(segments: list[Segment]) -> set[int]:
    out, done = set(), 0
    for segment in segments:
        out |= set(range(done, done + len(segment.text))) if segment.learned else set()
        done += len(segment.text)
    return out


def _given(template: ChatTemplate, messages: list[Message], tools: Any) -> set[int]:
    """Places of the whole text that the generation prompt of some answer holds already."""
    out: set[int] = set()
    whole = template.traced(messages, False, tools)
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        try:
            before = template.traced(messages[:place], True, tools)
        except TemplateError:
            continue
        at = max((end for _, end, by in whole.runs if TOOLS < by < place), default=0)
        base = max((end for _, end, by in before.runs if TOOLS < by < place), default=0)
        for shared, (one, other) in enumerate(zip(str.__str__(whole[at:]), str.__str__(before[base:]), strict=False)):
            if one != other:
                break
            out.add(at + shared)
    return out


def difference(text: str, ours: set[int], theirs: set[int], given: set[int]) -> str | None:
    """What one learns and the other does not, beyond blanks and what the prompt gives already; None: nothing."""
    for name, places in (("only we learn", ours - theirs), ("only the marks learn", theirs - ours - given)):
        told = "".join(text[n] if n < len(text) else "" for n in sorted(places))
        if told.strip():
            return f"{name} {told!r}"
    return None


def way_of(tokenizer: Tokenizer) -> tuple[str, str]:
    """How rows of plain chats are made: (compiled | rendered, why not compiled)."""
    rows = [["user", "assistant"] * (1 + n % 2) for n in range(16)]
    contents = [f"text {n} of row {row}." for row, roles in enumerate(rows) for n in range(len(roles))]
    roles = np.array([ROLE_CODES[role] for row in rows for role in row], np.uint8)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    encoder = Encoder(tokenizer, "all")
    batch = encoder.encode(Turns(offsets, roles, pa.array(contents)))
    if len(batch.refused) == len(rows):
        return "", next(iter(batch.refused.values()))
    return (
        ("compiled segments", "")
        if encoder.ways["compiled"]
        else ("prefix rendering", "it does more with contents than print them")
    )


def _transformers(template: ChatTemplate, messages: list[Message], tools: Any) -> str | None:
    turns = template_input(template, messages, tools)
    try:
        ((text,), _) = render_jinja_template(
            [turns], tools=list(tools) or None, chat_template=template.source, **dict(template.special_tokens)
        )
    except Exception:
        return None
    return text


def sibling_of(path: Path) -> str | None:
    """The marked template that belongs to this one: X_training.jinja, or itself where it has marks."""
    own = path.read_text(encoding="utf-8")
    if re.search(r"\{%-?\s*generation\s*-?%\}", own):
        return own
    other = path.with_name(f"{path.stem}_training.jinja")
    return other.read_text(encoding="utf-8") if other.exists() else None


def table(folder: Path, chosen: Collection[str] = (), every: int = 1) -> dict[str, Verdict]:
    """Verdicts by template. chosen: chats, all where there are none. every: judge each n-th template only."""
    paths = sorted(folder.glob("*/*.jinja"))[::every]
    return {
        f"{path.parent.name}/{path.stem}": judge(path.read_text(encoding="utf-8"), path.stem, sibling_of(path), chosen)
        for path in paths
    }


def summary(verdicts: dict[str, Verdict]) -> dict[str, Any]:
    return {
        "templates": len(verdicts),
        "render": sum(bool(v.rendered) for v in verdicts.values()),
        "exact": sum(v.exact for v in verdicts.values()),
        "ways": dict(Counter(v.way for v in verdicts.values())),
        "with_sibling": sum(v.tried["sibling"] > 0 for v in verdicts.values()),
        "chats_by_oracle": dict(sum((v.tried for v in verdicts.values()), Counter())),
        "chats_flagged": sum(len(v.flagged) for v in verdicts.values()),
        "chats_exempt": sum(len(v.exempt) for v in verdicts.values()),
        "chats_whose_prompt_the_template_renders_otherwise": sum(len(v.prompt_differs) for v in verdicts.values()),
        "exceptions": {name: v.failures for name, v in verdicts.items() if not v.exact},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    verdicts = table(parser.parse_args().folder)
    told = summary(verdicts)
    print(json.dumps(told, indent=1, ensure_ascii=False))
    record.store("templates", {**told, "by_template": {name: v.to_json() for name, v in verdicts.items()}})


if __name__ == "__main__":
    main()
