"""A commented recipe from a look at the data: what people edit, with why each value was chosen."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from tunesmith.recipe.schema import editor_line

CHARACTERS_PER_TOKEN = 3  # an assumption, cautious for English; other languages may need fewer
KEPT_SHORT, KEPT_LONG = 50, 10_000  # characters: the defaults of data.filters.length
QUALITY = 0.7  # the default of data.filters.quality
WANTED_TEST, WANTED_VALIDATION = 20, 10  # rows; fewer say next to nothing
LISTED_FILES = 20
# What SFT takes from rows with several answers, or with judged ones (see TXT-048).
LEARNED = {
    "pair": "preference pairs: SFT learns the chosen answers; the rejected ones are not looked at",
    "ranked": "ranked answers: SFT learns the best scored ones",
    "kto": "answers with a label: SFT learns those that were liked, filters.where leaves the others out",
}


def commented_recipe(seen: Any, recipe: Path, base: str) -> str:
    """YAML text. seen: stages.prepare.look.Look of the data. recipe: where the text will stand; paths are relative to it."""
    folder = recipe.resolve().parent
    is_text = set(seen.formats) == {"text"}
    return "\n".join(
        [
            editor_line(recipe),
            *_head(seen),
            "",
            f"name: {_name(seen)}",
            "seed: 17",
            "",
            "model:",
            f"  base: {_quoted(base)}   # a folder, or owner/name on the hub (for example Qwen/Qwen3-0.6B)"
            + ("; this one is a toy for trying things out" if base.startswith("builtin:") else ""),
            *_template(seen),
            "",
            "adapter:",
            '  type: lora          # "full" trains every weight',
            "  rank: 16",
            "  alpha: 32",
            "",
            "data:",
            "  sources:   # split: train, validation or test where a file is one of them; auto follows data.split",
            *_sources(seen, folder),
            *_bad_rows(seen),
            "  filters:",
            *_filters(seen),
            "  deduplicate: exact",
            "  leaks: drop         # training rows whose prompt is also held out are taken out",
            *_split(seen),
            *_lengths(seen),
            "",
            "train:",
            "  epochs: 2",
            "  batch_size: 16      # examples per step; memory decides how many go through at once (micro_batch: auto)",
            "  learning_rate: 2.0e-4",
            "  schedule: {type: cosine, warmup: 0.05}",
            "  early_stopping: {patience: 3}",
            "",
            "evaluate:",
            *_evaluate(seen, is_text),
            "",
            "gate:",
            *_gate(is_text),
            "",
        ]
    )


def _head(seen: Any) -> list[str]:
    formats = ", ".join(f"{name} ({count:,} rows)" for name, count in seen.formats.most_common())
    characters = seen.characters
    lines = [
        f"# Written by `tunesmith init` from a look at {len(seen.files)} file{'s' * (len(seen.files) != 1)}:",
        f"#   {seen.rows:,} rows: {formats}",
        f"#   characters per row: median {characters['p50']:,}, 99 of 100 at most {characters['p99']:,}, longest {characters['max']:,}",
    ]
    if seen.measured:
        lines.append(f"#   tokens per row: 99 of 100 at most {seen.measured.p99:,}, longest {seen.measured.longest:,}")
    lines += [f"#   left out: {path.name} ({why})" for path, why in seen.left_out[:LISTED_FILES]]
    lines += [f"#   {seen.skipped}"] if seen.skipped else []
    return [
        *lines,
        "# Next: tunesmith check RECIPE, tunesmith plan RECIPE, tunesmith run RECIPE. `tunesmith explain KEY` explains each key.",
    ]


def _name(seen: Any) -> str:
    first = seen.files[0].path
    stem = first.name.split(".")[0] if len(seen.files) == 1 else first.parent.name
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "-" for char in stem)
    return kept.strip("-._")[:60] or "run"


def _template(seen: Any) -> list[str]:
    if seen.measured is None or seen.measured.template == "auto":
        return []
    return [
        f"  template: {seen.measured.template}   # the base brings no chat template; export writes this one beside the model"
    ]


def _sources(seen: Any, folder: Path) -> list[str]:
    """A line for each file; foreign columns with the mapping that makes a chat of them."""
    splits = _named_splits(seen)
    lines = []
    for file in seen.files:
        parts = [f"path: {_quoted(os.path.relpath(file.path.resolve(), folder))}", f"split: {splits[file.path]}"]
        note = ""
        if file.fields:
            mapping = ", ".join(f"{ours}: {_quoted(theirs)}" for ours, theirs in file.fields.items())
            parts.append(f"fields: {{{mapping}}}")
            note = "   # our name: your column; is this the question, and this the answer?"
        if file.format != "auto":
            parts.append(f"format: {file.format}")
            note += ("; " if note else "   # ") + LEARNED[file.judged]
        lines.append(f"    - {{{', '.join(parts)}}}{note}")
    return lines


def _named_splits(seen: Any) -> dict[Path, str]:
    """Where the files of a data set leave out validation or test, that part is drawn from the training rows."""
    named = {file.split for file in seen.files}
    whole = {"validation", "test"} <= named
    return {file.path: "auto" if file.split == "train" and not whole else file.split for file in seen.files}


def _bad_rows(seen: Any) -> list[str]:
    bad = seen.problems.total()
    if not bad:
        return ["  on_bad_row: stop    # quarantine: bad rows are set apart and the rest goes on"]
    codes = ", ".join(f"{code} x {count:,}" for code, count in seen.problems.most_common())
    first = seen.first_problems[0]
    share = bad / seen.rows
    more = (
        f"\n  # max_bad_share: {min(1.0, share * 1.1):.3f}   # with quarantine: more than the default 0.01 are bad"
        * (share > 0.01)
    )
    return [
        f"  # {bad:,} of {seen.rows:,} rows cannot be used ({codes}), first {first['place']}: {_one_line(first['what'])}",
        "  # Your choice: stop trains nothing until they are mended; quarantine sets them apart and goes on.",
        f"  on_bad_row: stop{more}",
    ]


def _filters(seen: Any) -> list[str]:
    shortest, longest = min(KEPT_SHORT, seen.characters["min"]), max(KEPT_LONG, seen.characters["max"])
    lines = [f"    length: {{min_characters: {shortest}, max_characters: {longest}}}   # takes none of your rows"]
    lines += [f"    where: {json.dumps(seen.filters)}   # disliked answers are left out"] if seen.filters else []
    if not seen.scores:
        return [*lines, "    quality: null   # your rows have no quality_score column"]
    told = f"{_below_quality(seen):,} of {len(seen.scores):,} rows are not above it; scores run from {seen.scores[0]:g} to {seen.scores[-1]:g}"
    return [*lines, f"    quality: {{column: quality_score, above: {QUALITY}}}   # {told}"]


def _below_quality(seen: Any) -> int:
    return sum(not score > QUALITY for score in seen.scores)


def _split(seen: Any) -> list[str]:
    """Held-out shares: large enough to say something of few rows, nothing where files are held out already."""
    named = {file.split for file in seen.files}
    drawn = sum(file.good for file in seen.files if file.split in ("auto", "train")) - _below_quality(seen)
    test = 0.0 if "test" in named else _share(WANTED_TEST, drawn, 0.1, 0.3)
    validation = 0.0 if "validation" in named else _share(WANTED_VALIDATION, drawn, 0.05, 0.2)
    note = f"   # few rows: scores will say little, with {drawn} rows" if drawn < 100 else ""
    return [f"  split: {{validation: {validation:g}, test: {test:g}}}{note}"]


def _share(wanted: int, rows: int, least: float, most: float) -> float:
    return round(min(most, max(least, wanted / max(1, rows))), 2)


def _lengths(seen: Any) -> list[str]:
    measured = seen.measured
    if measured is None:
        tokens = _round_up(seen.characters["p99"] // CHARACTERS_PER_TOKEN + 32)
        why = f"guessed from characters, {CHARACTERS_PER_TOKEN} a token: the base's tokenizer could not be had"
    else:
        # A few rows far longer than the others would cost memory at every step.
        tokens = _round_up(measured.longest if measured.longest <= 2 * measured.p99 else measured.p99)
        why = "takes your longest row" if tokens >= measured.longest else f"the longest row has {measured.longest:,}"
        if measured.context is not None and tokens > measured.context:
            tokens, why = (
                measured.context,
                f"the base has seen no more positions; the longest row has {measured.longest:,}",
            )
    return [
        f"  max_tokens: {tokens}     # {why}",
        "  too_long: drop      # longer rows are dropped and counted; truncate cuts them",
    ]


def _evaluate(seen: Any, is_text: bool) -> list[str]:
    if is_text:
        return ["  metrics: [perplexity]   # plain texts ask nothing that could be answered"]
    if seen.json_answers > 0.9:
        metrics = "exact_match, json_validity"
    else:
        metrics = "exact_match, token_f1" if seen.answers < 80 else "rouge_l, token_f1"
    answer = seen.measured.answer_p99 if seen.measured else seen.answers // CHARACTERS_PER_TOKEN
    return [f"  metrics: [{metrics}]", f"  max_new_tokens: {_round_up(answer + 16)}"]


def _gate(is_text: bool) -> list[str]:
    if is_text:
        return ["  require: none       # there is no answer to judge; look at the perplexity in the report"]
    return ["  require: beat_base  # export and serve refuse a model that is not better than its base"]


def _round_up(tokens: int) -> int:
    """The next multiple of 32, at least 64."""
    return max(64, -(-tokens // 32) * 32)


def _quoted(text: str) -> str:
    """Text for a YAML flow mapping: bare where it is plain, else in JSON's quotes, which are YAML's."""
    plain = re.fullmatch(r"[A-Za-z/][\w/.:-]*\w", text, re.ASCII)
    word = text.lower() in {"true", "false", "null", "yes", "no", "on", "off"}
    return text if plain and not word else json.dumps(text, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:120]
