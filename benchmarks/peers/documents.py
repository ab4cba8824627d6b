"""Documents of several sides as flat arrays on disk, and whether two sides hold the same ones. Needs numpy alone.

    ids.npy int32 [T]    labels.npy int32 [T], -100 where nothing is learned    offsets.npy int64 [N+1]

Packing reorders documents, so that sides are compared as multisets of hashes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

IGNORED = -100
NAMES = ("ids", "labels", "offsets")


class Documents(NamedTuple):
    ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        start, end = self.offsets[place], self.offsets[place + 1]
        return self.ids[start:end], self.labels[start:end]


def save(folder: Path, ids: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in zip(NAMES, (ids, labels, offsets), strict=True):
        np.save(folder / f"{name}.npy", values)


def load(folder: Path) -> Documents:
    return Documents(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in NAMES))


def of_dataset(folder: Path) -> Documents:
    """Those of a Dataset folder of tunesmith: labels from its learned spans."""
    tokens, sequences, span_offsets, spans = (
        np.load(folder / f"{name}.npy") for name in ("tokens", "sequences", "span_offsets", "spans")
    )
    first = np.repeat(sequences[:-1], np.diff(span_offsets))
    steps = np.zeros(len(tokens) + 1, np.int32)
    np.add.at(steps, spans[:, 0] + first, 1)
    np.add.at(steps, spans[:, 1] + first, -1)
    labels = np.where(np.cumsum(steps[:-1]) > 0, tokens, IGNORED).astype(np.int32)
    return Documents(tokens.astype(np.int32), labels, sequences.astype(np.int64))


def compare(ours: Documents, theirs: Documents) -> dict[str, Any]:
    """ids_equal and labels_equal over whole multisets, how many documents differ, and the first of theirs that ours have not."""
    our_ids, their_ids = _hashes(ours, with_labels=False), _hashes(theirs, with_labels=False)
    our_both, their_both = _hashes(ours, with_labels=True), _hashes(theirs, with_labels=True)
    strange, missing = Counter(their_ids) - Counter(our_ids), Counter(our_ids) - Counter(their_ids)
    strange_labels = Counter(their_both) - Counter(our_both)
    found: dict[str, Any] = {
        "documents": len(our_ids),
        "peer_documents": len(their_ids),
        "tokens": int(ours.offsets[-1]),
        "learned_tokens": int((ours.labels != IGNORED).sum()),
        "ids_equal": not strange and not missing,
        "labels_equal": not strange_labels and len(our_ids) == len(their_ids),
        "ids_only_in_peer": strange.total(),
        "ids_only_in_ours": missing.total(),
    }
    if strange:
        found["first_difference"] = _told(theirs, their_ids, strange, ours, our_ids, missing)
    elif strange_labels:
        place = next(place for place, key in enumerate(their_both) if key in strange_labels)
        other = our_ids.index(their_ids[place])
        apart = int(np.argmax(theirs[place][1] != ours[other][1]))
        found["first_difference"] = _at(apart, theirs[place][1], ours[other][1])
    return found


def _hashes(documents: Documents, *, with_labels: bool) -> list[bytes]:
    out = []
    for place in range(len(documents.offsets) - 1):
        ids, labels = documents[place]
        digest = hashlib.blake2b(np.ascontiguousarray(ids, np.int32).tobytes(), digest_size=16)
        if with_labels:
            digest.update(np.ascontiguousarray(labels, np.int32).tobytes())
        out.append(digest.digest())
    return out


def _told(
    theirs: Documents,
    their_ids: list[bytes],
    strange: Counter[bytes],
    ours: Documents,
    our_ids: list[bytes],
    missing: Counter[bytes],
) -> dict[str, Any]:
    """The strange document beside the one of ours that is equal to it for longest."""
    place = next(place for place, key in enumerate(their_ids) if key in strange)
    wanted = theirs[place][0]
    candidates = [place for place, key in enumerate(our_ids) if key in missing][:10_000]
    if not candidates:
        return {"peer": wanted[:40].tolist(), "ours": None}
    common = {candidate: _common(wanted, ours[candidate][0]) for candidate in candidates}
    best = max(common, key=common.__getitem__)
    return _at(common[best], wanted, ours[best][0])


def _common(one: np.ndarray, other: np.ndarray) -> int:
    size = min(len(one), len(other))
    differs = one[:size] != other[:size]
    return int(np.argmax(differs)) if differs.any() else size


def _at(place: int, theirs: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    window = slice(max(place - 4, 0), place + 8)
    return {"token": place, "peer": theirs[window].tolist(), "ours": ours[window].tolist()}
