"""The story of one part of Rows: measure, flag, redact, and say which rows go by which rule, value and threshold.

Only rows that may become training rows are dropped (sources that are said to be held out hold what the user chose); what
is found is flagged, and what is to be redacted is redacted, in all rows. A row goes by the first rule that takes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tunesmith.recipe import Recipe, Source
from tunesmith.recipe.tree import Filters, Heuristics
from tunesmith.stages.prepare.cleaning.characters import CONTROLS, LETTERS, count_by, count_controls
from tunesmith.stages.prepare.cleaning.columns import (
    OWN,
    TYPES,
    Kind,
    answers_of,
    joined,
    kinds_of,
    scores_of,
    table_of,
)
from tunesmith.stages.prepare.cleaning.detectors import Detector, Find, find_all, redacted
from tunesmith.stages.prepare.cleaning.facts import FIRST, facts_of
from tunesmith.stages.prepare.cleaning.language import check_languages, languages_of
from tunesmith.stages.prepare.cleaning.named_entities import load_tagger
from tunesmith.stages.prepare.cleaning.personal import PERSONAL
from tunesmith.stages.prepare.cleaning.phrases import find_refusals, find_residue
from tunesmith.stages.prepare.cleaning.quality import NGRAM, heuristic_scores
from tunesmith.stages.prepare.cleaning.repetition import repetition_of
from tunesmith.stages.prepare.cleaning.secrets import SECRETS
from tunesmith.stages.prepare.cleaning.texts import Texts, put, texts_of
from tunesmith.stages.prepare.cleaning.unicode import odd_characters
from tunesmith.stages.prepare.layout import VERDICTS

FLAGS = pa.schema(
    [("row", pa.int64()), ("rule", pa.utf8()), ("detail", pa.utf8()), ("count", pa.int32()), ("action", pa.utf8())]
)
"""One line per row and kind of find, whether or not the row goes. action: flag, redact or drop. detail never holds a secret."""

Keys = Callable[[list[int], list[str], dict[str, Any] | None], tuple[bytes, bytes]]


@dataclass(frozen=True)
class Judged:
    """part: as given, with redacted contents, keys and characters where something was redacted. stored: the same without
    what dropped rows were dropped for, which a copy on the disk need not keep. verdicts: VERDICTS.
    measured: one line per row: row, characters, score, and what the recipe made worth measuring. flags: FLAGS.
    facts: of facts.facts_of, to be added up by facts.merge_facts."""

    part: pa.Table
    stored: pa.Table
    verdicts: pa.Table
    measured: pa.Table
    flags: pa.Table
    facts: dict[str, Any]


def judge(
    part: pa.Table,
    spec: Recipe,
    keys: Keys,
    *,
    splits: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Judged:
    """Clean one part.

    part: layout.PART. keys: (roles, contents, extra) -> (key, prompt_key) of a row whose contents were redacted.
    splits, sources: of each source its split and its name; default: what the recipe says, in its order.
    kinds: `columns.merge_kinds` over all parts, for data.filters.where; default: of this part alone.
    Raises as `check_cleaning`.
    """
    filters = spec.data.filters
    splits = splits if splits is not None else [source.split for source in spec.data.sources]
    sources = sources if sources is not None else [_name_of(source) for source in spec.data.sources]
    texts = texts_of(part)
    sheet = _Sheet(part, _may_train(part, splits))
    _by_length(part, filters, sheet)
    _by_columns(part, filters, sheet)
    if filters.where:
        _by_expressions(part, texts, filters, sources, kinds, sheet)
    controls_M = count_controls(texts) if filters.control_characters != "off" else np.zeros(0, np.int64)
    _by_controls(texts, controls_M, filters, sheet)
    if filters.language is not None:
        _by_language(part, texts, filters, sheet)
    _by_words(texts, spec, sheet)
    replaced, withheld = _by_finds(texts, filters, sheet)
    if filters.control_characters == "remove":
        _remove_controls(texts, controls_M, replaced)
    verdicts, flags, measured = sheet.verdicts(), sheet.flags(), sheet.measured()
    facts = facts_of(measured, verdicts, flags, sheet.filters, odd_characters(texts))
    rewritten = _rewritten(part, texts, replaced, keys)
    stored = _stored(rewritten, part, texts, replaced, withheld, keys) if replaced and withheld else rewritten
    return Judged(rewritten, stored, verdicts, measured, flags, facts)


def _name_of(source: Source) -> str:
    return source.name or Path(source.path).name.split(".")[0]


def check_cleaning(spec: Recipe, kinds: Mapping[str, Kind]) -> None:
    """What of the recipe's filters cannot be done, said before any row is judged. kinds: of the rows' other columns.

    Raises RecipeError DAT-060 (an expression), DAT-063 (a language), DataError DAT-062 (py3langid is not installed),
    ModelError MDL-130 or MDL-131 (the model that marks personal data).
    """
    filters = spec.data.filters
    if filters.where:
        own = {"row": pa.int64(), "characters": pa.int32(), "turns": pa.int64()}
        schema = {
            **{name: TYPES[kind] for name, kind in kinds.items()},
            **{name: own.get(name, pa.utf8()) for name in OWN},
        }
        from tunesmith.stages.prepare.reading import frames  # daft: only who asks for it pays for it

        frames.true_rows(pa.schema(list(schema.items())).empty_table(), filters.where, [*OWN[1:], *kinds])
    if filters.language is not None:
        check_languages(filters.language.keep)
    if filters.pii.model is not None:
        load_tagger(filters.pii.model)


# ------------------------------------------------------------------------------------------------------- the sheet


class _Sheet:
    """What was found out about the rows of a part so far. Arrays are [R], in the part's order."""

    def __init__(self, part: pa.Table, may_train: np.ndarray) -> None:
        self.rows = part.column("row").to_numpy(zero_copy_only=False)
        self.left = may_train.copy()
        self.is_dropped = np.zeros(len(self.rows), bool)
        self.filters: dict[str, dict[str, Any]] = {}
        self.columns: dict[str, Any] = {
            "row": self.rows,
            "characters": part.column("characters").fill_null(0).to_numpy(zero_copy_only=False),
            "score": np.full(len(self.rows), np.nan),
        }
        self._drops: list[tuple[np.ndarray, str, Any, Any, Any]] = []
        self._flags: list[tuple[np.ndarray, str, list[str], Any, str]] = []

    def begin(self, name: str) -> None:
        """A filter, by its key below data.filters, begins: what it sees is what earlier ones left."""
        self.filters[name] = {"seen": int(self.left.sum()), "dropped": 0, "first": []}

    def drop(
        self,
        name: str,
        rule: str,
        hit: np.ndarray,
        values: np.ndarray | None = None,
        details: Mapping[int, str] | str | None = None,
        threshold: float | None = None,
    ) -> None:
        """Rows that are hit and still left go. name: the filter. details: of each place, or of all."""
        taken = np.flatnonzero(hit & self.left)
        if not len(taken):
            return
        self.left[taken] = False
        self.is_dropped[taken] = True
        told = [details] * len(taken) if isinstance(details, str) else [(details or {}).get(int(p)) for p in taken]
        found = np.full(len(taken), np.nan) if values is None else values[taken].astype(np.float64)
        self._drops.append((self.rows[taken], rule, found, told, np.nan if threshold is None else float(threshold)))
        filter = self.filters[name]
        filter["dropped"] += len(taken)
        first = [
            [int(self.rows[p]), d if np.isnan(v) else float(v)] for p, v, d in zip(taken, found, told, strict=True)
        ]
        filter["first"] = (filter["first"] + first[:FIRST])[:FIRST]

    def flag(self, rule: str, details: Mapping[int, str], action: str, counts: Mapping[int, int] | None = None) -> None:
        """details: place of a row -> what was found."""
        if details:
            places = np.array(sorted(details))
            number = [counts[place] if counts else 1 for place in places.tolist()]
            self._flags.append((self.rows[places], rule, [details[p] for p in places.tolist()], number, action))

    def verdicts(self) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [] for name in VERDICTS.names}
        for rows, rule, values, details, threshold in self._drops:
            columns["row"] += rows.tolist()
            columns["rule"] += [rule] * len(rows)
            columns["value"] += [None if np.isnan(value) else value for value in values.tolist()]
            columns["detail"] += details
            columns["threshold"] += [None if np.isnan(threshold) else threshold] * len(rows)
            columns["kept_twin"] += [None] * len(rows)
        return pa.table(columns, VERDICTS).sort_by("row")

    def flags(self) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [] for name in FLAGS.names}
        for rows, rule, details, counts, action in self._flags:
            columns["row"] += rows.tolist()
            columns["rule"] += [rule] * len(rows)
            columns["detail"] += details
            columns["count"] += counts
            columns["action"] += [action] * len(rows)
        return pa.table(columns, FLAGS).sort_by([("row", "ascending"), ("rule", "ascending")])

    def measured(self) -> pa.Table:
        return pa.table(self.columns)


