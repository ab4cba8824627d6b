"""`tunesmith plan`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tunesmith.cli.options import recipe_options


@click.command("plan")
@recipe_options
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Predict peak memory by part, time and disk for RECIPE on this machine, each figure with its error band."""
    from tunesmith import api

    made = api.plan(recipe, overrides=overrides)
    click.echo(json.dumps(made.to_json(), indent=1) if as_json else made.to_text())
