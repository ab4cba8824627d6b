"""The story of preparation: read, refuse or set apart, select, encode, and write a Dataset that accounts for every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith import hub
from tunesmith.errors import DataError, Problem
from tunesmith.recipe import Recipe
from tunesmith.runs.dataset import DatasetWriter
from tunesmith.runs.run import Run
from tunesmith.runs.store import Artifact, fingerprint
from tunesmith.stages.prepare.externals import source_hashes, tokenizer_hash
from tunesmith.stages.prepare.filters import Drop
from tunesmith.stages.prepare.from_rows import Chosen, select_rows
from tunesmith.stages.prepare.rows import Row, read_all, read_back, write_rows
from tunesmith.stages.prepare.tokens import Tokens, encode_rows
from tunesmith.text.tokenizers import Tokenizer, load_tokenizer

READER_VERSION = 3
SHOWN_PER_CODE = 3


def run(spec: Recipe, inputs: Mapping[str, Artifact], run: Run) -> dict[str, Artifact]:
    """Make Rows, Tokens and Dataset, each only where it is not there yet."""
    rows_artifact = _rows(spec, run)
    rows = list(read_back(rows_artifact.path))
    _judge_bad_rows(spec, run, rows)
    selection = select_rows(rows, spec)
    if selection.asked is not None:
        raise selection.asked
    _leave_if_asked(run, "before tokenising")

    files = hub.resolve(spec.model.base, spec.model.revision, weights=False)
    tokenizer = load_tokenizer(files, spec.model.template)
    tokens_artifact = _tokens(spec, run, rows_artifact, rows, tokenizer, files)
    _leave_if_asked(run, "before writing the Dataset")
    dataset = _dataset(
        spec, run, rows, selection, Tokens(tokens_artifact.path), tokenizer, (rows_artifact, tokens_artifact)
    )
    return {"rows": rows_artifact, "tokens": tokens_artifact, "dataset": dataset}


# ------------------------------------------------------------------------------------------------------------- rows


def _rows(spec: Recipe, run: Run) -> Artifact:
    sources = [source.model_dump(exclude={"path", "limit", "repeat", "weight"}) for source in spec.data.sources]
    made_of = {"reader": READER_VERSION, "sources": sources, "files": source_hashes(spec)}
    found = run.store.find("Rows", fingerprint(made_of))
    if found is None:
        producer = {"stage": "prepare", "recipe": spec.slice(("data.sources",)), "inputs": made_of}
        with run.store.create("Rows", fingerprint(made_of), producer=producer) as draft:

            def tell(count: int) -> None:
                run.record("prepare", "prepare/rows_read", count, unit="rows")
                _leave_if_asked(run, "while reading")

            draft.notes |= write_rows(draft.path, read_all(spec, tell))
        assert draft.artifact is not None
        found = draft.artifact
    run.record("prepare", "prepare/rows", found.notes["rows"], unit="rows")
    run.record("prepare", "prepare/formats", found.notes["formats"], unit="rows")
    return found


def _judge_bad_rows(spec: Recipe, run: Run, rows: list[Row]) -> None:
    bad = [row for row in rows if not row.is_good]
    run.record("prepare", "prepare/bad_rows", len(bad), unit="rows")
    counts = Counter(row.problem["code"] for row in bad if row.problem)
    refusal = bad_rows_error(spec, counts, first_of_each_code(bad), len(rows))
    if refusal is not None:
        raise refusal


def first_of_each_code(bad: Iterable[Row]) -> list[Row]:
    """The first rows of each kind of problem: what is shown."""
    shown: dict[str, list[Row]] = {}
    for row in bad:
        assert row.problem is not None
        alike = shown.setdefault(row.problem["code"], [])
        if len(alike) < SHOWN_PER_CODE:
            alike.append(row)
    return [row for rows in shown.values() for row in rows]


def bad_rows_error(spec: Recipe, counts: Counter[str], first: list[Row], total: int) -> DataError | None:
    """DAT-032 for bad rows, unless the recipe sets them apart and they are few; DAT-031 where there is no row at all.

    counts: bad rows by code. first: some rows of each code. total: all rows, good and bad.
    """
    if not total:
        names = ", ".join(source.path for source in spec.data.sources)
        return DataError(
            "DAT-031", f"no row in {names}", where="data.sources", expected="at least one row", fix="check the files"
        )
    bad = counts.total()
    if not bad or (spec.data.on_bad_row == "quarantine" and bad < total and bad / total <= spec.data.max_bad_share):
        return None
    groups = ", ".join(f"{code} x {count:,}" for code, count in counts.most_common())
    what = f"{bad:,} of {total:,} rows cannot be used ({groups}); nothing was trained"
    shown = [_as_problem(row, counts) for row in sorted(first, key=lambda row: -counts[row.problem["code"]])]  # type: ignore[index]
    return DataError("DAT-032", what, problems=[*shown, _verdict(spec, what, bad / total)])


def _as_problem(row: Row, counts: Counter[str]) -> Problem:
    assert row.problem is not None
    told = row.problem
    column = f":{told['column']}" if told["column"] else ""
    alike = f" ({counts[told['code']]:,} rows like this)" if counts[told["code"]] > 1 else ""
    return Problem(told["code"], f"{row.place}{column}", told["what"] + alike, told["expected"], told["fix"])


def _verdict(spec: Recipe, what: str, share: float) -> Problem:
    """Why these bad rows stop the run, and the key that lets it go on."""
    if spec.data.on_bad_row == "quarantine":
        fix = f"mend them, or data.max_bad_share: {min(1.0, share * 1.1):.3f}" if share < 1 else "mend the file"
        what = f"{share:.2%} of the rows are bad, more than data.max_bad_share {spec.data.max_bad_share:.2%} ({what})"
        return Problem("DAT-032", "data.max_bad_share", what, "rows that can be read", fix)
    fix = "mend these rows, or data.on_bad_row: quarantine sets them apart and goes on"
    if share > spec.data.max_bad_share:
        fix += f" (with data.max_bad_share: {min(1.0, share * 1.1):.3f})"
    return Problem("DAT-032", "data.on_bad_row", what, "rows that can be read", fix)


# ----------------------------------------------------------------------------------------------------------- tokens


def _tokens(
    spec: Recipe, run: Run, rows_artifact: Artifact, rows: list[Row], tokenizer: Tokenizer, files: hub.ModelFiles
) -> Artifact:
    made_of = {
        "rows": rows_artifact.id,
        "tokenizer": tokenizer_hash(files),
        "template": tokenizer.template.source,
        "learn": spec.data.learn,
    }
    found = run.store.find("Tokens", fingerprint(made_of))
    encoded = 0
    if found is None:
        producer = {
            "stage": "prepare",
            "recipe": spec.slice(("model.base", "model.template", "data.learn")),
            "inputs": made_of,
        }
        with run.store.create("Tokens", fingerprint(made_of), producer=producer) as draft:

            def tell(count: int) -> None:
                run.record("prepare", "prepare/rows_encoded", count, unit="rows")
                _leave_if_asked(run, "while tokenising")

            encoded = encode_rows(rows, tokenizer, spec.data.learn, draft.path, tell)
            draft.notes["encoded"] = encoded
        assert draft.artifact is not None
        found = draft.artifact
    run.record("prepare", "prepare/encoded_rows", encoded, unit="rows")
    return found


# ---------------------------------------------------------------------------------------------------------- dataset


def _dataset(
    spec: Recipe,
    run: Run,
    rows: list[Row],
    selection: Chosen,
    tokens: Tokens,
    tokenizer: Tokenizer,
    inputs: tuple[Artifact, ...],
) -> Artifact:
    producer = {
        "stage": "prepare",
        "recipe": spec.slice(("seed", "data")),
        "inputs": {a.kind.lower(): a.id for a in inputs},
    }
    with run.store.create("Dataset", run.stage_key, producer=producer) as draft:
        writer = DatasetWriter(draft.path)
        ledger = [_account(row, spec, selection, tokens, writer) for row in rows]
        refuse_nothing_left(ledger)
        by_row = {row.row: row for row in rows}
        items = list(_items(ledger, by_row, tokenizer))
        statistics = _statistics(ledger, rows)
        writer.close(
            ledger=ledger, items=items, samples=_samples(ledger, by_row, tokens, tokenizer), statistics=statistics
        )
        draft.notes |= {"splits": statistics["splits"]}
    for split, counts in statistics["splits"].items():
        run.record("prepare", f"prepare/{split}_rows", counts["rows"], unit="rows")
    assert draft.artifact is not None
    return draft.artifact


def _account(row: Row, spec: Recipe, selection: Chosen, tokens: Tokens, writer: DatasetWriter) -> dict[str, Any]:
    """The row's ledger entry; a used row goes to the writer."""
    entry: dict[str, Any] = {
        "row": row.row,
        "source": row.source,
        "file": row.file,
        "position": row.position,
        "split": selection.splits.get(row.row),
        "key": row.key,
        "status": "used",
        "rule": None,
        "detail": None,
        "value": None,
        "threshold": None,
        "kept_twin": None,
        "tokens": None,
        "learned": None,
        "copies": 0,
    }
    if row.problem:
        return {**entry, "status": "quarantined", "rule": row.problem["code"], "value": row.problem["what"]}
    if row.key in tokens.refused:
        return {**entry, "status": "quarantined", "rule": "template", "value": tokens.refused[row.key]}
    ids, spans = tokens[row.key]
    entry["tokens"], entry["learned"] = len(ids), learned_tokens(spans)
    drop = selection.drops.get(row.row) or drop_by_tokens(len(ids), spans, spec)
    if drop:
        return {**entry, "status": "dropped", **drop.__dict__}
    if len(ids) > spec.data.max_tokens:
        entry |= {"rule": "truncated", "value": len(ids), "threshold": spec.data.max_tokens}
        ids, spans = _cut(ids, spans, spec.data.max_tokens)
        entry["learned"] = learned_tokens(spans)
    entry["copies"] = selection.copies[row.row]
    for _ in range(entry["copies"]):
        writer.add(ids, spans, row.row, entry["split"])
    return entry


