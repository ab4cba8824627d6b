"""`tunesmith evaluate`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.options import carry_out, pipeline_options


@click.command("evaluate")
@pipeline_options
def command(**options: Any) -> None:
    """Ask base and tuned model the same held-out items, compare with intervals, judge the gate.

    What exists already is reused; an edited key reruns only what depends on it.

    \b
    Examples:
      tunesmith evaluate recipe.yaml
      tunesmith evaluate recipe.yaml --set evaluate.max_items=50   a quick look
    """
    carry_out("evaluate", **options)
