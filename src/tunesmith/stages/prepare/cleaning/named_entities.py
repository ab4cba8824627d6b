"""Personal data marked by a model: token classification by transformers, from a folder that the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.stages.prepare.cleaning.detectors import Find

BATCH = 32  # texts at a time, of about the same length
OVERLAP = 32  # tokens of a window that the window before has seen


class Tagger:
    """Marks spans of texts. Long texts are looked at in windows that overlap."""

    def __init__(self, folder: Path) -> None:
        import torch

        from tunesmith.modeling.load import load_token_classifier, pick_device

        self.device = pick_device()
        self.model, self.tokenizer = load_token_classifier(folder, self.device)
        self._torch = torch
        limits = (self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None))
        self.window = int(min(512, *(limit for limit in limits if limit)))

    def find(self, texts: Sequence[str], labels: Sequence[str], probability: float) -> list[list[Find]]:
        """Of each text its marks, in order, without overlaps. labels: those that count, without B- and I-; none: all but O."""
        out: list[list[Find]] = [[] for _ in texts]
        order = sorted((place for place, text in enumerate(texts) if text.strip()), key=lambda p: (len(texts[p]), p))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            for place, marks in zip(places, self._batch([texts[p] for p in places], probability), strict=True):
                out[place] = [mark for mark in marks if not labels or mark.name in labels]
        return out

    def _batch(self, texts: list[str], probability: float) -> list[list[Find]]:
        encoded = self.tokenizer(
            texts,
            return_offsets_mapping=True,
            return_overflowing_tokens=True,
            truncation=True,
            padding=True,
            max_length=self.window,
            stride=min(OVERLAP, self.window // 4),
            return_tensors="pt",
        )
        owners = encoded.pop("overflow_to_sample_mapping").tolist()
        offsets = encoded.pop("offset_mapping").tolist()
        asked = {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask")}
        with self._torch.inference_mode():
            scores = self.model(**asked).logits.float().softmax(-1)
        best, labels = (found.tolist() for found in scores.max(-1))
        names = self.model.config.id2label
        seen: list[dict[tuple[int, int], tuple[str, float]]] = [{} for _ in texts]
        for window, owner in enumerate(owners):
            for (start, end), label, sure in zip(offsets[window], labels[window], best[window], strict=True):
                # A token in two windows: the surer look counts. Special tokens and padding have no characters.
                if end > start and sure > seen[owner].get((start, end), ("", -1.0))[1]:
                    seen[owner][start, end] = (str(names[label]), sure)
        return [_spans(tokens, probability, text) for tokens, text in zip(seen, texts, strict=True)]


def _spans(tokens: dict[tuple[int, int], tuple[str, float]], probability: float, text: str) -> list[Find]:
    """Neighbouring tokens of one label make a mark, whose probability is that of its surest token."""
    groups: list[list[Any]] = []  # [start, end, label, probability]
    for (start, end), (label, sure) in sorted(tokens.items()):
        name = label.removeprefix("B-").removeprefix("I-")
        if name == "O":
            continue
        last = groups[-1] if groups else None
        if last and last[2] == name and not label.startswith("B-") and not text[last[1] : start].strip():
            last[1], last[3] = end, max(last[3], sure)
        else:
            groups.append([start, end, name, sure])
    return [_trimmed(text, start, end, name) for start, end, name, sure in groups if sure >= probability]


def _trimmed(text: str, start: int, end: int, name: str) -> Find:
    """Byte-level tokens begin with their blank; it is no part of what is marked."""
    while start < end - 1 and text[start].isspace():
        start += 1
    return Find(start, end, f"model:{name}", name)


@cache
def load_tagger(folder: str) -> Tagger:
    """Once per process. Raises ModelError MDL-130 or MDL-131."""
    return Tagger(Path(folder).expanduser())
