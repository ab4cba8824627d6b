"""`tunesmith init`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import RECIPE, json_option, show_json

JUDGED = {
    "pair": "preference pairs: the chosen answers are learned (format: chosen), the rejected ones are not looked at",
    "ranked": "ranked answers: the best scored ones are learned (format: chosen), the others are not looked at",
    "kto": "answers with a label: those that were liked are learned, a filter leaves the others out",
}


@click.command("init")
@click.argument("data", nargs=-1, required=True, type=str)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=RECIPE, show_default=True, help="The recipe to write."
)
@click.option("--base", help="Base model: a folder, or owner/name on the hub; its tokenizer measures the rows.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def command(data: tuple[str, ...], out: Path, base: str | None, force: bool, as_json: bool) -> None:
    """Look at DATA (files, folders or globs) and write a commented recipe for it.

    Formats are recognised, foreign columns get a mapping, files named train, validation and test become splits.

    \b
    Examples:
      tunesmith init rows.jsonl
      tunesmith init data/ --base Qwen/Qwen3-0.6B
      tunesmith init train.csv test.csv -o tickets.yaml
    """
    from tunesmith import api

    seen: list[Any] = []
    written = api.init(*data, out=out, base=base, force=force, on_look=seen.append)
    if as_json:
        show_json({"recipe": str(written), **seen[0].to_json()})
        return
    _tell(seen[0])
    click.echo(f"wrote {written}")
    click.echo(f"next:   tunesmith check {written}")
    click.echo(f"        tunesmith run {written}")


def _tell(seen: Any) -> None:
    """What was seen, and what the user should look at in the recipe."""
    formats = ", ".join(f"{name} {count:,}" for name, count in seen.formats.most_common())
    click.echo(f"  {seen.rows:,} rows in {len(seen.files)} file{'s' * (len(seen.files) != 1)} ({formats})")
    for file in seen.files:
        if file.fields:
            mapping = ", ".join(f"{ours} is {theirs!r}" for ours, theirs in file.fields.items())
            click.echo(f"  {file.path.name}: {mapping}: is that right?")
        if file.judged:
            click.echo(f"  {file.path.name}: {JUDGED[file.judged]}")
    for path, why in seen.left_out:
        click.echo(f"  left out: {path.name} ({why})")
    if seen.skipped:
        click.echo(f"  {seen.skipped}")
    if seen.problems:
        click.echo(f"  {seen.problems.total():,} rows cannot be used: choose data.on_bad_row in the recipe")
