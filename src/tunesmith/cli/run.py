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
    """
    carry_out("run", **options)
