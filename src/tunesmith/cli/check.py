"""`tunesmith check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from tunesmith.cli.options import recipe_options


@click.command("check")
@recipe_options
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say everything that is wrong with RECIPE, its model and its rows. Trains and writes nothing."""
    from tunesmith import api

    found = api.check(recipe, overrides=overrides)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        sys.exit(found.exit_status)
    for fact in found.facts:
        click.echo(f"  {fact}")
    for problem in found.problems:
        click.echo(str(problem), err=True)
    click.echo(
        f"{len(found.problems)} problem{'s' * (len(found.problems) != 1)}" if found.problems else "nothing is wrong"
    )
    sys.exit(found.exit_status)
