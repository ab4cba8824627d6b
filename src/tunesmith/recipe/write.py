"""A commented recipe from a look at the data: what people edit, with why each value was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHARACTERS_PER_TOKEN = 3  # an assumption, cautious for English; other languages may need fewer


def commented_recipe(seen: Any, path: str, base: str | None) -> str:
    """YAML text. seen: stages.prepare.look.Look of the data at `path` (as it will stand in the recipe)."""
    formats = ", ".join(f"{name} ({count:,} rows)" for name, count in seen.formats.most_common())
    longest = seen.characters.get("max", 0)
    tokens = _round_up(seen.characters.get("p99", 1000) // CHARACTERS_PER_TOKEN + 32)
    answer = _round_up(seen.answer_characters // CHARACTERS_PER_TOKEN + 16)
    metrics = (
        ["exact_match", "json_validity"]
        if seen.json_answers > 0.9
        else ["exact_match", "token_f1"]
        if seen.answer_characters < 80
        else ["rouge_l", "token_f1"]
    )
    bad = ""
    if seen.bad:
        codes = ", ".join(f"{code} x {count}" for code, count in seen.problems.most_common())
        bad = f"\n  # {seen.bad:,} rows cannot be used ({codes}). stop: nothing is trained until they are mended; quarantine: they are set apart."
    shortest = min(50, seen.characters.get("min", 50))
    quality = (
        "{column: quality_score, above: 0.7}   # this column is in your rows"
        if "quality_score" in seen.columns
        else "null   # your rows have no quality_score column"
    )
    name = (
        "".join(char if char.isalnum() or char in "-_." else "-" for char in Path(path).name.split(".")[0]).strip("-._")
        or "run"
    )
    return f"""\
# Written by `tunesmith init` from a look at {path}:
#   {seen.rows:,} rows: {formats}
#   characters per row: median {seen.characters.get("p50", 0):,}, 99 of 100 below {seen.characters.get("p99", 0):,}, longest {longest:,}
# Next: tunesmith check RECIPE, tunesmith plan RECIPE, tunesmith run RECIPE. `tunesmith explain KEY` explains each key.

name: {name}
seed: 17

model:
  base: {base or "builtin:tunesmith-tiny"}   # a folder, or owner/name on the hub (for example Qwen/Qwen3-0.6B); the default is a toy for trying things out

adapter:
  type: lora          # "full" trains every weight
  rank: 16
  alpha: 32

data:
  sources:
    - {{path: {path!r}, split: auto}}   # split: train, validation or test where a file is one of them{bad}
  on_bad_row: stop
  filters:
    length: {{min_characters: {shortest}, max_characters: {max(10_000, longest)}}}
    quality: {quality}
  deduplicate: exact
  leaks: drop         # training rows whose prompt is also held out are taken out
  split: {{validation: 0.05, test: 0.1}}
  max_tokens: {tokens}     # longer rows are dropped and counted; too_long: truncate cuts them
  too_long: drop

train:
  epochs: 2
  batch_size: 16      # examples per step; memory decides how many go through at once (micro_batch: auto)
  learning_rate: 2.0e-4
  schedule: {{type: cosine, warmup: 0.05}}
  early_stopping: {{patience: 3}}

evaluate:
  metrics: [{", ".join(metrics)}]
  max_new_tokens: {answer}

gate:
  require: beat_base  # export and serve refuse a model that is not better than its base
"""


def _round_up(tokens: int) -> int:
    """The next multiple of 32, at least 64."""
    return max(64, -(-tokens // 32) * 32)