def drop_by_tokens(length: int, spans: list[tuple[int, int, float]], spec: Recipe) -> Drop | None:
    """Why a row of `length` tokens with these learned spans is not used; None when it is."""
    limit = spec.data.max_tokens
    if length > limit and spec.data.too_long == "drop":
        return Drop("too_long", length, limit)
    if learned_tokens([span for span in spans if span[0] < limit]) == 0:
        return Drop("nothing_to_learn", length, limit)
    return None


def _cut(
    ids: np.ndarray, spans: list[tuple[int, int, float]], limit: int
) -> tuple[np.ndarray, list[tuple[int, int, float]]]:
    return ids[:limit], [(start, min(end, limit), weight) for start, end, weight in spans if start < limit]


def learned_tokens(spans: list[tuple[int, int, float]]) -> int:
    """Tokens that are predicted and learned: the first one of a row is predicted by nothing."""
    return sum(end - max(start, 1) for start, end, _ in spans)


def refuse_nothing_left(ledger: list[dict[str, Any]]) -> None:
    """Raises DataError DAT-033 when no row is used for training. Entries need status, split and rule."""
    if any(entry["status"] == "used" and entry["split"] == "train" for entry in ledger):
        return
    counts = Counter(entry["rule"] or f"{entry['split']} row" for entry in ledger)
    lost = ", ".join(f"{rule}: {count:,}" for rule, count in counts.most_common())
    raise DataError(
        "DAT-033",
        f"none of {len(ledger):,} rows is left to train on ({lost})",
        where="data",
        expected="at least one training row",
        fix="loosen the rule that took most; tunesmith check RECIPE shows samples",
    )


