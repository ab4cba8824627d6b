"""What preparation would say of a recipe's rows, without preparing them: what `tunesmith check` reports.

Rows are read, judged and decided on as preparation does it, in a folder that goes afterwards; only a sample is encoded: the
rows with the least content hashes, so that the same ones are looked at each time, and the longest ones.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.errors import DataError, Findings
from tunesmith.recipe import Recipe
from tunesmith.stages.prepare.accounts import DROPPED, QUARANTINED, USED
from tunesmith.stages.prepare.assemble import refuse_nothing_left, split_statistics
from tunesmith.stages.prepare.bad_rows import REFUSED, bad_rows_error, bad_rows_of, refusal_of
from tunesmith.stages.prepare.decide import Selection, decide, draw_sample, leaks_kept, mix_in, place_in, told_of_odd
from tunesmith.stages.prepare.encoding.by_tokens import learned_tokens
from tunesmith.stages.prepare.encoding.encoder import Encoder
from tunesmith.stages.prepare.encoding.tokens import turns_of
from tunesmith.stages.prepare.judged import Judged, write_verdicts
from tunesmith.stages.prepare.reading.files import skipped_files, told_of_skipped
from tunesmith.stages.prepare.rows import Rows, collect, part_tasks, try_part
from tunesmith.stages.prepare.spread import Compute, compute_of
from tunesmith.text.checks import check_masks
from tunesmith.text.checks import told as told_of_masks
from tunesmith.text.formats import tell
from tunesmith.text.tokenizers import Tokenizer

SAMPLE, LONGEST = 1000, 50
MASKS_CHECKED = 64
FEW_ITEMS = 20  # with fewer answers an interval says next to nothing


def survey(spec: Recipe, tokenizer: Tokenizer | None, found: Findings) -> dict[str, Any] | None:
    """Adds to `found` all that is wrong with the rows.

    tokenizer: None where the model has none that can be used. Returns what the Dataset's statistics would say of the training
    rows, by the sample, for a plan; None where that is not known.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-check-") as folder, compute_of(spec) as compute:
        rows = _read(spec, Path(folder), compute, found)
        if found.exit_status and not rows.num_rows:
            return None
        counts, first = bad_rows_of(rows)
        formats = Counter[str]()
        for part in rows.parts:
            formats.update(part["formats"])
        recognised, unread = tell(part["evidence"] for part in rows.parts)
        found.facts.append(f"{rows.num_rows:,} rows read ({recognised or 'none recognised'})")
        if unread:
            found.facts.append(f"columns that no format reads, filters may: {unread}")
        found.facts += _notes(rows)
        if skipped := skipped_files(source.path for source in spec.data.sources):
            found.facts.append(told_of_skipped(skipped))
        refusal = bad_rows_error(spec, counts, first, rows.num_rows)
        if refusal is not None:
            found.add(refusal)
        elif counts:
            found.facts.append(f"{counts.total():,} bad rows would be set apart ({_counts(counts)})")
        return _judge(spec, tokenizer, rows, Path(folder), compute, found) if formats else None


NOTES = {
    "byte_order_mark": "a byte order mark was passed over in",
    "array_in_lines": "one array, not a row a line, stands in",
    "lines_in_json": "a row a line, not one document, stands in",
    "separator_semicolon": "cells are separated by semicolons in",
    "separator_tab": "cells are separated by tabs in",
    "separator_bar": "cells are separated by bars in",
    "blank_lines": "blank lines were passed over in",
}


def _notes(rows: Rows) -> list[str]:
    """What the reader found that is no fault, with the files."""
    files: dict[str, dict[str, int]] = {}
    for part in rows.parts:
        for note, count in part["notes"].items():
            if note in NOTES:
                counts = files.setdefault(note, {})
                counts[rows.file_name(part)] = counts.get(rows.file_name(part), 0) + count
    return [
        f"{NOTES[note]} {', '.join(itertools.islice(counts, 5))}"
        + (f" ({sum(counts.values()):,})" if note == "blank_lines" else "")
        for note, counts in files.items()
    ]