def _may_train(part: pa.Table, splits: Sequence[str]) -> np.ndarray:
    allowed = np.array([split in ("auto", "train") for split in splits])
    good = part.column("problem").is_null().to_numpy()
    return good & allowed[part.column("source").to_numpy(zero_copy_only=False).astype(np.int64)]


# ------------------------------------------------------------------------------------------------------- the rules


def _by_length(part: pa.Table, filters: Filters, sheet: _Sheet) -> None:
    if filters.length is None:
        return
    sheet.begin("length")
    count, least, most = sheet.columns["characters"], filters.length.min_characters, filters.length.max_characters
    sheet.drop("length", "too_short", count < least, count, threshold=least)
    sheet.drop("length", "too_long_text", count > most, count, threshold=most)


def _by_columns(part: pa.Table, filters: Filters, sheet: _Sheet) -> None:
    """The quality column, which is also the score that decides between twins, and further ones."""
    asked = [("quality", "quality", filters.quality)] if filters.quality is not None else []
    asked += [("columns", f"score.{column.column}", column) for column in filters.columns]
    for name, rule, column in asked:
        values, odd = scores_of(part, column.column)
        if name == "quality":
            sheet.columns["score"] = values
        if name not in sheet.filters:
            sheet.begin(name)
        strange = np.zeros(len(values), bool)
        strange[list(odd)] = True
        with np.errstate(invalid="ignore"):
            if column.above is not None:
                known = ~np.isnan(values) & ~(values > column.above)
                sheet.drop(name, rule, known | strange, values, odd, column.above)
            if column.below is not None:
                known = ~np.isnan(values) & ~(values < column.below)
                sheet.drop(name, rule, known | strange, values, odd, column.below)


