"""`tunesmith prepare`."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.options import carry_out, pipeline_options


@click.command("prepare")
@pipeline_options
def command(**options: Any) -> None:
    """Rows to a Dataset: read, filtered, deduplicated, split, encoded, each row accounted for.

    What exists already is reused; an edited key reruns only what depends on it.

    \b
    Examples:
      tunesmith prepare recipe.yaml
      tunesmith prepare recipe.yaml --set data.filters.quality.above=0.8   encodes no row twice
      tunesmith explain rows.jsonl:17                                      what became of a row
    """
    carry_out("prepare", **options)