def _items(ledger: list[dict[str, Any]], rows: dict[int, Row], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The used held-out rows: of chats the prompt that evaluation asks, and the answer it should get; of plain text none."""
    for entry in ledger:
        example = rows[entry["row"]].example
        if entry["status"] != "used" or entry["split"] == "train" or example is None:
            continue
        said = rows[entry["row"]].split == "test"
        is_chat = example.text is None
        yield {
            "row": entry["row"],
            "part": entry["source"] if said else entry["split"],
            "split": entry["split"],
            "key": entry["key"],
            "messages": [m.to_json() for m in example.prompt] if is_chat else None,
            "expected": example.answer if is_chat else None,
            "prompt_ids": tokenizer.encode_prompt(example.prompt) if is_chat else None,
        }


def _samples(
    ledger: list[dict[str, Any]], rows: dict[int, Row], tokens: Tokens, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The first training rows as the model sees them: decoded pieces, learned or not."""
    out = []
    for entry in ledger:
        if entry["status"] == "used" and entry["split"] == "train" and len(out) < 3:
            ids, spans = tokens[entry["key"]]
            pieces, done = [], 0
            for start, end, _ in spans:
                pieces += [(ids[done:start], False), (ids[start:end], True)]
                done = end
            pieces.append((ids[done:], False))
            decoded = [
                {"text": tokenizer.decode(part.tolist(), skip_special=False), "learned": learned}
                for part, learned in pieces
                if len(part)
            ]
            out.append({"row": entry["row"], "place": f"{entry['file']}:{entry['position']}", "pieces": decoded})
    return out


def _statistics(ledger: list[dict[str, Any]], rows: list[Row]) -> dict[str, Any]:
    used = [entry for entry in ledger if entry["status"] == "used"]
    rules = Counter((entry["status"], _rule_group(entry)) for entry in ledger if entry["status"] != "used")
    splits = {}
    for name in ("train", "validation", "test"):
        entries = [entry for entry in used if entry["split"] == name]
        splits[name] = split_statistics([e["tokens"] for e in entries], [e["learned"] for e in entries])
    counts, edges = np.histogram([entry["tokens"] for entry in used] or [0], bins=20)
    return {
        "read": len(ledger),
        "used": len(used),
        "quarantined": sum(e["status"] == "quarantined" for e in ledger),
        "dropped": sum(e["status"] == "dropped" for e in ledger),
        "truncated": sum(e["rule"] == "truncated" for e in used),
        "funnel": [
            {"rule": rule, "status": status, "dropped": count, "share": count / len(ledger)}
            for (status, rule), count in rules.most_common()
        ],
        "splits": splits,
        "formats": dict(Counter(row.format for row in rows if row.format)),
        "lengths": {"counts": counts.tolist(), "edges": [round(float(edge), 1) for edge in edges]},
    }


def split_statistics(tokens: Sequence[int], learned: Sequence[int]) -> dict[str, int]:
    """Of one split: rows, tokens, learned tokens, percentiles of the rows' lengths."""
    lengths = np.array(tokens or [0])
    percentiles = {f"p{share}": int(np.percentile(lengths, share)) for share in (50, 90, 99)}
    counts = {"rows": len(tokens), "tokens": int(sum(tokens)), "learned_tokens": int(sum(learned))}
    return {**counts, **percentiles, "max": int(lengths.max())}


def _rule_group(entry: dict[str, Any]) -> str:
    return "bad_row" if entry["status"] == "quarantined" and entry["rule"] != "template" else entry["rule"]


def _leave_if_asked(run: Run, where: str) -> None:
    if run.stopping:
        run.leave(where)
