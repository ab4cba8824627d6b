"""What preparation would say of a recipe's rows, without preparing them: what `tunesmith check` reports.

Rows are read one by one; kept are only what decisions need (keys, lengths, scores), the first bad rows of each kind, and a
sample of examples that is drawn by content, so that the same rows are looked at each time.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import DataError, Findings
from tunesmith.recipe import Recipe
from tunesmith.recipe.tree import DropLeaks
from tunesmith.stages.prepare.filters import Drop, apply_filters, question
from tunesmith.stages.prepare.from_rows import Chosen, Shelf, select_rows
from tunesmith.stages.prepare.reader import files_of
from tunesmith.stages.prepare.slim import Row, read_file
from tunesmith.stages.prepare.run import (
    SHOWN_PER_CODE,
    bad_rows_error,
    drop_by_tokens,
    learned_tokens,
    refuse_nothing_left,
    split_statistics,
)
from tunesmith.text.example import Example
from tunesmith.text.templates import TemplateError
from tunesmith.text.tokenizers import Tokenizer

SAMPLE, LONGEST = 1000, 50
FEW_ITEMS = 20  # with fewer answers an interval says next to nothing


@dataclass
class _Read:
    """good: rows without examples; shelf: their texts in columns. bad: counts by code; first_bad: some of each. sample: rows with examples."""

    total: int = 0
    good: list[Row] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: list[Row] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    shelf: Shelf = field(default_factory=Shelf)
    by_key: list[tuple[int, int, Row, Example]] = field(default_factory=list)  # a heap, the largest key on top
    longest: list[tuple[int, int, Row, Example]] = field(default_factory=list)  # a heap, the shortest on top

    def note(self, row: Row) -> None:
        self.total += 1
        if row.problem is not None:
            if self.bad[row.problem["code"]] < SHOWN_PER_CODE:
                self.first_bad.append(row)
            self.bad[row.problem["code"]] += 1
            return
        assert row.example is not None
        self.formats[row.format] += 1
        self.shelf.add(row)
        example, row.example = row.example, None
        self.good.append(row)
        _push(self.by_key, (-int(row.key, 16), row.row, row, example), SAMPLE)
        _push(self.longest, (row.characters, row.row, row, example), LONGEST)

    @property
    def sample(self) -> dict[int, tuple[Row, Example]]:
        """Row number -> (row, example)."""
        return {number: (row, example) for _, number, row, example in (*self.by_key, *self.longest)}


def _push(heap: list, entry: tuple, size: int) -> None:
    if len(heap) < size:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def survey(spec: Recipe, tokenizer: Tokenizer | None, found: Findings) -> dict[str, Any] | None:
    """Adds to `found` all that is wrong with the rows.

    tokenizer: None where the model has none that can be used. Returns what the Dataset's statistics would say of the training
    rows, by the sample, for a plan; None where that is not known.
    """
    read = _Read()
    for row in _rows(spec, found):
        read.note(row)
    if found.exit_status and not read.total:
        return None
    formats = ", ".join(f"{name} {count:,}" for name, count in read.formats.most_common())
    found.facts.append(f"{read.total:,} rows read ({formats or 'none recognised'})")
    refusal = bad_rows_error(spec, read.bad, read.first_bad, read.total)
    if refusal is not None:
        found.add(refusal)
    elif read.bad:
        found.facts.append(f"{read.bad.total():,} bad rows would be set apart ({_counts(read.bad)})")
    return _judge(spec, tokenizer, read, found) if read.good else None


def _rows(spec: Recipe, found: Findings) -> Iterator[Row]:
    """All rows of all files that can be read; each source or file that cannot is a problem of its own."""
    count = 0
    for place, source in enumerate(spec.data.sources):
        with found.gathering():
            for path in files_of(source.path):
                with found.gathering():
                    for row in read_file(source, path, count, place):
                        yield row
                        count += 1


def _judge(spec: Recipe, tokenizer: Tokenizer | None, read: _Read, found: Findings) -> dict[str, Any] | None:
    filtered: dict[int, Drop] = {}
    for taken in apply_filters(read.good, spec):
        asked = question(spec, taken)
        if asked is not None:
            found.add(asked)
        elif taken.drops:
            found.facts.append(f"the {taken.name} filter would drop {len(taken.drops):,} rows ({taken.share:.1%})")
        filtered |= taken.drops
    selection = select_rows(read.good, spec, filtered, read.shelf)
    if selection.asked is not None:
        found.add(selection.asked)
    encoded = _encode_sample(spec, tokenizer, read, selection, found) if tokenizer is not None else _Encoded()
    _tell_selection(spec, read, selection, found)
    with found.gathering():
        refuse_nothing_left([_entry(row, selection, encoded.reasons) for row in read.good])
    left = [row for row in read.good if row.row not in selection.drops and row.row not in encoded.reasons]
    _tell_splits(spec, read, selection, left, found)
    return encoded.statistics(left, selection)


def _entry(row: Row, selection: Chosen, by_tokens: dict[int, str]) -> dict[str, str | None]:
    drop = selection.drops.get(row.row)
    rule = drop.rule if drop else by_tokens.get(row.row)
    return {"status": "dropped" if rule else "used", "split": selection.splits[row.row], "rule": rule}


# --------------------------------------------------------------------------------------------------- tokens, by sample


@dataclass
class _Encoded:
    """Of the rows looked at. reasons: row -> why it would not be used. sizes: row -> (tokens, learned ones) where it would.

    drawn: rows of the sample; the others were looked at because they are long.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    drawn: set[int] = field(default_factory=set)

    def statistics(self, left: list[Row], selection: Chosen) -> dict[str, Any] | None:
        """Of the training rows, as if all were like those of the sample; the longest one is the longest of all."""
        train = [row.row for row in left if selection.splits[row.row] == "train"]
        sizes = [self.sizes[number] for number in train if number in self.sizes and number in self.drawn]
        if not sizes:
            return None
        repeated = [sizes[place % len(sizes)] for place in range(len(train))]
        told = split_statistics([tokens for tokens, _ in repeated], [learned for _, learned in repeated])
        return {"splits": {"train": {**told, "max": max(self.sizes[n][0] for n in train if n in self.sizes)}}}