def _by_expressions(
    part: pa.Table,
    texts: Texts,
    filters: Filters,
    sources: Sequence[str],
    kinds: Mapping[str, Kind] | None,
    sheet: _Sheet,
) -> None:
    from tunesmith.stages.prepare.reading import frames

    kinds = kinds_of(part) if kinds is None else kinds
    table = table_of(part, texts, sources, kinds, filters.where)
    sheet.begin("where")
    for number, (text, true) in enumerate(
        zip(filters.where, frames.true_rows(table, filters.where, [*OWN[1:], *kinds]), strict=True), 1
    ):
        sheet.drop("where", f"where.{number}", ~true, details=text)


def _by_controls(texts: Texts, controls_M: np.ndarray, filters: Filters, sheet: _Sheet) -> None:
    if filters.control_characters == "off":
        return
    found = texts.sum_rows(controls_M).astype(np.int64)
    sheet.columns["control_characters"] = found
    counts = {place: int(found[place]) for place in np.flatnonzero(found).tolist()}
    action = {"remove": "redact"}.get(filters.control_characters, filters.control_characters)
    sheet.flag("control_characters", dict.fromkeys(counts, "control characters"), action, counts)
    if filters.control_characters == "drop":
        sheet.begin("control_characters")
        sheet.drop("control_characters", "control_characters", found > 0, found, threshold=0)


def _by_language(part: pa.Table, texts: Texts, filters: Filters, sheet: _Sheet) -> None:
    asked = filters.language
    assert asked is not None
    turns = np.arange(len(texts.contents)) < texts.num_turns
    looked_at = joined(texts, turns) if asked.of == "all" else answers_of(texts).fill_null("")
    whole = Texts(looked_at, np.arange(len(looked_at)), np.zeros(0), np.zeros(0), len(looked_at), len(looked_at), [])
    letters = count_by(LETTERS, whole)
    found = languages_of(looked_at.to_pylist(), letters, asked.keep, asked.min_letters)
    sheet.columns["language"] = pa.array(found.best, pa.utf8())
    sheet.columns["language_probability"] = found.kept
    sheet.begin("language")
    with np.errstate(invalid="ignore"):
        other = found.kept < asked.min_probability  # NaN, undecided, is not below
    told = {place: found.best[place] or "" for place in np.flatnonzero(other).tolist()}
    sheet.drop("language", "language", other, found.kept, told, asked.min_probability)


