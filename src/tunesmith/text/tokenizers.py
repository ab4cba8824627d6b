"""Tokenizers: scaffold encoded with control tokens, contents without, so that a user's text never becomes a command."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunesmith.errors import ModelError
from tunesmith.hub import ModelFiles
from tunesmith.text.example import Example, Message
from tunesmith.text.templates import ChatTemplate, Segment

# Marks for trainers that read them; other engines' Jinja does not know the tag.
GENERATION_MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")

Encoded = tuple[np.ndarray, list[tuple[int, int, float]]]


class Tokenizer:
    """A model's tokenizer together with its effective chat template.

    stop_ids: ids that end an answer. pad_id: only fills; labels come from spans, so it masks nothing.
    """

    def __init__(self, hf: PreTrainedTokenizerFast, template: ChatTemplate, stop_ids: frozenset[int]) -> None:
        self.hf, self.template, self.stop_ids = hf, template, stop_ids
        self._scaffold = hf.backend_tokenizer
        self._content = _without_control_tokens(hf)
        self.pad_id = hf.pad_token_id if hf.pad_token_id is not None else 0
        self.eos_id = hf.eos_token_id
        self.bos_id = hf.bos_token_id

    def encode_segments(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded]:
        """(ids int32 [T], learned spans [(start, end, 1.0)]) of each row; neighbouring learned segments make one span.

        Segments are encoded one by one: scaffold with control tokens, contents without.
        """
        flat = [segment for row in rows for segment in row]
        ids = self._encode_all(flat)
        out, place = [], 0
        for row in rows:
            parts = ids[place : place + len(row)]
            place += len(row)
            out.append(_lay_out(row, parts))
        return out

    def encode_example(self, example: Example, learn: str) -> list[Segment]:
        """The segments of an example: a chat by the template, plain text whole and with the end token."""
        if example.text is not None:
            ending = [Segment(self.hf.eos_token, True, False)] if self.hf.eos_token else []
            return [Segment(example.text, True, True), *ending]
        return self.template.segments(example.messages, learn)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a prompt that waits for the assistant: the same that training put in front of the answer."""
        ((ids, _),) = self.encode_segments([self.template.prompt_segments(messages)])
        return ids.tolist()

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.hf.decode(ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def save(self, folder: Path) -> None:
        """tokenizer.json, tokenizer_config.json with the effective template (generation marks taken out)."""
        hf = copy.deepcopy(self.hf)
        hf.chat_template = GENERATION_MARK.sub("", self.template.source)
        hf.save_pretrained(folder)

    def _encode_all(self, segments: Sequence[Segment]) -> list[list[int]]:
        out: list[list[int]] = [[]] * len(segments)
        for is_content, backend in ((False, self._scaffold), (True, self._content)):
            chosen = [place for place, segment in enumerate(segments) if segment.is_content == is_content]
            # The same scaffold pieces come again and again: each is encoded once.
            texts = list(dict.fromkeys(segments[place].text for place in chosen))
            encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
            known = {text: encoding.ids for text, encoding in zip(texts, encoded, strict=True)}
            for place in chosen:
                out[place] = known[segments[place].text]
        return out


def load_tokenizer(files: ModelFiles, template: str = "auto") -> Tokenizer:
    """The tokenizer of a model. Raises ModelError TXT-022 when there is none that can be used, TXT-020/021 for templates."""
    try:
        hf = AutoTokenizer.from_pretrained(files.path, local_files_only=True, trust_remote_code=False, use_fast=True)
    except Exception as error:  # a dozen kinds; every one is an answer about these files
        raise _unusable(files, f"{type(error).__name__}: {error}") from error
    if not hasattr(hf, "backend_tokenizer"):
        raise _unusable(files, "it has no tokenizer.json")
    own = hf.chat_template if isinstance(hf.chat_template, str) else (hf.chat_template or {}).get("default")
    chat = ChatTemplate.load(files, template, own, hf.bos_token or "", hf.eos_token or "")
    hf.chat_template = chat.source
    return Tokenizer(hf, chat, frozenset(_stop_ids(files, hf, chat)))


def _unusable(files: ModelFiles, why: str) -> ModelError:
    return ModelError(
        "TXT-022",
        f"the tokenizer of {files.source} cannot be used: {why}",
        where="model.base",
        expected="tokenizer.json beside config.json",
        fix="fetch the tokenizer files of the model",
    )


def _without_control_tokens(hf: PreTrainedTokenizerFast):
    """The same tokenizer blind to its special tokens: `<|end|>` in a user's text is encoded letter by letter."""
    plain = json.loads(hf.backend_tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain.get("added_tokens", []) if not token["special"]]
    plain["post_processor"] = None
    return type(hf.backend_tokenizer).from_str(json.dumps(plain))


def _stop_ids(files: ModelFiles, hf: PreTrainedTokenizerFast, chat: ChatTemplate) -> set[int]:
    """The end tokens: the tokenizer's, the generation settings', and the one the template puts behind an answer."""
    found = {hf.eos_token_id}
    settings = files.path / "generation_config.json"
    if settings.is_file():
        named = json.loads(settings.read_bytes()).get("eos_token_id")
        found |= set(named if isinstance(named, list) else [named])
    segments = chat.segments([Message("user", "a"), Message("assistant", "b")])
    behind = [segment.text for segment in segments if segment.learned and not segment.is_content]
    for text in behind:
        ids = hf.backend_tokenizer.encode(text.strip(), add_special_tokens=False).ids
        if len(ids) == 1:
            found.add(ids[0])
    return {id for id in found if id is not None}


def _lay_out(row: Sequence[Segment], parts: Sequence[Sequence[int]]) -> Encoded:
    spans: list[tuple[int, int, float]] = []
    end = 0
    for segment, ids in zip(row, parts, strict=True):
        start, end = end, end + len(ids)
        if segment.learned and end > start:
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end, 1.0)
            else:
                spans.append((start, end, 1.0))
    flat = np.fromiter((id for ids in parts for id in ids), np.int32, end)
    return flat, spans
