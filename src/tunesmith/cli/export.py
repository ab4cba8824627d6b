"""`tunesmith export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import carry_out, pipeline_options


@click.command("export")
@pipeline_options
@click.option(
    "--to", type=click.Path(path_type=Path), help="Also copy the merged model into this folder, every hash checked."
)
def command(to: Path | None, **options: Any) -> None:
    """Write the merged model and the adapter, proven equal to what was trained. Refuses when the gate says hold.

    RECIPE may also be a run (or "latest"): then what it has trained, by the recipe that it has, overrides and all.

    \b
    Examples:
      tunesmith export recipe.yaml
      tunesmith export recipe.yaml --to ./my-model   a folder that transformers loads
      tunesmith export latest --to ./my-model        of the last run, whatever --set it was given
    """
    carry_out("export", to=to, **options)
    if to and not options["as_json"]:
        click.echo(f"model:  {to}")
