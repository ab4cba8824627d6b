"""From rows, their tokens and what was decided about them to a Dataset: gathered by offsets, part by part."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import SPLITS, DatasetWriter, Written
from tunesmith.stages.prepare.accounts import DROPPED, LEDGER, NONE, QUARANTINED, STATUSES, USED
from tunesmith.stages.prepare.decide import Selection, mix_in, place_in
from tunesmith.stages.prepare.encoding.by_tokens import (
    Pieces,
    Sizes,
    judge_tokens,
    over_limit,
    shorten,
    with_pieces,
)
from tunesmith.stages.prepare.encoding.encoder import CONTROL_IN_TEXT, JOINED_DIFFERS, Encoder
from tunesmith.stages.prepare.encoding.tokens import PartTokens, Tokens
from tunesmith.stages.prepare.items import held_out_items
from tunesmith.stages.prepare.rows import Rows
from tunesmith.text.tokenizers import Tokenizer

SAMPLES = 3
FLAGS = {"joined_differs": JOINED_DIFFERS, "control_in_text": CONTROL_IN_TEXT}


def assemble(
    spec: Recipe,
    rows: Rows,
    tokens: Tokens,
    selection: Selection,
    encoder: Encoder,
    folder: Path,
    told: dict[str, Any],
) -> dict[str, Any]:
    """Fills `folder` with the Dataset; returns its statistics. told: how the rows were encoded. Raises DataError DAT-033 where no row is left to train on."""
    sizes = Sizes.of(rows.num_rows)
    numbers = range(len(rows.parts))
    for number in numbers:
        judge_tokens(spec, rows, number, tokens.part(number), selection, sizes)
    mix_in(spec, rows, selection)
    shortened = [shorten(spec, rows, number, tokens.part(number), selection, encoder, sizes) for number in numbers]
    refuse_nothing_left(selection)
    # Writing compressed columns leaves the interpreter free, and so does writing ids.
    with ThreadPoolExecutor(1) as aside:
        ledger = aside.submit(write_ledger, folder / "ledger.parquet", rows, selection, sizes)
        writer = DatasetWriter(folder)
        samples: list[dict[str, Any]] = []
        for number, pieces in enumerate(shortened):
            part = tokens.part(number)
            _gather(spec, part, pieces, rows.parts[number]["base"], selection, writer)
            samples += _samples(rows, number, part, selection, encoder.tokenizer, SAMPLES - len(samples))
        statistics = {**statistics_of(spec, rows, selection, sizes, writer.written()), "encoding": told}
        writer.close(
            items=held_out_items(spec, rows, tokens, selection, encoder.tokenizer),
            samples=samples,
            statistics=statistics,
        )
        ledger.result()
    return statistics


# ------------------------------------------------------------------------------------------------------- gathering


def _gather(
    spec: Recipe, part: PartTokens, pieces: Pieces, base: int, selection: Selection, writer: DatasetWriter
) -> None:
    """The used rows of a part go to the writer, cut to the limit or in their pieces, as often as they are to come."""
    num_rows = len(part.flags)
    here = slice(base, base + num_rows)
    used = np.flatnonzero(selection.accounts.status[here] == USED)
    # Sequences of the part: its rows as they are, and behind them the pieces of those that were split.
    sequences, places = used, used
    if pieces:
        part, owners = with_pieces(part, pieces)
        whole = used[~np.isin(used, owners)]
        sequences = np.concatenate([whole, num_rows + np.arange(len(owners))])
        places = np.concatenate([whole, owners])
        order = np.argsort(places, kind="stable")
        sequences, places = sequences[order], places[order]
    copies = selection.copies[here][places]
    sequences, places = np.repeat(sequences, copies), np.repeat(places, copies)
    if not len(sequences):
        return
    lengths = np.minimum(part.lengths[sequences], spec.data.max_tokens)
    ids = _pick(part, sequences, lengths)
    num_spans = np.diff(part.span_offsets)[sequences]
    chosen = _ranges(part.span_offsets[sequences], num_spans)
    spans, weights = part.spans[chosen], part.weights[chosen]
    ends = np.repeat(lengths, num_spans)
    inside = spans[:, 0] < ends
    spans = np.minimum(spans[inside], ends[inside, None]).astype(np.int32)
    num_spans = np.bincount(np.repeat(np.arange(len(sequences)), num_spans)[inside], minlength=len(sequences))
    writer.add_many(ids, lengths, spans, num_spans, weights[inside], base + places, selection.splits[here][places])


def _pick(part: PartTokens, sequences: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The first `lengths` ids of each sequence, in stretches: of whole neighbours one, without a copy, as most rows of most
    sets are used."""
    ends = part.offsets[sequences] + lengths
    breaks = np.flatnonzero((np.diff(sequences) != 1) | (ends[:-1] != part.offsets[sequences[:-1] + 1])) + 1
    firsts, lasts = part.offsets[sequences[np.append(0, breaks)]], ends[np.append(breaks, len(sequences)) - 1]
    return [part.ids[start:end] for start, end in zip(firsts.tolist(), lasts.tolist(), strict=True)]


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1 ... of each pair, end to end."""
    ends = np.cumsum(lengths)
    if not len(ends):
        return np.zeros(0, np.int64)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])


def refuse_nothing_left(selection: Selection) -> None:
    """Raises DataError DAT-033 when no row is used for training."""
    accounts, splits = selection.accounts, selection.splits
    if np.any(accounts.left & (splits == 0)):
        return
    counts: Counter[str] = Counter()
    for number, rule in enumerate(accounts.rules):
        counts[rule] = int(np.sum((accounts.rule == number) & (accounts.status != USED)))
    for number, name in enumerate(SPLITS):
        counts[f"{name} row"] = int(np.sum(accounts.left & (splits == number)))
    lost = ", ".join(f"{rule}: {count:,}" for rule, count in counts.most_common() if count)
    raise DataError(
        "DAT-033",
        f"none of {len(splits):,} rows is left to train on ({lost})",
        where="data",
        expected="at least one training row",
        fix="loosen the rule that took most; tunesmith check RECIPE shows samples",
    )


# ------------------------------------------------------------------------------------------------------- samples


def _samples(
    rows: Rows, number: int, part: PartTokens, selection: Selection, tokenizer: Tokenizer, count: int
) -> list[dict[str, Any]]:
    """The first training rows of a part as the model sees them: decoded pieces, learned or not."""
    facts = rows.parts[number]
    here = slice(facts["base"], facts["base"] + len(part.flags))
    used = np.flatnonzero((selection.accounts.status[here] == USED) & (selection.splits[here] == 0))
    positions = rows.part(number, ("position",))["position"]
    out = []
    for place in used[:count].tolist():
        ids = part.ids[part.offsets[place] : part.offsets[place + 1]]
        spans = part.spans[part.span_offsets[place] : part.span_offsets[place + 1]]
        pieces, done = [], 0
        for start, end in [*spans.tolist(), [len(ids), len(ids)]]:
            pieces += [(ids[done:start], False), (ids[start:end], True)]
            done = end
        decoded = [
            {"text": tokenizer.decode(piece.tolist(), skip_special=False), "learned": learned}
            for piece, learned in pieces
            if len(piece)
        ]
        where = f"{rows.file_name(facts)}:{positions[place].as_py()}"
        out.append({"row": facts["base"] + place, "place": where, "pieces": decoded})
    return out


# ---------------------------------------------------------------------------------------------------- the accounting


def statistics_of(spec: Recipe, rows: Rows, selection: Selection, sizes: Sizes, written: Written) -> dict[str, Any]:
    """Counts, lengths and the funnel of a Dataset, as statistics.json has them.

    Splits and lengths count examples as they are trained: cut at the limit, in pieces, as often as they come.
    """
    accounts, total = selection.accounts, rows.num_rows
    used = accounts.left
    funnel: Counter[tuple[str, str]] = Counter()
    taken: dict[tuple[str, str], list[int]] = {}
    lost = np.flatnonzero(~used)
    pairs, counts = np.unique(np.stack([accounts.status[lost], accounts.rule[lost]]), axis=1, return_counts=True)
    for (status, rule), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        name = accounts.rules[rule]
        is_bad = status == QUARANTINED and name != "template"
        place = STATUSES[status], "bad_row" if is_bad else name
        funnel[place] += count
        first = np.flatnonzero((accounts.status == status) & (accounts.rule == rule))[:SAMPLES].tolist()
        taken[place] = sorted([*taken.get(place, []), *first])[:SAMPLES]
    formats: Counter[str] = Counter()
    for part in rows.parts:
        formats.update(part["formats"])
    counts, edges = np.histogram(written.tokens if len(written.tokens) else [0], bins=20)
    truncated = used & (accounts.rule == (accounts.rules.index("truncated") if "truncated" in accounts.rules else -2))
    return {
        "read": total,
        "used": int(used.sum()),
        "quarantined": int(np.sum(accounts.status == QUARANTINED)),
        "dropped": int(np.sum(accounts.status == DROPPED)),
        "truncated": int(truncated.sum()),
        "split": int(np.sum(used & (sizes.sequences > 1))),
        "flags": {name: int(np.sum(used & (sizes.flags & bit > 0))) for name, bit in FLAGS.items()},
        "over_limit": over_limit(sizes, spec.data.max_tokens),
        "funnel": [
            {
                "rule": rule,
                "status": status,
                "dropped": count,
                "share": count / total,
                "samples": [place_in(rows, row) for row in taken[status, rule]],
            }
            for (status, rule), count in funnel.most_common()
        ],
        "sources": _by_source(rows, selection, written),
        "splits": {
            name: split_statistics(
                int(np.sum(used & (selection.splits == number))),
                *(column[written.splits == number] for column in (written.tokens, written.learned)),
            )
            for number, name in enumerate(SPLITS)
        },
        "formats": dict(formats),
        "told": _with_places(rows, selection.told),
        "lengths": {"counts": counts.tolist(), "edges": [round(float(edge), 1) for edge in edges]},
    }


def _by_source(rows: Rows, selection: Selection, written: Written) -> list[dict[str, Any]]:
    """Of each source in the recipe's order: rows read, used and trained on, and what an epoch holds of it.

    epoch: rows with their copies, by which shares go. examples: those rows in their pieces. tokens: of the examples.
    """
    count = len(rows.sources)
    source = np.repeat([part["source"] for part in rows.parts], [part["rows"] for part in rows.parts])
    used = selection.accounts.left
    trained = used & (selection.splits == 0)
    of_row = {
        "read": np.ones(len(source)),
        "used": used,
        "trained": trained,
        "epoch": np.where(trained, selection.copies, 0),
    }
    sums = {name: np.bincount(source, weights=values, minlength=count) for name, values in of_row.items()}
    in_training = written.splits == 0
    owners = source[written.rows[in_training]]
    sums["examples"] = np.bincount(owners, minlength=count)
    sums["tokens"] = np.bincount(owners, weights=written.tokens[in_training], minlength=count)
    names = {part["source"]: rows.source_name(part) for part in rows.parts}
    return [
        {"name": names.get(number, ""), **{name: int(values[number]) for name, values in sums.items()}}
        for number in range(count)
    ]


def _with_places(rows: Rows, told: dict[str, Any]) -> dict[str, Any]:
    """What was seen on the way, with FILE:LINE for the rows that are shown."""
    cleaning = told["cleaning"]
    rules = {
        name: {**rule, "samples": [place_in(rows, row) for row in rule["samples"]]}
        for name, rule in cleaning["rules"].items()
    }
    odd = {
        kind: {**seen, "samples": [place_in(rows, row) for row in seen["samples"]]}
        for kind, seen in cleaning["odd"].items()
    }
    out = {**told, "cleaning": {**cleaning, "rules": rules, "odd": odd}}
    if "conflicts" in told:
        samples = [[place_in(rows, row) for row in group] for group in told["conflicts"]["samples"]]
        out["conflicts"] = {**told["conflicts"], "samples": samples}
    return out


def split_statistics(rows: int, tokens: np.ndarray, learned: np.ndarray) -> dict[str, int]:
    """Of one split: rows, the examples that they became, their tokens, learned tokens and percentiles of their lengths."""
    lengths = tokens if len(tokens) else np.zeros(1, np.int64)
    percentiles = {f"p{share}": int(np.percentile(lengths, share)) for share in (50, 90, 99)}
    sums = {"rows": rows, "examples": len(tokens), "tokens": int(tokens.sum()), "learned_tokens": int(learned.sum())}
    return {**sums, **percentiles, "max": int(lengths.max())}


def write_ledger(path: Path, rows: Rows, selection: Selection, sizes: Sizes) -> None:
    """One line per source position, a row group per part."""
    accounts = selection.accounts
    rules = pa.array([*accounts.rules, ""], pa.utf8())  # a dictionary may not be empty in Parquet
    with pq.ParquetWriter(path, LEDGER, compression="zstd") as writer:
        for number, facts in enumerate(rows.parts):
            table = rows.part(number, ("row", "position", "key"))
            here = slice(facts["base"], facts["base"] + table.num_rows)
            writer.write_table(_ledger_part(rows, facts, table, here, selection, sizes, rules))


def _ledger_part(
    rows: Rows,
    facts: dict[str, Any],
    table: pa.Table,
    here: slice,
    selection: Selection,
    sizes: Sizes,
    rules: pa.Array,
) -> pa.Table:
    accounts, count = selection.accounts, table.num_rows

    def named(places: np.ndarray, names: Any, width: int = 8) -> pa.Array:
        kind = pa.int8() if width == 8 else pa.int32()
        return pa.DictionaryArray.from_arrays(pa.array(places, kind, mask=places == NONE), pa.array(names, pa.utf8()))

    def number(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        missing = np.isnan(values) if values.dtype.kind == "f" else values == NONE
        return pa.array(values, kind, mask=missing)

    zeros = np.zeros(count, np.int32)
    details = (
        [accounts.details.get(row) for row in range(here.start, here.stop)] if accounts.details else [None] * count
    )
    used = accounts.status[here] == USED
    columns = [
        table["row"].combine_chunks(),
        named(zeros, [rows.source_name(facts)], 32),
        named(zeros, [rows.file_name(facts)], 32),
        table["position"].combine_chunks(),
        named(selection.splits[here], SPLITS),
        _hex(table["key"]),
        named(accounts.status[here], STATUSES),
        named(accounts.rule[here], rules, 32),
        number(accounts.value[here], pa.float64()),
        pa.array(details, pa.utf8()),
        number(accounts.threshold[here], pa.float64()),
        number(accounts.kept_twin[here], pa.int64()),
        number(sizes.tokens[here], pa.int32()),
        number(sizes.learned[here], pa.int32()),
        pa.array(np.where(used, selection.copies[here] * sizes.sequences[here], 0), pa.int32()),
        pa.array(sizes.flags[here]),
    ]
    return pa.Table.from_arrays(columns, schema=LEDGER)


def _hex(column: pa.ChunkedArray) -> pa.Array:
    """Hashes as text, by a table of bytes: no Python object per row."""
    keys = column.combine_chunks()
    keys = keys if isinstance(keys, pa.Array) else keys.combine_chunks()
    missing = keys.is_null().to_numpy(zero_copy_only=False)
    filled = keys.fill_null(b"\0" * 16)
    raw = np.frombuffer(filled.buffers()[1], np.uint8)[filled.offset * 16 : (filled.offset + len(filled)) * 16]
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[raw >> 4], digits[raw & 15]], axis=1).reshape(-1)
    offsets = pa.py_buffer((np.arange(len(filled) + 1) * 32).astype(np.int32))
    whole = pa.StringArray.from_buffers(len(filled), offsets, pa.py_buffer(text))
    return pc.if_else(pa.array(missing), pa.scalar(None, pa.utf8()), whole) if missing.any() else whole
