"""Finding things by shape and check digit: a coarse expression over whole columns, an exact look at the few texts it names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Detector:
    """kind: the recipe's key. name: what exactly, for the ledger. coarse: an RE2 expression that every text with a find
    matches, cheap and rarely true. exact: the find is group 1 where there is one, else the whole match. check: the last word."""

    kind: str
    name: str
    coarse: str
    exact: re.Pattern[str]
    check: Callable[[re.Match[str]], bool] = lambda match: True


@dataclass(frozen=True, order=True)
class Find:
    """start, end: characters of the text. kind: the recipe's key, or model:LABEL."""

    start: int
    end: int
    kind: str
    name: str


def find_all(contents: pa.Array, detectors: Sequence[Detector]) -> dict[int, list[Find]]:
    """Place of a text -> what is in it, in order and without overlaps; of two finds that overlap the earlier detector's stays."""
    if not detectors:
        return {}
    coarse = "|".join(f"(?:{pattern})" for pattern in dict.fromkeys(detector.coarse for detector in detectors))
    suspects = np.flatnonzero(pc.match_substring_regex(contents, coarse).to_numpy(zero_copy_only=False)).tolist()
    out = {}
    for place in suspects:
        finds = finds_in(contents[place].as_py(), detectors)
        if finds:
            out[place] = finds
    return out


def finds_in(text: str, detectors: Sequence[Detector]) -> list[Find]:
    found: list[Find] = []
    for detector in detectors:
        for match in detector.exact.finditer(text):
            start, end = match.span(1 if detector.exact.groups else 0)
            if detector.check(match) and not any(start < other.end and other.start < end for other in found):
                found.append(Find(start, end, detector.kind, detector.name))
    return sorted(found)


def redacted(text: str, finds: Sequence[Find]) -> str:
    """The text with each find replaced by its kind: [EMAIL], [CARD] ..."""
    parts, done = [], 0
    for find in finds:
        kind = find.kind.removeprefix("model:")
        parts += [text[done : find.start], PLACEHOLDERS.get(kind, f"[{kind.upper()}]")]
        done = find.end
    return "".join([*parts, text[done:]])


PLACEHOLDERS = {"api_keys": "[API_KEY]", "private_keys": "[PRIVATE_KEY]", "tokens": "[TOKEN]", "national_id": "[ID]"}
