"""Tokenizers: a row's text encoded as a server encodes it, but no control token out of anybody's text.

The pieces that are encoded at once reach from one answer's edge to the next, so ids are those of the whole text wherever
an answer's edge is one of its tokens' edges too. Somebody's text that holds a control token is encoded apart, blind to it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunesmith.errors import ModelError
from tunesmith.hub import ModelFiles
from tunesmith.text.example import Example, Message
from tunesmith.text.policies import Learn
from tunesmith.text.templates import ChatTemplate, Segment, TemplateError
from tunesmith.text.tokenizer_limits import answering_panics, refuse_slow, refuse_wild

# Marks for trainers that read them; other engines' Jinja does not know the tag.
GENERATION_MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")

Encoded = tuple[np.ndarray, list[tuple[int, int, float]]]


@dataclass(frozen=True)
class Piece:
    """What is encoded at once. blind: control tokens in it are text. behind: what stands before it ("" at the row's start)."""

    text: str
    blind: bool
    behind: str


class Tokenizer:
    """A model's tokenizer together with its effective chat template.

    stop_ids: ids that end an answer. pad_id: only fills; labels come from spans, so it masks nothing.
    control: the tokens that nobody's text may become: special ones, and those of the added ones that the template writes.
    markers: those of them that are not special (<think>); an answer may hold them, as what the model generates.
    adds_bos: the tokenizer puts its start token in front of plain text.
    """

    def __init__(self, hf: PreTrainedTokenizerFast, template: ChatTemplate, stop_ids: frozenset[int]) -> None:
        self.hf, self.template, self.stop_ids = hf, template, stop_ids
        self._scaffold = hf.backend_tokenizer
        added = hf.added_tokens_decoder
        self.control = control_tokens(hf, template)
        self.markers = frozenset(token.content for token in added.values() if not token.special) & self.control
        self._content = _without(hf, self.control)
        self._control_pattern = _any_of(self.control)
        self._marker_pattern = _any_of(self.markers)
        self._control_ids = frozenset(id for id, token in added.items() if token.content in self.control)
        self._swallows = tuple(token.content for token in added.values() if token.rstrip)
        self._sticky = _knows_its_place(self._scaffold)
        self.pad_id = hf.pad_token_id if hf.pad_token_id is not None else 0
        self.eos_id = hf.eos_token_id
        self.bos_id = hf.bos_token_id
        self.adds_bos = adds_bos(hf)

    def encode_segments(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded]:
        """(ids int32 [T], learned spans [(start, end, weight)]) of each row; neighbouring spans of one weight are one.

        Segments of one answer, or between two, are encoded together; see `pieces`.
        """
        laid = [self.pieces(row) for row in rows]
        ids = self._encode_all([piece for row, _ in laid for piece in row])
        out, place = [], 0
        for row, weights in laid:
            out.append(_lay_out(weights, ids[place : place + len(row)]))
            place += len(row)
        return out

    def pieces(self, row: Sequence[Segment]) -> tuple[list[Piece], list[float]]:
        """What of a row is encoded at once, and the weight of each piece (0: not learned).

        A new piece begins where an answer begins or ends, and around a content that would make a control token, by itself
        or together with what stands beside it.
        """
        out: list[Piece] = []
        weights: list[float] = []
        done = ""
        for group in self._groups(self._with_markers(row)):
            joined = "".join(segment.text for segment in group)
            parts = (
                [(segment.text, segment.is_content) for segment in group]
                if self._forges(group, joined)
                else [(joined, False)]
            )
            for text, blind in parts:
                out.append(Piece(text, blind, done))
                done = text
                weights.append(group[0].weight if group[0].learned else 0.0)
        return (self._moved_blanks(out) if self._swallows else out), weights

    def _with_markers(self, row: Sequence[Segment]) -> list[Segment]:
        """An answer's own <think> is the token that the model generates, as the template's is."""
        if self._marker_pattern is None:
            return list(row)
        out: list[Segment] = []
        for segment in row:
            if not segment.is_content or segment.answer is None or not self._marker_pattern.search(segment.text):
                out.append(segment)
                continue
            done = 0
            for match in self._marker_pattern.finditer(segment.text):
                out += [
                    replace(segment, text=segment.text[done : match.start()]),
                    replace(segment, text=match.group(), is_content=False),
                ]
                done = match.end()
            out.append(replace(segment, text=segment.text[done:]))
        return [segment for segment in out if segment.text]

    @staticmethod
    def _groups(row: Sequence[Segment]) -> list[list[Segment]]:
        groups: list[list[Segment]] = []
        for segment in row:
            last = groups[-1][-1] if groups else None
            if last is not None and (last.answer, last.learned, last.weight) == (
                segment.answer,
                segment.learned,
                segment.weight,
            ):
                groups[-1].append(segment)
            else:
                groups.append([segment])
        return groups

    def _forges(self, group: Sequence[Segment], joined: str) -> bool:
        """Whether a control token stands in this text with a letter of it from a content."""
        if self._control_pattern is None or not any(segment.is_content for segment in group):
            return False
        ends, done = [], 0
        for segment in group:
            done += len(segment.text)
            ends.append((done, segment.is_content))
        place = 0
        for match in self._control_pattern.finditer(joined):
            while ends[place][0] <= match.start():
                place += 1
            if ends[place][1] or match.end() > ends[place][0]:
                return True
        return False

    def holds_control_tokens(self, row: Sequence[Segment]) -> bool:
        """Whether somebody's text in this row would become a control token, were it not encoded blind."""
        groups = self._groups(self._with_markers(row))
        return any(self._forges(group, "".join(segment.text for segment in group)) for group in groups)

    def count_control_tokens(self, row: Sequence[Segment]) -> int:
        """Control tokens that the template wrote into this row, and those markers that stand in the model's answers."""
        if self._control_pattern is None:
            return 0
        return sum(
            len(self._control_pattern.findall("".join(segment.text for segment in group if not segment.is_content)))
            for group in self._groups(self._with_markers(row))
        )

    @property
    def control_ids(self) -> np.ndarray:
        return np.array(sorted(self._control_ids), np.int64)

    def _moved_blanks(self, pieces: list[Piece]) -> list[Piece]:
        """Some added tokens swallow the blanks behind them; these go to the token's piece, as in the whole text."""
        for number in range(1, len(pieces)):
            before, after = pieces[number - 1], pieces[number]
            rest = after.text.lstrip()
            if not before.blind and not after.blind and rest != after.text and before.text.endswith(self._swallows):
                blanks = after.text[: len(after.text) - len(rest)]
                pieces[number - 1 : number + 1] = [
                    replace(before, text=before.text + blanks),
                    replace(after, text=rest),
                ]
        return pieces

    def encode_example(self, example: Example, learn: Learn) -> list[Segment]:
        """The segments of an example: a chat by the template, plain text whole and with the end token."""
        if example.text is not None:
            ending = [Segment(self.hf.eos_token, True, False)] if self.hf.eos_token else []
            return [*self.text_segments(example.text, learned=True), *ending]
        return self.template.segments(example.messages, learn, example.tools)

    def text_segments(self, text: str, learned: bool = False) -> list[Segment]:
        """Plain text as this tokenizer encodes it: behind the start token, where it puts one."""
        start = [Segment(self.hf.bos_token, False, False)] if self.adds_bos else []
        return [*start, Segment(text, learned, True)]

    def encode_prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Ids of a prompt that waits for the assistant: the same that training put in front of the answer."""
        ((ids, _),) = self.encode_segments([self.template.prompt_segments(messages, tools)])
        return ids.tolist()

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a rendered text as any server makes them, which knows nothing of segments."""
        return self._scaffold.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.hf.decode(ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def save(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json with the effective template (generation marks taken out)."""
        hf = copy.deepcopy(self.hf)
        plain = [GENERATION_MARK.sub("", source) for source in self.template.sources]
        hf.chat_template = plain[0] if len(plain) == 1 else {"default": plain[0], "tool_use": plain[1]}
        hf.save_pretrained(folder)

    def _encode_all(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Raises ModelError TXT-025 where a pattern of the tokenizer gives up on a text."""
        with answering_panics(str(self.hf.name_or_path)):
            return self._encode_pieces(pieces)

    def _encode_pieces(self, pieces: Sequence[Piece]) -> list[list[int]]:
        out: list[list[int]] = [[]] * len(pieces)
        for blind, backend in ((False, self._scaffold), (True, self._content)):
            chosen = [place for place, piece in enumerate(pieces) if piece.blind == blind]
            inner = [place for place in chosen if self._sticky and pieces[place].behind]
            for place in inner:
                out[place] = self._encode_inside(backend, pieces[place])
            chosen = [place for place in chosen if not (self._sticky and pieces[place].behind)]
            # The same scaffold pieces come again and again: each is encoded once.
            texts = list(dict.fromkeys(pieces[place].text for place in chosen))
            encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
            known = {text: encoding.ids for text, encoding in zip(texts, encoded, strict=True)}
            for place in chosen:
                out[place] = known[pieces[place].text]
        for place, piece in enumerate(pieces):
            if piece.blind and not self._control_ids.isdisjoint(out[place]):
                out[place] = self._letter_by_letter(piece.text)
        return out

    def _encode_inside(self, backend: Any, piece: Piece) -> list[int]:
        """As inside a longer text: a SentencePiece tokenizer puts a blank in front of what it takes for the text's start."""
        guard = "\n"
        if not piece.blind and self._control_pattern is not None:
            ends = [match for match in self._control_pattern.finditer(piece.behind) if match.end() == len(piece.behind)]
            guard = ends[-1].group() if ends else guard
        encoding = backend.encode(guard + piece.text, add_special_tokens=False)
        inside = [place for place, (start, _) in enumerate(encoding.offsets) if start >= len(guard)]
        if inside and all(end <= len(guard) for _, end in encoding.offsets[: inside[0]]):
            return encoding.ids[inside[0] :]
        return backend.encode(piece.text, add_special_tokens=False).ids

    def _letter_by_letter(self, text: str) -> list[int]:
        """Where the vocabulary itself makes a control token out of text: each letter alone cannot."""
        return [
            id
            for letter in text
            for id in self._content.encode(letter, add_special_tokens=False).ids
            if id not in self._control_ids
        ]


def load_tokenizer(files: ModelFiles, template: str = "auto") -> Tokenizer:
    """The tokenizer of a model. Raises ModelError TXT-022 when there is none that can be used, TXT-025
    when its work has no bound, TXT-020/021 for templates."""
    refuse_wild(files.path, files.source)
    try:
        with answering_panics(files.source):
            hf = AutoTokenizer.from_pretrained(
                files.path, local_files_only=True, trust_remote_code=False, use_fast=True
            )
    except ModelError:
        raise
    except Exception as error:  # a dozen kinds; every one is an answer about these files
        raise _unusable(files, f"{type(error).__name__}: {error}") from error
    if not hasattr(hf, "backend_tokenizer"):
        raise _unusable(files, "it has no tokenizer.json")
    # What the file says of padding and cutting would hold for every row in silence; here rows have the length they have.
    hf.backend_tokenizer.no_padding()
    hf.backend_tokenizer.no_truncation()
    refuse_slow(hf.backend_tokenizer, files.source)
    special: Mapping[str, Any] = {
        name: token for name, token in hf.special_tokens_map.items() if name not in ("bos_token", "eos_token")
    }
    chat = ChatTemplate.load(
        files, template, hf.chat_template, hf.bos_token or "", hf.eos_token or "", special, adds_bos(hf)
    )
    hf.chat_template = chat.source
    try:
        return Tokenizer(hf, chat, frozenset(_stop_ids(files, hf, chat)))
    except (TypeError, ValueError) as error:  # settings of a wrong kind
        raise _unusable(files, f"{type(error).__name__}: {error}") from error


def _unusable(files: ModelFiles, why: str) -> ModelError:
    return ModelError(
        "TXT-022",
        f"the tokenizer of {files.source} cannot be used: {why}",
        where="model.base",
        expected="tokenizer.json beside config.json",
        fix="fetch the tokenizer files of the model",
    )


def control_tokens(hf: PreTrainedTokenizerFast, template: ChatTemplate) -> frozenset[str]:
    """Special tokens, and the added ones that the template writes itself (<think>), as transformers tells them apart.

    White space is text whoever writes it (Gemma has an added token for a line end).
    """
    named = set(getattr(hf, "chat_control_tokens", None) or ())
    written = "\n".join(template.sources)
    return frozenset(
        token.content
        for token in hf.added_tokens_decoder.values()
        if token.special or token.content in named or (token.content in written and not token.content.isspace())
    )


def adds_bos(hf: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer itself puts the start token in front of a text."""
    start = hf.bos_token_id
    bare = hf.backend_tokenizer.encode("a", add_special_tokens=False).ids
    return start is not None and hf("a").input_ids[:1] == [start] and bare[:1] != [start]


def _any_of(tokens: Collection[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def _without(hf: PreTrainedTokenizerFast, control: Collection[str]) -> Any:
    """The same tokenizer blind to its control tokens: `<|end|>` in a user's text is encoded letter by letter."""
    plain = json.loads(hf.backend_tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain.get("added_tokens", []) if token["content"] not in control]
    plain["post_processor"] = None
    return type(hf.backend_tokenizer).from_str(json.dumps(plain))


def _knows_its_place(backend: Any) -> bool:
    """Whether a text gets other ids at the start of an input than inside it."""
    inside = backend.encode("\na", add_special_tokens=False).ids
    return inside[-1:] != backend.encode("a", add_special_tokens=False).ids[-1:]


def _stop_ids(files: ModelFiles, hf: PreTrainedTokenizerFast, chat: ChatTemplate) -> set[int]:
    """The end tokens: the tokenizer's, the generation settings', and the one the template puts behind an answer."""
    found = {hf.eos_token_id}
    settings = files.path / "generation_config.json"
    if settings.is_file():
        named = json.loads(settings.read_bytes()).get("eos_token_id")
        found |= set(named if isinstance(named, list) else [named])
    found |= set(_ending_ids(hf, chat))
    if not all(isinstance(id, int | None) for id in found):
        raise TypeError(f"generation_config.json names the end tokens {str(found)[:100]}")
    return {id for id in found if id is not None}


def _ending_ids(hf: PreTrainedTokenizerFast, chat: ChatTemplate) -> list[int]:
    """The first token behind an answer in the rendered text, where it is one that nobody's text can make."""
    try:
        segments = chat.segments([Message("user", "a"), Message("assistant", "b")])
    except TemplateError:
        return []
    learned = [segment for segment in segments if segment.learned]
    behind = "" if not learned or learned[-1].is_content else learned[-1].text.strip()
    ids = hf.backend_tokenizer.encode(behind, add_special_tokens=False).ids if behind else []
    return ids[:1] if ids and (ids[0] in hf.added_tokens_decoder or len(ids) == 1) else []


def _lay_out(weights: Sequence[float], parts: Sequence[Sequence[int]]) -> Encoded:
    spans: list[tuple[int, int, float]] = []
    end = 0
    for weight, ids in zip(weights, parts, strict=True):
        start, end = end, end + len(ids)
        if weight and end > start:
            if spans and spans[-1][1:] == (start, weight):
                spans[-1] = (spans[-1][0], end, weight)
            else:
                spans.append((start, end, weight))
    flat = np.fromiter((id for ids in parts for id in ids), np.int32, end)
    return flat, spans
