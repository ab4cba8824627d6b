"""`tunesmith check`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tunesmith.cli.options import recipe_options, show_json, workspace_option


@click.command("check")
@recipe_options
@workspace_option
def command(recipe: Path, overrides: tuple[str, ...], workspace: Path, as_json: bool) -> None:
    """Say everything that is wrong with RECIPE, its model and its rows. Trains and writes nothing.

    Leaves with the status that `tunesmith run` would leave with: 64 recipe, 65 rows, 66 model, 0 when nothing is wrong.

    \b
    Examples:
      tunesmith check recipe.yaml
      tunesmith check recipe.yaml --json   facts, warnings and problems for a program
    """
    from tunesmith import api

    def tell(phase: str) -> None:
        if not as_json:
            click.echo(f"  looking at {phase}", err=True)

    found = api.check(recipe, overrides=overrides, workspace=workspace, on_phase=tell)
    if as_json:
        show_json(found.to_json())
        sys.exit(found.exit_status)
    for fact in found.facts:
        click.echo(f"  {fact}")
    for warning in found.warnings:
        click.echo(f"  warning: {warning}")
    for problem in found.problems:
        click.echo(str(problem), err=True)
    count = len(found.problems)
    click.echo(f"{count} problem{'s' * (count != 1)}" if count else "nothing is wrong")
    sys.exit(found.exit_status)
