"""`tunesmith train`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.options import carry_out, pipeline_options


@click.command("train")
@pipeline_options
def command(**options: Any) -> None:
    """Train the adapter or the model. Stop it at any moment: the same command goes on.

    What exists already is reused; an edited key reruns only what depends on it.

    \b
    Examples:
      tunesmith train recipe.yaml
      tunesmith train recipe.yaml --set train.learning_rate=1e-4   a run of its own
    """
    carry_out("train", **options)
