"""`tunesmith explain`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tunesmith.cli.options import workspace_option


@click.command("explain")
@click.argument("what")
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--run", default="latest", show_default=True, help="The run whose ledger is asked about a row.")
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(what: str, recipe: Path | None, run: str, workspace: Path, as_json: bool) -> None:
    """Explain a recipe key (with RECIPE: its value and where it came from), or what became of a row.

    \b
    tunesmith explain train.learning_rate recipe.yaml
    tunesmith explain train.jsonl:48213 --run latest
    """
    from tunesmith import api

    found = api.explain(what, recipe=recipe, run=run, workspace=workspace)
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False, default=str))
        return
    for name, value in found.items():
        if value not in (None, "", {}):
            click.echo(f"{name:>12}: {value}")