def _read(spec: Recipe, folder: Path, compute: Compute, found: Findings) -> Rows:
    """All rows of all files that can be read; each source or file that cannot is a problem of its own."""
    aside, made = folder / "making", folder / "rows"
    aside.mkdir()
    made.mkdir()
    tasks, files = [], []
    for number, source in enumerate(spec.data.sources):
        with found.gathering():
            more, named = part_tasks([source], aside, first_part=len(tasks), first_file=len(files), first_source=number)
            tasks += more
            files += named
    facts: dict[int, dict[str, Any]] = {}
    refused: set[str] = set()
    for number, (part, error) in sorted(compute.spread(try_part, tasks)):
        facts[number] = part
        if error is not None and str(error) not in refused:  # once a file, not once a part of it
            refused.add(str(error))
            found.add(error)
    collect(spec.data.sources, files, [facts[number] for number in range(len(tasks))], aside, made)
    return Rows(made)


def _judge(
    spec: Recipe, tokenizer: Tokenizer | None, rows: Rows, folder: Path, compute: Compute, found: Findings
) -> dict[str, Any] | None:
    aside, made = folder / "judging", folder / "verdicts"
    aside.mkdir()
    made.mkdir()
    write_verdicts(spec, rows, aside, made, compute, lambda count: None)
    judged = Judged(made)
    rows = Rows(rows.folder, made if judged.rewritten else None)
    selection = decide(spec, rows, judged)
    for asked in selection.questions:
        found.add(asked)
    _tell_filters(spec, judged, selection, found)
    found.warnings += told_of_odd(judged, rows)
    sample = _encode_sample(spec, tokenizer, rows, selection, found) if tokenizer is not None else None
    _tell_selection(spec, rows, judged, selection, found)
    mix_in(spec, rows, selection)
    with found.gathering():
        refuse_nothing_left(selection)
    _tell_splits(spec, rows, selection, sample, found)
    return sample.statistics(selection) if sample is not None else None


def _tell_filters(spec: Recipe, judged: Judged, selection: Selection, found: Findings) -> None:
    asked = {question.problems[0].where for question in selection.questions}
    for name, taken in judged.facts["filters"].items():
        if taken["dropped"] and f"data.filters.{name}" not in asked:
            share = taken["dropped"] / taken["seen"]
            found.facts.append(f"the {name} filter would drop {taken['dropped']:,} rows ({share:.1%})")
    flagged = {rule: told["flagged"] for rule, told in judged.facts["rules"].items() if told["flagged"]}
    if flagged:
        found.warnings.append(f"found in rows, which stay: {_counts(Counter(flagged))}")
    redacted = {rule: told["redacted"] for rule, told in judged.facts["rules"].items() if told["redacted"]}
    if redacted:
        found.facts.append(f"rows would be redacted: {_counts(Counter(redacted))}")


# --------------------------------------------------------------------------------------------------- tokens, by sample


@dataclass
class _Sample:
    """Rows looked at, that would be used. rows: int64 [S]. tokens, learned: int64 [S]. is_drawn: bool [S], else it is there
    because it is long. kept: share of the drawn rows that are used; is_whole: they are all rows there are."""

    rows: np.ndarray
    tokens: np.ndarray
    learned: np.ndarray
    is_drawn: np.ndarray
    kept: float
    is_whole: bool

    def statistics(self, selection: Selection) -> dict[str, Any] | None:
        """Of the training rows, as if all were like those of the sample; the longest one is the longest of all."""
        train = selection.splits[self.rows] == 0
        drawn = train & self.is_drawn
        trained = selection.accounts.left & (selection.splits == 0)
        rows, examples = (self.of_all(int(count)) for count in (trained.sum(), selection.copies[trained].sum()))
        if not drawn.any() or not examples:
            return None
        told = split_statistics(rows, *(np.resize(column[drawn], examples) for column in (self.tokens, self.learned)))
        return {"splits": {"train": {**told, "max": int(self.tokens[train].max())}}}

    def of_all(self, count: int) -> int:
        """How many of so many rows that the other rules leave will be used: known where all were looked at, else by share."""
        return count if self.is_whole else round(count * self.kept)


