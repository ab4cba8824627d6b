"""`tunesmith plan`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import recipe_options, show_json, workspace_option


@click.command("plan")
@recipe_options
@workspace_option
def command(recipe: Path, overrides: tuple[str, ...], workspace: Path, as_json: bool) -> None:
    """Predict peak memory by part, time and disk for RECIPE on this machine, each figure with its error band.

    Of a model on the hub it fetches config.json only. Trainings in the workspace have noted how fast this machine is;
    once the rows are prepared there, steps and times are in the plan too.

    \b
    Examples:
      tunesmith plan recipe.yaml
      tunesmith plan recipe.yaml --set model.base=Qwen/Qwen3-8B   would that fit?
      tunesmith plan recipe.yaml --json                           for a program
    """
    from tunesmith import api

    made = api.plan(recipe, overrides=overrides, workspace=workspace)
    if as_json:
        show_json(made.to_json())
    else:
        click.echo(made.to_text())
