"""What is decided about rows before they are encoded: row-local verdicts, then split, duplicates, conflicts, leaks; the mixture last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from tunesmith.errors import QuestionError
from tunesmith.recipe import Recipe
from tunesmith.recipe.tree import DropLeaks
from tunesmith.stages.prepare.accounts import QUARANTINED, Accounts
from tunesmith.stages.prepare.cleaning.facts import redactions
from tunesmith.stages.prepare.cleaning.question import confirmed, questions
from tunesmith.stages.prepare.cleaning.scores import best_of, judge_scores, score_facts
from tunesmith.stages.prepare.judged import Judged
from tunesmith.stages.prepare.rows import Rows
from tunesmith.stages.prepare.sets.against import watched_parts
from tunesmith.stages.prepare.sets.mixture import mix
from tunesmith.stages.prepare.sets.select import Watched, question, select
from tunesmith.stages.prepare.sets.signatures import halves
from tunesmith.stages.prepare.sets.words import column


@dataclass
class Selection:
    """splits: int8 [N], place in SPLITS, -1 of a bad row. accounts: what was decided so far. copies: int32 [N], how often a
    row that is used comes in the Dataset; once, before `mix_in`. told: what was seen on the way, for the report. questions: what the user has to
    answer before rows go."""

    splits: np.ndarray
    accounts: Accounts
    copies: np.ndarray
    told: dict[str, Any] = field(default_factory=dict)
    questions: Sequence[QuestionError] = ()


def decide(spec: Recipe, rows: Rows, judged: Judged, scores: np.ndarray | None = None) -> Selection:
    """Decide on every row; bad ones are set apart.

    scores: float64 [N] by data.quality, NaN where a row has none; None: those that were measured row by row, if any.
    """
    accounts = Accounts.of(rows.num_rows)
    _set_bad_rows_apart(rows, accounts)
    accounts.judge(judged.all("verdicts"))
    told: dict[str, Any] = {"cleaning": judged.facts}
    scores = _judge_quality(spec, rows, judged, accounts, scores, told)
    good = np.flatnonzero(accounts.status != QUARANTINED)
    splits = np.full(rows.num_rows, -1, np.int8)
    asked: list[QuestionError] = list(questions(spec, judged.facts["filters"], partial(place_in, rows)))
    if len(good):
        columns = rows.columns("row", "source", "key", "prompt_key")
        facts = columns if len(good) == rows.num_rows else columns.take(pa.array(good))
        facts = facts.append_column("score", pa.array(scores[good], from_pandas=True))
        facts = facts.append_column("gone", pa.array(~accounts.left[good]))
        chosen = select(facts, spec, _signatures(judged), _watched(spec, judged))
        splits[good] = chosen.splits
        accounts.judge(chosen.verdicts)
        told |= chosen.told
        near = question(spec, chosen)
        asked += [near] if near is not None else []
    _note_redactions(judged, accounts)
    return Selection(splits, accounts, accounts.left.astype(np.int32), told, asked)


def mix_in(spec: Recipe, rows: Rows, selection: Selection) -> None:
    """Decides how often each row comes: last, so that limits and shares hold of rows that no other rule takes."""
    good = np.flatnonzero(selection.splits >= 0)
    if not len(good):
        return
    facts = rows.columns("row", "source", "key")
    facts = facts if len(good) == rows.num_rows else facts.take(pa.array(good))
    mixed = mix(facts, selection.splits[good], selection.accounts.left[good], spec)
    selection.accounts.judge(mixed.verdicts)
    selection.copies[good] = mixed.copies
    selection.told["mixture"] = mixed.shares


def ask(selection: Selection) -> None:
    """Raises the first question that the user does not answer with yes; a prompt only on a terminal."""
    for asked in selection.questions:
        if not confirmed(asked.headline):
            raise asked


def leaks_kept(spec: Recipe, rows: Rows, judged: Judged) -> int:
    """How many rows would go as leaks, where the recipe keeps them."""
    strict = spec.model_copy(update={"data": spec.data.model_copy(update={"leaks": DropLeaks(near=None)})})
    accounts = decide(strict, rows, judged).accounts
    return int(np.sum(accounts.rule == accounts.rules.index("leak"))) if "leak" in accounts.rules else 0


def _set_bad_rows_apart(rows: Rows, accounts: Accounts) -> None:
    for told in rows.problems():
        row = told["row"]
        accounts.status[row], accounts.rule[row] = QUARANTINED, accounts.rule_number(told["code"])
        accounts.details[row] = told["what"]


def _note_redactions(judged: Judged, accounts: Accounts) -> None:
    """A row that is used otherwise than it was read says so."""
    found = redactions(judged.all("flags"))
    rows = np.array([row for row in found if accounts.left[row]], np.int64)
    if len(rows):
        accounts.note(rows, "redacted", np.nan)
        accounts.details.update({row: found[row] for row in rows.tolist()})


def _judge_quality(
    spec: Recipe,
    rows: Rows,
    judged: Judged,
    accounts: Accounts,
    scores: np.ndarray | None,
    told: dict[str, Any],
) -> np.ndarray:
    """Applies the bounds of data.quality; returns the scores by which the better one of two twins is chosen."""
    measured = judged.all("measured")
    if scores is None and "quality" in measured.column_names:
        scores = measured["quality"].to_numpy()
    if scores is None:
        return measured["score"].to_numpy()
    named = np.array([source.split in ("auto", "train") for source in spec.data.sources])
    may_go = accounts.left & named[rows.columns("source")["source"].to_numpy()]
    told["quality"] = score_facts(scores[may_go], spec.data.quality)
    accounts.judge(judge_scores(np.arange(rows.num_rows), scores, may_go, spec.data.quality))
    return -scores if best_of(spec.data.quality) == "low" else scores


def place_in(rows: Rows, row: int) -> str:
    """FILE:LINE of a row."""
    number = int(np.searchsorted([part["base"] for part in rows.parts], row, side="right")) - 1
    facts = rows.parts[number]
    position = rows.part(number, ("position",))["position"][row - facts["base"]].as_py()
    return f"{rows.file_name(facts)}:{position}"


def told_of_odd(judged: Judged, rows: Rows) -> list[str]:
    """A sentence on each kind of character that looks like nothing or like another."""
    return [
        f"{told['rows']:,} row{'s' * (told['rows'] != 1)} with {kind}, kept as they are, such as "
        + ", ".join(place_in(rows, row) for row in told["samples"])
        for kind, told in judged.facts["odd"].items()
    ]


def draw_sample(rows: Rows, left: np.ndarray, count: int, longest: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(rows with the least content hashes, the longest rows) of those in `left`; ascending. The same rows each time."""
    table = rows.columns("key", "characters")
    if len(left) < table.num_rows:
        table = table.take(pa.array(left))
    least = _least(halves(column(table, "key"))[0], count)
    by_length = np.argsort(-table["characters"].to_numpy(), kind="stable")[:longest] if longest else []
    return np.sort(left[least]), np.sort(left[by_length])


def _least(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the least ones; of equals the first."""
    if count >= len(values):
        return np.arange(len(values))
    bound = np.partition(values, count)[count]
    near = np.flatnonzero(values <= bound)
    return near[np.argsort(values[near], kind="stable")[:count]]


def _signatures(judged: Judged) -> Any:
    # Opened once: rules ask for one column after another, and what nobody asks for stays in its file.
    tables = [judged.part(number, "signatures") for number in range(len(judged.parts))]

    def read(names: list[str]) -> Iterator[pa.Table]:
        return (table.select(names) for table in tables)

    return read


def _watched(spec: Recipe, judged: Judged) -> Watched | None:
    return watched_parts(spec, judged.boilerplate)
