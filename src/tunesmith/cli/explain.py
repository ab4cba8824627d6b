"""`tunesmith explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import RECIPE, json_option, show_json, workspace_option


@click.command("explain")
@click.argument("what", required=False)
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--run", help="The run whose ledger is asked about a row. Default: the latest one that used the file.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, for editors.")
@workspace_option
@json_option
def command(
    what: str | None, recipe: Path | None, run: str | None, schema: bool, workspace: Path, as_json: bool
) -> None:
    """Explain a recipe key (with RECIPE: its value and where it came from), a section of keys, or what became of a row.

    \b
    Examples:
      tunesmith explain                                    every key, a line each
      tunesmith explain train                              the keys of a section
      tunesmith explain train.learning_rate recipe.yaml    a key, and its value in a recipe (recipe.yaml of the folder if not named)
      tunesmith explain train.jsonl:48213                  line 48213 of a file of rows, in the latest run that used it
      tunesmith explain array.json:0 --run support-1f0c    the first of a JSON array, Parquet or Arrow, in that run
      tunesmith explain --schema > recipe.schema.json      completion and checks in an editor
    """
    from tunesmith import api

    if schema:
        show_json(api.schema())
        return
    if recipe is None and Path(RECIPE).is_file():  # as every verb does
        recipe = Path(RECIPE)
    found = api.explain(what, recipe=recipe, run=run, workspace=workspace)
    if as_json:
        show_json(found)
    elif "keys" in found:
        _print_keys(found["keys"])
    elif "status" in found:
        _print_row(found)
    else:
        for name, value in found.items():
            if value not in (None, "", {}):
                click.echo(f"{name:>12}: {value}")


def _print_keys(keys: dict[str, str]) -> None:
    width = max(map(len, keys))
    for path, doc in keys.items():
        click.echo(f"{path:<{width}}  {doc}")


def _print_row(entry: Mapping[str, Any]) -> None:
    """What became of a row, in lines that a person reads; --json has the entry as it is."""
    from tunesmith.runs.ledger import place_of

    click.echo(place_of(entry))
    for name, value in _lines(entry):
        if value not in (None, ""):
            click.echo(f"{name:>12}  {value}")


def _lines(entry: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    from tunesmith.runs.ledger import place_of
    from tunesmith.runs.rules import in_words

    rule, detail = entry.get("rule"), entry.get("detail")
    yield "status", entry["status"] + (f": {in_words(rule)}" if rule else "")
    if rule and in_words(rule) != rule:
        yield "rule", rule
    yield ("redacted" if rule == "redacted" else "found"), detail
    yield "value", _number(entry.get("value"))
    yield "threshold", _number(entry.get("threshold"))
    twin = entry.get("twin")
    if twin:
        ended = f": {in_words(twin['rule'])}" if twin.get("rule") else ""
        yield "twin", f"{place_of(twin)} ({twin['status']}{ended})"
    yield "split", entry.get("split")
    yield "tokens", _number(entry.get("tokens"))
    yield "learned", _number(entry.get("learned"))
    copies = entry.get("copies")
    if entry["status"] == "used" and copies is not None:
        yield "copies", f"{copies:,} example{'s' * (copies != 1)} of the Dataset"
    yield "run", entry.get("run")
    yield "source", entry.get("source")
    yield "row", str(entry["row"])
    yield "key", entry.get("key")


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value == int(value) else f"{value:,.6g}"