def _by_words(texts: Texts, spec: Recipe, sheet: _Sheet) -> None:
    """Residue, refusals, repetition; and the score by rule of thumb, which is made of the three."""
    filters, scored = spec.data.filters, spec.data.quality.type == "heuristics"
    unclean = np.zeros(texts.num_rows, bool)
    for name, rule, filter, find in (
        ("residue", "residue", filters.residue, find_residue),
        ("refusals", "refusal", filters.refusals, find_refusals),
    ):
        if filter is None and not scored:
            continue
        by_text = find(texts, filter.phrases if filter is not None else ())
        by_row: dict[int, str] = {}
        for place in sorted(by_text, reverse=True):  # so that a row tells of its first text
            by_row[int(texts.rows_M[place])] = by_text[place]
        hit = np.zeros(texts.num_rows, bool)
        hit[list(by_row)] = True
        unclean |= hit
        if filter is not None:
            sheet.flag(rule, by_row, filter.action)
            if filter.action == "drop":
                sheet.begin(name)
                sheet.drop(name, rule, hit, details=by_row)
    if filters.repetition is not None:
        _by_repetition(texts, filters, sheet)
    if scored:
        assert isinstance(spec.data.quality, Heuristics)
        learned = texts.learned
        scores = heuristic_scores(learned, repetition_of(learned, NGRAM).ngrams, unclean)
        sheet.columns["quality"] = scores
        sheet.columns["score"] = np.where(np.isnan(sheet.columns["score"]), scores, sheet.columns["score"])


def _by_repetition(texts: Texts, filters: Filters, sheet: _Sheet) -> None:
    asked, learned = filters.repetition, texts.learned
    assert asked is not None
    found = repetition_of(learned, asked.ngram)
    sheet.begin("repetition")
    for rule, values_M, most in (
        ("repeated_ngrams", found.ngrams, asked.max_repeated_ngrams),
        ("repeated_lines", found.lines, asked.max_repeated_lines),
        ("longest_run", found.run, asked.max_run),
    ):
        values_R = np.zeros(texts.num_rows, values_M.dtype)
        np.maximum.at(values_R, learned.rows_M, values_M)
        sheet.columns[rule] = values_R
        sheet.drop("repetition", rule, values_R > most, values_R, threshold=most)


def _by_finds(texts: Texts, filters: Filters, sheet: _Sheet) -> tuple[dict[int, str], dict[int, str]]:
    """Secrets and personal data. Returns the texts to be rewritten, by place; and those of rows that go, without what they
    go for."""
    actions = {**filters.secrets.model_dump(), **_personal_actions(filters)}
    detectors: list[Detector] = [found for found in (*SECRETS, *PERSONAL) if actions[found.kind] != "off"]
    finds = find_all(texts.contents, detectors)
    if filters.pii.model is not None:
        actions["personal"] = filters.pii.model_action
        _add_marks(texts, filters, finds)
    counted: dict[str, dict[int, dict[str, int]]] = {}
    for place, found in finds.items():
        row = int(texts.rows_M[place])
        for find in found:
            kinds = counted.setdefault(_rule_of(find), {}).setdefault(row, {})
            kinds[find.name] = kinds.get(find.name, 0) + 1
    for section, kinds in (
        ("secrets", filters.secrets.model_dump()),
        ("pii", {**_personal_actions(filters), "personal": ""}),
    ):
        total = np.zeros(texts.num_rows, np.int64)
        sheet.begin(section)
        for kind in (kind for kind in kinds if kind in counted):
            names, action = counted[kind], actions[kind]
            counts = {row: sum(by_name.values()) for row, by_name in names.items()}
            details = {row: ", ".join(sorted(by_name)) for row, by_name in names.items()}
            sheet.flag(kind, details, action, counts)
            found_R = np.zeros(texts.num_rows, np.int64)
            found_R[list(counts)] = list(counts.values())
            total += found_R
            if action == "drop":
                sheet.drop(section, kind, found_R > 0, found_R, details, 0)
        if any(actions.get(kind, "off") != "off" for kind in kinds):
            sheet.columns["secrets" if section == "secrets" else "personal"] = total
    replaced, withheld = {}, {}
    for place, found in finds.items():
        chosen = [find for find in found if actions[_rule_of(find)] == "redact"]
        if chosen:
            replaced[place] = redacted(texts.contents[place].as_py(), chosen)
        secret = [find for find in found if actions[_rule_of(find)] in ("redact", "drop")]
        if len(secret) > len(chosen) and sheet.is_dropped[texts.rows_M[place]]:
            withheld[place] = redacted(texts.contents[place].as_py(), secret)
    return replaced, withheld