def _encode_sample(spec: Recipe, tokenizer: Tokenizer, rows: Rows, selection: Selection, found: Findings) -> _Sample:
    left = np.flatnonzero(selection.accounts.status == USED)
    drawn, longest = draw_sample(rows, left, SAMPLE, LONGEST)
    chosen = np.union1d(drawn, longest)
    encoder = Encoder(tokenizer, spec.data.learn)
    with found.gathering():
        checked = [(place_in(rows, row), example) for row, example in rows.examples(drawn[:MASKS_CHECKED])]
        found.warnings += told_of_masks(check_masks(tokenizer, checked, spec.data.learn))
    limit = spec.data.max_tokens
    lengths, learned, kept, refused = [], [], [], {}
    for number, facts in enumerate(rows.parts):
        here = chosen[np.searchsorted(chosen, facts["base"]) : np.searchsorted(chosen, facts["base"] + facts["rows"])]
        if not len(here):
            continue
        table = rows.part(number, ("turns", "extra")).take(pa.array(here - facts["base"]))
        batch = encoder.encode(turns_of(table))
        lengths.append(np.diff(batch.offsets))
        learned.append(learned_tokens(batch))
        kept.append(learned_tokens(batch, limit))
        refused |= {int(here[place]): words for place, words in batch.refused.items()}
    lengths, learned, kept = (np.concatenate(column or [np.zeros(0, np.int64)]) for column in (lengths, learned, kept))
    is_refused = np.isin(chosen, np.array([*refused], np.int64))
    long = (lengths > limit) & ~is_refused
    gone = {"template": is_refused, "too_long": long & (spec.data.too_long == "drop")}
    is_learned = (learned if spec.data.too_long == "split" else kept) > 0
    gone["nothing_to_learn"] = ~gone["template"] & ~gone["too_long"] & ~is_learned
    is_drawn = np.isin(chosen, drawn)
    _tell_encoded(spec, gone, is_drawn, len(left), found)
    _tell_refused(spec, rows, refused, len(chosen), found)
    used = ~np.logical_or.reduce([*gone.values()])
    cut = int((long & used).sum())
    if cut and spec.data.too_long == "split":
        found.facts.append(f"{cut:,} of {len(chosen):,} rows looked at are split at data.max_tokens {limit:,}")
    elif cut:
        lost = 1 - kept[used].sum() / max(learned[used].sum(), 1)
        found.warnings.append(
            f"{cut:,} of {len(chosen):,} rows looked at are cut at data.max_tokens {limit:,}; {lost:.1%} of the learned tokens are lost"
        )
    if len(lengths):
        found.facts.append(f"the longest row has {lengths.max():,} tokens (data.max_tokens {limit:,})")
    if is_whole := len(drawn) == len(left):
        _take(selection, chosen, gone)
    share = float(used[is_drawn].mean()) if len(drawn) else 0.0
    return _Sample(chosen[used], np.minimum(lengths, limit)[used], kept[used], is_drawn[used], share, is_whole)


def _take(selection: Selection, rows: np.ndarray, gone: dict[str, np.ndarray]) -> None:
    """What the rows' ids say, where all of them are known."""
    for rule, is_hit in gone.items():
        hit = rows[is_hit]
        selection.accounts.status[hit] = QUARANTINED if rule == "template" else DROPPED
        selection.accounts.note(hit, rule, np.nan)


def _tell_encoded(
    spec: Recipe, gone: dict[str, np.ndarray], is_drawn: np.ndarray, num_rows: int, found: Findings
) -> None:
    drawn = int(is_drawn.sum())
    of = f"{drawn:,} rows" if drawn == num_rows else f"a sample of {drawn:,} of {num_rows:,} rows"
    for rule, what in (
        ("too_long", f"longer than data.max_tokens {spec.data.max_tokens:,}, would be dropped"),
        ("nothing_to_learn", "no token to learn, would be dropped"),
        ("template", "refused by the chat template, would be set apart"),
    ):
        count, hit = int((gone[rule] & is_drawn).sum()), int(gone[rule].sum())
        if count:
            found.warnings.append(f"{count:,} of {of}: {what} ({count / drawn:.1%})")
        elif hit:
            found.warnings.append(f"{hit:,} of the longest rows: {what}")


