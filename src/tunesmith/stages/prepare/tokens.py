"""The Tokens artifact: every distinct content encoded once, by content hash; no filter or threshold is part of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tunesmith.stages.prepare.rows import Row
from tunesmith.text.templates import Segment, TemplateError
from tunesmith.text.tokenizers import Encoded, Tokenizer

CHUNK = 2000


def encode_rows(
    rows: Sequence[Row], tokenizer: Tokenizer, learn: str, folder: Path, on_progress: Callable[[int], None]
) -> int:
    """Encode the distinct contents of good rows into `folder`. Returns how many were encoded.

    A chat that the template refuses is written down with the template's words instead of ids.
    """
    distinct = {row.key: row for row in rows if row.example is not None}
    keys: list[str] = []
    refused: dict[str, str] = {}
    ids: list[np.ndarray] = []
    spans: list[list[tuple[int, int, float]]] = []
    pending: list[tuple[str, list[Segment]]] = []

    def flush() -> None:
        for (key, _), (row_ids, row_spans) in zip(
            pending, tokenizer.encode_segments([s for _, s in pending]), strict=True
        ):
            keys.append(key)
            ids.append(row_ids)
            spans.append(row_spans)
        pending.clear()
        on_progress(len(keys))

    for key, row in distinct.items():
        assert row.example is not None
        try:
            pending.append((key, tokenizer.encode_example(row.example, learn)))
        except TemplateError as error:
            refused[key] = str(error)
        if len(pending) >= CHUNK:
            flush()
    flush()
    np.save(folder / "tokens.npy", np.concatenate(ids) if ids else np.zeros(0, np.int32))
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, ids)], dtype=np.int64))
    np.save(folder / "spans.npy", np.array([span[:2] for row in spans for span in row], np.int32).reshape(-1, 2))
    np.save(folder / "span_offsets.npy", np.cumsum([0, *map(len, spans)], dtype=np.int64))
    (folder / "keys.json").write_text(json.dumps({"keys": keys, "refused": refused}))
    return len(keys)


class Tokens:
    """Reads a Tokens artifact: `[key]` gives (ids int32 [T], spans)."""

    def __init__(self, folder: Path) -> None:
        def array(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", allow_pickle=False)

        self._tokens, self._offsets, self._spans, self._span_offsets = map(
            array, ("tokens", "offsets", "spans", "span_offsets")
        )
        named = json.loads((folder / "keys.json").read_bytes())
        self._places = {key: place for place, key in enumerate(named["keys"])}
        self.refused: dict[str, str] = named["refused"]

    def __getitem__(self, key: str) -> Encoded:
        place = self._places[key]
        first, last = self._span_offsets[place], self._span_offsets[place + 1]
        spans = [(int(start), int(end), 1.0) for start, end in self._spans[first:last]]
        return self._tokens[self._offsets[place] : self._offsets[place + 1]], spans