def _personal_actions(filters: Filters) -> dict[str, str]:
    return {kind: getattr(filters.pii, kind) for kind in ("email", "phone", "iban", "card", "ip", "national_id")}


def _rule_of(find: Find) -> str:
    """Of a find by pattern its kind; whatever label a model gave, the rule is the model's."""
    return "personal" if find.kind.startswith("model:") else find.kind


def _add_marks(texts: Texts, filters: Filters, finds: dict[int, list[Find]]) -> None:
    """What the model marks, where no pattern found something."""
    assert filters.pii.model is not None
    tagger = load_tagger(filters.pii.model)
    marks = tagger.find(texts.contents.to_pylist(), filters.pii.model_labels, filters.pii.model_probability)
    for place, marked in enumerate(marks):
        known = finds.get(place, [])
        free = [mark for mark in marked if not any(mark.start < k.end and k.start < mark.end for k in known)]
        if free:
            finds[place] = sorted([*known, *free])


# ---------------------------------------------------------------------------------------------------- rewritten rows


def _remove_controls(texts: Texts, controls_M: np.ndarray, replaced: dict[int, str]) -> None:
    table = {code: None for code in np.flatnonzero(CONTROLS).tolist()} | {0xFFFD: None}
    for place in np.flatnonzero(controls_M).tolist():
        replaced[place] = replaced.get(place, texts.contents[place].as_py()).translate(table)


def _stored(
    rewritten: pa.Table, part: pa.Table, texts: Texts, replaced: dict[int, str], withheld: dict[int, str], keys: Keys
) -> pa.Table:
    """The rewritten part without `withheld`; rows are keyed by what was judged, so that no other row depends on it."""
    stored = _rewritten(part, texts, {**replaced, **withheld}, keys)
    for name in ("key", "prompt_key", "characters"):
        stored = stored.set_column(stored.column_names.index(name), stored.schema.field(name), rewritten[name])
    return stored


def _rewritten(part: pa.Table, texts: Texts, replaced: dict[int, str], keys: Keys) -> pa.Table:
    """The part with these texts in place of the old ones, and new keys and lengths of their rows."""
    if not replaced:
        return part
    rows = sorted({int(texts.rows_M[place]) for place in replaced})
    by_row: dict[int, list[int]] = {row: [] for row in rows}
    for place in sorted(replaced):
        by_row[int(texts.rows_M[place])].append(place)
    chosen = part.take(pa.array(rows)).to_pylist()
    first_turn = np.searchsorted(texts.rows_M[: texts.num_turns], rows)
    for row, plain, first in zip(rows, chosen, first_turn.tolist(), strict=True):
        extra = json.loads(plain["extra"]) if plain["extra"] is not None else None
        for place in by_row[row]:
            if place < texts.num_turns:
                turn = plain["turns"][place - first]
                plain["characters"] += len(replaced[place]) - len(turn["content"])
                turn["content"] = replaced[place]
            else:
                put(extra, texts.places[place - texts.num_turns], replaced[place])
        if extra is not None:
            plain["extra"] = json.dumps(extra, ensure_ascii=False).encode()
        roles, contents = [turn["role"] for turn in plain["turns"]], [turn["content"] for turn in plain["turns"]]
        plain["key"], plain["prompt_key"] = keys(roles, contents, extra)
    changed = pa.Table.from_pylist(chosen, part.schema)
    # Of old and new rows end to end, the new ones take the places of the old.
    order = np.arange(part.num_rows)
    order[rows] = part.num_rows + np.arange(len(rows))
    return pa.concat_tables([part, changed]).take(pa.array(order))