def _encode_sample(spec: Recipe, tokenizer: Tokenizer, read: _Read, selection: Chosen, found: Findings) -> _Encoded:
    chosen = {n: pair for n, pair in read.sample.items() if n not in selection.drops}
    out = _Encoded(drawn={number for _, number, _, _ in read.by_key} & set(chosen))
    refused: dict[str, list[Row]] = {}
    rows, segments = [], []
    for row, example in chosen.values():
        try:
            segments.append(tokenizer.encode_example(example, spec.data.learn))
            rows.append(row)
        except TemplateError as error:
            refused.setdefault(str(error), []).append(row)
            out.reasons[row.row] = "template"
    longest = cut = 0
    for row, (ids, spans) in zip(rows, tokenizer.encode_segments(segments), strict=True):
        longest = max(longest, len(ids))
        drop = drop_by_tokens(len(ids), spans, spec)
        if drop is not None:
            out.reasons[row.row] = drop.rule
        else:
            kept = min(len(ids), spec.data.max_tokens)
            cut += kept < len(ids)
            out.sizes[row.row] = (kept, learned_tokens([(s, min(e, kept), w) for s, e, w in spans if s < kept]))
    _tell_encoded(spec, out, sum(row.row not in selection.drops for row in read.good), found)
    found.warnings += [
        f"the template refuses {len(rows):,} rows, first {rows[0].place}: {text}" for text, rows in refused.items()
    ]
    if cut:
        found.warnings.append(
            f"{cut:,} of {len(rows):,} rows looked at are cut at data.max_tokens {spec.data.max_tokens:,}"
        )
    if longest:
        found.facts.append(f"the longest row has {longest:,} tokens (data.max_tokens {spec.data.max_tokens:,})")
    return out


def _tell_encoded(spec: Recipe, encoded: _Encoded, num_rows: int, found: Findings) -> None:
    drawn = len(encoded.drawn)
    of = f"{drawn:,} rows" if drawn == num_rows else f"a sample of {drawn:,} of {num_rows:,} rows"
    for rule, what in (
        ("too_long", f"longer than data.max_tokens {spec.data.max_tokens:,}, would be dropped"),
        ("nothing_to_learn", "no token to learn, would be dropped"),
        ("template", "refused by the chat template, would be set apart"),
    ):
        hit = {number for number, reason in encoded.reasons.items() if reason == rule}
        count = len(hit & encoded.drawn)
        if count:
            found.warnings.append(f"{count:,} of {of}: {what} ({count / drawn:.1%})")
        elif hit:
            found.warnings.append(f"{len(hit):,} of the longest rows: {what}")


# -------------------------------------------------------------------------------------------------------- what is left


def _tell_selection(spec: Recipe, read: _Read, selection: Chosen, found: Findings) -> None:
    twins = sum(drop.rule in ("duplicate", "near_duplicate") for drop in selection.drops.values())
    if twins:
        found.facts.append(f"{twins:,} duplicates would be dropped")
    leaks = [row for row in read.good if (drop := selection.drops.get(row.row)) and drop.rule == "leak"]
    if leaks:
        found.facts.append(
            f"{len(leaks):,} rows would be dropped because their prompt is also held out, such as {leaks[0].place}"
        )
    if spec.data.leaks.type == "keep":
        strict = spec.model_copy(update={"data": spec.data.model_copy(update={"leaks": DropLeaks()})})
        dropped = select_rows(read.good, strict, selection.drops, read.shelf).drops
        count = sum(drop.rule == "leak" for drop in dropped.values())
        if count:
            found.warnings.append(
                f"{count:,} training rows ask what is also held out, so scores will be too good (data.leaks: keep)"
            )


def _tell_splits(spec: Recipe, read: _Read, selection: Chosen, left: list[Row], found: Findings) -> None:
    counts = Counter(selection.splits[row.row] for row in left)
    about = "about " if read.total > SAMPLE else ""
    found.facts.append(
        f"{about}{counts['train']:,} rows to train on, {counts['validation']:,} for validation, {counts['test']:,} for the test"
    )
    asked = [row for row in left if selection.splits[row.row] != "train" and row.format != "text"]
    if not counts["validation"]:
        found.warnings.append("there are no validation rows: the last weights become the result, nothing stops early")
    if 0 < len(asked) < FEW_ITEMS:
        half = 1 / math.sqrt(len(asked))
        found.warnings.append(
            f"only {len(asked)} held-out rows to ask: a score is uncertain by up to {half:.0%} either way"
        )
    if not asked and spec.gate.require != "none":
        found.add(
            DataError(
                "CLI-008",
                "no held-out row can be asked, so evaluate would stop after the training",
                where="data.split",
                expected="a test or validation part of chats",
                fix="data.split: {test: 0.1}, a source with split: test, or gate.require: none",
            )
        )


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{code} x {count:,}" for code, count in found.most_common())
