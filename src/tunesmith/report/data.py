"""The parts of the page that are about rows: what became of each, what was measured, what is alike, what was found.

Each is a function of the facts; a part without facts is empty text. Datasets of older versions know less: what their
statistics do not hold is not shown.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import PurePath
from typing import Any

from tunesmith.report import charts
from tunesmith.report.markup import Html, code, cut, percent, section, table
from tunesmith.runs.rules import in_order, in_words

Statistics = Mapping[str, Any]
UNBOUNDED = (-math.inf, math.inf)
CUT = {"drop": "dropped", "truncate": "cut", "split": "split at turns"}
MEASURED = {  # column -> what it is called, the same in one value
    "characters": "characters",
    "control_characters": "control characters",
    "language_probability": "probability of the languages to keep",
    "repeated_ngrams": "share of repeated runs of words",
    "repeated_lines": "share of repeated lines",
    "longest_run": "longest run of one character",
    "secrets": "credentials found",
    "personal": "personal data found",
    "quality": "score by rules of thumb",
    "perplexity": "perplexity of the answer",
    "difficulty": "difficulty",
}
WAYS = {
    "content": "the same row",
    "prompt": "the same prompt, but for case and blanks",
    "words": "the same words, but for punctuation",
    "near": "nearly the same prompt",
    "overlap": "long runs of its words",
}


# ----------------------------------------------------------------------------------------------- what became of them


def fate(facts: dict[str, Any]) -> str:
    statistics = facts["statistics"]
    if not statistics or "read" not in statistics:
        return ""
    formats = ", ".join(f"{name} ({count:,})" for name, count in statistics.get("formats", {}).items())
    out = [
        f"<p>Recognised: {escape(formats)}.</p>" if formats else "",
        _funnel(statistics),
        _as_used(statistics),
        _odd(statistics),
        _splits(statistics),
        _lengths(statistics, facts["recipe"]["data"]),
        _encoding(statistics),
    ]
    return section("Data: what became of every row", "".join(out))


def _funnel(statistics: Statistics) -> str:
    """From read to used, in the order in which rules look at a row."""
    read = statistics["read"]
    taken: dict[str, list[Mapping[str, Any]]] = {}
    for entry in statistics["funnel"]:
        taken.setdefault(entry["rule"], []).append(entry)
    steps = [("read", read, "base")]
    for rule in in_order(taken):
        for entry in taken[rule]:
            apart = entry.get("status") == "quarantined" and rule != "bad_row"
            label = in_words(rule) + (", set apart" if apart else "")
            steps.append((label, entry["dropped"], "bad" if entry.get("status") == "quarantined" else "lost"))
    steps.append(("used", statistics["used"], "used"))
    return charts.bars([(label, n, f"{n:,} ({percent(n, read)})", kind) for label, n, kind in steps], read)


def _as_used(statistics: Statistics) -> str:
    """What was done to rows that are used."""
    rules = statistics.get("told", {}).get("cleaning", {}).get("rules", {})
    told = [
        f"{_rows(count)} {what}"
        for count, what in (
            (statistics.get("truncated", 0), "cut at the limit"),
            (statistics.get("split", 0), "split at turns"),
        )
        if count
    ]
    told += [
        f"{in_words(name)} replaced in {_rows(rules[name]['redacted'])}"
        for name in in_order(rules)
        if rules[name]["redacted"]
    ]
    return f"<p>Used otherwise than they were read: {escape(', '.join(told))}.</p>" if told else ""


def _odd(statistics: Statistics) -> str:
    """Characters that nobody sees, which stay."""
    odd = statistics.get("told", {}).get("cleaning", {}).get("odd") or {}
    told = [
        f"{_rows(seen['rows'])} with {escape(kind)} ({', '.join(map(_place, seen['samples']))})"
        for kind, seen in odd.items()
    ]
    return f"<p>Kept as they are: {'; '.join(told)}.</p>" if told else ""


def _splits(statistics: Statistics) -> str:
    """Rows of each split and what they are in training: repeated, in pieces, cut at the limit."""
    rows = [
        (
            name, values["rows"], values.get("examples", values["rows"]), values["tokens"], values["learned_tokens"],
            f"{values['p50']:,} / {values['p99']:,} / {values['max']:,}",
        )
        for name, values in statistics["splits"].items()
        if values["rows"]
    ]  # fmt: skip
    heads = ("split", "rows", "examples", "tokens", "learned", "length p50 / p99 / max")
    return table(heads, rows) if rows else ""


def _encoding(statistics: Statistics) -> str:
    """By what contents became ids, and rows whose ids are to be looked at."""
    told = statistics.get("encoding")
    if not told:
        return ""
    is_fast, why = told["tokenizer"]["fast"], told["tokenizer"]["why"]
    if is_fast:
        sentences = [f"Encoded by gigatoken, which gives the ids of tokenizers: {why}."]
    else:
        sentences = [f"Encoded by tokenizers, by whose ids every faster encoder is judged: {why}."]
    flags = statistics.get("flags", {})
    if flags.get("control_in_text"):
        sentences.append(
            f"{_rows(flags['control_in_text'])} hold a control token in somebody's text; it was encoded as text."
        )
    if flags.get("joined_differs"):
        sentences.append(
            f"{_rows(flags['joined_differs'])} have other ids than their text encoded whole, at an answer's edge."
        )
    return f"<p>{escape(' '.join(sentences))}</p>"


def _lengths(statistics: Statistics, asked: Mapping[str, Any]) -> str:
    lengths, over = statistics.get("lengths"), statistics.get("over_limit")
    out = []
    if lengths and sum(lengths["counts"]):
        out.append(
            charts.histogram(lengths["counts"], lengths["edges"], "examples by length in tokens, as they are trained")
        )
    if over:
        told = f"Rows before the limit: p50 {over['p50']:,}, p99 {over['p99']:,}, longest {over['max']:,} tokens. "
        limit = f"data.max_tokens {asked['max_tokens']:,}"
        if over["rows"]:
            told += (
                f"Over {limit}: {_rows(over['rows'])}, {CUT[asked['too_long']]}; "
                f"{over['learned_lost']:,} learned tokens ({over['learned_share']:.1%}) are lost."
            )
        else:
            told += f"No row is over {limit}."
        out.append(f"<p>{escape(told)}</p>")
    return "".join(out)


# ------------------------------------------------------------------------------------------------- what was measured


def measured(facts: dict[str, Any]) -> str:
    """Histograms of the columns that the recipe had measured, languages, and what thresholds would keep."""
    told = _told(facts)
    cleaning, quality = told.get("cleaning", {}), told.get("quality")
    asked = facts["recipe"]["data"]
    out = [_quality(quality, asked["quality"]) if quality else ""]
    drawn, flat = [], []
    for name, seen in cleaning.get("histograms", {}).items():
        if quality and name == "quality":
            continue  # above, of the rows that may go
        title = MEASURED.get(name, name.replace("_", " "))
        if sum(1 for count in seen["counts"] if count) < 2:
            flat += _flat(title, seen)
        else:
            drawn.append(_histogram(title, seen, _bounds(name, asked)))
    if drawn:
        out.append(f"<h3>Rows by what was measured</h3><div class='pair'>{''.join(drawn)}</div>")
    if flat:
        out.append(f"<p class='soft'>The same in all rows: {escape('; '.join(flat))}.</p>")
    out.append(_languages(cleaning.get("languages") or {}))
    return section("Data: what was measured", "".join(out)) if any(out) else ""


def _quality(seen: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    title = MEASURED.get("quality" if seen["type"] == "heuristics" else seen["type"], seen["type"])
    better = {"high": "the higher the better", "low": "the lower the better"}[seen["best"]]
    missing = f"; {seen['missing']:,} without one" if seen["missing"] else ""
    rows = [(f"{line['share']:.0%}", f"{line['threshold']:.4g}", line["rows"]) for line in seen["thresholds"]]
    word = {"high": "above", "low": "below"}[seen["best"]]
    return (
        f"<h3>{escape(title.capitalize())} <small>{_rows(seen['scored'])} scored, {better}{missing}</small></h3>"
        + _histogram(
            "rows by score", {**seen["histogram"], "missing": 0}, _limits(asked.get("above"), asked.get("below"))
        )
        + (
            f"<p>What each threshold of <code>data.quality.{word}</code> would keep:</p>"
            + table(("the best", f"{word}, or equal to", "rows kept"), rows, words=())
            if rows
            else ""
        )
    )


def _histogram(title: str, seen: Mapping[str, Any], kept: tuple[float, float]) -> str:
    if not sum(seen["counts"]):
        return ""
    low, high = (f"{bound:,g}" if math.isfinite(bound) else "" for bound in kept)
    told = f", kept from {low} to {high}" if low and high else f", kept from {low}" if low else ""
    told = told or (f", kept to {high}" if high else "")
    missing = f", {seen['missing']:,} without" if seen.get("missing") else ""
    return charts.histogram(seen["counts"], seen["edges"], f"{title}{told}{missing}", kept=kept)


def _flat(title: str, seen: Mapping[str, Any]) -> Iterable[str]:
    """All rows in one bin: a sentence instead of a picture."""
    place = next((place for place, count in enumerate(seen["counts"]) if count), None)
    if place is not None:
        low, high = seen["edges"][place : place + 2]
        yield f"{title} {low:g}" if high - low == 1 else f"{title} {low:g} to {high:g}"


def _bounds(name: str, asked: Mapping[str, Any]) -> tuple[float, float]:
    """Between which values the recipe keeps rows."""
    filters, scoring = asked["filters"], asked["quality"]
    repetition = filters["repetition"] or {}
    if name == "characters":
        length = filters["length"] or {}
        return _limits(length.get("min_characters"), length.get("max_characters"))
    if name == "language_probability":
        return _limits((filters["language"] or {}).get("min_probability"), None)
    if name in ("repeated_ngrams", "repeated_lines", "longest_run"):
        return _limits(None, repetition.get({"longest_run": "max_run"}.get(name, f"max_{name}")))
    if name == scoring["type"] or (name, scoring["type"]) == ("quality", "heuristics"):
        return _limits(scoring.get("above"), scoring.get("below"))
    return UNBOUNDED


def _limits(low: float | None, high: float | None) -> tuple[float, float]:
    return (-math.inf if low is None else low, math.inf if high is None else high)


def _languages(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    total = sum(counts.values())
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [(name, count, f"{count:,} ({percent(count, total)})", "base") for name, count in most[:12]]
    rest = sum(count for _, count in most[12:])
    more = [(f"{len(most) - 12} others", rest, f"{rest:,} ({percent(rest, total)})", "base")] if rest else []
    return f"<h3>Languages</h3>{charts.bars([*shown, *more], most[0][1])}"


# --------------------------------------------------------------------------------- what is alike, and how it is mixed


def together(facts: dict[str, Any]) -> str:
    told, asked = _told(facts), facts["recipe"]["data"]
    out = [_twins(told, asked), _leaks(told, asked), _mixture(facts["statistics"] or {}, asked)]
    return section("Data: twins, leaks, mixture", "".join(out)) if any(out) else ""


def _twins(told: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    rows: list[tuple[str, int, str]] = []
    for name, label in (("duplicates", "exact duplicates"), ("near_duplicates", "near duplicates")):
        if name in told:
            other = told[name]["with_another_answer"]
            rows.append((label, told[name]["rows"], f"{other:,} with another answer" if other else ""))
    conflicts = told.get("conflicts")
    if conflicts:
        policy = {
            "report": "kept, as data.deduplicate.conflicts: report says",
            "keep_best": "the best one stays",
            "drop": "all dropped",
        }
        asked_for = asked["deduplicate"].get("conflicts", "report")
        more = f"to {conflicts['prompts']:,} prompts; {policy.get(asked_for, asked_for)}" if conflicts["rows"] else ""
        rows.append(("several answers to one prompt", conflicts["rows"], more))
    out = [table(("rows that are alike", "rows", ""), rows, words=(0, 2))] if rows else []
    samples = [" and ".join(map(_place, group)) for group in (conflicts or {}).get("samples", [])]
    if samples:
        out.append(f"<p>Answers that contradict each other: {'; '.join(samples)}.</p>")
    clusters = told.get("clusters")
    if clusters and clusters["of_several"]:
        out.append(
            f"<p>{clusters['of_several']:,} groups of rows ask alike (the largest has {clusters['largest']:,}): "
            "each is on one side of the split.</p>"
        )
    return f"<h3>Twins</h3>{''.join(out)}" if out else ""


def _place(row: str | int) -> str:
    """Older statistics name such rows by their ids."""
    return code(row if isinstance(row, str) else f"row {row}")


def _leaks(told: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    if "leaks" not in told:
        kept = told and asked["leaks"]["type"] == "keep"
        return "<h3>Leaks</h3><p>Not looked for: data.leaks is keep.</p>" if kept else ""
    if not told["leaks"]:
        return "<h3>Leaks</h3><p>No row that is trained on gives a held-out row away.</p>"
    rows = []
    for phrase, count in told["leaks"].items():
        way, _, direction = phrase.partition(": ")
        inner, _, outer = direction.removesuffix(" away").partition(" gives ")
        rows.append((inner, outer, WAYS.get(way, way), count))
    heads = ("rows of", "give away rows of", "by", "dropped")
    return f"<h3>Leaks</h3>{table(heads, rows, words=(0, 1, 2))}"


def _mixture(statistics: Statistics, asked: Mapping[str, Any]) -> str:
    """What an epoch holds of each source, its share by rows; of older Datasets before rows over the token limit went."""
    names = [source["name"] or PurePath(source["path"]).name.split(".")[0] for source in asked["sources"]]
    sources = statistics.get("sources") or [
        {"name": name, "trained": share["rows"], "epoch": share["epoch"]}
        for name, share in zip(names, (statistics.get("told") or {}).get("mixture") or [], strict=False)
    ]
    total = sum(source["epoch"] for source in sources)
    if not total or (len(sources) == 1 and sources[0]["trained"] == sources[0]["epoch"]):
        return ""
    most = max(source["epoch"] for source in sources)
    bars = charts.bars([(s["name"], s["epoch"], percent(s["epoch"], total), "used") for s in sources], most)
    columns = {
        "read": "read",
        "used": "used",
        "trained": "trained on",
        "epoch": "rows in an epoch",
        "examples": "examples in an epoch",
        "tokens": "tokens in an epoch",
    }
    there = [name for name in columns if name in sources[0]]
    rows = [(source["name"], *(source[name] for name in there)) for source in sources]
    listed = table(("source", *(columns[name] for name in there)), rows)
    return f"<h3>Mixture <small>share of each source in the rows of an epoch</small></h3>{bars}{listed}"


# ------------------------------------------------------------------------------------------------- what was found


def examined(facts: dict[str, Any]) -> str:
    """By rule: how many rows went, were flagged or redacted, and some of them to look at."""
    statistics = facts["statistics"] or {}
    rules: dict[str, dict[str, Any]] = {
        name: {**rule} for name, rule in _told(facts).get("cleaning", {}).get("rules", {}).items()
    }
    for entry in statistics.get("funnel", []):
        rule = rules.setdefault(entry["rule"], {"flagged": 0, "redacted": 0, "samples": [], "dropped": 0})
        rule["dropped"] = max(rule["dropped"], entry["dropped"])
        rule["samples"] = rule["samples"] or entry.get("samples", [])
    rows = [
        (
            in_words(name), *(_or_dash(rules[name][kind]) for kind in ("dropped", "flagged", "redacted")),
            Html("<br>".join(map(_place, rules[name]["samples"]))),
        )
        for name in in_order(rules)
    ]  # fmt: skip
    first = next(
        (row for name in in_order(rules) for row in rules[name]["samples"] if isinstance(row, str)), "FILE:LINE"
    )
    command = f"tunesmith explain {shlex.quote(first)} --run {shlex.quote(facts['run'])}"
    told = f"<p>Every row is in the ledger. What became of one:</p><pre>{escape(command)}</pre>"
    if not rows:
        return section("Data: rules and rows", told) if statistics else ""
    heads = ("rule", "went", "flagged", "redacted", "such as")
    return section("Data: rules and rows", table(heads, rows, words=(0, 4)) + told)


def _or_dash(count: int) -> str:
    return f"{count:,}" if count else "–"


def sample(facts: dict[str, Any]) -> str:
    """Some rows with what is learned of them marked."""
    if not facts["samples"]:
        return ""
    shown = facts["recipe"]["report"]["texts"]
    if shown == "hidden":
        places = ", ".join(code(row["place"]) for row in facts["samples"])
        return section(
            "What is learned", f"<p>Texts of rows are left out (report.texts: hidden), such as {places}.</p>"
        )
    masks = " Letters are shown as x and digits as 0 (report.texts: masked)." if shown == "masked" else ""
    out = [
        "<p class='soft'>Rows as the model sees them; <mark>marked</mark> is learned (loss is taken there), the rest is read "
        f"only.{masks}</p>"
    ]
    for row in facts["samples"]:
        pieces = "".join(
            f"<mark>{cut(piece['text'], 1500)}</mark>" if piece["learned"] else cut(piece["text"], 1500)
            for piece in row["pieces"]
        )
        out.append(f"<p class='soft'>{escape(row['place'])}</p><pre>{pieces}</pre>")
    return section("What is learned", "".join(out))


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _told(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What prepare saw on the way; older Datasets say nothing of it."""
    return (facts["statistics"] or {}).get("told") or {}