def _tell_refused(spec: Recipe, rows: Rows, refused: dict[int, str], looked_at: int, found: Findings) -> None:
    """Rows that the template refuses: a problem where preparation would stop for them, else a warning."""
    first: dict[str, int] = {}
    for row, words in refused.items():
        first.setdefault(words, row)
    counts = Counter(refused.values())
    stops = spec.data.on_bad_row == "stop" or len(refused) > spec.data.max_bad_share * looked_at
    for words, row in first.items():
        what = f"the template refuses {counts[words]:,} rows of {looked_at:,} looked at"
        if stops:
            told = refusal_of(words)
            found.add(
                DataError(
                    REFUSED, f"{what}: {words}", where=place_in(rows, row), expected=told["expected"], fix=told["fix"]
                )
            )
        else:
            found.warnings.append(f"{what}, first {place_in(rows, row)}: {words}")


# -------------------------------------------------------------------------------------------------------- what is left


def _tell_selection(spec: Recipe, rows: Rows, judged: Judged, selection: Selection, found: Findings) -> None:
    accounts = selection.accounts
    taken = {rule: np.flatnonzero(accounts.rule == number) for number, rule in enumerate(accounts.rules)}
    twins = sum(len(taken.get(rule, ())) for rule in ("duplicate", "near_duplicate"))
    if twins:
        found.facts.append(f"{twins:,} duplicates would be dropped")
    leaks = taken.get("leak", ())
    if len(leaks):
        found.facts.append(
            f"{len(leaks):,} rows would be dropped because what they ask is also held out, such as {place_in(rows, int(leaks[0]))}"
        )
    conflicts = selection.told.get("conflicts", {}).get("prompts", 0)
    if conflicts:
        found.warnings.append(f"{conflicts:,} prompts have several different answers")
    if spec.data.leaks.type == "keep":
        count = leaks_kept(spec, rows, judged)
        if count:
            found.warnings.append(
                f"{count:,} training rows ask what is also held out, so scores will be too good (data.leaks: keep)"
            )


def _tell_splits(spec: Recipe, rows: Rows, selection: Selection, sample: _Sample | None, found: Findings) -> None:
    left = selection.accounts.left
    train, validation, test = (int((left & (selection.splits == split)).sum()) for split in range(3))
    shown = [sample.of_all(count) if sample is not None else count for count in (train, validation, test)]
    about, why = _how_sure(spec, sample)
    found.facts.append(
        f"{about}{shown[0]:,} rows to train on, {shown[1]:,} for validation, {shown[2]:,} for the test{why}"
    )
    held_out = np.flatnonzero(left & (selection.splits > 0))
    formats = rows.columns("format")["format"].take(pa.array(held_out))
    asked = int(pc.sum(pc.not_equal(formats, "text")).as_py() or 0)
    if not validation:
        found.warnings.append("there are no validation rows: the last weights become the result, nothing stops early")
    if 0 < asked < FEW_ITEMS:
        half = 1 / math.sqrt(asked)
        found.warnings.append(f"only {asked} held-out rows to ask: a score is uncertain by up to {half:.0%} either way")
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


def _how_sure(spec: Recipe, sample: _Sample | None) -> tuple[str, str]:
    """("about ", "at most " or "", why) of the number of rows that will be used."""
    bounds = [getattr(spec.data.quality, name, None) for name in ("above", "below", "keep")]
    if spec.data.quality.type in ("perplexity", "difficulty") and any(bound is not None for bound in bounds):
        return "at most ", f" (data.quality {spec.data.quality.type} will take more: it needs the model)"
    if sample is None:
        return "at most ", " (without a tokenizer nobody knows which are too long)"
    if sample.is_whole and spec.data.too_long == "split" and sample.tokens.max(initial=0) >= spec.data.max_tokens:
        return "at most ", " (an over-long row goes where not one exchange of it fits)"
    if sample.is_whole:
        return "", ""
    return "about ", f" (which are too long, or cannot be learned from, is known of {SAMPLE:,} of them)"


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{code} x {count:,}" for code, count in found.most_common())
