"""`tunesmith run`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.options import carry_out, pipeline_options


@click.command("run")
@pipeline_options
def command(**options: Any) -> None:
    """Carry RECIPE through every stage: prepare, train, evaluate, gate, export, serve (proven, then stopped), report.

    What exists already is reused; an edited key reruns only what depends on it.

    \b
    Examples:
      tunesmith run                                     recipe.yaml of this folder
      tunesmith run recipe.yaml --set train.epochs=3
      tunesmith run recipe.yaml --json > outcome.json   for a program
    """
    carry_out("run", **options)
